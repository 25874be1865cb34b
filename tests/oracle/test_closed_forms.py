"""Closed forms of the ConvNet's block: against PyTorch, finite differences, and the paper's inner loop in slow loops.

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
from torch import nn

from dd.engine.checkpoint import Checkpoint
from dd.engine.method import prepare
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.engine.unroll import FrozenAdjoint, FullGraph, KeptGraphs, Stepwise
from dd.errors import Interrupted
from dd.networks import (
    Functional,
    NetworkSpec,
    build_network,
    closed_form,
    in_closed_form,
    is_closed,
    native,
    saved_bytes,
)
from dd.networks import block as forms
from dd.networks.block import ConvBlock
from dd.rng import generator
from dd.runs.stop import Stop
from dd.training import ExpertSettings, Trajectories
from dd.views.dsa import draw

matching = importlib.import_module("dd.methods.trajectory._matching")
AST = get("ast")
mtt = sys.modules[get("mtt").__module__]
EXPERTS = ExpertSettings(kind="ast", count=2, epochs=5)

N, CLASSES, SHAPE = 7, 3, (2, 8, 8)
STRATEGY = "color_crop_cutout_flip_scale_rotate"
CLOSED = pytest.mark.parametrize("closed", [{}, {"keep": False}, {"fast": False}], ids=["kept", "again", "torch"])
needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler")


def network_for(closed=None, **spec):
    """A student; `closed` has the options of `closed_form`, None for PyTorch's own derivatives."""
    spec = NetworkSpec(**{"depth": 2, "width": 4} | spec)
    network = build_network(spec, channels=2, size=8, classes=CLASSES, generator=generator(0))
    return Functional(network if closed is None else closed_form(network, **closed))


class Problem:
    """An outer iteration of a student on `N` images, with batches of 4 and a remainder."""

    def __init__(self, soft, steps=5, batch=4, scale=1.0, closed=None, **spec):
        rng = generator(1, "problem")
        self.network, self.steps = network_for(closed, **spec), steps

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        self.start = self.network.flatten(self.network.module).double()
        self.start = self.start + 0.1 * normal(self.network.size)  # norms that start as the identity would hide faults
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


# --- a block alone ---------------------------------------------------------------------------------------------------


def block_for(channels=2, padding=1, closed=None):
    """A block of 3 channels in float64, and other parameters than the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = ConvBlock(
            nn.Conv2d(channels, 3, 3, padding=padding), nn.GroupNorm(3, 3), nn.ReLU(), nn.AvgPool2d(2)
        ).double()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.5)
    return closed_form(block, **closed or {})


def inputs_of(block, n=2, side=6):
    images = torch.randn(n, block.conv.in_channels, side, side, generator=generator(7), dtype=torch.float64)
    return [images.requires_grad_(), *block.parameters()]


def called(block):
    names = [name for name, _ in block.named_parameters()]

    def call(images, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (images,))

    return call


def by_torch(block):
    """The same block with PyTorch's derivatives."""
    plain = ConvBlock(block.conv, block.norm, block.activation, block.pooling)
    assert plain.closed is None
    return plain


@CLOSED
@pytest.mark.parametrize("padding", [1, 3])
def test_both_derivatives_against_finite_differences(closed, padding):
    block = block_for(padding=padding, closed=closed)
    inputs = inputs_of(block, n=1, side=4)
    assert torch.autograd.gradcheck(called(block), inputs)
    assert torch.autograd.gradgradcheck(called(block), inputs)


@CLOSED
@pytest.mark.parametrize("graph", [False, True], ids=["last", "graph"])
def test_every_choice_of_derivatives_is_pytorchs(closed, graph):
    block = block_for(closed=closed)
    inputs, plain = inputs_of(block), by_torch(block)
    directions = [torch.randn(v.shape, generator=generator(8, i), dtype=v.dtype) for i, v in enumerate(inputs)]

    def derivatives(module, first, second):
        value = called(module)(*inputs).sin().sum()
        found = torch.autograd.grad(value, [inputs[i] for i in first], create_graph=True)
        slope = sum((directions[i] * g).sum() for i, g in zip(first, found, strict=True)) + 0.3 * value
        return torch.autograd.grad(slope, [inputs[i] for i in second], create_graph=graph)

    for first in ([0], [1], [2], [3], [4], [1, 2, 3, 4], [0, 1, 2, 3, 4]):
        for second in ([0], [1], [3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]):
            ours, theirs = derivatives(block, first, second), derivatives(plain, first, second)
            for a, b in zip(ours, theirs, strict=True):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-12), (first, second)


