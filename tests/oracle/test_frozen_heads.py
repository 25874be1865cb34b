"""Heads on frozen encoders: ridge regression, gradients of linear heads, pyramids and pools, from their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from dd.methods.representation._pool import NetworkPool, PoolSettings
from dd.methods.representation._pyramid import Pyramid, RestartedAdam, coloured, decoded, sides_of
from dd.methods.representation.clpdd import probe_loss
from dd.methods.representation.lgm import LGM, head_gradient
from torch import nn
from torch.autograd import gradcheck

from dd.data.preprocess import standard
from dd.rng import generator
from dd.training.barlow import BarlowTwins
from dd.training.ridge import (
    Sums,
    best_head,
    dual_weights,
    kernel_prediction,
    primal_weights,
    share_of_trace,
    with_bias,
)

SHARE = 1e-6  # KRR-ST's penalty, as a share of the trace


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed, "normal"), dtype=dtype)


# ---- ridge regression (KRR-ST, section 4.1 of the notes) -----------------------------------------------------------


def test_dual_and_primal_agree():
    for m, d in ((7, 12), (12, 7)):
        support, targets, queries = normal(m, d), normal(m, 3, seed=1), normal(5, d, seed=2)
        penalty = share_of_trace(support @ support.T, SHARE)
        dual, primal = dual_weights(support, targets, penalty), primal_weights(support, targets, penalty)
        assert (queries @ (dual - primal)).abs().max() < 1e-9
        kernel = kernel_prediction(queries, support, targets, SHARE)
        assert (queries @ primal - kernel).abs().max() < 1e-9
        larger = share_of_trace(support @ support.T, 0.1 / m)  # CLP-DD's
        dual, primal = dual_weights(support, targets, larger), primal_weights(support, targets, larger)
        assert (dual - primal).abs().max() < 1e-12


def test_ridge_minimises_its_objective():
    """The gradient of || Φ W - Y ||² + λ || W ||² vanishes at the solution."""
    support, targets = normal(9, 4), normal(9, 2, seed=1)
    weights = primal_weights(support, targets, 0.3).requires_grad_()
    ((support @ weights - targets).square().sum() + 0.3 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-12


def test_few_examples_are_reproduced_at_any_scale():
    support, targets = with_bias(normal(10, 30)), normal(10, 4, seed=1)
    own = kernel_prediction(support, support, targets, SHARE)
    assert (own - targets).norm() / targets.norm() < 1e-4
    queries = normal(6, 31, seed=2)
    one, other = (kernel_prediction(c * queries, c * support, targets, SHARE) for c in (1.0, 1000.0))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradients_of_the_regression():
    """By finite differences; and dL/dY_s = 2 / (B d) Aᵀ (A Y_s - Y_r) with A = K_rs (K_ss + λI)⁻¹."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Softplus()).double().requires_grad_(False)
    with torch.no_grad():
        network[1].weight.copy_(normal(6, 9, seed=3))
    real, wanted = with_bias(network(normal(5, 1, 3, 3, seed=4))), normal(5, 2, seed=5)

    def loss(images, targets):
        return F.mse_loss(kernel_prediction(real, with_bias(network(images)), targets, 1e-2), wanted)

    images, targets = normal(4, 1, 3, 3).requires_grad_(), normal(4, 2, seed=1).requires_grad_()
    # the penalty is detached, so the images are checked at a fixed one
    fixed = float(share_of_trace((own := with_bias(network(images)).detach()) @ own.T, 1e-2))

    def fixed_loss(images):
        ours = with_bias(network(images))
        return F.mse_loss(real @ dual_weights(ours, targets.detach(), fixed), wanted)

    assert gradcheck(fixed_loss, images)
    assert gradcheck(lambda targets: loss(images.detach(), targets), targets)
    found = torch.autograd.grad(loss(images, targets), (images, targets))
    torch.testing.assert_close(found[0], torch.autograd.grad(fixed_loss(images), images)[0], rtol=1e-9, atol=1e-12)
    mapping = real @ own.T @ torch.linalg.inv(own @ own.T + fixed * torch.eye(4, dtype=torch.float64))
    by_hand = 2 / wanted.numel() * mapping.T @ (mapping @ targets.detach() - wanted)
    assert (found[1] - by_hand).abs().max() < 1e-12


