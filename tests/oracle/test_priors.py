"""Priors of a committee that are measured (CV-DD, votes=distil): resumable, and of recoveries that went well."""

import importlib
from dataclasses import replace

import pytest
import torch

from dd.engine.registry import get
from dd.errors import RunError
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
        method.prepare(task)  # 8 images: three, three and two
    assert len(list(task.store.manifests(prior.BATCHES))) == 2
    found = method.prepare(task).prior
    assert len(made) == 3
    assert not list(task.store.manifests(prior.BATCHES))
    assert found == method.prepare(replace(task, store=Store(tmp_path / "two"))).prior


def test_a_recovery_that_diverged_gives_no_prior(task):
    method = CVDD(**SMALL | {"votes": "equal"})
    committee = method.prepare(task)
    prior._recover(method, task, committee)
    next(committee.teachers[0].network.parameters()).fill_(torch.nan)  # gradients of which are no numbers
    with pytest.raises(RunError, match=r"images recovered from student diverged; lower lr_img"):
        prior._recover(method, task, committee)
