"""Flat experts: GSAM with adaptive perturbation (FTD, Du et al., CVPR 2023) against its formula, element by element.

eps = rho theta^2 g0 / (|| |theta| g0 || + 1e-12),   g1 = grad L(theta + eps),
g_perp = g0 - <g0, g1> / ||g1||^2 g1,                g = g1 - alpha g_perp
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dd.networks import NetworkSpec, build_network
from dd.rng import generator
from dd.training import ExpertSettings, Fit, Trainer
from dd.training.experts import expert_fit
from dd.training.gsam import gsam_gradient
from dd.views.dsa import augment

PATH = (5, "expert", 0)
DSA = "color_crop_cutout_flip_scale_rotate"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "normal", *shape), dtype=torch.float64)


def convnet(rng=None):
    """Smooth, in float64, with a norm whose shifts are not all zero."""
    spec = NetworkSpec(depth=2, width=3, activation="softplus")
    net = build_network(spec, channels=1, size=8, classes=3, generator=rng or generator(1)).double()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=number))
    return net


class Problem:
    """One batch on one network, flat vectors in and out."""

    def __init__(self, seed=0):
        self.net, self.x, self.y = convnet(), normal(6, 1, 8, 8, seed=seed), torch.tensor([0, 1, 2, 0, 1, 2])
        self.theta = self.parameters()
        self.visited = []

    def parameters(self):
        return torch.cat([p.detach().reshape(-1) for p in self.net.parameters()])

    def loss(self):
        self.visited.append(self.parameters())
        return F.cross_entropy(self.net(self.x), self.y)

    def gradient_at(self, theta):
        """By the module's own parameters, put back afterwards."""
        before = [p.detach().clone() for p in self.net.parameters()]
        with torch.no_grad():
            parts = theta.split([p.numel() for p in self.net.parameters()])
            for p, part in zip(self.net.parameters(), parts, strict=True):
                p.copy_(part.view_as(p))
        loss = F.cross_entropy(self.net(self.x), self.y)
        found = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(self.net.parameters()))])
        with torch.no_grad():
            for p, old in zip(self.net.parameters(), before, strict=True):
                p.copy_(old)
        return found

    def ours(self, rho, alpha):
        """The gradient that stands in `.grad` after the call."""
        self.net.zero_grad(set_to_none=True)
        self.loss().backward()
        self.visited.clear()
        gsam_gradient(self.net, self.loss, rho, alpha)
        return torch.cat([p.grad.reshape(-1) for p in self.net.parameters()])


def slow(theta, g0, gradient_at, rho, alpha):
    """GSAM in Python numbers: (eps, g1, g_perp, g), each a list of P floats."""
    t, a = theta.tolist(), g0.tolist()
    norm = math.sqrt(math.fsum((abs(ti) * ai) ** 2 for ti, ai in zip(t, a, strict=True)))
    eps = [rho * ti**2 * ai / (norm + 1e-12) for ti, ai in zip(t, a, strict=True)]
    b = gradient_at(torch.tensor([ti + e for ti, e in zip(t, eps, strict=True)], dtype=torch.float64)).tolist()
    along = math.fsum(ai * bi for ai, bi in zip(a, b, strict=True)) / math.fsum(bi * bi for bi in b)
    perp = [ai - along * bi for ai, bi in zip(a, b, strict=True)]
    return eps, b, perp, [bi - alpha * pi for bi, pi in zip(b, perp, strict=True)]


def close(ours, theirs, tolerance=1e-12):
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    return float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


# --- one gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.01, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_gradient_by_a_slow_loop(rho, alpha):
    problem = Problem()
    g0 = problem.gradient_at(problem.theta)
    eps, g1, _, expected = slow(problem.theta, g0, problem.gradient_at, rho, alpha)
    assert close(problem.ours(rho, alpha), expected)
    # it looked at one place beside the present one
    (place,) = problem.visited
    assert close(place - problem.theta, eps)
    assert not close(torch.tensor(g1, dtype=torch.float64), g0, 1e-4)


