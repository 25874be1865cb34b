"""The pieces of the inner loop in chunks, eager and compiled, against slow loops with the paper's formulas.

The student is a small ConvNet in float64.
"""

import importlib
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.engine.checkpoint import Checkpoint
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.engine.unroll import FrozenAdjoint, FullGraph, Stepwise
from dd.errors import Interrupted
from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator
from dd.runs.stop import Stop
from dd.training import ExpertSettings, Trajectories
from dd.views.dsa import draw

matching = importlib.import_module("dd.methods.trajectory._matching")
pieces = importlib.import_module("dd.methods.trajectory._pieces")
AST = get("ast")
mtt = sys.modules[get("mtt").__module__]
EXPERTS = ExpertSettings(kind="ast", count=2, epochs=5)

N, CLASSES, SHAPE = 7, 3, (2, 8, 8)
STRATEGY = "color_crop_cutout_flip_scale_rotate"
ORDERS = pytest.mark.parametrize("order", ["reverse", "forward"])
# forward mode scripts its formulas
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def network_for(**spec):
    spec = NetworkSpec(**{"depth": 2, "width": 4} | spec)
    return Functional(build_network(spec, channels=2, size=8, classes=CLASSES, generator=generator(0)))


class Problem:
    """An outer iteration of a student on `N` images, with batches of 4 and a remainder."""

    def __init__(self, soft, steps=5, batch=4, scale=1.0, **spec):
        rng = generator(1, "problem")
        self.network, self.steps = network_for(**spec), steps

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        self.start = self.network.flatten(self.network.module).double()
        self.target = self.start + 0.05 * normal(self.network.size)
        self.images, self.lr = normal(N, *SHAPE), torch.tensor(0.1, dtype=torch.float64)
        self.labels = normal(N, CLASSES) if soft else None
        self.batches = matching.synthetic_batches(N, batch, steps, rng)
        draws = [draw(STRATEGY, len(index), SHAPE, rng) for index in self.batches]
        hard = None if soft else torch.arange(N) % CLASSES
        self.loss = matching.StudentLoss(self.network, self.batches, draws, hard, scale)

    def gradients(self, backprop, momentum=0.0, at=()):
        """Gradients by images, labels (if any) and lr, of the sum of the distances of all iterates in `at`."""
        leaves = [v.clone().requires_grad_() for v in (self.images, self.labels, self.lr) if v is not None]
        *variables, lr = leaves
        kept = backprop(self.loss, self.start, lr, variables, steps=self.steps, momentum=momentum, at=at)
        return torch.autograd.grad(sum(self.distance(theta) for theta in kept), leaves)

    def distance(self, theta):
        return (theta - self.target).square().sum() / (self.start - self.target).square().sum()

    def by_the_paper(self, momentum, at, exact=True):
        """The chain rule, one step and one image at a time; `exact` is False for TESLA's frozen adjoint."""
        rows = [v for v in (self.images, self.labels) if v is not None]

        def loss(theta, step, *rows):
            seen, targets = self.loss.inputs(step, *rows)
            total = 0
            for image, target in zip(seen, targets, strict=True):
                logits = self.network(theta, image[None])[0]
                if target.dim():
                    total = total - (target.softmax(0) * logits.log_softmax(0)).sum()
                else:
                    total = total - logits.log_softmax(0)[target]
            return self.loss.scale * total / len(seen)

        thetas, velocities = [self.start], [torch.zeros_like(self.start)]
        for step in range(self.steps):
            leaf = thetas[-1].clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(leaf, step, *rows), leaf)
            velocities.append(momentum * velocities[-1] + g)
            thetas.append(thetas[-1] - self.lr * velocities[-1])
        adjoint, of_velocity = torch.zeros_like(self.start), torch.zeros_like(self.start)
        of_rows, of_lr = [torch.zeros_like(r) for r in rows], torch.zeros_like(self.lr)
        for step in reversed(range(self.steps)):
            if step + 1 in (at or (self.steps,)):
                leaf = thetas[step + 1].clone().requires_grad_()
                adjoint = adjoint + torch.autograd.grad(self.distance(leaf), leaf)[0]
            of_lr = of_lr - adjoint @ velocities[step + 1]
            of_velocity = momentum * of_velocity - self.lr * adjoint
            leaf, *leaves = (v.clone().requires_grad_() for v in (thetas[step], *rows))
            (g,) = torch.autograd.grad(loss(leaf, step, *leaves), leaf, create_graph=True)
            h, *products = torch.autograd.grad(of_velocity @ g, [leaf, *leaves])
            of_rows = [total + p for total, p in zip(of_rows, products, strict=True)]
            adjoint = adjoint + h if exact else adjoint
        return [*of_rows, of_lr]


