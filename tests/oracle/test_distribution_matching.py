"""DM and DataDAM against slow loops and closed forms; classes together against classes apart."""

import importlib
import sys
from dataclasses import replace
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dd.engine.accumulate import accumulated
from dd.engine.method import Synthetic
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network, captured, products
from dd.rng import generator
from dd.views.dsa import apply, draw, siamese

shared = importlib.import_module("dd.methods.distribution._classes")
DM, DATADAM = get("dm"), get("datadam")
datadam = sys.modules[DATADAM.__module__]

DSA = "color_crop_cutout_flip_scale_rotate"
SMALL = {"iterations": 3, "lr_img": 1.0, "batch_real": 12}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed, "normal", *shape), dtype=dtype)


def gradient(method, syn, task, it=0):
    terms = method.settle(task).loss(syn, task, None, it)
    value = torch.stack(list(terms.values())).sum()
    (found,) = torch.autograd.grad(value, syn.images)
    return value.detach(), found


def apart(a, b):
    return float((a - b).norm() / b.norm())


# --- images by class -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", DSA.split("_"))
def test_siamese_draws_treat_equal_images_alike_whatever_their_number(op):
    draws = [draw(op, 1, (3, 8, 8), generator(c)) for c in range(2)]
    image = normal(1, 3, 8, 8, dtype=torch.float32)
    few, many = (shared.augment_by_class(draws, image.expand(2 * n, -1, -1, -1), [n, n]) for n in (3, 40))
    assert torch.equal(few[:1].expand(3, -1, -1, -1), few[:3])
    assert torch.equal(few[0], many[0])
    assert torch.equal(few[3], many[40])
    if op not in ("flip",):
        assert not torch.equal(few[0], few[3])  # another class, another draw


def test_classes_are_augmented_as_they_are_one_by_one():
    draws = [draw(DSA, 1, (1, 8, 8), generator(c, "draw")) for c in range(9)]
    assert len({d.op for d in draws}) > 3
    sizes = [2, 5, 1, 3, 4, 2, 2, 6, 1]
    images = normal(sum(sizes), 1, 8, 8, dtype=torch.float32)
    together = shared.augment_by_class(draws, images, sizes)
    one_by_one = [apply(siamese(d, n), part) for d, n, part in zip(draws, sizes, images.split(sizes), strict=True)]
    assert torch.equal(together, torch.cat(one_by_one))


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1, 4, 2, 7]])
def test_class_means_of_equal_and_of_ragged_classes(sizes):
    features = normal(sum(sizes), 5)
    by_hand = torch.stack([part.mean(0) for part in features.split(sizes)])
    assert torch.allclose(shared.class_means(features, sizes), by_hand, rtol=1e-12, atol=1e-14)


def test_real_images_are_of_their_class_all_different_and_drawn_anew(make_task):
    task = make_task()
    syn = Synthetic(normal(8, 1, 8, 8, dtype=torch.float32), task.targets)
    seen = []
    for it in range(2):
        batch = shared.group(syn, task, it, [1, 3], 12, "none")
        assert batch.real_sizes == [12, 12]
        assert batch.sizes == [2, 2]
        assert torch.equal(batch.synthetic, syn.images[[2, 3, 6, 7]])
        everything = task.data.train.images(task.data.train.of_class(3)).flatten(1)
        mine = batch.real[12:].flatten(1)
        assert ((mine[:, None] == everything[None]).all(2).sum(1) == 1).all()
        assert len(mine.unique(dim=0)) == 12
        seen.append(mine)
    assert not torch.equal(*seen)
    alone = shared.group(syn, task, 1, [3], 12, "none")
    assert torch.equal(alone.real.flatten(1), seen[1])  # whoever else is there


def test_a_class_with_few_images_gives_all_of_them(make_task):
    task = make_task()
    syn = Synthetic(normal(8, 1, 8, 8, dtype=torch.float32), task.targets)
    assert shared.group(syn, task, 0, [0], 10_000, "none").real_sizes == [32]


def test_accumulated_losses_have_the_value_and_the_gradient_of_their_sum():
    x = normal(4, 3).requires_grad_()
    losses = [lambda i=i: {"a": (x[i] ** 3).sum(), "b": x[i].sin().sum()} for i in range(4)]
    whole = {"a": (x**3).sum(), "b": x.sin().sum()}
    terms = accumulated(losses, x, ("a", "b"))
    assert {k: v.item() for k, v in terms.items()} == pytest.approx({k: v.item() for k, v in whole.items()}, rel=1e-12)
    grads = [torch.autograd.grad(torch.stack(list(t.values())).sum(), x)[0] for t in (terms, whole)]
    assert torch.allclose(*grads, rtol=1e-12, atol=0)


