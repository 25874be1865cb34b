"""The characteristic-function discrepancy, its sampler and tiles against closed forms, float64 and slow loops."""

import importlib
import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.data.preprocess import zca
from dd.engine.checkpoint import Checkpoint
from dd.engine.method import prepare
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.errors import Interrupted
from dd.evaluation.arms import set_arm
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs.stop import Stop
from dd.sets.tiles import decode, decoded_labels, mosaic
from dd.training import ExpertSettings
from dd.views.dsa import draw_sequence

ncfd = importlib.import_module("dd.methods.distribution._ncfd")
NCFM = get("ncfm")
ncfm = sys.modules[NCFM.__module__]
DTYPE = torch.float64


def normal(*shape, seed=0, dtype=DTYPE):
    return torch.randn(*shape, generator=generator(seed, "normal", *shape), dtype=dtype)


def phi(x, t):
    return ncfd.characteristic(x, t, [len(x)])


def between(real, ours, t, amplitude=0.5, phase=0.5):
    return ncfd.discrepancy(phi(ours, t), phi(real, t), amplitude, phase)[0]


def column(*values):
    return torch.tensor(values, dtype=DTYPE)[:, None]


# --- the discrepancy -------------------------------------------------------------------------------------------------

ONE = column(1.0)


@pytest.mark.parametrize(
    ("real", "ours", "expected"),
    [
        (column(0.0), column(math.pi), math.sqrt(2)),
        (column(0.0, math.pi), column(0.0), 0.70711),
        (column(-0.5, 0.5), column(-1.0, 1.0), 0.2384932),
    ],
)
def test_worked_scalars(real, ours, expected):
    assert between(real, ours, ONE).item() == pytest.approx(expected, abs=1e-5)
    assert between(ours, real, ONE).item() == pytest.approx(expected, abs=1e-5)


def test_the_empirical_characteristic_function_by_a_slow_loop():
    x, t = normal(7, 3), normal(4, 3, seed=1)
    c, s = ncfd.characteristic(torch.cat([x, 2 * x]), t, [7, 7])
    for k in range(4):
        value = sum(complex(math.cos(float(a @ t[k])), math.sin(float(a @ t[k]))) for a in x) / 7
        assert complex(c[0, k], s[0, k]) == pytest.approx(value, abs=1e-12)
    assert c.shape == s.shape == (2, 4)


def test_amplitude_and_phase_make_up_the_squared_difference():
    x, y, t = normal(9, 3), normal(5, 3, seed=1), normal(50, 3, seed=2)
    (cr, sr), (cs, ss) = phi(x, t), phi(y, t)
    real, ours = torch.complex(cr, sr), torch.complex(cs, ss)
    amplitude = (real.abs() - ours.abs()).square()
    phase = 2 * (real.abs() * ours.abs() - cr * cs - sr * ss)
    assert torch.allclose(amplitude + phase, (real - ours).abs().square(), atol=1e-15)
    whole = (real - ours).abs().mean().item()
    assert between(x, y, t).item() == pytest.approx(whole / math.sqrt(2), rel=1e-12)
    for a, b in ((0.9, 0.1), (0.1, 0.9)):
        by_hand = (a * amplitude + b * phase).sqrt().mean().item()
        assert between(x, y, t, a, b).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(("amplitude", "phase"), [(0.5, 0.5), (0.9, 0.1)])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_equal_sets_give_the_floor_and_no_nan(kind, amplitude, phase):
    x, t = normal(40, 6).to(kind), normal(64, 6, seed=1).to(kind)
    for ours in (x, x.flip(0), x.repeat(2, 1)):
        ours = ours.clone().requires_grad_()
        value = between(x, ours, t, amplitude, phase)
        (grad,) = torch.autograd.grad(value, ours)
        assert value.item() < (7.2e-7 if kind == torch.float64 else 2e-5) * max(1, math.sqrt(2 * phase))
        assert grad.isfinite().all()
        if kind == torch.float64:
            assert grad.norm() < 1e-6