@pytest.mark.parametrize("rho", [0.01, 2.0])
def test_the_perturbation_has_length_rho_in_units_of_the_weights(rho):
    problem = Problem()
    problem.ours(rho, 0.3)
    eps = problem.visited[0] - problem.theta
    assert (problem.theta != 0).all()
    assert float((eps / problem.theta.abs()).norm()) == pytest.approx(rho, rel=1e-9)
    # not layer by layer: one norm for all parameters
    sizes = [p.numel() for p in problem.net.parameters()]
    parts = [float((e / t).norm()) for e, t in zip(eps.split(sizes), problem.theta.split(sizes), strict=True)]
    assert max(parts) < rho
    assert math.sqrt(sum(part**2 for part in parts)) == pytest.approx(rho, rel=1e-9)


def test_a_weight_that_is_zero_is_not_perturbed():
    problem = Problem()
    with torch.no_grad():
        problem.net.classifier.bias.zero_()
    problem.ours(0.5, 0.3)
    (place,) = problem.visited
    assert not place[-3:].any()
    weights = slice(-3 - problem.net.classifier.weight.numel(), -3)
    assert (place[weights] != problem.theta[weights]).all()


@pytest.mark.parametrize("rho", [0.01, 0.5, 2.0])
def test_the_decomposition_is_orthogonal(rho):
    problem = Problem()
    g0 = problem.gradient_at(problem.theta)
    g1 = problem.ours(rho, 0.0)  # ASAM: no orthogonal part
    perp = g1 - problem.ours(rho, 1.0)
    assert abs(float(perp @ g1)) < 1e-12 * float(g0.norm() * g1.norm())
    assert float(perp.norm()) > 1e-6 * float(g0.norm())
    # what is left of g0 goes along g1, and Pythagoras holds
    along = g0 - perp
    assert float(along @ g1) == pytest.approx(float(along.norm() * g1.norm()), rel=1e-9)
    assert float(perp @ perp + along @ along) == pytest.approx(float(g0 @ g0), rel=1e-9)


def test_alpha_weighs_the_orthogonal_part_linearly():
    problem = Problem()
    g1 = problem.ours(0.5, 0.0)
    perp = g1 - problem.ours(0.5, 1.0)
    for alpha in (0.3, 0.7, 2.0):
        assert close(problem.ours(0.5, alpha), g1 - alpha * perp)


def test_small_gradients_are_taken_apart_as_large_ones_are():
    # eps depends on the direction of g0 alone, so a loss times c has c times the gradient, however late the training
    problem, scale = Problem(), 1e-5
    expected = problem.ours(0.5, 1.0)
    loss = problem.loss
    problem.loss = lambda: scale * loss()
    assert close(problem.ours(0.5, 1.0) / scale, expected, 1e-5)


def test_at_a_stationary_point_nothing_is_divided_by_zero():
    problem = Problem()
    problem.loss = lambda: 0.0 * F.cross_entropy(problem.net(problem.x), problem.y)
    assert not problem.ours(0.5, 0.3).any()
    assert torch.equal(problem.parameters(), problem.theta)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_without_a_radius_it_is_the_plain_gradient(alpha):
    problem = Problem()
    g0 = problem.gradient_at(problem.theta)
    assert close(problem.ours(0.0, alpha), g0)
    # and it comes there linearly as the radius shrinks
    gaps = [float((problem.ours(rho, alpha) - g0).norm()) for rho in (1e-3, 1e-4, 1e-5)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.02)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_parameters_are_put_back_to_the_bit(dtype):
    problem = Problem()
    problem.net.to(dtype)
    problem.x = problem.x.to(dtype)
    before = problem.parameters()
    problem.ours(2.0, 0.3)
    assert not torch.equal(problem.visited[0], before)
    # subtracting eps again, as the authors do, is exact to rounding alone
    g0 = problem.gradient_at(before)
    eps = 2.0 * before**2 * g0 / (before.abs() * g0).norm()
    assert not torch.equal((before + eps) - eps, before)
    assert torch.equal(problem.parameters(), before)


