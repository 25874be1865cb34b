"""Whole distillations of four noisy classes in seconds: the objective falls, and the images get better."""

from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from dd.engine.method import prepare
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.evaluation import Protocol
from dd.evaluation.evaluate import Evaluator, evaluate
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.training import ExpertSettings

MTT, DATM = get("mtt"), get("datm")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Experts are shared by the seeds."""
    return Store(tmp_path_factory.mktemp("store"))


def distilled(method, task):
    """(prepared, start, end, rows of the log)."""
    method = method.settle(task)
    rows, prepared = [], prepare(method, task)
    syn = method.start(task, prepared)
    start = method.finish(syn, task, prepared)
    synthesise(method, task, prepared, syn, None, Watch(log=lambda it, row: rows.append(dict(row))))
    return prepared, start, method.finish(syn, task, prepared), rows


def accuracy_by_hand(task, small, lr, seed):
    """Test accuracy of a fresh network after 60 plain SGD steps on the whole set: nothing of the evaluator."""
    network = task.network("by hand", seed)
    for _ in range(60):
        loss = F.cross_entropy(network(small.images), small.targets())
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for p, g in zip(network.parameters(), gradients, strict=True):
                p -= lr * g
    images = task.data.test.images(torch.arange(len(task.data.test)))
    return float((network(images).argmax(1) == task.data.test.labels).double().mean())


@pytest.mark.parametrize("backprop", ["full", "frozen"])
@pytest.mark.parametrize("iterations", [120, pytest.param(300, marks=pytest.mark.slow)])
def test_noise_becomes_a_set_that_trains_a_network(blobs, make_task, store, iterations, backprop):
    # the published end-to-end check of the family: IPC 1 from noise, N = 10, M = 2, start epochs 0, 1, 2
    data = blobs(per_class=256, test=64, seed=5, spread=2.0, noise=0.5)
    task = make_task(data, ipc=1, store=store, student=NetworkSpec(depth=2, width=8))
    method = MTT(
        iterations=iterations,
        steps=10,
        span=2,
        start_max=3,
        lr_img=30.0,
        lr_lr=1e-4,
        lr_init=0.05,
        start_from="noise",
        backprop=backprop,
        experts=ExpertSettings(count=4, epochs=8, lr=0.05, batch=64),
    )
    _, start, end, rows = distilled(method, task)
    losses = [row["loss"] for row in rows]
    assert fmean(losses[-30:]) < 0.25 * fmean(losses[:10])
    assert fmean(losses[:10]) == pytest.approx(0.75, abs=0.15)  # a student that stood still would have 1
    assert 0.08 < end.lr < 0.3
    before = fmean(accuracy_by_hand(task, start, 0.05, j) for j in range(3))
    after = fmean(accuracy_by_hand(task, end, end.lr, j) for j in range(3))
    assert before < 0.6
    assert after > 0.9


HARD = {"per_class": 128, "test": 64, "holdout": 8, "seed": 4, "noise": 3.0}  # noise above the prototypes
SHARED = {"iterations": 60, "steps": 8, "start_max": 3, "lr_img": 100.0, "lr_lr": 1e-4, "lr_init": 0.05}
CASES = {
    "mtt": (MTT, {}, ExpertSettings(count=3, epochs=6, lr=0.05, batch=64)),
    "datm": (
        DATM,
        {"lr_label": 5.0, "threshold": 1.2, "window_start": 2, "window_its": 20},
        ExpertSettings(count=3, epochs=6, lr=0.05, batch=64, kind="ftd"),
    ),
    "ftd": (get("ftd"), {"ema": 0.8}, ExpertSettings(count=3, epochs=6, lr=0.05, batch=64, kind="ftd")),
    "tesla": (get("tesla"), {}, ExpertSettings(count=3, epochs=6, lr=0.05, batch=64)),
    "ast": (
        get("ast"),
        {"lr_lr": 1e-5, "lr_init": 0.01, "start_from": "real", "middle": "off"},
        ExpertSettings(count=3, epochs=6, lr=0.02, momentum=0.9, batch=64, kind="ast", clip=2, penalty=0.1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_set_beats_its_start_and_as_many_random_images(blobs, make_task, store, name):
    cls, extra, experts = CASES[name]
    method, gains, gaps = cls(**SHARED | extra, experts=experts), [], []
    for seed in range(3):
        task = make_task(blobs(**HARD), ipc=1, seed=seed, store=store, student=NetworkSpec(depth=1, width=8))
        _, start, end, rows = distilled(method, task)
        losses = [row["loss"] for row in rows]
        assert fmean(losses[-10:]) < 0.6 * fmean(losses[:10])
        assert not any(row["skipped"] for row in rows)
        report = evaluate(end, start, Evaluator(task, Protocol(steps=50, students=3, full=False)))
        gains.append(report.gain)
        gaps.append(report.gap)
    assert min(gains) > 3
    assert min(gaps) > 3
    assert fmean(gains) > 10
    assert fmean(gaps) > 10


def test_the_objective_is_one_where_the_student_stands_still(blobs, make_task, store):
    cls, _, experts = CASES["mtt"]
    task = make_task(blobs(**HARD), ipc=1, store=store, student=NetworkSpec(depth=1, width=8))
    method = cls(**SHARED | {"iterations": 3, "lr_init": 1e-9, "lr_lr": 0.0}, experts=experts)
    _, _, _, rows = distilled(method, task)
    assert [row["loss"] for row in rows] == pytest.approx([1.0] * 3, abs=1e-5)


def test_the_real_images_of_an_expert_lead_a_student_along_it(blobs, make_task, store):
    # the synthetic set is the training set itself, whole in every batch of the expert's too: the distance closes
    data = blobs(per_class=4, test=4, holdout=0, noise=0.5)
    task = make_task(data, ipc=4, store=store, student=NetworkSpec(depth=1, width=4))
    experts = ExpertSettings(count=2, epochs=12, lr=0.05, batch=16)
    method = MTT(iterations=1, steps=8, span=8, start_max=4, lr_init=0.05, lr_lr=0.0, experts=experts).settle(task)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    order = torch.cat([data.train.of_class(c) for c in range(4)])
    real = data.train.images(order)
    for it in range(4):
        syn.images.data.copy_(real)
        assert method.loss(syn, task, prepared, it)["distance"].item() < 1e-9
        # other images do not
        syn.images.data.copy_(real + torch.randn(real.shape, generator=generator(it)))
        assert method.loss(syn, task, prepared, it)["distance"].item() > 1e-3