def test_a_gaussian_in_closed_form():
    x = normal(200_000, 2) @ torch.tensor([[1.0, 0.4], [0.0, 0.7]], dtype=DTYPE) + torch.tensor([0.3, -0.5]).double()
    t = normal(64, 2, seed=1)
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.16 + 0.49]], dtype=DTYPE)
    decay = torch.exp(-0.5 * ((t @ covariance) * t).sum(1))
    turn = t @ torch.tensor([0.3, -0.5]).double()
    c, s = phi(x, t)
    bound = 3 / math.sqrt(len(x))
    assert (c[0] - decay * turn.cos()).abs().max() < bound
    assert (s[0] - decay * turn.sin()).abs().max() < bound


def test_a_shift_is_phase_and_a_reflection_is_too():
    x, t = normal(30, 3), normal(20, 3, seed=1)
    delta = torch.tensor([0.2, -0.1, 0.4], dtype=DTYPE)
    size = torch.complex(*phi(x, t))[0].abs()
    only_amplitude = between(x, x + delta, t, amplitude=1.0, phase=0.0)
    assert only_amplitude.item() < 1e-7
    expected = (2 * size.square() * (1 - (t @ delta).cos())).sqrt().mean().item()
    assert between(x, x + delta, t, amplitude=0.0, phase=1.0).item() == pytest.approx(expected, rel=1e-6)
    centred = x - x.mean(0)
    assert between(centred, -centred, t, amplitude=1.0, phase=0.0).item() < 1e-7


def test_it_is_a_metric():
    sets, t = [normal(8, 3, seed=s) + s for s in range(6)], normal(30, 3, seed=9)
    for i in range(4):
        a, b, c = sets[i : i + 3]
        assert between(a, b, t) == between(b, a, t)
        assert between(a, c, t) <= between(a, b, t) + between(b, c, t)
        assert between(a, b, t) > 0


def test_small_frequencies_see_the_means():
    x, y = normal(50, 4), normal(60, 4, seed=1) + 0.7
    scale, t = 1e-4, normal(20_000, 4, seed=2)
    expected = math.sqrt(0.5) * scale * (x.mean(0) - y.mean(0)).norm().item() * math.sqrt(2 / math.pi)
    assert between(x, y, scale * t).item() == pytest.approx(expected, rel=0.03)


def test_gaussian_frequencies_are_the_gaussian_kernel():
    x, y = normal(6, 2), normal(5, 2, seed=1) + 0.5
    t = normal(400_000, 2, seed=2)
    (cr, sr), (cs, ss) = phi(x, t), phi(y, t)
    found = ((cr - cs).square() + (sr - ss).square()).mean().item()

    def kernel(a, b):
        return torch.exp(-torch.cdist(a, b).square() / 2).mean().item()

    assert found == pytest.approx(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y), abs=1e-3)


def test_gradients_against_finite_differences():
    x, t = normal(4, 3), normal(5, 3, seed=1)
    ours = normal(3, 3, seed=2).requires_grad_()
    for weights in ((0.5, 0.5), (0.8, 0.2)):
        assert torch.autograd.gradcheck(lambda y, w=weights: between(x, y, t, *w), ours, eps=1e-6)


def test_a_single_sample_has_amplitude_one():
    c, s = phi(normal(1, 5), normal(30, 5, seed=1))
    assert torch.allclose(c.square() + s.square(), torch.ones(1, 30, dtype=DTYPE))


@pytest.mark.parametrize("shift", [1.0, 1e-2, 1e-4])
def test_single_precision_keeps_its_digits_where_the_sets_are_close(shift):
    x = F.normalize(normal(64, 32), dim=1)
    y = F.normalize(x + shift * normal(64, 32, seed=1), dim=1)
    t = normal(256, 32, seed=2)
    exact = between(x, y, t).item()
    assert between(x.float(), y.float(), t.float()).item() == pytest.approx(exact, rel=2e-3)


