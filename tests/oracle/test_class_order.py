"""A teacher whose classes are in another order is refused before anything is made: oracle 44, decoupled family."""

import importlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from dd.engine.method import prepare
from dd.engine.registry import get
from dd.errors import UsageError
from dd.labels import LabelSettings
from dd.runs import Store
from dd.training.relabel import TeacherLabeller
from dd.training.teachers import teachers

from .conftest import SQUEEZE, STUDENT

WHERE = importlib.import_module("dd.methods.decoupled._teachers").__file__

FAMILY = [
    ("sre2l", {}),
    ("cda", {}),
    ("sre2lpp", {}),
    ("cvdd", {"members_by": "all", "votes": "equal"}),
    ("cvdd", {"votes": "distil"}),
    ("rded", {}),
    ("nrrdd", {}),
]


@pytest.fixture(scope="module")
def files(make_task, tmp_path_factory):
    """Checkpoints without names of classes: a good teacher, and it with every class answering as the next one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = teachers(make_task(student=STUDENT), ["student"], SQUEEZE)[0].network.state_dict()
    torch.save(state, folder / "good.pt")
    last = {name: state[name].roll(1, 0) for name in ("classifier.weight", "classifier.bias")}
    torch.save({**state, **last}, folder / "bad.pt")
    return {name: str(folder / f"{name}.pt") for name in ("good", "bad")}


@pytest.fixture
def task(make_task, tmp_path):
    return make_task(student=STUDENT, store=Store(tmp_path / "store"), ipc=3)


def test_all_of_the_family_are_tried():
    assert {name for name, _ in FAMILY} == {path.stem for path in Path(WHERE).parent.glob("[!_]*.py")}


@pytest.mark.parametrize(("name", "settings"), FAMILY)
def test_no_method_begins_with_it(task, files, tmp_path, name, settings):
    method = get(name)(teachers=(files["bad"],), squeeze=SQUEEZE, **settings)
    with pytest.raises(
        UsageError, match=r"indistinguishable from chance; with its outputs in another order it would be correct"
    ):
        prepare(method, task)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no patches, no priors


@pytest.mark.parametrize("name", ["sre2l", "rded"])
def test_in_the_right_order_the_same_file_is_taken(task, files, name):
    method = get(name)(teachers=(files["good"],), squeeze=SQUEEZE)
    assert prepare(method, task).teachers[0].holdout > 60  # chance is 25


def test_one_of_a_committee_is_enough_to_refuse_it(task, files, tmp_path):
    method = get("cvdd")(teachers=(files["good"], files["bad"]), squeeze=SQUEEZE, votes="equal")
    with pytest.raises(UsageError, match=r"teacher .*bad\.pt is correct on .* indistinguishable from chance"):
        prepare(method, task)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_set_is_labelled_by_it(task, files):
    """Nor made again from what a set says of its labels, which knows the file by its place alone."""

    def origin(name):
        settings = {"squeeze": asdict(SQUEEZE), "labels": asdict(LabelSettings()), "weights": None}
        return {"teachers": [files[name]], **settings}

    with pytest.raises(UsageError, match="indistinguishable from chance"):
        TeacherLabeller.of_origin(task, origin("bad"))
    assert len(TeacherLabeller.of_origin(task, origin("good")).teachers) == 1
