"""The differentiable inner loop against finite differences, closed forms and other packagings of the same derivative.

The toy student is conv(1→4, 3×3, pad 1), softplus, average pooling and a linear layer on 6×6 images, with P = 151
parameters in float64.
"""

import importlib
from weakref import ref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from dd.engine.unroll import FullGraph, Stepwise
from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator

distance = importlib.import_module("dd.methods.trajectory._matching").trajectory_distance

P, K, N_IMAGES = 151, 3, 6
BOTH = pytest.mark.parametrize("backprop", [FullGraph(), Stepwise()], ids=["full", "stepwise"])


def logits(theta, x):
    weight, bias, matrix, shift = theta.split([36, 4, 108, 3])
    maps = F.avg_pool2d(F.softplus(F.conv2d(x, weight.view(4, 1, 3, 3), bias, padding=1)), 2)
    return F.linear(maps.flatten(1), matrix.view(3, 36), shift)


def soft_loss(theta, x, y):
    return -(y.softmax(1) * logits(theta, x).log_softmax(1)).sum(1).mean()


class Problem:
    """Images, label logits, a step size, a start and a target; every step has a batch of its own."""

    def __init__(self, steps, lr=0.1, batch=4, seed=0, dtype=torch.float64):
        rng = generator(seed, "problem")

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

        self.steps = steps
        self.start = 0.3 * normal(P)
        self.target = self.start + 0.2 * normal(P)
        self.images, self.labels = normal(N_IMAGES, 1, 6, 6), normal(N_IMAGES, K)
        self.lr = torch.tensor(lr, dtype=dtype)
        self.batches = [torch.randperm(N_IMAGES, generator=rng)[:batch] for _ in range(steps)]

    def loss(self, theta, step, x, y):
        index = self.batches[step]
        return soft_loss(theta, x[index], y[index])

    def leaves(self):
        return [v.clone().requires_grad_() for v in (self.start, self.images, self.labels, self.lr)]

    def gradients(self, backprop, outer=None, **options):
        """(objective, gradients by start, images, labels, lr); the objective is the distance of the last iterate."""
        start, images, labels, lr = self.leaves()
        kept = backprop(self.loss, start, lr, [images, labels], steps=self.steps, **options)
        value = (outer or self.outer)(kept)
        return value.detach(), torch.autograd.grad(value, [start, images, labels, lr])

    def outer(self, kept):
        # the start in the denominator is a constant, as in the methods
        return distance(kept[-1], self.start, self.target)


