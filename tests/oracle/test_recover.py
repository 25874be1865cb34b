"""Recovery: what a batch is, what its views are, what is minimised, and what is left alone."""

import importlib
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.data.preprocess import standard
from dd.engine.method import Synthetic, prepare
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.errors import UsageError
from dd.networks import NetworkSpec
from dd.networks.statistics import statistics_loss
from dd.rng import generator
from dd.runs import Store
from dd.training.committee import votes
from dd.training.teachers import Teacher
from dd.views import ViewPolicy, draw_boxes, draw_view, resized_crop

from .conftest import SQUEEZE, STUDENT

SRE2L, CVDD = get("sre2l"), get("cvdd")
recover = importlib.import_module("dd.methods.decoupled.sre2l")
teaching = importlib.import_module("dd.methods.decoupled._teachers")
clip_ = importlib.import_module("dd.methods.decoupled._pixels").clip_

SMALL = {"squeeze": SQUEEZE, "iterations": 20, "lr_img": 0.1, "roll": 2, "crop": 0.5, "batch": 3}


def run(method, task, watch=None):
    """Variables after the last iteration, of the whole set or of a part."""
    prepared = prepare(method, task)
    return synthesise(method, task, prepared, method.start(task, prepared), watch=watch or Watch()), prepared


def network(task, seed=0):
    """A network with buffers of no particular value, in float64."""
    net = task.build(generator(seed, "net")).double()
    rng = generator(seed, "buffers")
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.copy_(0.3 * torch.randn(layer.num_features, generator=rng))
            layer.running_var.copy_(torch.rand(layer.num_features, generator=rng) + 0.5)
    return net.eval().requires_grad_(False)


def teacher(net, name="net", holdout=None):
    return Teacher(name, net, None, holdout, None, name)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
@pytest.mark.parametrize("targets", [[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 1, 2, 3, 3]])
def test_one_image_per_class_in_a_batch(task, batch, targets):
    task = replace(task, targets=torch.tensor(targets))
    parts = SRE2L(batch=batch).parts(task)
    for slots in parts:
        own = task.targets[slots]
        assert (own.diff() > 0).all()  # distinct and ascending
        assert len(own) <= batch
    pairs = Counter((int(task.targets[s]), int(task.ranks[s])) for slots in parts for s in slots)
    assert set(pairs.values()) == {1}
    assert sum(pairs.values()) == len(targets)
    ranks = [int(task.ranks[slots[0]]) for slots in parts]
    assert ranks == sorted(ranks)  # a smaller ipc is the beginning of a larger one


def test_other_layouts(task):
    by_class = SRE2L(layout="class-major", batch=5).parts(task)
    assert [s.tolist() for s in by_class] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    single = SRE2L(layout="single-class").parts(task)
    assert [task.targets[s].unique().tolist() for s in single] == [[0], [1], [2], [3]]
    assert [s.tolist() for s in SRE2L(layout="whole").parts(task)] == [list(range(12))]


def test_a_part_has_its_own_targets_ranks_and_draws(task):
    method = SRE2L(**SMALL)
    tasks = task.in_parts(method.parts(task))
    assert [t.targets.tolist() for t in tasks] == [[0, 1, 2], [3]] * 3
    assert [t.ranks.tolist() for t in tasks] == [[0, 0, 0], [0], [1, 1, 1], [1], [2, 2, 2], [2]]
    noise = [t.first_images("noise")[0] for t in tasks]
    assert not any(torch.equal(a, b) for i, a in enumerate(noise) for b in noise[:i])
    real = torch.cat([t.real_indices("start") for t in tasks])
    assert len(real.unique()) == 12  # no two parts share an image
    assert sorted(real.tolist()) == sorted(task.real_indices("start").tolist())


# --- views -----------------------------------------------------------------------------------------------------------


