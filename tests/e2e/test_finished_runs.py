"""What is finished is reported; what a change does not touch is kept."""

import shutil
from pathlib import Path

import pytest
import torch
from dd.methods.trajectory.mtt import MTT

from dd import load


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def test_the_same_command_reports_and_redoes_nothing(place, small):
    first = place.dd("run", *small, "--json")
    assert first.report["fresh"] is True
    kept, files = stamps(place.folder()), place.files()

    again = place.dd("run", *small, "--json")
    assert again.report == first.report | {"fresh": False}
    assert "already finished: reported, not repeated; force=true repeats it" in again.err
    assert "made" not in again.err
    assert stamps(place.folder()) == kept
    assert place.files() == files

    forced = place.dd("run", *small, "force=true", "--json")
    assert forced.report["fresh"] is True
    assert "kept expert 2 of 2" in forced.err
    for made in ("made set", "made student 1 on the distilled set", "made student 1 on random real images"):
        assert made in forced.err
    assert stamps(place.folder())["set.safetensors"][0] > kept["set.safetensors"][0]
    for arm in ("accuracy", "control", "start"):
        assert forced.report[arm] == first.report[arm]


def test_another_evaluation_keeps_the_set(place, small):
    one = place.dd("run", *small, "--json").report
    (stored,) = (place.home / "sets").glob("*.safetensors")
    before = stored.stat().st_mtime_ns, stored.read_bytes()

    ended = place.dd("run", *small, "eval.momentum=0.5", "eval.students=3", "--json")
    other = ended.report
    assert "kept set" in ended.err
    assert "made set" not in ended.err
    assert "made student 1 on the distilled set" in ended.err
    assert other["folder"] != one["folder"]
    assert other["fingerprint"] != one["fingerprint"]
    assert len(other["accuracy"]["values"]) == 3
    assert (stored.stat().st_mtime_ns, stored.read_bytes()) == before
    assert len(list((place.home / "sets").glob("*.safetensors"))) == 1
    for name in ("set", "start"):
        old, new = load(one["files"][name]), load(other["files"][name])
        assert torch.equal(old.images, new.images)
        assert torch.equal(old.labels, new.labels)
        assert new.protocol["momentum"] == 0.5
    assert Path(one["files"]["log"]).read_bytes() == Path(other["files"]["log"]).read_bytes()

    more = place.dd("run", *small, "eval.students=3", "--json")
    assert more.report["accuracy"]["values"][:2] == one["accuracy"]["values"]
    assert "kept student 2 on the distilled set" in more.err


def test_another_synthesis_keeps_the_experts(place, small):
    place.dd("run", *small)
    ended = place.dd("run", *small, "iterations=3", "seed=1")
    assert ended.code == 0
    assert "kept expert 2 of 2" in ended.err
    assert "made expert" not in ended.err
    assert "made set" in ended.err


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("spoil", [Path.unlink, flip], ids=["gone", "flipped"])
@pytest.mark.parametrize("name", ["set.safetensors", "start.safetensors", "log.csv", "recipe.toml", "report.json"])
def test_what_a_finished_run_lost_comes_back_from_the_store(place, small, name, spoil):
    first = place.dd("run", *small, "--json").report
    before = stamps(place.folder())
    spoil(place.folder() / name)
    if name != "report.json":
        shutil.rmtree(place.home / "experts")  # of which nothing is needed for it
    assert not place.dd("run", *small, "--dry-run", "--json").report["finished"]
    again = place.dd("run", *small, "--json")
    assert again.code == 0, again.err
    assert "made set" not in again.err
    assert "made student" not in again.err
    assert "made expert" not in again.err
    for arm in ("accuracy", "control", "start"):
        assert again.report[arm] == first[arm]
    after = stamps(place.folder())
    for file in before.keys() - {"report.json", "images.png", "progress.png"}:
        assert after[file][1] == before[file][1], file
    if (name, spoil) != ("report.json", Path.unlink):
        assert f"{place.folder() / name} is damaged (" in again.err
    assert place.dd("run", *small, "--json").report["fresh"] is False


def test_one_run_has_one_hash(place, small):
    """Also where its method decides how it goes about it, which stands in the recipe of its folder."""
    report = place.dd("run", *small, "--json").report
    folder, written = report["folder"], (place.folder() / "recipe.toml").read_text()
    assert 'backprop = "auto"' in written
    assert '[settled]\nseal = "' in written
    assert Path(folder).name.startswith(report["recipe_hash"][:8])
    shown = place.dd("show", *small, "--json").report["hash"]
    planned = place.dd("run", *small, "--dry-run", "--json").report["recipe"]
    again = place.dd("run", f"recipe={folder}", "--json").report
    assert report["recipe_hash"] == shown == planned == again["recipe_hash"]
    assert written.startswith(f"# mtt/{report['dataset']['name']}/ipc1, recipe {shown}\n")
    assert again["fresh"] is False
    assert again["folder"] == folder


def test_a_recipe_in_a_runs_folder_is_that_runs_or_refused(place, small):
    report = place.dd("run", *small, "--json").report
    file = place.folder() / "recipe.toml"
    file.write_text(file.read_text().replace("iterations = 4", "iterations = 5"))
    ended = place.dd("show", f"recipe={report['folder']}")
    assert ended.code == 2
    assert "was changed" in ended.err
    assert f"recipe={report['folder']}/recipe.toml uses it as it is" in ended.err
    assert place.dd("show", f"recipe={report['folder']}/recipe.toml").code == 0


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("old", "new"),
    [('backprop = "full"', 'backprop = "checkpoint"'), ('backprop = "full"', 'backprop = "nonsense"'), ("]\n", "]]\n")],
)
def test_a_changed_decision_is_not_taken_up(place, small, old, new):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MTT, "loss", interrupt)
        assert place.dd("run", *small).code == 130
    file = place.folder() / "recipe.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    ended = place.dd("run", *small, "--json")
    assert ended.code == 0, ended.err
    assert "recipe" in ended.err
    assert "again" in ended.err
    assert file.read_text() == text