def test_a_linear_encoder_is_distilled_exactly():
    """Representations linear in [ω, 1] need 2 (D + 1) generic images at most: L < 1e-6."""
    teacher, real = normal(9, 5, seed=1), with_bias(normal(200, 8, seed=2))
    few, many = (with_bias(normal(m, 8, seed=3)) for m in (9, 20))
    losses = [
        float(F.mse_loss(kernel_prediction(real, ours, ours @ teacher, SHARE), real @ teacher)) for ours in (few, many)
    ]
    assert losses[1] < 1e-6
    assert losses[1] < losses[0] < 0.1


def test_sums_of_parts_give_the_head_of_the_whole():
    features, labels = normal(30, 5), torch.arange(30) % 3
    targets = F.one_hot(labels, 3).double()
    sums = Sums()
    for some, theirs in zip(features.split(7), targets.split(7), strict=True):
        sums.add(some, theirs)
    penalty = share_of_trace(features.T @ features, 1e-3)
    torch.testing.assert_close(sums.weights(1e-3), primal_weights(features, targets, penalty), rtol=1e-9, atol=1e-12)


def test_the_penalty_of_a_classifier_is_the_best_on_held_out_examples():
    features, labels = normal(40, 6), torch.arange(40) % 4
    held, theirs = normal(200, 6, seed=1), (torch.arange(200) * 7) % 4
    sums = Sums().add(features, F.one_hot(labels, 4).double())
    shares = (1e-3, 1e-1, 1.0, 10.0)
    weights, share = best_head(sums, [(held, theirs)], shares)
    right = {s: int(((held @ sums.weights(s)).argmax(1) == theirs).sum()) for s in shares}
    assert len(set(right.values())) > 1
    assert right[share] == max(right.values())
    torch.testing.assert_close(weights, sums.weights(share))


# ---- gradients of linear heads (LGM) -------------------------------------------------------------------------------


def test_closed_form_of_the_heads_gradient():
    features, labels = normal(12, 5), F.one_hot(torch.arange(12) % 3, 3).double()
    weight, bias = normal(3, 5, seed=1).requires_grad_(), normal(3, seed=2).requires_grad_()
    loss = F.cross_entropy(features @ weight.T + bias, labels)
    auto = torch.autograd.grad(loss, (weight, bias))
    found = head_gradient(features, labels, weight.detach(), bias.detach())
    assert (found[:, :5] - auto[0]).abs().max() < 1e-12
    assert (found[:, 5] - auto[1]).abs().max() < 1e-12


def test_zero_head():
    """At W = 0, row c is (sum of φ / K - sum of φ of class c) / B."""
    features, classes = normal(12, 5), torch.arange(12) % 3
    labels = F.one_hot(classes, 3).double()
    found = head_gradient(features, labels, torch.zeros(3, 5).double(), torch.zeros(3).double())
    for c in range(3):
        row = (features.sum(0) / 3 - features[classes == c].sum(0)) / 12
        torch.testing.assert_close(found[c, :5], row, rtol=1e-12, atol=1e-14)


# ---- ridge heads with cross-entropy (CLP-DD) -----------------------------------------------------------------------