def test_all_images_of_a_batch_get_the_same_view(task):
    method = SRE2L(crop=0.3, roll=3)
    image = torch.randn(1, 1, 8, 8, generator=generator(0))
    views = [method.view(task, it)(image.expand(5, -1, -1, -1)) for it in range(20)]
    for view in views:
        assert torch.equal(view, view[:1].expand(5, -1, -1, -1))
    assert len({tuple(view[0].flatten().tolist()) for view in views}) == 20


def test_a_view_per_image_is_another_method():
    """Oracle 6, negative: what students are shown is drawn for every image, and tells equal ones apart."""
    image = torch.randn(1, 1, 8, 8, generator=generator(0))
    views = draw_view(ViewPolicy(crop=0.3, flip=True), 5, (1, 8, 8), generator(0, "v"))(image.expand(5, -1, -1, -1))
    assert (views - views[:1]).abs().flatten(1).amax(1)[1:].min() > 0.1


def test_a_view_is_crop_then_flip_then_roll(task):
    method, images = SRE2L(crop=0.3, roll=3), torch.randn(4, 1, 8, 8, generator=generator(0))
    flips = set()
    for it in range(20):
        rng = task.generator("view", it)
        box = draw_boxes(1, (8, 8), (0.3, 1.0), rng)
        flip = bool(torch.rand((), generator=rng) < 0.5)
        down, right = torch.randint(0, 4, (2,), generator=rng).tolist()
        wanted = torch.cat([resized_crop(image[None], box) for image in images])
        wanted = wanted.flip(3) if flip else wanted
        index = torch.arange(8)
        wanted = wanted[:, :, (index - down) % 8][:, :, :, (index - right) % 8]
        assert torch.equal(method.view(task, it)(images), wanted)
        flips.add(flip)
    assert flips == {True, False}


