"""Where the priors of a committee come from (CV-DD), and how they are measured."""

import importlib
from dataclasses import replace

import pytest
import torch

from dd.data.real import DeviceSplit
from dd.engine.method import prepare
from dd.engine.registry import get
from dd.errors import RunError, UsageError
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.runs import Store
from dd.training.teachers import SqueezeSettings

CVDD = get("cvdd")
prior = importlib.import_module("dd.methods.decoupled._prior")
STUDENT = NetworkSpec(depth=1, width=4, norm="batch")
SMALL = {
    "squeeze": SqueezeSettings(epochs=4, batch=32, lr=0.05, augment=False),
    "teachers": ("student",),
    "layout": "class-major",
    "batch": 3,
    "iterations": 4,
    "lr_img": 0.1,
    "roll": 1,
    "crop": 0.5,
    "start_from": "real",
    "votes": "distil",
    "distil": prior.DistilSettings(ipc=2, iterations=3, epochs=2, batch=8),
}


@pytest.fixture
def task(make_task, tmp_path):
    return make_task(student=STUDENT, store=Store(tmp_path / "one"), ipc=2)


def test_an_interrupted_measurement_goes_on_with_its_next_batch(task, monkeypatch, tmp_path):
    method, recover, made = CVDD(**SMALL), prior._recover, []

    def interrupted(*args):
        if len(made) == 2 and not task.store.has("seen", {}):
            task.store.value("seen", {}, dict, "an interruption")
            raise KeyboardInterrupt
        made.append(args)
        return recover(*args)

    monkeypatch.setattr(prior, "_recover", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(method, task)  # 8 images: three, three and two
    assert len(list(task.store.manifests(prior.BATCHES))) == 2
    found = prepare(method, task).prior
    assert len(made) == 3
    assert not list(task.store.manifests(prior.BATCHES))
    assert found == prepare(method, replace(task, store=Store(tmp_path / "two"))).prior


def test_a_recovery_that_diverged_gives_no_prior(task):
    method = CVDD(**SMALL | {"votes": "equal"})
    committee = prepare(method, task)
    prior._recover(method, task, committee)
    next(committee.teachers[0].network.parameters()).fill_(torch.nan)  # gradients of which are no numbers
    with pytest.raises(RunError, match=r"images recovered from student diverged; lower lr_img"):
        prior._recover(method, task, committee)


def without_holdout(task):
    held = task.data.holdout
    none = DeviceSplit(held.pixels[:0], held.labels[:0], task.data.preprocess, task.classes)
    return replace(task, data=replace(task.data, holdout=none))


def named(task, name):
    return replace(task, data=replace(task.data, name=name))


def test_constants_are_the_authors(task, tmp_path):
    file = tmp_path / "resnet50.pt"
    file.touch()
    names = ("student", "torchvision:densenet121", f"{file}@torchvision:mobilenet_v2", f"{file}")
    resnet = replace(task, student=NetworkSpec(arch="resnet18", width=16))
    assert prior.published_priors(named(resnet, "cifar10"), names) == (63.0, 67.4, 67.6, 63.0)
    assert prior.published_priors(resnet, names) is None
    assert prior.published_priors(named(task, "cifar10"), names) is None  # a ConvNet


def test_votes_of_teachers_and_of_equals(task):
    two = SMALL | {"teachers": ("student", "convnet:width=2:depth=1")}
    made = prepare(CVDD(**two | {"votes": "teacher"}), task)
    assert made.prior == tuple(teacher.holdout for teacher in made.teachers)
    assert prepare(CVDD(**two | {"votes": "equal"}), task).prior == (0, 0)
    assert prepare(CVDD(**two, prior=(3.0, 4.0)), task).prior == (3, 4)
    with pytest.raises(ValueError, match="prior has 1 numbers for 5 teachers"):
        CVDD(prior=(1.0,))


def test_without_a_constant_priors_are_measured(task, caplog):
    caplog.set_level("INFO")
    found = prepare(CVDD(**SMALL | {"votes": "prior"}).settle(task), task)
    assert "no published constants for these teachers on blobs: their votes are measured" in caplog.text
    assert found.prior == prepare(CVDD(**SMALL), task).prior


@pytest.mark.parametrize("votes", ["distil", "teacher", "prior"])
def test_measured_votes_need_held_out_images_which_is_said_before_a_teacher_is_trained(task, votes, tmp_path):
    with pytest.raises(UsageError, match=rf"votes={votes} scores on held-out images.*data\.holdout=0\.1"):
        CVDD(**SMALL | {"votes": votes}).settle(without_holdout(task))
    assert not list(tmp_path.rglob("teachers"))


@pytest.mark.parametrize("other", ["sre2lpp", "cda", "rded", "nrrdd"])
def test_only_a_committee_with_votes_weighs_its_labels(other):
    weighted = LabelSettings(ensemble="logit_weighted")
    with pytest.raises(ValueError, match="logit_weighted needs votes"):
        get(other)(labels=weighted)
    CVDD(labels=weighted)


@pytest.mark.parametrize("layout", ["whole", "class-major", "single-class"])
@pytest.mark.parametrize("by", ["pairs", "random"])
def test_pairs_by_place_need_batches_of_one_place(layout, by):
    with pytest.raises(ValueError, match="layout=one-per-class"):
        CVDD(layout=layout, members_by=by)
    CVDD(layout=layout, members_by=by, teachers=("student", "convnet:width=2"))
    CVDD(layout=layout, members_by="all")
    CVDD(members_by=by)