# --- DM --------------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """f(x) = W x."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def embed(self, images):
        return images.flatten(1) @ self.weight.T


def test_a_linear_network_in_closed_form(make_task, monkeypatch):
    task = make_task(ipc=3)
    weight = normal(5, 64, dtype=torch.float32) / 8
    monkeypatch.setattr(type(task), "network", lambda self, *path: Linear(weight))
    method = DM(iterations=400, lr_img=0.5, momentum_img=0.0, batch_real=1000, augment=False, chunk=4)
    syn = method.start(task, None)
    first = syn.images.detach().clone().flatten(1).double()
    rows = []
    synthesise(method, task, None, syn, None, Watch(log=lambda it, row: rows.append(row["loss"])))
    last, w = syn.images.detach().flatten(1).double(), weight.double()
    assert rows[-1] < 1e-6 * rows[0]
    for c in range(4):
        mine = slice(3 * c, 3 * c + 3)
        target = task.data.train.images(task.data.train.of_class(c)).flatten(1).double().mean(0)
        moved = -torch.linalg.pinv(w) @ w @ (first[mine].mean(0) - target)
        assert torch.allclose(last[mine] - first[mine], moved.expand(3, -1), atol=1e-3)  # all by the same vector


def test_the_gradient_is_the_published_formula(make_task):
    task = make_task(ipc=3, student=NetworkSpec(depth=2, width=4, activation="softplus"))
    method = DM(**SMALL, augment=False)
    syn = method.start(task, None)
    _, ours = gradient(method, syn, task)
    network = task.network("matching", 0)
    for c in range(4):
        batch = shared.group(syn, task, 0, [c], 12, "none")
        away = network.embed(batch.synthetic).mean(0) - network.embed(batch.real).mean(0)
        for i in range(3):
            x = syn.images.detach()[3 * c + i : 3 * c + i + 1].requires_grad_()
            (by_hand,) = torch.autograd.grad(network.embed(x)[0], x, grad_outputs=2 / 3 * away.detach())
            assert apart(ours[3 * c + i], by_hand[0]) < 1e-4


@pytest.mark.parametrize("cls", [DM, DATADAM])
@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
def test_classes_together_are_classes_apart_without_batch_norm(make_task, blobs, cls, norm):
    task = make_task(blobs(strategy=DSA), ipc=2, student=NetworkSpec(depth=2, width=4, norm=norm))
    syn = cls(**SMALL).start(task, None)
    whole, grad = gradient(cls(**SMALL, chunk=4), syn, task)
    for chunk in (1, 3):
        value, found = gradient(cls(**SMALL, chunk=chunk), syn, task)
        assert value.item() == pytest.approx(whole.item(), rel=1e-5)
        assert apart(found, grad) < 1e-5


@pytest.mark.parametrize("cls", [DM, DATADAM])
def test_real_images_in_portions_give_the_same_bits(make_task, blobs, cls, monkeypatch):
    task = make_task(blobs(strategy=DSA), ipc=2, student=NetworkSpec(depth=2, width=4))
    syn = cls(**SMALL).start(task, None)
    whole, grad = gradient(cls(**SMALL, chunk=4), syn, task)
    seen = []
    monkeypatch.setattr("dd.networks.portion.largest_map", lambda network, images: seen.append(len(images)) or 1 << 30)
    value, found = gradient(cls(**SMALL, chunk=4), syn, task)
    assert seen == [4 * 12]
    assert torch.equal(value, whole)
    assert torch.equal(found, grad)


@pytest.mark.parametrize("cls", [DM, DATADAM])
def test_with_batch_norm_classes_see_one_another_only_where_that_is_asked_for(make_task, cls):
    task = make_task(ipc=2, student=NetworkSpec(depth=2, width=4, norm="batch"))
    syn = cls(**SMALL).start(task, None)
    by_class = [gradient(cls(**SMALL, chunk=chunk), syn, task)[0].item() for chunk in (1, 4)]
    assert by_class[0] == by_class[1]  # never batched, whatever the chunk
    by_hand = 0.0
    network, method = task.network("matching", 0), cls(**SMALL)
    for c in range(4):
        batch = shared.group(syn, task, 0, [c], 12, "none")
        by_hand += value_by_hand(method, network, batch.real, batch.synthetic)
    assert by_class[0] == pytest.approx(by_hand, rel=1e-5)
    together = gradient(cls(**SMALL, chunk=1, batchnorm="all"), syn, task)[0].item()
    assert abs(together - by_class[0]) > 0.01 * by_class[0]


