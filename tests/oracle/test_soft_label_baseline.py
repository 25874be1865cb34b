"""The soft-label baseline: real images at random, labelled by a network at an epoch, against a plain forward pass."""

import pytest
import torch

from dd.engine.method import prepare
from dd.engine.registry import get
from dd.errors import UsageError
from dd.evaluation import Protocol
from dd.evaluation.evaluate import Evaluator, arm_of
from dd.networks import NetworkSpec
from dd.sets import load, save
from dd.training import ExpertSettings, trajectories
from dd.training.squeeze import SqueezeSettings

EXPERTS = ExpertSettings(count=2, epochs=3, batch=8, lr=0.05, momentum=0.9)
SoftLabel = get("softlabel")


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(noise=1.5))


def made(method, task):
    method = method.settle(task)
    prepared = prepare(method, task)
    return method.finish(method.start(task, prepared), task, prepared)


@pytest.mark.parametrize(("epoch", "row"), [(1, 1), (2, 2), (None, 3)])
@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_labels_are_the_softmax_of_tau_times_the_mean_logits_at_that_epoch(task, epoch, row, tau):
    found = made(SoftLabel(experts=EXPERTS, epoch=epoch, tau=tau), task)
    found.check()
    assert (found.image_kind, found.label_kind) == ("indices", "probabilities")
    assert torch.equal(task.data.train.labels[found.images], task.targets)
    images = task.data.train.images(found.images)  # as they are: no augmentation
    logits = []
    for theta in trajectories(task, EXPERTS).snapshots:
        network, at = task.network("any"), 0
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(theta[row][at : at + parameter.numel()].view_as(parameter))
                at += parameter.numel()
            logits.append(network.eval()(images).double())
    wanted = [[float((tau * sum(one[i] for one in logits) / 2).softmax(0)[c]) for c in range(4)] for i in range(8)]
    assert torch.allclose(found.labels.double(), torch.tensor(wanted).double(), atol=1e-6)
    facts = found.provenance["selection"]
    assert (facts["epoch"], facts["count"], facts["tau"]) == (row, 2, tau)


def test_images_are_those_of_random_and_another_epoch_has_the_same(task):
    early, late = (made(SoftLabel(experts=EXPERTS, epoch=epoch), task) for epoch in (1, 3))
    assert torch.equal(early.images, made(get("random")(copy=False), task).images)
    assert torch.equal(early.images, late.images)
    assert not torch.allclose(early.labels, late.labels, atol=1e-3)


def test_teachers_with_batch_norm_label_in_eval_mode(make_task, blobs):
    task = make_task(blobs(noise=0.3), student=NetworkSpec(depth=1, width=4, norm="batch"))
    settings = SqueezeSettings(epochs=6, batch=8, lr=0.05, schedule="constant", augment=False)
    method = SoftLabel(teachers=("student",), squeeze=settings)
    (teacher,) = prepare_teachers(method, task)
    found = made(method, task)
    assert not teacher.network.training
    with torch.no_grad():
        wanted = torch.cat([teacher.network(task.data.train.images(i[None])) for i in found.images]).softmax(1)
    assert torch.allclose(found.labels, wanted, atol=1e-5)


def prepare_teachers(method, task):
    from dd.engine.needs import Got

    (need,) = method.needs(task)
    return Got([need])[need]


def test_an_epoch_beyond_the_last_one_is_refused():
    with pytest.raises(ValueError, match=r"give experts.epochs=4 or more"):
        SoftLabel(experts=EXPERTS, epoch=4)


def test_students_are_trained_on_the_probabilities_also_of_a_saved_set(task, tmp_path):
    found = made(SoftLabel(experts=EXPERTS, epoch=1), task)
    save(found, tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    evaluator = Evaluator(task, Protocol(steps=2, students=1, batch=4, full=False))
    _, targets = arm_of("set", again, evaluator).load(0)
    assert torch.allclose(targets, found.labels, atol=1e-6)
    elsewhere = task.data.__class__(**(vars(task.data) | {"fingerprint": "another"}))
    with pytest.raises(UsageError, match="fingerprint"):
        again.require_match(elsewhere)