def test_autocast_does_not_reach_it():
    x, y, t = (F.normalize(normal(16, 32, seed=s), dim=1).float() for s in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = between(x, y, 5 * t)
    assert found.item() == pytest.approx(between(x.double(), y.double(), 5 * t.double()).item(), rel=1e-4)


# --- the sampler -----------------------------------------------------------------------------------------------------

SMALL = {
    "iterations": 4,
    "lr_img": 0.01,
    "batch_real": 12,
    "frequencies": 64,
    "experts": ExpertSettings(count=2, epochs=2, batch=16),
}


@pytest.fixture(scope="module")
def played(make_task, blobs):
    task = make_task(blobs(strategy="color_crop"), ipc=2, student=NetworkSpec(depth=2, width=4))
    method = NCFM(**SMALL, lr_sampler=1e-3)
    return task, method, prepare(method, task)


def test_frequencies_are_scale_mixtures_of_normals():
    sampler = ncfd.Sampler(10, components=3)
    noise, normals = sampler.draw(generator(0))
    t = sampler(noise, normals)
    assert t.shape == (48, 10)
    scales = (t / normals).view(3, 16, 10)
    assert torch.allclose(scales, scales[:, :1].expand_as(scales), rtol=1e-3, atol=1e-5)
    assert scales.abs().max() <= 1
    assert len(t.unique(dim=0)) == 48


def test_the_samplers_step_raises_the_discrepancy_and_the_images_lowers_it(played):
    task, method, prepared = played
    syn = method.start(task, prepared)
    prepared.template.load(prepared.network, prepared.experts.snapshot(0, 1, task.device))
    held = method._features(syn, task, prepared, 0, range(4))
    noise, normals = syn.sampler.draw(generator(5))

    def value():
        t = syn.sampler(noise, normals)
        real = ncfd.characteristic(held.real, t, held.real_sizes)
        ours = ncfd.characteristic(held.ours.detach(), t, held.sizes)
        return ncfd.discrepancy(ours, real).sum().item()

    before, weights = value(), [p.detach().clone() for p in syn.sampler.parameters()]
    method._frequencies(syn, task, prepared, 0, held)
    assert syn.velocity.norm() > 0
    moved = sum((p - w).norm() for p, w in zip(syn.sampler.parameters(), weights, strict=True))
    assert moved > 0
    # the step was made on another draw of noise: on average over draws it still is uphill
    for it in range(1, 20):
        method._frequencies(syn, task, prepared, it, held)
    assert value() > before

    terms = method.loss(syn, task, prepared, 7)
    before = syn.images.detach().clone()
    total = torch.stack(list(terms.values())).sum()
    (grad,) = torch.autograd.grad(total, syn.images)
    with torch.no_grad():
        syn.images -= 1e-4 * grad / grad.norm()
    frozen = {name: p.detach().clone() for name, p in syn.sampler.state_dict().items()}
    method_still = NCFM(**SMALL, lr_sampler=1e-30)
    syn.sampler.load_state_dict(frozen)
    after = torch.stack(list(method_still.loss(syn, task, prepared, 7).values())).sum()
    with torch.no_grad():
        syn.images.copy_(before)
    again = torch.stack(list(method_still.loss(syn, task, prepared, 7).values())).sum()
    assert after < again


def test_a_learned_sampler_changes_during_a_run_and_a_gaussian_one_is_none(played):
    task, method, prepared = played
    syn = method.start(task, prepared)
    first = [p.detach().clone() for p in syn.sampler.parameters()]
    synthesise(method, task, prepared, syn)
    assert any(not torch.equal(p, w) for p, w in zip(syn.sampler.parameters(), first, strict=True))
    gaussian = NCFM(**SMALL, sampler="gaussian")
    other = gaussian.start(task, prepared)
    assert other.sampler is None
    synthesise(gaussian, task, prepared, other)
    assert not torch.equal(other.images, syn.images)


@pytest.mark.parametrize("sampler", ["learned", "gaussian"])
def test_chunks_are_the_whole(played, sampler):
    task, _, prepared = played
    values, grads = [], []
    for chunk in (4, 1, 3):
        # the sampler's step sees the leading chunk alone, so it stands still here
        method = NCFM(**SMALL, chunk=chunk, sampler=sampler, lr_sampler=1e-30)
        syn = method.start(task, prepared)
        total = torch.stack(list(method.loss(syn, task, prepared, 0).values())).sum()
        values.append(total.item())
        grads.append(torch.autograd.grad(total, syn.images)[0])
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)
    assert all((g - grads[0]).norm() < 1e-4 * grads[0].norm() for g in grads)