def value_by_hand(method, network, real, synthetic):
    """The objective of one class, image by image where the network allows it, after one pass over its batch."""
    features, attentions = [], []
    for images in (real, synthetic):
        with captured(network, nn.ReLU) as maps:
            out = network.embed(images)
        features.append(out.mean(0))
        layers = []
        for maps_ in maps[:-1]:
            total = 0
            for one in maps_:
                a = sum(channel.abs() ** getattr(method, "power", 1) for channel in one).flatten()
                total = total + a / a.norm()
            layers.append(total / len(maps_))
        attentions.append(layers)
    distance = (features[0] - features[1]).square().sum()
    if type(method) is DM:
        return distance.item()
    apart = sum((a - b).square().sum() for a, b in zip(*attentions, strict=True))
    weight = 0.01 if method.weight is None else method.weight  # of images of 8 pixels
    return (100 * apart + 100 * weight * distance).item()


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_the_attention_objective_by_hand(make_task, power):
    task = make_task(ipc=2, student=NetworkSpec(depth=2, width=4))
    method = DATADAM(**SMALL, power=power, weight=0.03, augment=False)
    syn = method.start(task, None)
    value, _ = gradient(method, syn, task)
    network, by_hand = task.network("matching", 0), 0.0
    for c in range(4):
        batch = shared.group(syn, task, 0, [c], 12, "none")
        by_hand += value_by_hand(method, network, batch.real, batch.synthetic)
    assert value.item() == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize(("side", "weight"), [(8, 0.01), (28, 0.01), (32, 0.01), (64, 0.02)])
def test_the_weight_of_features_follows_from_the_resolution(make_task, blobs, side, weight):
    task = make_task(blobs(size=side, per_class=2, holdout=1, test=1), ipc=1, student=NetworkSpec(depth=2, width=4))
    few = SMALL | {"batch_real": 2}
    settled = DATADAM(**few).settle(task)
    assert settled.weight == weight
    assert settled.chunk is not None
    assert DATADAM(**few, weight=0.5).settle(task).weight == 0.5
    stated = DATADAM(**few, weight=weight)
    left, right = (gradient(method, method.start(task, None), task)[0] for method in (stated, settled))
    other = DATADAM(**few, weight=0.5)
    assert left == right
    assert left != gradient(other, other.start(task, None), task)[0]


def test_the_learning_rate_follows_from_ipc():
    assert [DATADAM.by_ipc(ipc)["lr_img"] for ipc in (1, 50, 51, 100)] == [1.0, 1.0, 10.0, 10.0]


def test_equal_momentum_steps_together_or_apart(make_task):
    # SGD keeps its state pixel by pixel: one joint step is a step of every class
    task = make_task(ipc=2)
    joint, single = (DM(**SMALL).start(task, None) for _ in range(2))
    synthesise(DM(**SMALL, chunk=4), task, None, joint)
    velocities = [torch.zeros_like(single.images) for _ in range(4)]
    for it in range(3):
        for c in range(4):
            _, grad = gradient(DM(**SMALL), single, task, it)
            mine = (task.targets == c).view(-1, 1, 1, 1)
            velocities[c] = 0.5 * velocities[c] + grad * mine
            with torch.no_grad():
                single.images -= velocities[c] * mine
    assert apart(joint.images.detach(), single.images.detach()) < 1e-5


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_is_of_unit_norm_and_knows_neither_scale_nor_the_order_of_channels(power):
    maps = normal(3, 5, 4, 4)
    found = datadam.attention(maps, power)
    assert found.shape == (3, 16)
    assert torch.allclose(found.norm(dim=1), torch.ones(3).double())
    assert torch.allclose(datadam.attention(7 * maps, power), found)
    assert torch.allclose(datadam.attention(maps[:, [4, 1, 3, 0, 2]], power), found)
    moved = datadam.attention(maps.roll(1, 3), power)
    assert (moved - found).norm() > 0.1  # but place does count


def test_attention_of_a_point_and_of_nothing():
    maps = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(datadam.attention(maps, 4.0), torch.zeros(1, 16).double())
    maps[0, 1, 2, 3] = -0.3
    assert torch.equal(datadam.attention(maps, 4.0), F.one_hot(torch.tensor([11]), 16).double())


def test_distances_of_attention_are_at_most_two():
    left, right = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    left[:, :, :, :2], right[:, :, :, 2:] = 1.0, 1.0
    means = [datadam.attention(maps, 1.0).mean(0) for maps in (left, right)]
    assert (means[0] - means[1]).square().sum().item() == pytest.approx(2)
    others = [datadam.attention(normal(6, 3, 4, 4, seed=s), 2.0).mean(0) for s in (1, 2)]
    assert 0 < (others[0] - others[1]).square().sum() < 2


