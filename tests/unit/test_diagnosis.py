"""Why a number differs from the recorded one: each cause is really there, and each is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dd.cli.main import run_command_line
from dd.errors import UsageError
from dd.io import SEAL, sealed, sha256_file
from dd.pipeline.diagnosis import diagnose
from dd.pipeline.inventory import inventory

METHOD = '''
from dataclasses import dataclass
from dd.engine.method import Method, Synthetic
from dd.engine.registry import register


@register("plain")
@dataclass(frozen=True)
class Plain(Method):
    """Random real images, as they are."""

    shift: float = 0.0

    def start(self, task, prepared):
        return Synthetic(task.first_images() + self.shift, task.targets)
'''
RECIPE = """
[defaults]
shift = 0.5

[defaults.student]
width = 4

[defaults.eval]
protocol = "smoke"
steps = 2
batch = 16
students = 1
full = false
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A small data set of one file, and a method of one file whose recipe is cheap."""
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text(METHOD)
    (tmp_path / "plain.toml").write_text(RECIPE)
    save_images(tmp_path / "images.npz", seed=0)
    return tmp_path


def save_images(file, seed):
    rng = np.random.default_rng(seed)
    images = {f"{part}_images": rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8) for part in ("train", "test")}
    np.savez(file, **images, **{f"{part}_labels": np.arange(20) % 2 for part in ("train", "test")})


@pytest.fixture
def run(place, capsys):
    return made(place, capsys)


def made(place, capsys, *more):
    args = [f"method={place / 'plain.py'}", f"dataset=npz:{place / 'images.npz'}", "ipc=1", "device=cpu", *more]
    assert run_command_line(["run", *args, "--json"]) == 0, capsys.readouterr().err
    return Path(json.loads(capsys.readouterr().out)["folder"])


def named(run):
    return [(one.cause, one.what, one.where) for one in diagnose(str(run)).findings]


def rewritten(file, **changed):
    """Change entries of a report, and seal it again."""
    report = json.loads(file.read_text())
    del report[SEAL]
    file.write_text(json.dumps(sealed(report | changed)))


def test_nothing_differs_in_an_untouched_run(run, capsys):
    assert named(run) == []
    assert run_command_line(["doctor", str(run)]) == 0
    assert capsys.readouterr().out.endswith("nothing differs\n")
    assert run_command_line(["doctor", str(run / "report.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["findings"], found["name"], found["accuracy"]["n"]) == ([], diagnose(str(run)).report.name, 1)


def test_a_setting_that_is_not_the_recipes(place, capsys):
    run = made(place, capsys, "shift=0.25")
    (one,) = diagnose(str(run)).findings
    assert (one.cause, one.what, one.recorded, one.now, one.where) == ("setting", "shift", 0.5, 0.25, "recipe")
    assert run_command_line(["doctor", str(run)]) == 1
    assert "! shift: 0.25 in the run, 0.5 in " in capsys.readouterr().out


def test_a_setting_altered_in_the_recipe_file_afterwards(run):
    text = run / "recipe.toml"
    text.write_text(text.read_text().replace("shift = 0.5", "shift = 0.75"))
    assert named(run) == [("file", "recipe.toml", "record"), ("setting", "shift", "record")]
    (_, one) = diagnose(str(run)).findings
    assert (one.recorded, one.now) == (0.5, 0.75)


def test_a_version_and_a_device(run):
    report = json.loads((run / "report.json").read_text())
    versions = report["versions"] | {"torch": "2.0.0"}
    rewritten(run / "report.json", versions=versions, device="cpu (another, 3 threads)")
    found = diagnose(str(run)).findings
    assert [(one.cause, one.what) for one in found] == [("version", "torch"), ("device", "device")]
    assert (found[0].recorded, found[0].now) == ("2.0.0", report["versions"]["torch"])
    assert found[1].now == report["device"]


def test_a_data_file(place, run, capsys):
    save_images(place / "images.npz", seed=1)
    (one,) = diagnose(str(run)).findings
    assert (one.cause, one.where) == ("data", "record")
    assert one.recorded == diagnose(str(run)).report.dataset["fingerprint"] != one.now
    assert "images.npz (changed)" in one.words
    (place / "images.npz").unlink()
    found = diagnose(str(run))
    assert found.findings == ()
    assert any("no such file" in why for why in found.unknown)


def test_the_code_of_the_method(place, run):
    (place / "plain.py").write_text(METHOD.replace("self.shift", "2 * self.shift"))
    found = diagnose(str(run))
    assert [(one.cause, one.what) for one in found.findings] == [("code", "method")]
    assert any("the code of" in why for why in found.unknown)  # changed code is not imported to be compared


def test_an_altered_set_and_an_accuracy_outside_the_band(place, capsys):
    cell = f'["npz:{place / "images.npz"}".ipc1]\nexpect = {{ accuracy = [99.0, 100.0], verified = true }}\n'
    (place / "plain.toml").write_text(RECIPE + cell)
    run = made(place, capsys)
    (one,) = diagnose(str(run)).findings
    assert (one.cause, one.recorded, one.where) == ("accuracy", [99.0, 100.0], "recipe")
    file = run / "set.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert named(run) == [("file", "set.safetensors", "record"), ("accuracy", "accuracy", "recipe")]


def test_files_are_compared_by_content_where_a_set_is_small(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"one")
    (tmp_path / "2.png").write_bytes(b"two")
    found = inventory(str(tmp_path))
    assert set(found) == {"a/1.png", "2.png"}
    assert found["2.png"][0] == 3
    assert len(found["2.png"]) == 3
    assert inventory(str(tmp_path / "2.png")).keys() == {"2.png"}
    assert inventory("the package of nobody") == {}


def test_files_that_cannot_be_read_or_named_do_not_stop_a_run(tmp_path, monkeypatch):
    (tmp_path / "1.png").write_bytes(b"one")
    (tmp_path / "closed.png").write_bytes(b"two")
    os.mkfifo(tmp_path / "pipe")
    odd = os.fsdecode(b"\xff.png")
    (tmp_path / odd).write_bytes(b"odd")

    def read(path):
        if path.name == "closed.png":  # tests may run as root, who reads everything
            raise PermissionError(path)
        return sha256_file(path)

    monkeypatch.setattr("dd.pipeline.inventory.sha256_file", read)
    found = inventory(str(tmp_path))
    assert {name: len(facts) for name, facts in found.items()} == {"1.png": 3, "closed.png": 2, "\\xff.png": 3}
    json.dumps(found, ensure_ascii=False).encode()


def test_a_report_without_settings_is_compared_by_its_recipe_file(run, capsys):
    rewritten(run / "report.json", recipe={})
    found = diagnose(str(run))
    assert (found.findings, len(found.unknown)) == ((), 1)
    assert run_command_line(["doctor", str(run)]) == 0
    assert "nothing that was compared differs" in capsys.readouterr().out


def test_a_report_without_the_fingerprint_of_its_data(run):
    dataset = json.loads((run / "report.json").read_text())["dataset"]
    rewritten(run / "report.json", dataset={key: value for key, value in dataset.items() if key != "fingerprint"})
    found = diagnose(str(run))
    assert found.findings == ()
    assert found.unknown == ("the data are not compared, because the report has no fingerprint of them",)


@pytest.mark.parametrize("recipe", [{"digests": {}}, {"settings": {}, "method_version": "one"}], ids=["less", "words"])
def test_a_report_whose_settings_are_damaged_is_refused_in_one_line(run, capsys, recipe):
    rewritten(run / "report.json", recipe=recipe)
    assert run_command_line(["doctor", str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be read as a report: recipe" in line


def test_settings_that_a_method_leaves_to_the_user(place, capsys):
    data = f"dataset=npz:{place / 'images.npz'}"
    words = ["method=dsa", data, "fraction=0.1", "outer=1", "inner=1", "iterations=1", "student.width=4", "device=cpu"]
    assert run_command_line(["run", *words, "eval.protocol=smoke", "eval.steps=1", "eval.full=false", "--json"]) == 0
    found = diagnose(json.loads(capsys.readouterr().out)["folder"])
    assert found.findings == ()
    (why,) = found.unknown
    assert "settings are not compared with the method's defaults, which lack some: dsa: outer, inner" in why


def test_an_edited_device_is_not_here(run):
    recipe = json.loads((run / "report.json").read_text())["recipe"]
    rewritten(run / "report.json", recipe=recipe | {"settings": recipe["settings"] | {"device": "no such"}})
    assert ("device", "device", "record") in named(run)


def test_no_finished_run(tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        diagnose(str(tmp_path))