def test_the_network_of_an_iteration_is_blended_and_the_pool_is_left_alone(played):
    task, method, prepared = played
    before = [snapshots.clone() for snapshots in prepared.experts.snapshots]
    method.loss(method.start(task, prepared), task, prepared, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, prepared.experts.snapshots, strict=True))
    rng = task.generator("network", 3)
    member = int(torch.randint(2, (), generator=rng))
    share = float(torch.rand((), generator=rng))
    expected = share * before[member][0] + (1 - share) * before[member][-1]
    assert torch.allclose(prepared.template.flatten(prepared.network), expected)
    assert torch.equal(prepared.template.flatten(prepared.trained), before[member][-1])


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_decoding_keeps_constants_counts_and_order():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8).clone()
    images[:, :, :4, 4:] += 10
    images[:, :, 4:, :4] += 20
    images[:, :, 4:, 4:] += 30
    found = decode(images, 2)
    assert found.shape == (12, 1, 8, 8)
    expected = torch.tensor([0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32.0])
    assert torch.equal(found, expected.view(12, 1, 1, 1).expand_as(found))
    assert torch.equal(decoded_labels(torch.tensor([5, 6, 7]), 2, 3), torch.tensor([5, 6, 7] * 4))
    assert decode(images, 1) is images


@pytest.mark.parametrize(("factor", "side"), [(2, 8), (2, 28), (4, 8)])
def test_every_stored_pixel_counts_as_much_as_the_enlargement(factor, side):
    images = torch.ones(2, 1, side, side, dtype=DTYPE, requires_grad=True)
    (adjoint,) = torch.autograd.grad(decode(images, factor).sum(), images)
    assert torch.allclose(adjoint, torch.full_like(adjoint, factor**2))


def test_a_side_that_does_not_divide_is_padded():
    found = decode(torch.ones(1, 1, 28, 28), 3)  # tiles of ten pixels, two of them beyond the image
    assert found.shape == (9, 1, 28, 28)
    assert found[0].min().item() == pytest.approx(1)
    assert found[8].min().item() == pytest.approx(0.5)  # mid-grey
    made = mosaic(torch.ones(9, 1, 28, 28), 3)
    assert made.shape == (1, 1, 28, 28)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("kind", ["standard", "zca"])
def test_what_is_evaluated_is_what_was_matched(make_task, blobs, tmp_path, monkeypatch, kind, factor):
    # sides that divide and those that do not: the images of NCFM's loss are those a student of its set is shown
    task = make_task(blobs(), ipc=2, student=NetworkSpec(depth=2, width=4))
    if kind == "zca":
        monkeypatch.setenv("DD_HOME", str(tmp_path))
        task = replace(task, data=replace(task.data, preprocess=zca(task.data.train.raw(torch.arange(100)), eps=0.1)))
    method = replace(NCFM(**SMALL), factor=factor, strategy=None)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    matched = torch.cat([method._features(syn, task, prepared, 0, [c]).images for c in range(4)])
    evaluated, labels = set_arm("it", method.finish(syn, task, prepared), task.data.preprocess).load(0)
    by_class = evaluated[labels.argsort(stable=True)]
    torch.testing.assert_close(matched.detach(), by_class, rtol=1e-4, atol=1e-4)


def test_a_mosaic_holds_its_images_made_smaller():
    images = normal(8, 3, 8, 8)
    made = mosaic(images, 2)
    assert made.shape == (2, 3, 8, 8)
    assert torch.equal(made[1, :, :4, 4:], images[5, :, ::2, ::2])
    assert torch.equal(made[0, :, 4:, :4], images[2, :, ::2, ::2])


def test_a_set_says_how_it_is_decoded(played):
    task, method, prepared = played
    syn = method.start(task, prepared)
    made = method.finish(syn, task, prepared)
    made.check()
    assert (made.image_kind, made.decode_factor, made.n) == ("tiles", 2, 8)
    back = task.data.preprocess.invert(made.images)
    assert torch.allclose(back, syn.images.detach(), atol=1e-6)
    other = method.start(task, prepared)
    with torch.no_grad():
        other.images.zero_()
    other.take(made.images)
    assert torch.allclose(other.images, syn.images, atol=1e-6)


