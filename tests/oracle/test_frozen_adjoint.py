"""TESLA's gradient against its own formula, its closed form, and the exact gradient that it is not."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from dd.engine.unroll import FrozenAdjoint, FullGraph, Stepwise
from dd.rng import generator

distance = importlib.import_module("dd.methods.trajectory._matching").trajectory_distance

IMAGES, FEATURES, HIDDEN, CLASSES = 6, 5, 7, 3
P = FEATURES * HIDDEN + HIDDEN * CLASSES
DTYPE = torch.float64


def logits(theta, x):
    first, second = theta.split([FEATURES * HIDDEN, HIDDEN * CLASSES])
    return F.softplus(x @ first.view(FEATURES, HIDDEN)) @ second.view(HIDDEN, CLASSES)


class Problem:
    def __init__(self, steps, lr=0.1, seed=0):
        rng = generator(seed, "problem")

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=DTYPE)

        self.steps, self.lr = steps, torch.tensor(lr, dtype=DTYPE)
        self.start = 0.5 * normal(P)
        self.target = self.start + 0.2 * normal(P)
        self.images, self.labels = normal(IMAGES, FEATURES), normal(IMAGES, CLASSES)
        self.batches = [torch.randperm(IMAGES, generator=rng)[:4] for _ in range(steps)]

    def loss(self, theta, step, x, y):
        index = self.batches[step]
        return -(y[index].softmax(1) * logits(theta, x[index]).log_softmax(1)).sum(1).mean()

    def gradients(self, backprop, **options):
        images, labels, lr = (v.clone().requires_grad_() for v in (self.images, self.labels, self.lr))
        kept = backprop(self.loss, self.start, lr, [images, labels], steps=self.steps, **options)
        value = sum(distance(theta, self.start, self.target) for theta in kept)
        return value.detach(), torch.autograd.grad(value, [images, labels, lr])


def apart(ours, theirs):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def by_the_paper(problem):
    """Equations of TESLA: G is the sum of the steps' gradients; one vector weighs every step."""
    theta, total, thetas = problem.start, torch.zeros(P, dtype=DTYPE), []
    for step in range(problem.steps):
        thetas.append(theta)
        leaf = theta.clone().requires_grad_()
        (g,) = torch.autograd.grad(problem.loss(leaf, step, problem.images, problem.labels), leaf)
        theta, total = theta - problem.lr * g, total + g
    norm = (problem.start - problem.target).square().sum()
    v = 2 * (problem.lr * (problem.target - problem.start) + problem.lr**2 * total) / norm
    d_lr = -2 * torch.dot(problem.start - problem.lr * total - problem.target, total) / norm
    images, labels = torch.zeros_like(problem.images), torch.zeros_like(problem.labels)
    for step, theta in enumerate(thetas):
        leaf, x, y = (t.clone().requires_grad_() for t in (theta, problem.images, problem.labels))
        (g,) = torch.autograd.grad(problem.loss(leaf, step, x, y), leaf, create_graph=True)
        p, q = torch.autograd.grad(torch.dot(v, g), [x, y])
        images, labels = images + p, labels + q
    return images, labels, d_lr


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
def test_it_is_the_formula_of_the_paper(steps):
    problem = Problem(steps)
    _, ours = problem.gradients(FrozenAdjoint())
    assert apart(ours, by_the_paper(problem)) < 1e-12


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_iterates_are_those_of_the_exact_engines(momentum):
    problem = Problem(12)
    frozen, stepwise = (problem.gradients(b, momentum=momentum, at=(4, 12))[0] for b in (FrozenAdjoint(), Stepwise()))
    assert frozen == stepwise


def test_one_step_is_exact():
    problem = Problem(1)
    assert apart(problem.gradients(FrozenAdjoint())[1], problem.gradients(FullGraph())[1]) < 1e-12