def apart(ours, theirs):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def chunked(problem, order, chunk, compile=False):
    return pieces.InChunks(pieces.StepFunctions(problem.network, order, compile), chunk)


@ORDERS
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("momentum", "at"), [(0.0, ()), (0.9, ()), (0.9, (2, 5))])
def test_chunks_are_the_formula_of_the_paper(order, soft, momentum, at):
    problem = Problem(soft, scale=0.7)
    ours = problem.gradients(Stepwise(chunked(problem, order, 3)), momentum, at)
    assert apart(ours, problem.by_the_paper(momentum, at)) < 1e-10
    assert apart(ours, problem.gradients(FullGraph(), momentum, at)) < 1e-10


@ORDERS
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_frozen_chunks_are_the_formula_without_curvature(order, momentum):
    problem = Problem(soft=True)
    ours = problem.gradients(FrozenAdjoint(chunked(problem, order, 3)), momentum)
    assert apart(ours, problem.by_the_paper(momentum, (), exact=False)) < 1e-10
    assert apart(ours, problem.gradients(Stepwise(), momentum)) > 1e-3


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9, None])
def test_the_size_of_a_chunk_changes_nothing_but_rounding(chunk):
    problem = Problem(soft=False)
    ours = problem.gradients(Stepwise(chunked(problem, "reverse", chunk)))
    assert apart(ours, problem.gradients(Stepwise())) < 1e-10