def test_refined_labels_are_the_teachers_where_it_is_right(played):
    task, method, prepared = played
    method = replace(method, refine=True)
    syn = method.start(task, prepared)
    made = method.finish(syn, task, prepared)
    made.check()
    assert (made.label_kind, made.n, len(made.labels)) == ("probabilities", 8, 32)
    prepared.template.load(prepared.trained, prepared.experts.last(0, task.device))
    right = 0
    for tile in range(4):  # row by row of tiles, as they are decoded
        rows, columns = slice(4 * (tile // 2), 4 * (tile // 2) + 4), slice(4 * (tile % 2), 4 * (tile % 2) + 4)
        for i in range(8):
            part = made.images[i : i + 1, :, rows, columns]
            z = prepared.trained(F.interpolate(part, size=(8, 8), mode="bilinear"))[0]
            share, own = (z.exp() / z.exp().sum()).tolist(), int(task.targets[i])
            correct = share[own] == max(share)
            right += correct
            expected = share if correct else [float(c == own) for c in range(4)]
            assert made.labels[8 * tile + i].tolist() == pytest.approx(expected, abs=1e-5)
    assert 0 < right < 32
    assert torch.equal(made.own_classes(), task.targets)  # of images, not of tiles
    images, labels = set_arm("it", made, task.data.preprocess).load(0)
    assert len(images) == len(labels) == 32
    torch.testing.assert_close(labels, made.labels)


def test_the_sequence_has_flip_colour_and_cutout_always():
    seen = set()
    for seed in range(40):
        ops = [d.op for d in draw_sequence("color_crop_cutout_flip_scale_rotate", 3, (1, 8, 8), generator(seed))]
        assert ops[:2] == ["flip", "color"]
        assert ops[3:] == ["cutout"]
        seen.add(ops[2])
    assert seen == {"crop", "scale", "rotate"}
    assert [d.op for d in draw_sequence("color_crop", 3, (1, 8, 8), generator(0))] == ["color", "crop"]
    assert draw_sequence("none", 3, (1, 8, 8), generator(0)) == []


def test_the_rate_falls_along_a_cosine():
    method = NCFM(iterations=100)
    assert [method.rate(it) for it in (0, 50)] == pytest.approx([1, 0.5])
    assert method.rate(99) < 1e-3
    assert NCFM(iterations=100, schedule="constant").rate(70) == 1


# --- the released code's settings -------------------------------------------------------------------------------------


def test_plateaus_are_those_of_pytorchs_scheduler(monkeypatch):
    plateau = importlib.import_module("dd.methods.distribution._plateau")
    monkeypatch.setattr(plateau, "PATIENCE", 3)
    weight = torch.zeros((), requires_grad=True)
    theirs = torch.optim.SGD([weight], lr=1e-6)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=3)
    state, ours = plateau.Plateau(torch.device("cpu")), torch.optim.SGD([weight], lr=1.0)
    losses = [5, 4, 4, 3.9999, 4, 4, 4, 4, 3, *[3.5] * 60]
    for loss in losses:
        scheduler.step(loss)
        state.see(torch.tensor(float(loss)), 1e-6)
        again = plateau.Plateau(torch.device("cpu"))
        again.load_state_dict(state.state_dict())  # what a checkpoint carries is all there is
        state = again
        ours.param_groups[0]["lr"] = 1.0
        state.slow(ours)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"] / 1e-6, rel=1e-12)
    assert 0 < theirs.param_groups[0]["lr"] < 0.1e-6  # it fell, and stopped falling where a fall is below 1e-8


def test_a_plateau_slows_the_images_and_survives_an_interruption(make_task, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("dd.methods.distribution._plateau"), "PATIENCE", 0)
    task = make_task(blobs(), ipc=1, student=NetworkSpec(depth=2, width=4))
    method = NCFM(**SMALL | {"iterations": 8, "lr_img": 0.05}, sampler="gaussian", schedule="plateau", shared=False)
    prepared = prepare(method, task)
    whole = method.start(task, prepared)
    synthesise(method, task, prepared, whole)
    assert whole.plateau.factor < 1
    for it in range(1, 9):  # eight processes, each of which goes one iteration further
        part, checkpoint, stop = method.start(task, prepared), Checkpoint(tmp_path / "state", "key"), Stop("")

        def leave(done, _, last=it - 1, stop=stop):
            if done == last:
                stop.requested = 15

        if it < 8:
            with pytest.raises(Interrupted):
                synthesise(method, task, prepared, part, checkpoint, Watch(log=leave, stop=stop))
        else:
            synthesise(method, task, prepared, part, checkpoint)
    assert torch.equal(part.images, whole.images)
    constant = replace(method, schedule="constant")
    other = constant.start(task, prepared)
    synthesise(constant, task, prepared, other)
    assert not torch.equal(other.images, whole.images)


@pytest.mark.parametrize("calibration", [0.0, 1.0])
def test_the_rate_of_a_class_step_is_that_of_one_step_an_iteration(played, calibration):
    # the released loop by hand: for every class a step on all images, then, with calibration, once more
    task, _, prepared = played
    few = SMALL | {"lr_img": 1e-3}
    method = NCFM(**few, lr_per="class", calibration=calibration, weight_decay=0.01, sampler="gaussian")
    syn = method.start(task, prepared)
    (ours,) = method.optimisers(syn)
    images = torch.nn.Parameter(torch.ones_like(syn.images))
    theirs = torch.optim.AdamW([images], lr=1e-3, weight_decay=0.0)
    phases = 2 if calibration else 1
    iterations = 300
    for _ in range(iterations):
        for _ in range(phases):
            for c in range(4):
                images.grad = torch.where((syn.targets == c).view(-1, 1, 1, 1), 1.0, 0.0) * torch.ones_like(images)
                theirs.step()
    moved = (1 - images.detach()) / iterations
    # the same gradient in every iteration, in `phases` of its 4 * phases steps
    one = torch.nn.Parameter(torch.ones(()))
    single = torch.optim.AdamW([one], lr=ours.param_groups[0]["lr"], weight_decay=0.0)
    for _ in range(iterations):
        one.grad = torch.ones(())
        single.step()
    mine = float(1 - one.detach()) / iterations * math.sqrt(phases)  # one of two gradients alone is 1 / sqrt(2) of both
    assert moved.mean().item() == pytest.approx(mine, rel=0.02)
    steps = 4 * phases
    assert ours.param_groups[0]["lr"] * ours.param_groups[0]["weight_decay"] == pytest.approx(steps * 1e-3 * 0.01)
    sgd = replace(method, optimiser="sgd", sgd_momentum=0.25)
    (group,) = sgd.optimisers(syn)[0].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0.25, pytest.approx(steps * 0.01))
    plain = replace(method, lr_per="iteration").optimisers(syn)[0].param_groups[0]
    assert (plain["lr"], plain["weight_decay"]) == (1e-3, 0.01)


