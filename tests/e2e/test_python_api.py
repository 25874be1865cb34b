"""What `import dd` offers, as the README shows it."""

import base64
import json
import random
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dd.methods.selection.random import Random

import dd
from dd.errors import UsageError
from dd.evaluation.protocols import PROTOCOLS

SETTINGS = {
    "ipc": 1,
    "device": "cpu",
    "compile": False,
    "student": {"depth": 1, "width": 4},
    "eval": {"protocol": "smoke", "steps": 3, "full": False},
}
FRESH = """
import json, sys
import dd
outcome = dd.run("random", **json.loads(sys.argv[1]))
again = dd.evaluate(outcome.set, compile=False, device="cpu")
print(json.dumps([name for name in ("wandb", "timm", "huggingface_hub", "torch") if name in sys.modules]))
"""


def generators() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state(legacy=True)[1].tolist(), random.getstate()  # noqa: NPY002


def test_run_load_and_evaluate(place, capsys):
    before = generators()
    with place.entered():
        outcome = dd.run("random", **SETTINGS)
        small = dd.load(outcome.folder.path / "set.safetensors")
        scored = dd.evaluate(small, compile=False, device="cpu")
        other = dd.evaluate(str(outcome.folder.set), compile=False, device="cpu", **{"eval.students": 1})
    assert generators() == before
    report = outcome.report
    assert outcome.fresh
    assert outcome.folder.path.is_relative_to(place.runs)
    assert report.accuracy.mean == sum(report.accuracy.values) / 2
    assert report.control is not None
    assert report.command.startswith("dd.run('random', ipc=1, ")
    assert (small.images.shape, small.targets().shape) == ((10, 1, 28, 28), (10, 10))
    assert torch.equal(outcome.set.images, small.images)
    assert scored.accuracy.values == report.accuracy.values
    assert scored.start is not None
    assert report.start is not None
    assert scored.start.values == report.start.values  # found in the folder of the run
    assert other.accuracy.values == report.accuracy.values[:1]
    assert isinstance(small, dd.DistilledSet)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arch", ["vgg11", "alexnet", "lenet", "mlp", "vit"])
def test_a_set_of_a_convnet_trains_other_architectures(finished, arch):
    student = {"arch": arch} | ({} if arch == "lenet" else {"width": 8})
    with finished.entered():
        outcome = dd.run("random", **SETTINGS)
        report = dd.evaluate(outcome.set, compile=False, device="cpu", student=student, **{"eval.students": 1})
    assert report.student["arch"] == arch
    assert len(report.accuracy.values) == 1
    assert 0 <= report.accuracy.mean <= 100


def test_a_start_of_another_run_is_not_that_of_a_set(finished, tmp_path):
    moved, how = tmp_path / "moved", {"compile": False, "device": "cpu", "eval.students": 1}
    moved.mkdir()
    with finished.entered():
        outcome = dd.run("random", **SETTINGS)
        shutil.copy(outcome.folder.set, moved)
        assert dd.evaluate(moved / "set.safetensors", **how).start is None
        start = dd.load(outcome.folder.start)
        replace(start, provenance={**start.provenance, "recipe": "0" * 16}).save(moved / "start.safetensors")
        assert dd.evaluate(moved / "set.safetensors", **how).start is None
        start.save(moved / "start.safetensors")
        assert dd.evaluate(moved / "set.safetensors", **how).start is not None


def test_it_is_the_same_run_as_the_command_lines(finished):
    with finished.entered():
        outcome = dd.run("random", **SETTINGS)
    assert not outcome.fresh
    assert outcome.folder.path == finished.folder()


def test_objects_are_the_same_run_too(finished):
    smoke = replace(PROTOCOLS["smoke"], steps=3, full=False)
    for method in ("random", Random()):
        with finished.entered():
            settings = {"ipc": 1, "device": torch.device("cpu"), "compile": False}
            outcome = dd.run(method, **settings, student=dd.NetworkSpec(depth=1, width=4), eval=smoke)
        assert not outcome.fresh
        assert outcome.folder.path == finished.folder()


def test_whatever_names_a_set_loads_and_scores_it(finished):
    again = {"compile": False, "device": "cpu"}
    with finished.entered():
        outcome = dd.run("random", **SETTINGS)
        names = (outcome, outcome.folder.path, str(outcome.folder.path), outcome.folder.set, outcome.set)
        scored = [dd.evaluate(name, **again) for name in names]
        assert {dd.load(name).digest() for name in names[:-1]} == {outcome.set.digest()}
        named = dd.evaluate(
            outcome, **again, student="resnet18", eval={"students": 1, "steps": 1}, **{"student.width": 4}
        )
    assert {report.accuracy.values for report in scored} == {outcome.report.accuracy.values}
    assert (named.student["arch"], named.student["width"], named.accuracy.n) == ("resnet18", 4, 1)
    with pytest.raises(UsageError, match="is a folder without a set"):
        dd.load(finished.path)


