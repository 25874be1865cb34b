"""A set made in independent parts: the same bits from any number of processes, and on at the first missing part."""

import json
import os
import re
from signal import SIGKILL

import pytest
import torch

from dd import load
from dd.engine.synthesise import CHECKPOINT_EVERY
from dd.io import locked
from dd.pipeline import locate, synthesis
from dd.pipeline.parts import KIND, part_spec
from dd.pipeline.run import opened, prepare
from dd.recipes import parse_overrides, resolve

METHOD = '''
"""A method of parts."""

from dataclasses import dataclass

import torch
from dd.engine.method import Method, Synthetic
from dd.engine.registry import register
from torch.optim import Adam


@register("pieces")
@dataclass(frozen=True)
class Pieces(Method):
    """Pulls noise towards noise, class by class.

    Attributes:
        iterations: how many.
        split: in parts.
    """

    iterations: int = 15
    split: bool = True

    def parts(self, task):
        """One per class."""
        places = torch.arange(len(task.targets))
        return [places[task.targets.cpu() == c] for c in range(task.classes)] if self.split else super().parts(task)

    def start(self, task, prepared):
        """Noise, or as init says."""
        return Synthetic(task.first_images("noise"), task.targets)

    def optimisers(self, syn):
        """Adam on the pixels."""
        return [Adam([syn.images], lr=0.1)]

    def loss(self, syn, task, prepared, it):
        """Squared distance from noise that is drawn again, in steps of real work."""
        with torch.no_grad():
            for _ in range(3):
                torch.randn(100, 100, generator=task.generator("work", it)) @ torch.ones(100, 100)
        return (syn.images - torch.randn(syn.images.shape, generator=task.generator("goal", it))).square().mean()
'''
PARTS = 5


@pytest.fixture
def words(pictures, tmp_path):
    file = tmp_path / "pieces.py"
    file.write_text(METHOD)
    alike = ("ipc=2", "device=cpu", "compile=false", "student.depth=1", "student.width=4", "eval.protocol=smoke")
    return ("run", f"method={file}", pictures, *alike, "eval.steps=3", "eval.full=false", "--json")


@pytest.fixture
def whole(place, words):
    report = place.dd(*words).report
    return place, report


def test_parts_go_into_one_set_one_log_and_leave_nothing(whole):
    place, report = whole
    made, start = load(report["files"]["set"]), load(report["files"]["start"])
    assert made.images.shape == (10, 1, 12, 12)
    assert torch.equal(made.labels, torch.arange(PARTS).repeat_interleave(2))
    assert not torch.equal(made.images, start.images)
    assert len({image.sum().item() for image in start.images}) == 10  # every part draws its own
    rows = (place.folder() / "log.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(15 * PARTS))
    assert not (place.folder() / "parts").exists()
    assert not list(place.home.glob("parts/*.json"))
    assert not list(place.home.glob("parts/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_makes_the_same_bits(whole, words, tmp_path, processes):
    place, report = whole
    other = type(place)(tmp_path / "other")
    done = other.torchrun(processes, words)
    assert (place.folder() / "log.csv").read_bytes() == (other.folder() / "log.csv").read_bytes()
    two = json.loads(done.stdout)
    for name in ("set", "start"):
        assert load(report["files"][name]).digest() == load(two["files"][name]).digest()
    assert two["accuracy"] == report["accuracy"]
    assert done.stderr.count("made set") == 1
    made = re.findall(r"made (part \d) of 5", done.stderr)  # whoever made it
    assert sorted(made) == [f"part {number}" for number in range(1, PARTS + 1)]


def helped(place, words):
    """What a process that helps with the parts makes, and the keys of all parts."""
    with place.entered():
        recipe = resolve(parse_overrides([word for word in words if "=" in word]))
        with opened(recipe, locate(recipe), {}, force=False, command="") as run:
            keys = [run.task.store.path(KIND, part_spec(run, number, PARTS)) for number in range(PARTS)]
            with locked(keys[2].with_suffix(".lock"), "another process"):
                assert synthesis.help_with_parts(run, recipe.method, prepare(run, recipe.method))
    return keys


@pytest.mark.timeout(60)
def test_a_process_that_helps_waits_for_no_part(place, words):
    keys = helped(place, words)
    assert [key.exists() for key in keys] == [True, True, False, True, True]


@pytest.mark.timeout(60)
def test_a_process_that_helps_too_late_makes_no_part_again(whole, words):
    place, _ = whole  # the set is stored, and its parts are deleted
    assert not any(key.exists() for key in helped(place, words))


def test_a_killed_run_goes_on_in_the_part_where_it_was(place, words, tmp_path):
    longer = (*words, "iterations=120")
    run = place.start(*longer)
    killed = run.signal_when(SIGKILL, lambda: place.logged() > 120 + 3 * CHECKPOINT_EVERY)
    done = place.logged() - 120
    assert killed.err.count("made part") == 1
    again = place.dd(*longer)
    assert again.code == 0, again.err
    assert "kept 1 of 5 parts" in again.err
    first = int(re.findall(r"synthesis resumes at iteration (\d+) of 120", again.err)[0])
    assert 0 <= done - first <= CHECKPOINT_EVERY
    assert again.err.count("made part") == PARTS - 1
    other = type(place)(tmp_path / "other")
    straight = other.dd(*longer)
    assert load(straight.report["files"]["set"]).digest() == load(again.report["files"]["set"]).digest()
    assert (place.folder() / "log.csv").read_bytes() == (other.folder() / "log.csv").read_bytes()
    assert place.half_written() == []


def test_force_makes_every_part_anew(whole, words):
    place, report = whole
    forced = place.dd(*words, "force=true")
    assert forced.err.count("made part") == PARTS
    assert load(forced.report["files"]["set"]).digest() == load(report["files"]["set"]).digest()


def test_every_part_starts_from_its_share_of_a_given_set(whole, words, tmp_path):
    place, report = whole
    set_file = report["files"]["set"]
    begun = place.dd(*words, f"init={set_file}")
    assert torch.equal(load(begun.report["files"]["start"]).images, load(set_file).images)


def test_one_part_runs_as_if_there_were_none(place, words):
    done = place.dd(*words, "split=false")
    assert done.code == 0
    assert "part" not in done.err.replace("parts", "")
    assert os.listdir(place.home)
    assert not (place.home / "parts").exists()


@pytest.fixture
def recovery(pictures):
    alike = ("ipc=2", "device=cpu", "compile=false", "student.arch=convnet", "student.depth=1", "student.width=4")
    squeeze = ("squeeze.epochs=20", "squeeze.batch=16", "squeeze.lr=0.05")
    own = ("iterations=12", "lr_img=0.1", "batch=2", "roll=2", "crop=0.5", "student.norm=batch")
    return (
        "run",
        "method=cda",
        pictures,
        *alike,
        *squeeze,
        *own,
        "eval.protocol=smoke",
        "labels.mode=off",
        "eval.full=false",
        "--json",
    )


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_recovered_images_are_the_same_from_any_number_of_processes(place, recovery, tmp_path, processes):
    alone = place.dd(*recovery)
    assert alone.code == 0, alone.err
    made = load(alone.report["files"]["set"])
    assert made.images.dtype == torch.uint8
    other = type(place)(tmp_path / str(processes))
    done = other.torchrun(processes, recovery)
    assert torch.equal(load(json.loads(done.stdout)["files"]["set"]).images, made.images)
    assert (place.folder() / "log.csv").read_bytes() == (other.folder() / "log.csv").read_bytes()
    assert "part 1 of 6" in done.stderr