@pytest.mark.parametrize("sampler", ["learned", "gaussian"])
def test_frequencies_of_each_class_by_a_loop(played, sampler):
    task, _, prepared = played
    values = []
    for chunk in (4, 3, 1):
        method = NCFM(**SMALL, shared=False, sampler=sampler, chunk=chunk, lr_sampler=1e-30, calibration=0.0)
        syn = method.start(task, prepared)
        values.append(method.loss(syn, task, prepared, 2)["discrepancy"].item())
    by_hand = 0.0
    for c in range(4):
        held = method._features(syn, task, prepared, 2, [c])
        rng = task.generator("frequencies", 2, c)
        if sampler == "learned":
            t = syn.sampler(*syn.sampler.draw(rng))
        else:
            t = torch.randn(64, syn.features, generator=rng)
        by_hand += 300 * between(held.real, held.ours, t).item()
    assert values == pytest.approx([by_hand] * 3, rel=1e-4)
    shared = NCFM(**SMALL, sampler=sampler, lr_sampler=1e-30, calibration=0.0)
    assert shared.loss(syn, task, prepared, 2)["discrepancy"].item() != pytest.approx(by_hand, rel=1e-4)


def test_the_first_images_of_a_class_in_file_order(played):
    task, _, prepared = played
    method = NCFM(**SMALL, order="file", strategy=None)
    first = [(task.data.train.labels == c).nonzero().flatten() for c in range(4)]
    for it in (0, 5):
        held = method._features(method.start(task, prepared), task, prepared, it, [2])
        shown = task.data.train.images(first[2][:12])
        with torch.no_grad():
            assert torch.allclose(held.real, F.normalize(ncfm.embed(prepared.network, shown), dim=1))
    start = method.start(task, prepared)
    raw = torch.cat([task.data.train.raw(index[:8]) for index in first]).float() / 255
    assert torch.equal(start.images.detach(), mosaic(raw, 2))
    assert not torch.equal(start.images, NCFM(**SMALL).start(task, prepared).images)