@pytest.mark.parametrize(("back", "wanted"), [(False, {0, 1, 2}), (True, {-2, -1, 0, 1, 2})])
def test_a_roll_is_circular_and_loses_nothing(task, back, wanted):
    method = SRE2L(crop=None, flip=False, roll=2, roll_back=back)
    image = torch.arange(64.0).view(1, 1, 8, 8)
    seen = set()
    for it in range(60):
        view = method.view(task, it)(image)
        assert torch.equal(view.flatten().sort().values, image.flatten())
        at = int((view == 0).flatten().nonzero())
        seen |= {(at // 8 + 4) % 8 - 4, (at % 8 + 4) % 8 - 4}
    assert seen == wanted


def test_nothing_asked_for_nothing_done(task):
    images = torch.randn(2, 1, 8, 8, generator=generator(0))
    method = SRE2L(crop=None, flip=False, roll=0)
    assert all(torch.equal(method.view(task, it)(images), images) for it in range(5))


# --- the objective ---------------------------------------------------------------------------------------------------


def test_the_objective_by_hand(task):
    method = SRE2L(r_bn=0.3, crop=None, flip=False, roll=0)
    net, images = network(task), torch.randn(12, 1, 8, 8, generator=generator(0), dtype=torch.float64)
    syn = Synthetic(images, task.targets)
    terms = method.loss(syn, task, teaching.Committee((teacher(net),), (0.0,)), 0)
    with statistics_loss(net) as statistics:
        logits = net(images)
        bn = statistics()
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(logits, task.targets).item(), rel=1e-6)
    assert terms["bn"].item() == pytest.approx(0.3 * bn.item(), rel=1e-12)


def joint(method, syn, task, committee):
    """Value and gradient of the whole objective in one graph."""
    view = method.view(task, 0)
    total = 0.0
    for weight, member in method.members(task, committee):
        with statistics_loss(member.network, method.first_bn) as statistics:
            logits = member.network(view(syn.images))
            total = total + weight * (F.cross_entropy(logits, syn.targets) + method.r_bn * statistics())
    return total.detach(), torch.autograd.grad(total, syn.images)[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_members_one_after_another_have_the_gradient_of_their_sum(task, count):
    nets = [teacher(network(task, seed), str(seed)) for seed in range(count)]
    committee = teaching.Committee(tuple(nets), (50.0, 52.0, 60.0)[:count])
    method = CVDD(teachers=tuple(t.name for t in nets), members_by="all", crop=0.5, r_bn=0.2)
    syn = Synthetic(torch.randn(12, 1, 8, 8, generator=generator(0), dtype=torch.float64), task.targets)
    value, gradient = joint(method, syn, task, committee)
    terms = method.loss(syn, task, committee, 0)
    found = torch.stack([term.double() for term in terms.values()]).sum()
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    (mine,) = torch.autograd.grad(found, syn.images)
    assert ((mine - gradient).norm() / gradient.norm()) < 1e-6


def test_a_committee_of_one_is_a_single_teacher(task):
    single, alone = teacher(network(task)), CVDD(teachers=("net",), r_bn=0.2, crop=0.5)
    committee = teaching.Committee((single,), (61.0,))
    plain = SRE2L(r_bn=0.2, crop=0.5)
    syn = Synthetic(torch.randn(12, 1, 8, 8, generator=generator(0), dtype=torch.float64), task.targets)
    one, two = (method.loss(syn, task, committee, 0) for method in (alone, plain))
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in two.items()}
    grads = [torch.autograd.grad(sum(terms.values()), syn.images)[0] for terms in (one, two)]
    assert torch.equal(*grads)


def test_learning_rates(task):
    method = SRE2L(iterations=100, lr_img=0.25)
    assert method.rate(0) == 1
    assert method.rate(50) == pytest.approx(0.5)
    assert method.rate(99) == pytest.approx((1 + math.cos(math.pi * 99 / 100)) / 2)
    assert method.rate(99) > 0
    (adam,) = method.optimisers(Synthetic(torch.zeros(1, 1, 8, 8), torch.tensor([0])))
    assert adam.defaults["lr"] == 0.25
    assert adam.defaults["betas"] == (0.5, 0.9)
    assert adam.defaults["eps"] == 1e-8


# --- whole recoveries ------------------------------------------------------------------------------------------------


def test_pixels_are_in_range_after_every_step(task):
    method, data = SRE2L(**SMALL | {"layout": "whole"}), task.data
    seen = []

    class Seen(SRE2L):
        def project(self, syn, task):
            super().project(syn, task)
            seen.append(data.preprocess.invert(syn.images.detach()))

    prepared = prepare(method, task)
    start = data.preprocess.invert(30 * method.start(task, prepared).images.detach())
    assert start.min() < 0 < 1 < start.max()
    syn = method.start(task, prepared)
    with torch.no_grad():
        syn.images.mul_(30)
    synthesise(Seen(**SMALL), task, prepared, syn)
    assert len(seen) == 20
    assert all(pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6 for pixels in seen)


def test_every_channel_has_its_own_range():
    """Oracle 8: black and white are elsewhere in each channel of normalised colours."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    space = standard(torch.empty(0), (mean, std))
    before = 3 * torch.randn(4, 3, 8, 8, generator=generator(0))
    images = before.clone()
    clip_(space, images)
    for c, (m, s) in enumerate(zip(mean, std, strict=True)):
        black, white = -m / s, (1 - m) / s
        torch.testing.assert_close(images[:, c], before[:, c].clamp(black, white), rtol=0, atol=1e-6)
        inside = (before[:, c] > black + 1e-5) & (before[:, c] < white - 1e-5)
        assert 0 < inside.float().mean() < 1
        assert torch.equal(images[:, c][inside], before[:, c][inside])
    shown = space.invert(images)
    assert shown.min() >= -1e-6
    assert shown.max() <= 1 + 1e-6
    assert len(images.amax((0, 2, 3)).unique()) == 3


def test_the_teacher_is_left_as_it_was(task):
    method = SRE2L(**SMALL)
    prepared = prepare(method, task)
    net = prepared.teachers[0].network
    before = {name: value.clone() for name, value in net.state_dict().items()}
    synthesise(method, task, prepared, method.start(task, prepared))
    after = net.state_dict()
    assert any("num_batches_tracked" in name for name in after)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not net.training
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in net.modules())
    assert all(p.grad is None for p in net.parameters())


def statistics_of(net, images):
    with statistics_loss(net) as loss, torch.no_grad():
        net(images)
        return loss().item()


def test_without_statistics_a_teacher_is_deceived_and_with_them_less_so(task):
    plain = {"squeeze": SQUEEZE, "iterations": 200, "lr_img": 0.1, "crop": None, "flip": False, "roll": 0}
    ends = {}
    for r_bn in (0.0, 1.0):
        syn, prepared = run(SRE2L(**plain, r_bn=r_bn), task)
        net = prepared.teachers[0].network
        images = syn.images.detach()
        ends[r_bn] = statistics_of(net, images)
        if not r_bn:
            logits = net(images)
            assert F.cross_entropy(logits, task.targets) < 0.01
            assert (logits.argmax(1) == task.targets).all()
    assert ends[1.0] < 0.5 * ends[0.0]


def test_the_set_is_bytes_and_hard_labels(task):
    method = SRE2L(**SMALL)
    syn, prepared = run(method, task)
    made = method.finish(syn, task, prepared)
    assert made.images.dtype == torch.uint8
    pixels = task.data.preprocess.invert(syn.images.detach()) * 255
    assert (made.images - pixels).abs().max() <= 0.5 + 1e-3
    assert torch.equal(made.labels, task.targets)


def test_teachers_without_batch_norm_need_no_statistics(task):
    instance = replace(task, student=NetworkSpec(depth=2, width=8))
    with pytest.raises(UsageError, match="norm=batch"):
        run(SRE2L(**SMALL), instance)
    syn, _ = run(SRE2L(**SMALL, r_bn=0.0), instance)
    assert syn.images.isfinite().all()


def test_half_precision_stays_near(task):
    full, half = (replace(task, precision=p) for p in ("fp32", "bf16"))
    method = SRE2L(**SMALL)
    prepared = prepare(method, full)
    syn = method.start(full, prepared)
    one, two = (method.loss(syn, t, prepared, 0) for t in (full, half))
    assert one["ce"].item() != two["ce"].item()
    assert two["ce"].dtype == torch.float32
    assert two["bn"].item() == pytest.approx(one["bn"].item(), rel=0.05)


# --- the committee ---------------------------------------------------------------------------------------------------


def test_votes():
    weights = votes([64.0, 51.6], 5)
    assert weights.tolist() == pytest.approx([0.9227, 0.0773], abs=1e-4)
    assert weights.sum().item() == pytest.approx(1)


def test_ten_images_of_a_class_see_every_pair_once(task):
    method = CVDD()
    many = replace(task, targets=torch.arange(4).repeat_interleave(10))
    tasks = many.in_parts(method.parts(many))
    pairs = Counter(frozenset(method.chosen(t, 5)) for t in tasks)  # (0, 1) and (1, 0) are one pair
    assert len(pairs) == 10
    assert set(pairs.values()) == {1}
    assert all(len(pair) == 2 for pair in pairs)
    blocks = many.in_parts(CVDD(batch=1).parts(many))
    assert {len({method.chosen(t, 5) for t in blocks[4 * r : 4 * r + 4]}) for r in range(10)} == {1}


def test_random_pairs_are_drawn_per_image_of_a_class(task):
    method = CVDD(members_by="random", batch=1)
    many = replace(task, targets=torch.arange(4).repeat_interleave(30))
    tasks = many.in_parts(method.parts(many))
    by_rank = [{method.chosen(t, 5) for t in tasks[4 * r : 4 * r + 4]} for r in range(30)]
    assert all(len(one) == 1 for one in by_rank)
    assert len(set().union(*by_rank)) > 5


def test_a_member_is_measured_on_what_a_run_would_recover(task):
    measured = importlib.import_module("dd.methods.decoupled._prior")._recover
    method = SRE2L(**SMALL)
    syn, prepared = run(method, task)
    tensors, _ = measured(method, task, prepared)
    assert torch.equal(tensors["images"], method.finish(syn, task, prepared).images)


def test_priors_are_measured_once_and_by_each_teacher_alone(task):
    teachers = ("convnet:depth=2:width=8", "convnet:depth=1:width=2")
    settings = {"ipc": 2, "iterations": 10, "epochs": 10, "batch": 8}
    distil = importlib.import_module("dd.methods.decoupled._prior").DistilSettings(**settings)
    method = CVDD(**SMALL, teachers=teachers, start_from="real", members_by="all", votes="distil", distil=distil)
    one, two = prepare(method, task), prepare(method, replace(task, seed=5))
    assert one.prior == two.prior
    assert all(0 <= p <= 100 for p in one.prior)
    wanted = [wanted for need in method.needs(task) for wanted in need.artefacts()]
    assert len([kind for kind, _, _ in wanted if kind == "priors"]) == 2
    assert all(task.store.has(kind, spec) for kind, spec, _ in wanted)
    swapped = prepare(replace(method, teachers=teachers[::-1]), task)
    assert swapped.prior == one.prior[::-1]
    weights = [weight for weight, _ in method.members(task, one)]
    assert sum(weights) == pytest.approx(1)
    assert torch.tensor(weights).log().diff().item() == pytest.approx((one.prior[1] - one.prior[0]) / 5, abs=1e-4)
    with pytest.raises(UsageError, match=r"data.holdout=0.1"):
        method.settle(replace(task, data=replace(task.data, holdout=task.data.holdout.__class__(
            task.data.holdout.pixels[:0], task.data.holdout.labels[:0], task.data.preprocess, 4
        ))))  # fmt: skip


def test_compiled_teachers_give_the_same_terms_with_hooks_of_every_iteration(task, monkeypatch):
    """By a back end that makes no machine code; hooks are set again in every iteration, and must run in each."""
    from functools import partial

    from dd.training import compiled

    if not compiled.can_compile(task.device):
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(compiled, "WORTH_FLOPS", 0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    method = SRE2L(**SMALL | {"batch": 4})
    (first, *_) = task.in_parts(method.parts(task))
    logs = {}
    for allowed in (False, True):
        part, rows = replace(first, compile=allowed), []
        prepared = prepare(method, replace(task, compile=False))
        watch = Watch(log=lambda it, scalars, rows=rows: rows.append((scalars["ce"], scalars["bn"])))
        synthesise(method, part, prepared, method.start(part, prepared), watch=watch)
        logs[allowed] = torch.tensor(rows)
        assert len(prepared.fast) == allowed
    torch._dynamo.reset()
    assert len(logs[True]) == 20
    torch.testing.assert_close(logs[True][:3], logs[False][:3], rtol=1e-4, atol=1e-5)
    assert (logs[True][:, 1].diff() != 0).all()


def test_a_teacher_without_batch_norm_is_refused_before_it_is_trained(make_task, tmp_path):
    from dd.runs import Store

    task = make_task(student=replace(STUDENT, norm="instance"), store=Store(tmp_path))
    with pytest.raises(UsageError, match="has no BatchNorm with running statistics"):
        SRE2L(**SMALL).settle(task)
    assert not (tmp_path / "teachers").exists()
    assert prepare(SRE2L(**SMALL, r_bn=0.0), task).teachers[0].holdout > 30


def test_a_checkpoint_without_batch_norm_is_refused_before_another_teacher_is_trained(task, tmp_path):
    bare = NetworkSpec(depth=1, width=4, norm="none")
    torch.save(replace(task, student=bare).build(generator(0)).state_dict(), tmp_path / "bare.pt")
    file = f"{tmp_path}/bare.pt@convnet:depth=1:width=4:norm=none"
    fresh = replace(task, store=Store(tmp_path / "store"))
    with pytest.raises(UsageError, match=r"teachers=.*bare\.pt.* has no BatchNorm"):
        prepare(SRE2L(**SMALL, teachers=("student", file)), fresh)
    assert not list(tmp_path.rglob("teachers"))