def test_an_output_that_does_not_count_has_no_gradient_of_its_own():
    block = block_for()
    inputs = inputs_of(block)
    (first,) = torch.autograd.grad(called(block)(*inputs).sum(), inputs[1], create_graph=True)
    (ours,) = torch.autograd.grad(first.square().sum(), inputs[0])  # the output is not differentiated again
    (first,) = torch.autograd.grad(called(by_torch(block))(*inputs).sum(), inputs[1], create_graph=True)
    assert torch.allclose(ours, torch.autograd.grad(first.square().sum(), inputs[0])[0], rtol=1e-10, atol=1e-12)


def test_a_third_derivative_is_refused():
    block = block_for()
    inputs = inputs_of(block)
    (first,) = torch.autograd.grad(called(block)(*inputs).sin().sum(), inputs[1], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.square().sum().backward()


def test_maps_computed_again_are_the_kept_ones_to_the_bit():
    kept, again = (Problem(soft=True, closed={"keep": keep}) for keep in (True, False))
    for mode in (FullGraph(), Stepwise()):
        pairs = zip(kept.gradients(mode), again.gradients(mode), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


OTHERS = [
    {"norm": "layer"},
    {"norm": "group", "width": 8},
    {"norm": "none"},
    {"pooling": "max"},
    {"pooling": "none"},
    {"activation": "softplus"},
]


@pytest.mark.parametrize("what", OTHERS, ids=[next(iter(what.values())) for what in OTHERS])
def test_other_layers_keep_pytorchs_derivatives(what):
    ours, theirs = (Problem(soft=False, closed=c, **what) for c in ({}, None))
    pairs = zip(ours.gradients(FullGraph()), theirs.gradients(FullGraph()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_maps_of_an_odd_side_keep_pytorchs_derivatives():
    block = block_for()
    images = torch.randn(2, 2, 7, 7, generator=generator(9), dtype=torch.float64)
    assert torch.equal(block(images), by_torch(block)(images))
    assert type(block(images).grad_fn) is type(by_torch(block)(images).grad_fn)


# --- in an inner loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "closed",
    [{}, {"keep": False}, {"fast": False}, None],
    ids=["kept", "again", "torch", "none"],
)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("momentum", "at"), [(0.0, ()), (0.9, ()), (0.9, (2, 5))])
def test_the_inner_loop_is_the_formula_of_the_paper(closed, soft, momentum, at):
    expected = Problem(soft, scale=0.7).by_the_paper(momentum, at)
    problem = Problem(soft, scale=0.7, closed=closed)
    for mode in (FullGraph(), Stepwise(), Stepwise(KeptGraphs)):
        assert apart(problem.gradients(mode, momentum, at), expected) < 1e-10


@CLOSED
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_frozen_adjoint_is_the_formula_without_curvature(closed, momentum):
    problem = Problem(soft=True, closed=closed)
    ours = problem.gradients(FrozenAdjoint(), momentum)
    assert apart(ours, Problem(soft=True).by_the_paper(momentum, (), exact=False)) < 1e-10
    assert apart(ours, problem.gradients(Stepwise(), momentum)) > 1e-3


def test_only_what_asks_for_a_gradient_gets_one():
    problem = Problem(soft=True, closed={})
    full = problem.gradients(FullGraph())
    for asks in ((True, False), (False, True), (False, False)):
        rows = [v.clone().requires_grad_(ask) for v, ask in zip((problem.images, problem.labels), asks, strict=True)]
        lr = problem.lr.clone().requires_grad_()
        for engine in (Stepwise, FrozenAdjoint):
            (end,) = engine()(problem.loss, problem.start, lr, rows, steps=problem.steps)
            leaves = [*(row for row in rows if row.requires_grad), lr]
            found = torch.autograd.grad(problem.distance(end), leaves)
            if engine is Stepwise:
                expected = [g for g, ask in zip(full, (*asks, True), strict=True) if ask]
                assert apart(found, expected) < 1e-10
            else:
                assert all(g.isfinite().all() and g.any() for g in found)


def test_the_graph_of_a_step_is_small(blobs, make_task):
    task = make_task(blobs(size=32, classes=10, per_class=2, holdout=0), student=NetworkSpec(width=32))
    kept, again = (matching.graph_bytes(task, 100, keep=keep) for keep in (True, False))
    network = task.functional()
    theta = network.flatten(network.module).requires_grad_()
    images = torch.zeros(100, *task.data.shape, requires_grad=True)
    with saved_bytes() as seen:
        loss = F.cross_entropy(network(theta, images), torch.zeros(100, dtype=torch.long))
        torch.autograd.grad(loss, theta, create_graph=True)
    plain = sum(seen.values())
    assert kept < 0.4 * plain
    assert again < 0.2 * plain


# --- in C ------------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 4, 8, 6), (2, 3, 2, 2), (1, 2, 64, 34), (9, 32, 16, 16)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_the_functions_in_c_are_those_of_pytorch(shape, dtype, close):
    (n, c, h, w), rng = shape, generator(5, "maps")

    def normal(*size):
        return torch.randn(*size, generator=rng, dtype=dtype)

    x, u = 2 + normal(*shape), normal(*shape)
    d, scale, shift, of_scale, of_shift = normal(n, c, h // 2, w // 2), *normal(4, c)
    pooled = forms._pooled(x, scale, shift, 1e-5)
    norm = forms._Norm(*pooled[1:], scale, shift)
    for ours, theirs in (
        (forms._pooled_in_c(x, scale, shift, 1e-5), pooled),
        (forms._gradient_in_c(d, x, norm), forms._gradient(d, x, norm)),
        (forms._second_in_c(u, of_scale, of_shift, d, x, norm), forms._second(u, of_scale, of_shift, d, x, norm)),
    ):
        assert apart(ours, theirs) < close
        assert [a.shape for a in ours] == [b.shape for b in theirs]


@needs_compiler
def test_the_functions_in_c_take_what_is_not_in_order_and_pass_on_what_is_not_a_number():
    x, d = torch.randn(2, 3, 6, 4), torch.ones(1, 1, 3, 1).expand(2, 3, 3, 2)
    scale, shift = torch.ones(3), torch.zeros(1).expand(3)
    norm = forms._Norm(*forms._pooled(x, scale, shift, 1e-5)[1:], scale, shift)
    turned = x.to(memory_format=torch.channels_last)
    assert apart(forms._gradient_in_c(d, turned, norm), forms._gradient(d, x, norm)) < 1e-6
    x[1, 2, 3, 3] = torch.nan
    output, *_ = forms._pooled_in_c(x, scale, shift, 1e-5)
    assert output.isnan().flatten(2).any(2).tolist() == [[False] * 3, [False, False, True]]


@needs_compiler
def test_bits_do_not_depend_on_the_number_of_threads():
    maps, scale = torch.randn(16, 8, 32, 32), torch.randn(8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            output, *norm = forms._pooled_in_c(maps, scale, scale, 1e-5)
            norm = forms._Norm(*norm, scale, scale)
            found.append([output, *forms._second_in_c(maps.sin(), scale, scale, output, maps, norm)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("compiler", [None, "/bin/false"])
def test_without_a_compiler_pytorch_does_the_work(monkeypatch, compiler):
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    native.library.cache_clear()
    try:
        assert native.library() is None
        x, scale = torch.randn(2, 3, 4, 4), torch.ones(3)
        assert torch.equal(forms._pooled_in_c(x, scale, scale, 1e-5)[0], forms._pooled(x, scale, scale, 1e-5)[0])
    finally:
        monkeypatch.undo()
        native.library.cache_clear()


@needs_compiler
def test_the_library_is_made_once(monkeypatch, tmp_path):
    monkeypatch.setenv("DD_HOME", str(tmp_path))
    compiler = next(filter(None, map(shutil.which, native.COMPILERS)))
    file = native._made(compiler)
    assert list((tmp_path / "native").iterdir()) == [file]
    monkeypatch.setattr(native.subprocess, "run", None)
    assert native._made(compiler) == file


@needs_compiler
def test_a_folder_that_cannot_be_written_costs_speed_only(monkeypatch, tmp_path):
    (tmp_path / "native").write_text("a file where the folder would be")
    monkeypatch.setenv("DD_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is None
    finally:
        monkeypatch.undo()
        native.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("backprop", ["full", "stepwise"])
def test_a_run_in_c_resumes_in_the_same_bits(blobs, make_task, tmp_path, backprop):
    task = replace(make_task(blobs(strategy=STRATEGY)), compile=True)
    method = AST(iterations=6, steps=4, span=2, start_max=3, batch=3, lr_img=10.0, start_from="real", experts=EXPERTS)

    def run(checkpoint=None, stop_after=None):
        network, stop = matching.make_student(task, backprop, 4, 3), Stop("")
        prepared = mtt.Prepared(walks(network), network, matching.make_backprop(task, network, backprop, 3))

        def end(it, row):
            stop.requested = signal.SIGTERM if it == stop_after else stop.requested

        syn = method.start(task, prepared)
        synthesise(method, task, prepared, syn, checkpoint, Watch(log=end, stop=stop))
        return list(syn.parameters())

    whole, checkpoint = run(), Checkpoint(tmp_path / "state.safetensors", "ast")
    with pytest.raises(Interrupted):
        run(checkpoint, stop_after=2)
    assert all(torch.equal(a, b) for a, b in zip(run(checkpoint), whole, strict=True))


MATCHING = {
    "dm": {"batch_real": 12},
    "ncfm": {"batch_real": 12, "frequencies": 64, "experts": ExpertSettings(count=2, epochs=2, batch=16)},
    "dc": {"batch_real": 12, "outer": 3, "inner": 2},
    "dsa": {"batch_real": 12, "outer": 3, "inner": 2},
}


@needs_compiler
@pytest.mark.parametrize("name", MATCHING)
def test_distribution_and_gradient_matching_in_c_are_what_they_are_by_pytorch(name, blobs, make_task, monkeypatch):
    task = make_task(blobs(strategy=STRATEGY), ipc=2, student=NetworkSpec(depth=2, width=4))
    method = get(name)(iterations=3, lr_img=1.0, **MATCHING[name])
    prepared, in_c, found = prepare(method, task), [], {}
    call = native.call
    monkeypatch.setattr(native, "call", lambda function, *given: (in_c.append(function), call(function, *given)))
    for allowed in (False, True):
        allowing, used = replace(task, compile=allowed), len(in_c)
        syn = method.start(task, prepared)
        value = torch.stack(list(method.settle(allowing).loss(syn, allowing, prepared, 0).values())).sum()
        found[allowed] = [value.detach(), *torch.autograd.grad(value, syn.images)]
        assert (len(in_c) > used) == allowed
    assert "gradient" in in_c
    assert apart(found[True], found[False]) < 1e-4


def test_a_network_is_in_closed_form_within_the_block_only():
    network = network_for().module
    blocks = [layer for layer in network.modules() if isinstance(layer, ConvBlock)]
    with in_closed_form(network):
        assert all(layer.closed is not None for layer in blocks) == (native.library() is not None)
        with in_closed_form(network, allowed=False):
            assert all(layer.closed is None for layer in blocks)
        with pytest.raises(ZeroDivisionError), in_closed_form(network):
            _ = 1 / 0
        assert all(layer.closed is not None for layer in blocks) == (native.library() is not None)
    assert all(layer.closed is None for layer in blocks)
    for spec in ({"norm": "layer"}, {"pooling": "max"}, {"activation": "softplus"}):
        assert not is_closed(network_for(**spec).module)


def walks(network):
    """Experts whose parameters walk at random."""
    first, rng = network.flatten(network.module), generator(4, "walks")
    steps = [0.02 * torch.randn(EXPERTS.epochs + 1, network.size, generator=rng) for _ in range(EXPERTS.count)]
    return Trajectories(tuple(first + s.cumsum(0) for s in steps), (None,) * EXPERTS.count, 0.0)


# --- the loss of an image --------------------------------------------------------------------------------------------


def test_losses_of_images_by_hand():
    network = network_for()
    theta = network.flatten(network.module)
    images, soft = torch.randn(4, *SHAPE, generator=generator(2)), torch.randn(4, CLASSES, generator=generator(3))
    hard = torch.tensor([0, 2, 1, 0])
    logits = network(theta, images)
    expected = torch.stack([-logits[i].log_softmax(0)[hard[i]] for i in range(4)])
    assert torch.allclose(matching.per_image_losses(network, theta, images, hard), expected, rtol=1e-6)
    mean = matching.per_image_losses(network, theta, images, soft).mean()
    assert torch.allclose(mean, F.cross_entropy(logits, soft.softmax(1)), rtol=1e-6)
