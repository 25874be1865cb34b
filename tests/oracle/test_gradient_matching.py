"""DC and DSA against the distance in closed form, finite differences and hand-written loops."""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F

from dd.engine.method import prepare
from dd.engine.registry import get
from dd.engine.synthesise import synthesise
from dd.errors import UsageError
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.views.dsa import augment

DC, DSA = get("dc"), get("dsa")
dc = sys.modules[DC.__module__]
shared = importlib.import_module("dd.methods.distribution._classes")
STRATEGY = "color_crop_cutout_flip_scale_rotate"
SMALL = {"iterations": 4, "outer": 3, "inner": 2, "lr_img": 1.0, "lr_net": 0.05, "batch_net": 5, "batch_real": 8}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "normal", *shape), dtype=torch.float64)


def gradients(seed):
    """A convolution, its bias, a norm over positions, a linear layer, its bias."""
    return [normal(*shape, seed=seed) for shape in ((4, 2, 3, 3), (4,), (4, 5, 5), (3, 7), (3,))]


def test_the_distance_by_a_slow_loop():
    a, b = gradients(0), gradients(1)
    by_hand = 0.0
    for one, other in zip(a, b, strict=True):
        if one.dim() > 1:
            for row, column in zip(one.flatten(1), other.flatten(1), strict=True):
                by_hand += 1 - sum(row * column) / (row.norm() * column.norm() + 1e-6)
    assert dc.gradient_distance(a, b).item() == pytest.approx(float(by_hand), rel=1e-12)


def test_the_distance_at_its_ends():
    a = gradients(0)
    outputs = 4 + 4 + 3
    assert dc.gradient_distance(a, a).item() < 1e-5
    assert dc.gradient_distance(a, [7 * g for g in a]).item() < 1e-5
    assert dc.gradient_distance(a, [-g for g in a]).item() == pytest.approx(2 * outputs, rel=1e-5)
    assert dc.gradient_distance(a, [torch.zeros_like(g) for g in a]).item() == outputs
    biases_differ = [g if g.dim() > 1 else g + 1 for g in a]
    assert dc.gradient_distance(a, biases_differ).item() == dc.gradient_distance(a, a).item()


def test_finite_differences_of_the_objective(make_task):
    task = make_task(ipc=2, student=NetworkSpec(depth=1, width=3, activation="softplus"))
    method = DC(**SMALL, start_from="real")
    prepared = prepare(method, task)
    syn = method.start(task, prepared).double()
    real_images = type(task.data.train).images

    def value(images):
        with torch.no_grad():
            syn.images.copy_(images)
        return torch.stack(list(method.loss(syn, task, prepared, 0).values())).sum()

    type(task.data.train).images = lambda self, index: real_images(self, index).double()
    try:
        images = syn.images.detach().clone()
        loss = value(images)
        (found,) = torch.autograd.grad(loss, syn.images)
        step = torch.zeros_like(images)
        for place in ((0, 0, 3, 4), (5, 0, 2, 2)):
            step.zero_()[place] = 1e-4
            numeric = (value(images + step) - value(images - step)).item() / 2e-4
            assert found[place].item() == pytest.approx(numeric, rel=1e-4, abs=1e-7)
    finally:
        type(task.data.train).images = real_images


@pytest.mark.parametrize("cls", [DC, DSA])
def test_iterations_by_hand(make_task, blobs, cls):
    task = make_task(blobs(strategy=STRATEGY), ipc=2)
    method = cls(**SMALL, start_from="real")
    prepared = prepare(method, task)
    syn = synthesise(method, task, prepared, method.start(task, prepared))
    images, velocity = task.data.train.images(task.real_indices("start")), 0
    strategy, net = STRATEGY if cls is DSA else "none", None

    class Now:
        pass

    for it in range(4):
        if it % 3 == 0:
            net = task.network("matching", it // 3)
        weights = list(net.parameters())
        now = Now()
        now.images, now.targets = images.clone().requires_grad_(), task.targets
        total = 0
        for c in range(4):
            batch = shared.group(now, task, it, [c], 8, strategy)
            label = torch.full((8,), c)
            real = torch.autograd.grad(F.cross_entropy(net(batch.real), label), weights)
            ours = torch.autograd.grad(F.cross_entropy(net(batch.synthetic), label[:2]), weights, create_graph=True)
            for a, b in zip(ours, real, strict=True):
                if a.dim() > 1:
                    total = total + (1 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)).sum()
        velocity = 0.5 * velocity + torch.autograd.grad(total, now.images)[0]
        images = images - velocity
        if it % 3 != 2:
            rng = task.generator("inner", it)
            optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
            for _ in range(2):
                for index in torch.randperm(8, generator=rng).split(5):
                    batch = images[index] if cls is DC else augment(STRATEGY, images[index], rng)
                    optimiser.zero_grad()
                    F.cross_entropy(net(batch), task.targets[index]).backward()
                    optimiser.step()
    start = task.data.train.images(task.real_indices("start"))
    assert (syn.images.detach() - images).norm() < 2e-3 * (images - start).norm()
    assert int(syn.done) == 4


def test_real_images_in_portions_have_the_gradient_of_the_whole_class(make_task, monkeypatch):
    task = make_task(student=NetworkSpec(depth=2, width=4))
    network, images = task.network("matching", 0).double(), normal(7, 1, 8, 8)
    whole = dc._real_gradients(network, images, 2)
    monkeypatch.setattr("dd.networks.portion.largest_map", lambda network, images: 1 << 30)
    parts = dc._real_gradients(network, images, 2)
    assert not all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))  # it was divided
    for part, one in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, one)


def test_a_network_is_new_only_where_it_should_be(make_task):
    task = make_task(ipc=1)
    method = DC(**SMALL | {"iterations": 6})
    prepared = prepare(method, task)
    syn, thetas = method.start(task, prepared), []
    for it in range(6):
        method.loss(syn, task, prepared, it)
        thetas.append(syn.theta.clone())
        method.project(syn, task)
    fresh = [prepared.flatten(task.network("matching", n)) for n in range(2)]
    assert torch.equal(thetas[0], fresh[0])
    assert torch.equal(thetas[3], fresh[1])
    assert all((thetas[i] - thetas[i - 1]).norm() > 1e-3 for i in range(1, 6))


def test_a_set_becomes_better_than_noise(make_task, blobs):
    task = make_task(blobs(per_class=64), ipc=1, student=NetworkSpec(depth=1, width=8))
    method = DC(iterations=60, outer=1, lr_img=1.0, batch_real=32)
    prepared = prepare(method, task)
    start, syn = method.start(task, prepared), method.start(task, prepared)
    synthesise(method, task, prepared, syn)

    def accuracy(images):
        net = task.network("by hand")
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
        for _ in range(60):
            optimiser.zero_grad()
            F.cross_entropy(net(images), task.targets).backward()
            optimiser.step()
        test = task.data.test
        return float((net(test.images(torch.arange(len(test)))).argmax(1) == test.labels).double().mean())

    assert accuracy(start.images.detach()) < 0.6
    assert accuracy(syn.images.detach()) > 0.9


@pytest.mark.parametrize("cls", [DC, DSA])
@pytest.mark.parametrize("student", [NetworkSpec(norm="batch"), NetworkSpec("torchvision:resnet18")], ids=str)
def test_batch_norm_is_refused_before_anything_is_planned(make_task, blobs, cls, student):
    task = make_task(blobs(), student=student)
    with pytest.raises(UsageError, match=f"student.arch={student.arch} has batch norm"):
        cls().settle(task)
    assert cls().settle(make_task(blobs(), student=NetworkSpec(norm="layer"))) == cls()
