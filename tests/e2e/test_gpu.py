"""On a GPU: the CPU's numbers up to rounding, many networks at once, bf16, compiled code, whole runs."""

from dataclasses import replace

import pytest
import torch

import dd
from dd.engine.method import prepare
from dd.engine.registry import get
from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator
from dd.training import ExpertSettings, Fit, StackedTrainer, Trainer
from dd.training.loop import accuracy, passes

# torch warns of parts of its own, and of settings it would like, when it compiles
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
DSA = "color_crop_cutout_flip_scale_rotate"
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
POOL = ExpertSettings(count=2, epochs=2, batch=32)
SMALL = {
    "dm": {},
    "datadam": {"power": 4.0},
    "dsa": {"outer": 2, "inner": 1},
    "ncfm": {"frequencies": 64, "experts": POOL},
}


def on(task, device):
    """The same task on a device."""
    data = task.data
    space = data.preprocess.to(device)
    parts = {
        name: replace(part, pixels=part.pixels.to(device), labels=part.labels.to(device), preprocess=space)
        for name, part in (("train", data.train), ("holdout", data.holdout), ("test", data.test))
    }
    data = replace(data, preprocess=space, **parts)
    return replace(task, data=data, targets=task.targets.to(device), device=device)


@pytest.fixture
def exact():
    """Convolutions and products in full float32, as on a CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", SMALL)
def test_the_first_gradient_is_the_cpus(make_task, blobs, name, exact):
    gradients = []
    for device in (CPU, CUDA):
        task = on(make_task(blobs(strategy=DSA), ipc=2, student=NetworkSpec(depth=2, width=8)), device)
        method = get(name)(iterations=2, batch_real=16, **SMALL[name]).settle(task)
        if name == "ncfm":
            method = replace(method, experts=replace(method.experts, stack=1))
        prepared = prepare(method, task)
        syn = method.start(task, prepared)
        outcome = method.loss(syn, task, prepared, 0)
        loss = outcome if isinstance(outcome, torch.Tensor) else torch.stack(list(outcome.values())).sum()
        gradients.append(torch.autograd.grad(loss, syn.images)[0].cpu())
    tolerance = 1e-3 if name == "ncfm" else 1e-4  # its experts were trained on either device first
    assert (gradients[0] - gradients[1]).norm() < tolerance * gradients[0].norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_at_once_are_those_one_after_another(make_task, blobs, precision, exact):
    task = on(make_task(blobs(strategy=DSA)), CUDA)

    def make(rng):
        return build_network(NetworkSpec(depth=2, width=8), channels=1, size=8, classes=4, generator=rng, device=CUDA)

    network, fit = Functional(make(generator(0))), Fit(steps=10, lr=0.05, momentum=0.9, strategy=DSA)
    paths, data = [(3, "expert", member) for member in range(4)], passes(task.data.train, 32)
    stacked = StackedTrainer(make, precision).train(paths, data, fit)
    single = torch.stack([network.flatten(net) for net in Trainer(make, precision=precision).train(paths, data, fit)])
    fresh = torch.stack([network.flatten(make(generator(*path, "weights"))) for path in paths])
    assert (stacked - single).norm() < (0.1 if precision == "bf16" else 1e-3) * (single - fresh).norm()


def test_compiled_training_reaches_what_plain_training_does(make_task, blobs, monkeypatch):
    from dd.training import compiled

    monkeypatch.setattr(compiled, "WORTH_FLOPS", 0)
    task = on(make_task(blobs(strategy=DSA)), CUDA)
    reached = []
    for compile_ in (False, True):
        trainer = Trainer(task.build, compile_)
        network = next(trainer.train([(0, "student", 0)], passes(task.data.train, 32), Fit(60, 0.05, 0.9)))
        reached.append(accuracy(network, task.data.test.batches(64)))
    assert min(reached) > 90
    assert abs(reached[0] - reached[1]) < 5


@pytest.mark.parametrize("method", ["mtt", "dm", "ncfm"])
def test_a_whole_run(method, tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))
    outcome = dd.run(method, ipc=1, device="cuda", preset="smoke")
    assert "cuda" in outcome.report.device
    assert outcome.report.accuracy.mean > 20  # chance is 10