def difference(ours, theirs):
    """Largest relative error in norm over a sequence of tensors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def plain_sgd(problem, momentum=0.0):
    """Iterates of ordinary SGD with no graph, by hand: theta_0 ... theta_N."""
    theta, velocity, found = problem.start.clone(), None, [problem.start]
    for step in range(problem.steps):
        leaf = theta.clone().requires_grad_()
        (g,) = torch.autograd.grad(problem.loss(leaf, step, problem.images, problem.labels), leaf)
        velocity = g if velocity is None else momentum * velocity + g
        theta = theta - problem.lr * velocity
        found.append(theta)
    return found


def test_the_toy_is_the_network_that_the_functional_makes_of_its_module():
    toy = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    network, problem = Functional(toy), Problem(1)
    assert network.size == P
    # oneDNN's convolution takes another route than the stateless call
    assert torch.allclose(network(problem.start, problem.images), logits(problem.start, problem.images), atol=1e-14)


@BOTH
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_iterates_are_those_of_plain_sgd(backprop, momentum):
    problem = Problem(7)
    expected = plain_sgd(problem, momentum)
    kept = backprop(
        problem.loss,
        problem.start,
        problem.lr,
        [problem.images, problem.labels],
        steps=7,
        momentum=momentum,
        at=(1, 4, 7),
    )
    for iterate, step in zip(kept, (1, 4, 7), strict=True):
        assert torch.equal(iterate, expected[step])


@BOTH
def test_lr_zero_leaves_the_student_where_it_is(backprop):
    problem = Problem(5, lr=0.0)
    value, (_, d_images, d_labels, d_lr) = problem.gradients(backprop)
    assert value == 1
    assert not d_images.any()
    assert not d_labels.any()
    away = problem.start - problem.target
    total = torch.zeros(P, dtype=torch.float64)
    for step in range(5):
        leaf = problem.start.clone().requires_grad_()
        total += torch.autograd.grad(problem.loss(leaf, step, problem.images, problem.labels), leaf)[0]
    assert d_lr == pytest.approx(float(-2 * away @ total / (away @ away)), rel=1e-12)
    assert abs(d_lr) > 1e-3


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_that_plain_sgd_reaches_is_reached_to_the_bit(backprop, dtype):
    problem = Problem(12, dtype=dtype)
    problem.target = plain_sgd(problem)[-1]
    value, gradients = problem.gradients(backprop)
    assert value == 0
    assert not any(g.any() for g in gradients)


@BOTH
def test_one_step_in_closed_form(backprop):
    problem = Problem(1)
    leaf = problem.start.clone().requires_grad_()
    (g,) = torch.autograd.grad(problem.loss(leaf, 0, problem.images, problem.labels), leaf)
    away = problem.start - problem.target
    end = problem.start - problem.lr * g - problem.target
    value, (_, _, _, d_lr) = problem.gradients(backprop)
    assert value == pytest.approx(float(end @ end / (away @ away)), rel=1e-13)
    assert d_lr == pytest.approx(float(-2 * end @ g / (away @ away)), rel=1e-12)


@BOTH
@pytest.mark.parametrize(("momentum", "at"), [(0.0, ()), (0.9, ()), (0.0, (5, 12)), (0.9, (5, 12)), (0.9, (5,))])
def test_finite_differences(backprop, momentum, at):
    problem = Problem(12)
    middle = problem.start + 0.1 * torch.randn(P, generator=generator(3), dtype=torch.float64)

    def outer(kept):
        # every wanted iterate has a target and a weight of its own
        goals = [middle, problem.target] if len(at) == 2 else [problem.target]
        return sum((1 + i) * (k - goal).square().sum() for i, (k, goal) in enumerate(zip(kept, goals, strict=True)))

    options = {"momentum": momentum, "at": at}
    _, gradients = problem.gradients(backprop, outer, **options)

    def value():
        start, images, labels, lr = (v.detach() for v in (problem.start, problem.images, problem.labels, problem.lr))
        return outer(backprop(problem.loss, start, lr, [images, labels], steps=12, **options)).item()

    def numeric(tensor, place):
        h, flat = 1e-5, tensor.view(-1)
        flat[place] += h
        up = value()
        flat[place] -= 2 * h
        down = value()
        flat[place] += h
        return (up - down) / (2 * h)

    places = {0: (0, 40, 150), 1: (0, 50, 215), 2: (0, 7, 17), 3: (0,)}
    for which, tensor in enumerate((problem.start, problem.images, problem.labels, problem.lr)):
        for place in places[which]:
            expected = gradients[which].reshape(-1)[place].item()
            assert numeric(tensor, place) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
def test_stepwise_is_the_full_graph_in_double_precision(steps):
    problem = Problem(steps)
    full_value, full = problem.gradients(FullGraph())
    value, ours = problem.gradients(Stepwise())
    assert value == full_value
    assert difference(ours, full) < 1e-12


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("at", [(20,), (6, 12, 20), (1, 20), (7,)])
def test_stepwise_with_momentum_and_intermediate_targets(momentum, at):
    problem = Problem(20)
    goals = [problem.target + 0.1 * i for i in range(len(at))]

    def outer(kept):
        return sum(distance(k, problem.start, goal) for k, goal in zip(kept, goals, strict=True))

    options = {"momentum": momentum, "at": at}
    _, full = problem.gradients(FullGraph(), outer, **options)
    _, ours = problem.gradients(Stepwise(), outer, **options)
    assert difference(ours, full) < 1e-12


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
def test_stepwise_is_the_full_graph_in_single_precision_on_a_convnet(steps):
    spec = NetworkSpec(width=8, depth=2)
    network = Functional(build_network(spec, channels=3, size=8, classes=4, generator=generator(1)))
    rng = generator(2)
    images = torch.randn(4, 3, 8, 8, generator=rng)
    hard = torch.arange(4)
    start = network.flatten(network.module)
    target = start + 0.02 * torch.randn(network.size, generator=rng)

    def gradients(backprop):
        x, lr = images.clone().requires_grad_(), torch.tensor(0.02, requires_grad=True)
        loss = lambda theta, step, x: F.cross_entropy(network(theta, x), hard)  # noqa: E731
        (end,) = backprop(loss, start, lr, [x], steps=steps)
        return torch.autograd.grad(distance(end, start, target), [x, lr])

    assert difference(gradients(Stepwise()), gradients(FullGraph())) < 1e-5


def by_checkpoint(problem, reentrant):
    """Packaging c: `torch.utils.checkpoint` around a step that differentiates inside."""
    start, images, labels, lr = problem.leaves()

    def step_of(step):
        def step_(theta, x, y, rate):
            with torch.enable_grad():
                leaf = theta if theta.requires_grad else theta.detach().requires_grad_()
                (g,) = torch.autograd.grad(problem.loss(leaf, step, x, y), leaf, create_graph=True)
            return leaf - rate * g

        return step_

    theta = start
    for step in range(problem.steps):
        theta = checkpoint(step_of(step), theta, images, labels, lr, use_reentrant=reentrant)
    value = problem.outer([theta])
    value.backward()
    return [v.grad for v in (start, images, labels, lr)]


def by_forward_over_reverse(problem):
    """Packaging d: the products are the derivative of all gradients along (lambda, 0, 0)."""
    iterates = plain_sgd(problem)
    scale = (problem.start - problem.target).square().sum()
    adjoint = 2 * (iterates[-1] - problem.target) / scale
    d_images, d_labels = torch.zeros_like(problem.images), torch.zeros_like(problem.labels)
    d_lr = torch.zeros((), dtype=torch.float64)
    for step in reversed(range(problem.steps)):

        def gradients(theta, step=step):
            def of_all(theta, x, y):
                return problem.loss(theta, step, x, y)

            return torch.func.grad(of_all, argnums=(0, 1, 2))(theta, problem.images, problem.labels)

        (g, _, _), (h, p, q) = torch.func.jvp(gradients, (iterates[step],), (adjoint,))
        d_lr -= adjoint @ g
        d_images -= problem.lr * p
        d_labels -= problem.lr * q
        adjoint = adjoint - problem.lr * h
    return [adjoint, d_images, d_labels, d_lr]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # forward mode uses it inside
@BOTH
def test_other_packagings_of_the_same_derivative(backprop):
    problem = Problem(12)
    _, ours = problem.gradients(backprop)
    assert difference(ours, by_forward_over_reverse(problem)) < 1e-12
    assert difference(ours, by_checkpoint(problem, reentrant=False)) < 1e-12
    assert difference(ours, by_checkpoint(problem, reentrant=True)) < 1e-12


@BOTH
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scalar_quadratic_in_closed_form(backprop, momentum):
    # l_t = a/2 (theta - x_t)^2; d theta_N / d x_t is the impulse response of the linear recursion
    a, lr, steps = 0.7, 0.3, 9
    x = torch.randn(steps, generator=generator(1), dtype=torch.float64).requires_grad_()
    start, target = torch.tensor([0.4], dtype=torch.float64), torch.tensor([1.1], dtype=torch.float64)

    def loss(theta, step, x):
        return 0.5 * a * (theta - x[step]).square().sum()

    rate = torch.tensor(lr, dtype=torch.float64)
    (end,) = backprop(loss, start, rate, [x], steps=steps, momentum=momentum)
    (found,) = torch.autograd.grad(distance(end, start, target), x)
    outer = 2 * float(end.detach() - target) / float(start - target) ** 2
    for t in range(steps):
        moved, velocity = 0.0, 0.0
        for step in range(t, steps):
            velocity = momentum * velocity + a * (moved - (step == t))
            moved -= lr * velocity
        if not momentum:
            assert moved == pytest.approx(lr * a * (1 - lr * a) ** (steps - 1 - t), rel=1e-12)
        assert found[t].item() == pytest.approx(outer * moved, rel=1e-11)


@BOTH
def test_a_loss_that_is_linear_in_theta_has_no_curvature(backprop):
    rng = generator(4)
    matrix = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    x = torch.randn(8, 3, generator=rng, dtype=torch.float64).requires_grad_()
    start, target = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    lr = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    (end,) = backprop(lambda theta, step, x: theta @ (matrix @ x[step]), start, lr, [x], steps=8)
    d_x, d_lr = torch.autograd.grad(distance(end, start, target), [x, lr])
    adjoint = 2 * (end.detach() - target) / (start - target).square().sum()
    assert torch.allclose(d_x, (-0.2 * matrix.T @ adjoint).expand(8, 3), rtol=1e-12)
    assert d_lr == pytest.approx(float(-adjoint @ (matrix @ x.detach().sum(0))), rel=1e-12)


@BOTH
def test_an_image_of_several_steps_gets_the_sum_of_its_contributions(backprop):
    problem = Problem(6, batch=3)
    # image 5 is never used, image 0 in every step, and twice in the third
    problem.batches = [torch.tensor(b) for b in ([0, 1, 2], [0, 3], [0, 0, 4], [1, 0], [0, 2, 3], [4, 0])]
    start, _, labels, lr = problem.leaves()
    copies = [problem.images.clone().requires_grad_() for _ in range(6)]

    def apart(theta, step, y, *xs):
        return problem.loss(theta, step, xs[step], y)

    (end,) = backprop(apart, start, lr, [labels, *copies], steps=6)
    parts = torch.autograd.grad(problem.outer([end]), copies)
    _, (_, d_images, _, _) = problem.gradients(backprop)
    assert torch.allclose(d_images, torch.stack(parts).sum(0), rtol=1e-12, atol=1e-16)
    assert all(part[0].any() for part in parts)
    assert not d_images[5].any()


@BOTH
def test_only_what_asks_for_a_gradient_gets_one(backprop):
    problem = Problem(4)
    _, (d_start, d_images, d_labels, _) = problem.gradients(backprop)
    start, images, labels, lr = problem.start, problem.images.clone().requires_grad_(), problem.labels, problem.lr
    (end,) = backprop(problem.loss, start, lr, [images, labels], steps=4)
    problem.outer([end]).backward()
    assert torch.allclose(images.grad, d_images, rtol=1e-12)
    for untouched in (start, labels, lr):
        assert not untouched.requires_grad
        assert untouched.grad is None
    leaf, other = problem.start.clone().requires_grad_(), problem.labels.clone().requires_grad_()
    (end,) = backprop(problem.loss, leaf, lr, [problem.images, other], steps=4)
    problem.outer([end]).backward()
    assert torch.allclose(leaf.grad, d_start, rtol=1e-12)
    assert torch.allclose(other.grad, d_labels, rtol=1e-12)


@BOTH
def test_what_is_given_is_left_as_it_was(backprop):
    problem = Problem(4)
    before = [v.clone() for v in (problem.start, problem.images, problem.labels, problem.lr)]
    problem.gradients(backprop, momentum=0.9)
    after = (problem.start, problem.images, problem.labels, problem.lr)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@BOTH
def test_an_unused_variable_has_no_influence(backprop):
    problem = Problem(4)
    start, images, labels, lr = problem.leaves()
    extra = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (end,) = backprop(lambda t, s, x, y, e: problem.loss(t, s, x, y), start, lr, [images, labels, extra], steps=4)
    value = problem.outer([end])
    (d_extra,) = torch.autograd.grad(value, extra, allow_unused=True, retain_graph=True)
    assert d_extra is None or not d_extra.any()
    assert torch.allclose(torch.autograd.grad(value, images)[0], problem.gradients(backprop)[1][1], rtol=1e-12)


@BOTH
@pytest.mark.parametrize("at", [(0,), (5,), (3, 2), (2, 2), (-1,)])
def test_iterates_that_do_not_exist_are_refused(backprop, at):
    problem = Problem(4)
    with pytest.raises(ValueError, match=r"within 1\.\.4"):
        backprop(problem.loss, problem.start, problem.lr, [problem.images, problem.labels], steps=4, at=at)


def test_a_step_in_two_halves_is_the_whole_batch_without_batch_statistics():
    def gap(norm):
        spec = NetworkSpec(depth=2, width=4, norm=norm)
        net = build_network(spec, channels=1, size=8, classes=3, generator=generator(0)).double()
        x = torch.randn(8, 1, 8, 8, generator=generator(1), dtype=torch.float64)
        y = torch.arange(8) % 3

        def gradient(rows):
            loss = F.cross_entropy(net(x[rows]), y[rows])
            return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])

        whole = gradient(slice(None))
        return float(((gradient(slice(4)) + gradient(slice(4, 8))) / 2 - whole).norm() / whole.norm())

    assert gap("instance") < 1e-10
    assert gap("batch") > 1e-3


# --- memory ----------------------------------------------------------------------------------------------------------


class LiveMemory(TorchDispatchMode):
    """Peak of the bytes that live tensors hold, by storage, while it is on."""

    def __init__(self):
        super().__init__()
        self.peak, self._alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


class Saved:
    """Bytes that autograd saves, by storage: as a sum, and the peak of what it holds at any time."""

    class Handle:
        def __init__(self, tensor):
            self.tensor = tensor

    def __init__(self):
        self.total, self.peak, self._seen, self._held = 0, 0, set(), []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda handle: handle.tensor)

    def _pack(self, tensor):
        handle = Saved.Handle(tensor)
        self._held = [held for held in self._held if held() is not None]
        self._held.append(ref(handle))
        sizes = {}
        for held in self._held:
            if (one := held()) is not None:
                storage = one.tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
        self.peak = max(self.peak, sum(sizes.values()))
        return handle


def published_net():
    """ConvNet-3 of width 128 on 3×32×32, ten classes."""
    return Functional(build_network(NetworkSpec(), channels=3, size=32, classes=10, generator=generator(0)))


def unrolled(network, backprop, steps, batch, momentum=0.0):
    images = torch.zeros(batch, 3, 32, 32).requires_grad_()
    hard = torch.arange(batch) % 10
    lr = torch.tensor(0.01, requires_grad=True)
    start = network.flatten(network.module)

    def loss(theta, step, x):
        return F.cross_entropy(network(theta, x), hard)

    (end,) = backprop(loss, start, lr, [images], steps=steps, momentum=momentum)
    return end, images


@pytest.mark.parametrize(("steps", "batch", "megabytes"), [(4, 2, 33.8), (4, 4, 57.4), (4, 8, 104.6), (2, 8, 52.3)])
def test_the_full_graph_saves_what_the_published_totals_predict(steps, batch, megabytes):
    network, saved = published_net(), Saved()
    with saved.hooks:
        end, _ = unrolled(network, FullGraph(), steps, batch)
    found = saved.peak / 1e6
    assert found == pytest.approx(megabytes, rel=0.02)
    assert found == pytest.approx(steps * (2.95 * batch + 2.56), rel=0.03)
    assert end.requires_grad


def test_stepwise_saves_one_step_whatever_their_number():
    network = published_net()
    assert network.size == 320_010

    def peak(steps):
        saved = Saved()
        with saved.hooks:
            end, _ = unrolled(network, Stepwise(), steps, 2)
            end.sum().backward()
        return saved.peak

    assert peak(2) == peak(5)
    full = Saved()
    with full.hooks:
        unrolled(network, FullGraph(), 5, 2)
    assert peak(5) < 0.5 * full.peak


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stepwise_keeps_one_vector_of_parameters_per_step_and_nothing_else(momentum):
    network = published_net()

    def peak(steps):
        memory = LiveMemory()
        with memory:
            end, images = unrolled(network, Stepwise(), steps, 2, momentum)
            end.sum().backward()
        assert images.grad is not None
        return memory.peak

    per_step = (peak(6) - peak(3)) / 3
    assert per_step == pytest.approx(4 * network.size, rel=0.02)
