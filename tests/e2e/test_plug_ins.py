"""Methods that are not ours: a file in the making, and an installed package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dd import load
from dd.engine import registry

METHOD = '''
"""A method that is not dd's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.needs import Got
from dd.engine.registry import register
from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Optimizer


@register("blur")
@dataclass(frozen=True)
class Blur(Method[Tensor]):
    """Pulls one real image per slot towards the mean of its class."""

    iterations: Annotated[int, Field(ge=0)] = 5
    """How many."""
    lr_img: Annotated[float, Field(gt=0)] = 100.0
    """SGD learning rate of the pixels."""

    def prepare(self, task: Task, got: Got) -> Tensor:
        """Mean images of the classes."""
        train = task.data.train
        return torch.stack([train.images(train.of_class(c)).mean(0) for c in range(task.classes)])

    def start(self, task: Task, prepared: Tensor) -> Synthetic:
        """Random real images."""
        return Synthetic(task.data.train.images(task.real_indices("start")), task.targets)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """SGD on the pixels."""
        return [SGD([syn.images], lr=self.lr_img)]

    def loss(self, syn: Synthetic, task: Task, prepared: Tensor, it: int) -> Objective:
        """Squared distance to the class means."""
        return (syn.images - prepared[syn.targets]).square().mean()
'''
PACKAGE = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "dd-blur"
version = "0.1"

[project.entry-points."dd.methods"]
blur = "dd_blur:Blur"

[tool.setuptools]
py-modules = ["dd_blur"]
"""


@pytest.fixture
def tiny(pictures):
    return (pictures, "ipc=2", "device=cpu", "compile=false", "student.depth=1", "student.width=4", "eval.steps=3")


@pytest.fixture(autouse=True)
def forgotten():
    """The methods of these tests stay in them."""
    yield
    registry._registered.pop("blur", None)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that a package with a method is installed in."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(PACKAGE)
    (source / "dd_blur.py").write_text(METHOD)
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation")
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return target


def test_an_installed_package_is_listed_and_runs(place, tiny, installed, monkeypatch):
    assert "blur" not in {row["name"] for row in place.dd("methods", "--json").report["methods"]}
    ended = place.process("run", "method=blur", *tiny, "lr_img=50", "--json", PYTHONPATH=str(installed))
    assert ended.code == 0, ended.err
    report = ended.report
    assert "\x1b" not in ended.out + ended.err
    assert report["name"].startswith("blur/")
    start, end = (load(report["files"][name]) for name in ("start", "set"))
    assert end.images.square().mean() < start.images.square().mean()  # means are smoother than images
    assert end.provenance["method"] == "blur"

    monkeypatch.syspath_prepend(installed)
    row = next(row for row in place.dd("methods", "--json").report["methods"] if row["name"] == "blur")
    summary = "Pulls one real image per slot towards the mean of its class."
    assert row == {"name": "blur", "family": "plug-in", "package": "dd-blur", "summary": summary, "error": None}
    assert summary in place.dd("methods").out
    # recorded as what it is, so that the recipe beside the result is that run
    assert place.dd("run", f"recipe={report['folder']}", "--json").report["fresh"] is False


@pytest.mark.slow
def test_every_command_of_the_page(place, tiny, tmp_path):
    """A package that `dd new method` wrote: installed, listed, run, tested, nothing in it touched."""
    page = (Path(__file__).parents[2] / "docs/pages/howto/plugin.md").read_text(encoding="utf-8")
    new, install, methods, run, tests = (line.split() for line in re.findall(r"^    (\S.*)$", page, re.MULTILINE)[:5])
    assert place.process(*new[1:]).code == 0
    written = place.files()
    assert place.process(*new[1:]).code == 2  # nothing is written over
    assert place.files() == written

    assert install[:3] == ["pip", "install", "-e"]
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation")
    target, folder = tmp_path / "site", place.path / install[3]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr

    assert "Match the class means" in place.process(*methods[1:], PYTHONPATH=str(target)).out
    listed = place.process("recipes", "my-idea", "--json", PYTHONPATH=str(target)).out
    assert "cifar10" in listed
    ended = place.process(*run[1:], *tiny, "iterations=2", "--json", PYTHONPATH=str(target))
    assert ended.code == 0, ended.err
    assert ended.report["name"].startswith("my-idea/")

    environment = place.environment | {"PYTHONPATH": str(target)}
    command = [sys.executable, "-m", *tests, "-q", "-p", "no:cacheprovider", "-c", str(folder / "pyproject.toml")]
    done = subprocess.run(command, cwd=place.path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout
    assert "19 passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dm", "there is a method 'dm' already"),
        ("class", "a keyword of Python"),
        ("9x", "cannot name a method"),
        ("../x", "cannot name a method"),
        ("Mine", "cannot name a method"),
        ("a" * 50, "cannot name a method"),
    ],
)
def test_names_that_a_new_method_cannot_have(place, name, why):
    ended = place.dd("new", "method", name)
    assert (ended.code, place.files()) == (2, set())
    assert why in ended.err


def test_the_conformance_suite_runs_on_it(place, installed):
    environment = place.environment | {"PYTHONPATH": str(installed)}
    command = [
        sys.executable,
        "-m",
        "dd.testing",
        "--method",
        "blur",
        "-q",
        "-k",
        "registered or frozen",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=place.path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert place.files() == set()


def test_a_file_in_the_making(place, tiny):
    file = place.path / "my blur.py"
    file.write_text(METHOD)
    first = place.dd("run", "method=my blur.py", *tiny, "--json").report
    assert place.dd("run", f"method={file}", *tiny, "--json").report["fresh"] is False
    assert json.loads(place.dd("show", f"recipe={first['folder']}", "--json").out)["recipe"]["method"] == str(file)

    # a changed file is another method, also for a session that has run it before
    file.write_text(METHOD.replace(".square()", ".abs()"))
    second = place.dd("run", "method=my blur.py", *tiny, "--json").report
    assert second["folder"] != first["folder"]
    one, two = (load(report["files"]["set"]).images for report in (first, second))
    assert not torch.equal(one, two)


def test_two_files_of_one_name(place, tiny):
    for folder, name in (("a", "blur"), ("b", "blurred")):
        (place.path / folder).mkdir()
        (place.path / folder / "mine.py").write_text(METHOD.replace('"blur"', f'"{name}"'))
        assert place.dd("run", f"method={folder}/mine.py", *tiny, "--json").report["name"].startswith(f"{name}/")