def test_all_activations_but_the_last_are_looked_at(make_task, blobs):
    task = make_task(blobs(size=28, classes=2, per_class=4), ipc=1, student=NetworkSpec(depth=3, width=4))
    network = task.network("matching", 0)
    with captured(network, nn.ReLU) as maps:
        features = network.embed(torch.zeros(2, 1, 28, 28))
    assert [datadam.attention(m, 1.0).shape[1] for m in maps[:-1]] == [1024, 256]
    assert features.shape[1] == 4 * 16


@pytest.mark.parametrize("arch", ["alexnet", "vgg11", "lenet", "mlp", "vit"])
def test_attention_is_of_maps_or_refused(make_task, blobs, arch):
    width = {"lenet": None, "vit": 8}.get(arch, 4)
    task = make_task(blobs(size=28, classes=2, per_class=4), ipc=1, student=NetworkSpec(arch, width=width))
    method = DATADAM(**SMALL, augment=False)
    syn = method.start(task, None)
    if arch in ("mlp", "vit"):
        with pytest.raises(UsageError, match=f"student.arch={arch} has 0 maps"):
            method.settle(task).loss(syn, task, None, 0)
        return
    _, found = gradient(method, syn, task)
    assert found.isfinite().all()
    assert found.abs().max() > 0


# --- whole runs ------------------------------------------------------------------------------------------------------

PLAIN = {"augment": False, "start_from": "noise", "batch_real": 64}


@pytest.mark.parametrize(
    ("method", "fall"),
    [(DM(iterations=300, lr_img=1.0, **PLAIN), 20), (DATADAM(iterations=300, lr_img=1.0, **PLAIN), 5)],
    ids=["dm", "datadam"],
)
def test_noise_becomes_the_class_means(blobs, make_task, method, fall):
    data = blobs(classes=2, per_class=128, seed=3)
    task = make_task(data, ipc=4, student=NetworkSpec(depth=2, width=16))
    rows = []
    syn = method.start(task, None)
    before = syn.images.detach().clone()
    synthesise(method.settle(task), task, None, syn, None, Watch(log=lambda it, row: rows.append(row["loss"])))
    assert fmean(rows[-50:]) * fall < fmean(rows[:10])
    images, labels = data.train.images(torch.arange(256)).flatten(1), data.train.labels
    means = torch.stack([images[labels == c].mean(0) for c in range(2)])
    made = syn.images.detach().flatten(1).view(2, 4, -1).mean(1)
    assert F.cosine_similarity(made, means).min() > 0.85

    def nearest(centres):
        return float((torch.cdist(images, centres).argmin(1) == labels).double().mean())

    assert nearest(made) > 0.99
    assert nearest(before.flatten(1).view(2, 4, -1).mean(1)) < 0.9


def test_work_is_counted_as_torch_counts_it():
    from torch.utils.flop_counter import FlopCounterMode

    for spec, channels, size in ((NetworkSpec(width=32), 1, 28), (NetworkSpec(arch="resnet18", width=8), 3, 32)):
        network = build_network(spec, channels=channels, size=size, classes=10, generator=generator(0, "counted"))
        images = torch.zeros(2, channels, size, size)
        with FlopCounterMode(display=False) as counter:
            network(images)
        assert 2 * products(network, images) == counter.get_total_flops()
        assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("width", "ipc", "chunk"), [(32, 1, 10), (32, 10, 10), (32, 50, 8), (16, 50, 8), (64, 1, 4), (128, 1, 1)]
)
def test_wide_networks_take_fewer_classes_at_a_time_and_the_embedded_cells_what_they_took(
    width, ipc, chunk, make_task, blobs
):
    student = NetworkSpec(width=width, depth=3)
    task = make_task(blobs(classes=10, size=28, per_class=2), ipc=ipc, student=student)
    assert DM(batch_real=64).settle(task).chunk == chunk
    assert DM(batch_real=64, chunk=7).settle(task).chunk == 7


def test_what_is_settled_follows_from_shapes(make_task, monkeypatch):
    task = make_task(ipc=2)
    # a thousand images: real and synthetic ones of every class
    assert DM(batch_real=100).settle(task).chunk == 4
    assert DM(batch_real=254).settle(task).chunk == 4
    assert DM(batch_real=339).settle(task).chunk == 3
    assert DM(batch_real=2000).settle(task).chunk == 1
    monkeypatch.setattr(type(task), "total_memory", lambda self: 1)
    assert DM().settle(task).chunk == 1
    assert replace(DM(), chunk=3).settle(task).chunk == 3