def test_a_loss_that_is_linear_in_theta_is_exact():
    rng = generator(1)
    start, target, x = (torch.randn(8, generator=rng, dtype=DTYPE) for _ in range(3))

    def gradient(backprop):
        leaf = x.clone().requires_grad_()
        (end,) = backprop(lambda theta, step, x: torch.dot(theta, x.sin()), start, torch.tensor(0.1), [leaf], steps=9)
        return torch.autograd.grad(distance(end, start, target), [leaf])

    assert apart(gradient(FrozenAdjoint()), gradient(FullGraph())) < 1e-12


@pytest.mark.parametrize("lr", [0.1, 0.5])
def test_it_is_not_the_exact_gradient(lr):
    problem = Problem(20, lr)
    images = [problem.gradients(backprop)[1][0].flatten() for backprop in (FrozenAdjoint(), FullGraph())]
    assert float((images[0] - images[1]).norm() / images[1].norm()) > 0.5
    assert F.cosine_similarity(*images, dim=0) > 0  # a descent direction it still is


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_scalar_quadratic_in_closed_form(steps):
    a, lr, start, target = 0.7, 0.3, torch.tensor([1.5], dtype=DTYPE), torch.tensor([-0.4], dtype=DTYPE)
    points = torch.linspace(-1, 1, steps, dtype=DTYPE)

    def gradient(backprop):
        x = points.clone().requires_grad_()
        (end,) = backprop(
            lambda theta, step, x: a * (theta - x[step]).square().sum() / 2,
            start,
            torch.tensor(lr, dtype=DTYPE),
            [x],
            steps=steps,
        )
        (found,) = torch.autograd.grad(distance(end, start, target), x)
        return end.item(), found

    end, frozen = gradient(FrozenAdjoint())
    _, exact = gradient(FullGraph())
    shared = 2 / (start - target).item() ** 2 * (end - target.item()) * lr * a
    assert torch.allclose(frozen, torch.full((steps,), shared, dtype=DTYPE), rtol=1e-12, atol=0)
    # the exact one carries a factor for every later step, so that early steps are over-weighted by its inverse
    later = torch.arange(steps - 1, -1, -1, dtype=DTYPE)
    assert torch.allclose(exact, shared * (1 - lr * a) ** later, rtol=1e-12, atol=0)


def test_momentum_and_intermediate_targets_are_the_recursion_without_curvature():
    momentum, at, problem = 0.9, (3, 7), Problem(7)
    _, ours = problem.gradients(FrozenAdjoint(), momentum=momentum, at=at)
    iterates, velocities, velocity = [problem.start], [], None
    for step in range(7):
        leaf = iterates[-1].clone().requires_grad_()
        (g,) = torch.autograd.grad(problem.loss(leaf, step, problem.images, problem.labels), leaf)
        velocity = g if velocity is None else momentum * velocity + g
        velocities.append(velocity)
        iterates.append(iterates[-1] - problem.lr * velocity)
    norm = (problem.start - problem.target).square().sum()
    adjoint, nu = torch.zeros(P, dtype=DTYPE), torch.zeros(P, dtype=DTYPE)
    images, labels, d_lr = (
        torch.zeros_like(problem.images),
        torch.zeros_like(problem.labels),
        torch.zeros((), dtype=DTYPE),
    )
    for step in reversed(range(7)):
        if step + 1 in at:
            adjoint = adjoint + 2 * (iterates[step + 1] - problem.target) / norm
        d_lr = d_lr - torch.dot(adjoint, velocities[step])
        nu = nu - problem.lr * adjoint
        leaf, x, y = (t.clone().requires_grad_() for t in (iterates[step], problem.images, problem.labels))
        (g,) = torch.autograd.grad(problem.loss(leaf, step, x, y), leaf, create_graph=True)
        p, q = torch.autograd.grad(torch.dot(nu, g), [x, y])
        images, labels, nu = images + p, labels + q, momentum * nu
    assert apart(ours, (images, labels, d_lr)) < 1e-12
