"""What `import dd` offers, as the README shows it."""

import json
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import dd
from dd.errors import UsageError

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


def test_it_is_the_same_run_as_the_command_lines(finished):
    with finished.entered():
        outcome = dd.run("random", **SETTINGS)
    assert not outcome.fresh
    assert outcome.folder.path == finished.folder()


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
