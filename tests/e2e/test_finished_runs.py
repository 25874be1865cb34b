"""What is finished is reported; what a change does not touch is kept."""

from pathlib import Path

import torch

from dd import load


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def test_the_same_command_reports_and_redoes_nothing(place, small):
    first = place.dd("run", *small, "--json")
    assert first.report["fresh"] is True
    kept, files = stamps(place.folder()), place.files()

    again = place.dd("run", *small, "--json")
    assert again.report == first.report | {"fresh": False}
    assert "finished before: reported, not redone; force=true redoes it" in again.err
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