@pytest.mark.parametrize("norm", ["instance", "layer", "group", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_other_layers(norm, pooling):
    problem = Problem(soft=False, norm=norm, pooling=pooling)
    for order in ("reverse", "forward"):
        assert apart(problem.gradients(Stepwise(chunked(problem, order, 3))), problem.gradients(FullGraph())) < 1e-10


def test_only_what_asks_for_a_gradient_gets_one():
    problem = Problem(soft=True)
    full = problem.gradients(FullGraph())
    for asks in ((True, False), (False, True), (False, False)):
        rows = [v.clone().requires_grad_(ask) for v, ask in zip((problem.images, problem.labels), asks, strict=True)]
        lr = problem.lr.clone().requires_grad_()
        for engine in (Stepwise, FrozenAdjoint):
            make = engine(chunked(problem, "reverse", 3))
            (end,) = make(problem.loss, problem.start, lr, rows, steps=problem.steps)
            leaves = [*(row for row in rows if row.requires_grad), lr]
            found = torch.autograd.grad(problem.distance(end), leaves)
            if engine is Stepwise:
                expected = [g for g, ask in zip(full, (*asks, True), strict=True) if ask]
                assert apart(found, expected) < 1e-10
            else:
                assert all(g.isfinite().all() and g.any() for g in found)


@needs_compiler
@ORDERS
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_pieces_are_exact_and_the_same_to_the_bit_again(order, soft):
    problem = Problem(soft, scale=0.7)
    for momentum, at in ((0.0, ()), (0.9, (2, 5))):
        ours = problem.gradients(Stepwise(chunked(problem, order, 3, compile=True)), momentum, at)
        assert apart(ours, problem.by_the_paper(momentum, at)) < 1e-10
        again = problem.gradients(Stepwise(chunked(problem, order, 3, compile=True)), momentum, at)
        assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@needs_compiler
def test_compiled_reverse_products_of_a_short_problem():
    problem = Problem(soft=True, steps=2, depth=1, width=2)
    ours = problem.gradients(Stepwise(chunked(problem, "reverse", 3, compile=True)), 0.9)
    assert apart(ours, problem.by_the_paper(0.9, ())) < 1e-10


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_run_resumes_in_the_same_bits(blobs, make_task, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "WORTH_FLOPS", 0.0)
    task = replace(make_task(blobs(strategy=STRATEGY)), compile=True)
    method = AST(iterations=6, steps=4, span=2, start_max=3, batch=3, lr_img=10.0, start_from="real", experts=EXPERTS)

    def run(checkpoint=None, stop_after=None):
        torch._dynamo.reset()  # as in a new process
        network, stop = task.functional(), Stop("")
        backprop = matching.make_backprop(task, network, "stepwise", 24, 3)
        assert backprop.pieces.functions.compile
        prepared = mtt.Prepared(walks(network), network, backprop)

        def end(it, row):
            stop.requested = signal.SIGTERM if it == stop_after else stop.requested

        syn = method.start(task, prepared)
        synthesise(method, task, prepared, syn, checkpoint, Watch(log=end, stop=stop))
        return list(syn.parameters())

    whole, checkpoint = run(), Checkpoint(tmp_path / "state.safetensors", "ast")
    with pytest.raises(Interrupted):
        run(checkpoint, stop_after=2)
    assert all(torch.equal(a, b) for a, b in zip(run(checkpoint), whole, strict=True))


def walks(network):
    """Experts whose parameters walk at random."""
    first, rng = network.flatten(network.module), generator(4, "walks")
    steps = [0.02 * torch.randn(EXPERTS.epochs + 1, network.size, generator=rng) for _ in range(EXPERTS.count)]
    return Trajectories(tuple(first + s.cumsum(0) for s in steps), (None,) * EXPERTS.count, 0.0)


def test_batches_of_any_size_have_chunks_of_one_shape():
    problem, seen = Problem(soft=False), set()
    functions = pieces.StepFunctions(problem.network)
    functions.gradient = lambda theta, *inputs: seen.add(tuple(x.shape for x in inputs)) or torch.zeros_like(theta)
    one = pieces.InChunks(functions, 3)(problem.loss)
    assert {len(index) for index in problem.batches} == {3, 4}
    for step in range(problem.steps):
        one.gradient(problem.start, step, [problem.images])
    assert seen == {((3, *SHAPE), (3,), (3,))}


def test_chunks_are_equal_and_whole_for_batch_statistics():
    network = network_for()
    sizes = [pieces.chunk_of(network, torch.zeros(n, *SHAPE)) for n in (1, 10, 25, 26, 50, 64, 100, 125, 500)]
    assert sizes == [1, 10, 25, 13, 25, 22, 25, 25, 25]
    mixing = network_for()
    for layer in list(mixing.module.features):
        layer.norm = torch.nn.BatchNorm2d(4, track_running_stats=False)
    assert pieces.chunk_of(mixing, torch.zeros(50, *SHAPE)) is None


def test_losses_of_images_by_hand():
    network = network_for()
    theta = network.flatten(network.module)
    images, soft = torch.randn(4, *SHAPE, generator=generator(2)), torch.randn(4, CLASSES, generator=generator(3))
    hard = torch.tensor([0, 2, 1, 0])
    logits = network(theta, images)
    expected = torch.stack([-logits[i].log_softmax(0)[hard[i]] for i in range(4)])
    assert torch.allclose(pieces.per_image_losses(network, theta, images, hard), expected, rtol=1e-6)
    mean = pieces.per_image_losses(network, theta, images, soft).mean()
    assert torch.allclose(mean, F.cross_entropy(logits, soft.softmax(1)), rtol=1e-6)