def test_ridge_head_of_the_identity():
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(dual_weights(eye, eye, 0.5), 2 / 3 * eye, rtol=1e-12, atol=0)
    query, right = torch.tensor([[2.0, 1.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    # tr(I) / 2 = 1, so the share is the penalty
    for tau, value in ((1.0, 0.414370), (0.1, 0.0012718)):
        assert float(probe_loss(eye, eye, query, right, 0.5, tau)) == pytest.approx(value, rel=1e-4)


def test_gradient_of_the_probe_loss():
    labels = F.one_hot(torch.arange(4) % 3, 3).double()
    real, classes = normal(6, 5, seed=1), F.one_hot(torch.arange(6) % 3, 3).double()
    ours = normal(4, 5)
    penalty = float(share_of_trace(ours @ ours.T, 0.1 / 4))

    def fixed(ours):
        return F.cross_entropy(real @ dual_weights(ours, labels, penalty) / 0.3, classes)

    assert gradcheck(fixed, ours.requires_grad_())
    found, wanted = (
        torch.autograd.grad(loss, ours)[0] for loss in (probe_loss(ours, labels, real, classes, 0.1, 0.3), fixed(ours))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


# ---- pyramids ------------------------------------------------------------------------------------------------------


def test_sides_and_colours():
    assert sides_of(256) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert sides_of(28) == (1, 2, 4, 8, 16, 28)
    mapped = coloured(torch.tensor([1.0, -0.5, 0.25]).view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(mapped, torch.tensor([0.4762, 0.5574, 0.6981]), rtol=0, atol=5e-5)
    levels = [torch.tensor([1.0, -0.5, 0.25]).view(1, 3, 1, 1)]
    wanted = torch.tensor([0.7216, 0.7530, 0.8016]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(decoded(levels, 4), wanted, rtol=0, atol=5e-5)
    assert torch.equal(decoded([torch.zeros(2, 3, s, s) for s in sides_of(8)], 8), torch.full((2, 3, 8, 8), 0.5))


def pyramid(size=8, channels=3):
    space = standard(torch.empty(0), ((0.0,) * channels, (1.0,) * channels))
    return Pyramid(torch.arange(2), (channels, size, size), space, generator(0, "first"))


def test_growing_keeps_the_mean_logit():
    """n levels become n / (n + 1) of what they were, plus noise of variance 1 / (n + 1)² in the new one."""
    syn = pyramid()
    with torch.no_grad():
        before = torch.logit(syn.decode()) / 2
    syn.grow("zero", generator(0, "none"))
    with torch.no_grad():
        torch.testing.assert_close(torch.logit(syn.decode()) / 2, before / 2, rtol=1e-4, atol=1e-5)
    two = syn.values.detach()[:, : 3 * (1 + 4)].clone()
    syn.grow("noise", generator(0, "noise"))
    torch.testing.assert_close(syn.values.detach()[:, : 3 * (1 + 4)], 2 / 3 * two)
    third = syn.values.detach()[:, 3 * (1 + 4) : 3 * (1 + 4 + 16)]
    assert abs(float(third.std()) * 3 - 1) < 0.2
    with torch.no_grad():
        assert torch.equal(syn.images, syn.decode())
    for _ in range(5):
        syn.grow("noise", generator(0, "noise"))
    assert int(syn.levels) == 4


def test_levels_are_added_at_the_published_steps():
    """Counted from 1: 201, 401, ..., 1601 for nine levels; none after the last, which is the image itself."""
    method, syn, steps = LGM(level_every=200), pyramid(256, 1), []
    for it in range(3000):
        before = int(syn.levels)
        if method.grows(it):
            syn.grow("zero", generator(0, "none"))
        steps += [it + 1] if int(syn.levels) > before else []
    assert steps == [201, 401, 601, 801, 1001, 1201, 1401, 1601]
    assert int(syn.levels) == len(sides_of(256))


def test_adam_restarts_with_every_level():
    values = torch.zeros(1, requires_grad=True)
    other = torch.zeros(1, requires_grad=True)
    ours = RestartedAdam([values], 0.1, every=3, restarts=2)
    theirs = torch.optim.Adam([other], lr=0.1)
    for step in range(12):
        if step in (3, 6):
            theirs = torch.optim.Adam([other], lr=0.1)
        values.grad = other.grad = torch.tensor([math.sin(step) + 0.3])
        ours.step()
        theirs.step()
        assert torch.equal(values, other)


# ---- the pool of KRR-ST --------------------------------------------------------------------------------------------


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def test_a_visit_is_a_step_of_sgd():
    images, targets = normal(6, 1, 2, 2, dtype=torch.float32), normal(6, 2, seed=1, dtype=torch.float32)
    settings = PoolSettings(count=1, steps=10, lr=0.1, momentum=0.9, weight_decay=1e-2)
    pool, theirs = NetworkPool([small()], settings), small()
    optimiser = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(4):
        pool.visit(0, images, targets, small)
        optimiser.zero_grad()
        F.mse_loss(theirs(images), targets).backward()
        optimiser.step()
    for ours, wanted in zip(pool.networks[0].state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in pool.parameters())


@pytest.mark.parametrize("reset_counter", [True, False])
def test_after_its_last_step_a_network_starts_afresh(reset_counter):
    """With the counter reset the next visit trains; without it, as in the released code, it replaces once more."""
    images, targets = normal(6, 1, 2, 2, dtype=torch.float32), normal(6, 2, seed=1, dtype=torch.float32)
    pool = NetworkPool([small()], PoolSettings(count=1, steps=3, reset_counter=reset_counter))
    seen = []
    for _ in range(9):
        pool.visit(0, images, targets, lambda: small(7))
        same = all(torch.equal(a, b) for a, b in zip(pool.networks[0].parameters(), small(7).parameters(), strict=True))
        seen.append(same)
    assert seen == ([False] * 3 + [True]) * 2 + [False] if reset_counter else [False] * 3 + [True] * 6
    assert int(pool.ages) == (1 if reset_counter else 3)


class Counted(NetworkPool):
    """A pool that counts the steps of its networks since they were fresh, without training them."""

    def __init__(self, settings):
        super().__init__([nn.Linear(1, 1) for _ in range(settings.count)], settings)
        self.trained = [0] * settings.count

    def _train(self, number, images, targets):
        self.trained[number] += 1


@pytest.mark.parametrize("steps", [250, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("reset_counter", "untrained", "age"), [(True, None, 0.5), (False, 0.973, 0.018)])
def test_how_old_the_networks_of_a_pool_are(steps, reset_counter, untrained, age):
    """A quarter of the published 1,000 steps and 160,000 visits, and all: untrained networks, and the mean age.

    With the counter reset, one of `steps` + 1 visits is to an untrained network, and the mean age is half the steps.
    """
    pool, nothing = Counted(PoolSettings(steps=steps, reset_counter=reset_counter)), torch.zeros(0)
    pool.start(nothing, nothing, generator(0, "ages"))
    assert all(1 <= trained < steps for trained in pool.trained)
    fresh, ages = nn.Linear(1, 1), []
    for number in torch.randint(10, (160 * steps,), generator=generator(1, "visits")).tolist():
        ages.append(pool.trained[number])
        pool.visit(number, nothing, nothing, lambda: fresh)
        if pool.trained[number] == ages[-1]:  # not trained, so replaced
            pool.trained[number] = 0
    found = torch.tensor(ages).double()
    share = float((found == 0).double().mean())
    assert share == pytest.approx(untrained or 1 / (steps + 1), rel=0.01 if untrained else 0.1)
    assert float(found.mean()) == pytest.approx(age * steps, rel=0.05 if reset_counter else 0.3)


# ---- self-supervision ----------------------------------------------------------------------------------------------


def test_barlow_twins_by_loops():
    embeddings, count = normal(10, 3), 5
    halves = [[embeddings[k * count + i] for i in range(count)] for k in range(2)]
    total = 0.0
    for i in range(3):
        for j in range(3):
            one, other = ([float(row[at]) for row in half] for half, at in zip(halves, (i, j), strict=True))
            means = [sum(values) / count for values in (one, other)]
            spreads = [
                math.sqrt(sum((v - m) ** 2 for v in values) / count + 1e-5)
                for values, m in zip((one, other), means, strict=True)
            ]
            pairs = zip(one, other, strict=True)
            c = sum((a - means[0]) * (b - means[1]) for a, b in pairs) / count / spreads[0] / spreads[1]
            total += (1 - c) ** 2 if i == j else 0.005 * c**2
    assert float(BarlowTwins(0.005)(embeddings, torch.zeros(10))) == pytest.approx(total, rel=1e-12)