@pytest.mark.parametrize("rho", [0.01, 1.0, 30.0])
def test_on_a_quadratic_the_second_gradient_is_off_by_the_curvature_times_eps(rho):
    a = normal(7, 7)
    a = a @ a.T
    net = nn.ParameterList([nn.Parameter(normal(4, seed=1)), nn.Parameter(normal(3, seed=2))])

    def loss():
        theta = torch.cat(list(net))
        places.append(theta.detach())
        return 0.5 * theta @ a @ theta

    places = []
    loss().backward()
    g0 = torch.cat([p.grad for p in net])
    gsam_gradient(net, loss, rho, 0.0)
    g1 = torch.cat([p.grad for p in net])
    eps = places[1] - places[0]
    assert close(g0, a @ places[0])
    assert close(g1 - g0, a @ eps, 1e-11)
    assert float((eps / places[0].abs()).norm()) == pytest.approx(rho, rel=1e-9)


def test_a_parameter_without_a_gradient_is_left_out():
    problem, other = Problem(), nn.Parameter(normal(5))
    expected = problem.ours(0.5, 0.3)
    problem.net.register_parameter("idle", other)
    problem.net.zero_grad(set_to_none=True)
    F.cross_entropy(problem.net(problem.x), problem.y).backward()
    gsam_gradient(problem.net, lambda: F.cross_entropy(problem.net(problem.x), problem.y), 0.5, 0.3)
    named = dict(problem.net.named_parameters())
    assert named.pop("idle").grad is None
    assert torch.equal(other, normal(5))
    assert close(torch.cat([p.grad.reshape(-1) for p in named.values()]), expected)


# --- whole trainings -------------------------------------------------------------------------------------------------

X, Y = normal(11, 1, 8, 8, seed=3), torch.arange(11) % 3


def passes(rng, _):
    for index in torch.randperm(11, generator=rng).split(4):
        yield X[index], Y[index]


def trained(fit):
    net = next(Trainer(convnet).train([PATH], passes, fit))
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


@pytest.mark.parametrize("strategy", ["none", DSA])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 1e-2)])
def test_flat_training_by_a_slow_loop(strategy, momentum, decay):
    rho, alpha, lr, problem = 0.2, 0.3, 0.05, Problem()
    problem.net.load_state_dict(convnet(generator(*PATH, "weights")).state_dict())
    theta, velocity, step = problem.parameters(), None, 0
    for done in range(3):
        draws, order = generator(*PATH, "augment", done), generator(*PATH, "order", done)
        for index in torch.randperm(11, generator=order).split(4):
            if step == 7:
                break
            # both passes see the same augmented images
            problem.x, problem.y = augment(strategy, X[index], draws), Y[index]
            _, _, _, g = slow(theta, problem.gradient_at(theta), problem.gradient_at, rho, alpha)
            g = torch.tensor(g, dtype=torch.float64) + decay * theta
            velocity = g if velocity is None else momentum * velocity + g
            theta = theta - lr * velocity
            step += 1
    fit = Fit(7, lr, momentum, decay, strategy=strategy, sam=(rho, alpha))
    ours = trained(fit)
    assert close(ours, theta, 1e-11)
    plain = trained(Fit(7, lr, momentum, decay, strategy=strategy))
    assert not close(ours, plain, 1e-4)


def test_flat_training_without_a_radius_is_plain_training():
    plain = trained(Fit(9, 0.05))
    assert close(trained(Fit(9, 0.05, sam=(0.0, 0.3))), plain)
    assert not close(trained(Fit(9, 0.05, sam=(0.01, 0.3))), plain, 1e-8)


def test_radius_and_learning_rate_of_an_expert_stay_constant():
    flat = ExpertSettings(kind="ftd", epochs=3, lr=0.02, rho=0.05, alpha=0.7, batch=4, momentum=0.1, weight_decay=0.2)
    fit = expert_fit(flat, 11, DSA)
    # the radius follows the learning rate in the authors' code; one is as constant as the other
    assert fit == Fit(9, 0.02, 0.1, 0.2, decay_at=(), strategy=DSA, sam=(0.05, 0.7))
    plain = ExpertSettings(kind="sgd", epochs=3, lr=0.02, rho=0.05, augment=False, batch=4)
    assert expert_fit(plain, 12, DSA) == Fit(9, 0.02, 0.0, 0.0, strategy="none", sam=None)
