"""What recovery must show at the smallest scale: handwritten digits at 16 pixels, five images per class."""

import pytest
import torch
import torch.nn.functional as F

from dd.data import RealData
from dd.data.preprocess import standard
from dd.data.real import DeviceSplit
from dd.data.views import ViewPolicy, draw_view
from dd.engine.method import Task
from dd.engine.registry import get
from dd.engine.synthesise import synthesise
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.training.loop import accuracy
from dd.training.teachers import SqueezeSettings

pytestmark = pytest.mark.slow

SQUEEZE = SqueezeSettings(epochs=25, batch=64, lr=0.1)
VIEWS = ViewPolicy(crop=0.5, mix="cutmix")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images)[:, None].float(), size=(16, 16), mode="bilinear")
    pixels, labels = (images / 16 * 255).round().byte(), torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=generator(0))
    space = standard(pixels)

    def split(index):
        return DeviceSplit(pixels[index], labels[index], space, 10)

    data = RealData(
        name="digits",
        classes=tuple(map(str, range(10))),
        channels=1,
        size=16,
        train=split(order[:1297]),
        holdout=split(order[1297:1497]),
        test=split(order[1297:]),
        preprocess=space,
        augment="crop",
        fingerprint="digits",
        where="scikit-learn",
        licence="CC BY 4.0",
    )
    return Task(
        data=data,
        targets=torch.arange(10).repeat_interleave(5),
        student=NetworkSpec(depth=3, width=32, norm="batch"),
        seed=0,
        device=torch.device("cpu"),
        store=Store(tmp_path_factory.mktemp("store")),
    )


def made(task, **settings):
    """Images recovered, and the teacher."""
    base = {"squeeze": SQUEEZE, "iterations": 200, "lr_img": 0.1, "crop": 0.3, "flip": False, "roll": 0}
    method = get("sre2l")(**base | {"layout": "whole"} | settings)
    prepared = method.prepare(task)
    syn = synthesise(method, task, prepared, method.start(task, prepared))
    return method.finish(syn, task, prepared).pixels(task.data.preprocess), prepared.teachers[0].network


def score(task, images, net, soft=True):
    """Mean test accuracy of two students: AdamW 2e-3, 200 epochs, batches of 20 mixed views, temperature 20."""
    return sum(accuracy(trained(task, images, net, soft, i), task.data.test.batches(500)) for i in range(2)) / 2


def trained(task, images, net, soft, number):
    """A student on views with the teacher's labels, or with their mixed hard ones."""
    student, rng = task.network("student", number), generator(number, "views")
    optimiser = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.01, foreach=False)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
    for index in (part for _ in range(200) for part in torch.randperm(50, generator=rng).split(20)):
        view = draw_view(VIEWS, len(index), (1, 16, 16), rng)
        views, mixed = view(images[index]), view.mixed(F.one_hot(task.targets[index], 10).float())
        if soft:
            with torch.no_grad():
                goal = (net(views) / 20).softmax(1)
            loss = F.kl_div((student(views) / 20).log_softmax(1), goal, reduction="batchmean")
        else:
            loss = F.cross_entropy(student(views), mixed)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return student


def test_statistics_and_soft_labels_and_a_real_start_are_worth_what_they_are_said_to_be(task):
    plain, net = made(task, r_bn=0.0)
    matched, _ = made(task, r_bn=0.1)
    real, _ = made(task, r_bn=0.1, start_from="real")
    without, with_them, begun = (score(task, images, net) for images in (plain, matched, real))
    assert with_them >= without + 5
    assert with_them >= score(task, matched, net, soft=False) + 20
    assert begun >= with_them + 1


def test_a_teacher_in_another_order_of_classes_teaches_nothing(task):
    matched, net = made(task, r_bn=0.1)

    def shifted(images):
        return net(images).roll(1, 1)

    assert score(task, matched, shifted) <= 15