def test_what_is_shown_is_short_and_a_notebook_sees_more(finished):
    with finished.entered():
        outcome = dd.run("random", **SETTINGS)
    assert str(outcome.folder.path) in repr(outcome)
    for shown in (outcome, outcome.report, outcome.set):
        assert len(repr(shown)) < 200 + len(str(outcome.folder.path))
        assert "random/fashion-mini/ipc1" in repr(shown)
    table = outcome.report._repr_html_()
    assert f"<td>{outcome.report.accuracy.mean:.2f} ± {outcome.report.accuracy.std:.2f}</td>" in table
    assert "eval.full=false" in table
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', outcome._repr_html_())
    assert base64.b64decode(picture) == outcome.folder.images_png.read_bytes()
    assert outcome._repr_html_().startswith(table)
    assert outcome.set._repr_png_().startswith(b"\x89PNG")


def test_there_are_the_public_names_and_nothing_else():
    names = ["DataSettings", "DistilledSet", "NetworkSpec", "Outcome", "Protocol", "Report", "evaluate"]
    names += ["export", "import_sets", "list_methods", "list_protocols", "list_recipes", "load", "push", "run"]
    assert dir(dd) == sorted(dd.__all__) == names
    assert all(callable(getattr(dd, name)) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        dd.optimise  # noqa: B018


def test_the_reference_has_every_public_name():
    page = (Path(__file__).parents[2] / "docs/pages/reference/python.md").read_text(encoding="utf-8")
    assert [name for name in dd.__all__ if not re.search(rf"\.{name}\b", page)] == []


@pytest.mark.parametrize(
    "first", ["dd.run, dd.list_recipes", "dd.methods, dd.recipes, dd.data, dd.runs, dd.evaluation"]
)
def test_the_names_stand_whatever_is_imported_first(first, place):
    """Importing dd.NAME binds NAME in dd: no public name may be that of a package."""
    second = (
        "import dd.methods.selection.random, dd.recipes.resolve, dd.sets.formats, dd.pipeline.run, dd.data.settings"
    )
    start = f"import dd; {first}" if first.startswith("dd.run") else f"import {first}"
    told = "print(*(f'{name}:{type(getattr(dd, name)).__name__}' for name in dd.__all__)); print(*dir(dd))"
    code = f"{start}\n{second}\n{told}"
    done = subprocess.run([sys.executable, "-c", code], env=place.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kinds, shown = done.stdout.splitlines()
    assert dict(pair.split(":") for pair in kinds.split()) == {
        name: "function" if name.islower() else "type" for name in dd.__all__
    }
    assert shown.split() == dd.__all__


def test_importing_it_imports_little(place):
    code = "import sys, dd; dir(dd); print([name for name in ('torch', 'pydantic', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=place.environment, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_lists_are_data():
    methods = {entry.name: entry for entry in dd.list_methods()}
    assert {"mtt", "datm", "random"} <= methods.keys()
    assert [entry.name for entry in dd.list_methods("sre2l*")] == ["sre2l", "sre2lpp"]
    assert methods["dm"].family == "distribution"
    cells = {cell.name: cell for cell in dd.list_recipes("dm")}
    assert cells["fashion-mini.ipc10"].settings["lr_img"] == 10
    assert repr(cells["fashion-mini.ipc10"]) == "<Cell fashion-mini.ipc10 of recipes/dm.toml>"
    assert [protocol.protocol for protocol in dd.list_protocols()] == list(PROTOCOLS)
    assert dd.list_protocols("mtt") == [PROTOCOLS["mtt"]]
    with pytest.raises(UsageError, match="unknown method 'dn'"):
        dd.list_recipes("dn")


def test_an_option_of_the_wrong_kind_is_refused(place):
    with place.entered(), pytest.raises(UsageError, match="track='wandv'"):
        dd.run("random", **SETTINGS, track="wandv")
    assert place.files() == set()


def test_errors_are_exceptions(place):
    with place.entered(), pytest.raises(UsageError, match="'lr_img'"):
        dd.run("mtt", lr_imgg=3.0)
    assert place.files() == set()


def test_outside_the_main_thread(place):
    found = []
    with place.entered():
        thread = threading.Thread(target=lambda: found.append(dd.run("random", **SETTINGS)))
        thread.start()
        thread.join()
    assert found[0].fresh


def test_nothing_optional_is_imported(place, pictures):
    settings = SETTINGS | {"dataset": pictures.removeprefix("dataset=")}
    command = [sys.executable, "-c", FRESH, json.dumps(settings)]
    done = subprocess.run(command, env=place.environment, cwd=place.path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["torch"]
