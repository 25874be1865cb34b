"""MTT and DATM against slow loops, closed forms and hand-written outer iterations."""

import importlib
import math
import signal
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Skip, Synthetic
from dd.engine.registry import get
from dd.engine.synthesise import Watch, synthesise
from dd.engine.unroll import FullGraph, Stepwise
from dd.errors import Interrupted
from dd.networks import Functional, NetworkSpec, build_network, closed_form, saved_bytes
from dd.rng import generator
from dd.runs.stop import Stop
from dd.training import ExpertSettings, Trajectories
from dd.views.dsa import apply, augment, draw

matching = importlib.import_module("dd.methods.trajectory._matching")
MTT, DATM = get("mtt"), get("datm")
datm = sys.modules[DATM.__module__]

EXPERTS = ExpertSettings(count=3, epochs=5)


def network_for(classes=4, size=8, **spec):
    spec = NetworkSpec(**{"depth": 1, "width": 4} | spec)
    return Functional(build_network(spec, channels=1, size=size, classes=classes, generator=generator(0)))


def pool_of(network, experts=3, epochs=5, scale=0.02, seed=0):
    """Trajectories that are random walks of the parameters."""
    rng = generator(seed, "walks")
    first = network.flatten(network.module)
    walks = [
        first + scale * torch.randn(epochs + 1, network.size, generator=rng).cumsum(0) / network.size**0.5
        for _ in range(experts)
    ]
    return Trajectories(tuple(walks), (None,) * experts, 0.0)


def prepared_for(method, network=None, backprop=None, **pool):
    network = network or network_for()
    module = sys.modules[MTT.__module__]
    return module.Prepared(
        pool_of(network, method.experts.count, method.experts.epochs, **pool), network, backprop or FullGraph()
    )


# --- the objective ---------------------------------------------------------------------------------------------------


def vectors(dtype=torch.float64, n=500):
    return torch.randn(3, n, generator=generator(1), dtype=torch.float64).to(dtype)


def test_distance_by_a_slow_loop_and_at_its_two_ends():
    student, start, target = vectors()
    above = sum((a - b) ** 2 for a, b in zip(student.tolist(), target.tolist(), strict=True))
    below = sum((a - b) ** 2 for a, b in zip(start.tolist(), target.tolist(), strict=True))
    assert matching.trajectory_distance(student, start, target).item() == pytest.approx(above / below, rel=1e-12)
    assert matching.trajectory_distance(start, start, target) == 1
    assert matching.trajectory_distance(target, start, target) == 0


def test_distance_is_a_ratio_of_sums_or_of_means():
    student, start, target = vectors()
    ratio = F.mse_loss(student, target) / F.mse_loss(start, target)
    assert matching.trajectory_distance(student, start, target).item() == pytest.approx(ratio.item(), rel=1e-12)
    for scale in (1e-3, 1e4):
        scaled = matching.trajectory_distance(scale * student, scale * start, scale * target)
        assert scaled.item() == pytest.approx(ratio.item(), rel=1e-12)


def test_distance_knows_no_order_of_parameters_but_needs_the_same_one():
    student, start, target = vectors()
    order = torch.randperm(500, generator=generator(2))
    here = matching.trajectory_distance(student, start, target).item()
    assert matching.trajectory_distance(student[order], start[order], target[order]).item() == pytest.approx(
        here, rel=1e-12
    )
    assert abs(matching.trajectory_distance(student[order], start, target).item() - here) > 1e-3


def test_distance_is_accumulated_in_double_precision():
    student, start, target = vectors(torch.float32, 200_000)
    # far from the origin, so that a sum in float32 would lose digits
    found = matching.trajectory_distance(student, start, target)
    exact = (student.double() - target.double()).square().sum() / (start.double() - target.double()).square().sum()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-7)


def test_soft_cross_entropy_gradient_in_closed_form():
    rng = generator(3)
    z, y = (torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    y.requires_grad_()
    loss = matching.soft_cross_entropy(z, y)
    (found,) = torch.autograd.grad(loss, y)
    p, each = y.detach().softmax(1), -z.log_softmax(1)
    expected = p * (each - (p * each).sum(1, keepdim=True)) / 5
    assert (found - expected).abs().max() < 1e-15
    assert found.sum(1).abs().max() < 1e-16
    assert loss.item() == pytest.approx(F.cross_entropy(z, p).item(), rel=1e-12)


def test_soft_cross_entropy_of_sharp_labels_is_hard_cross_entropy():
    z = torch.randn(6, 4, generator=generator(4), dtype=torch.float64)
    hard = torch.tensor([0, 3, 1, 1, 2, 0])
    y = 50 * F.one_hot(hard, 4).double()
    assert matching.soft_cross_entropy(z, y).item() == pytest.approx(F.cross_entropy(z, hard).item(), rel=1e-9)
    soft = torch.randn(6, 4, generator=generator(5), dtype=torch.float64)
    moved = soft + torch.arange(6.0).double()[:, None]
    assert matching.soft_cross_entropy(z, moved).item() == pytest.approx(
        matching.soft_cross_entropy(z, soft).item(), rel=1e-12
    )


# --- sampling --------------------------------------------------------------------------------------------------------


def test_chunks_are_consumed_from_the_end():
    batches = matching.synthetic_batches(25, 10, 7, generator(0))
    assert [len(b) for b in batches] == [5, 10, 10, 5, 10, 10, 5]
    for one_pass in (batches[:3], batches[3:6]):
        assert sorted(torch.cat(one_pass).tolist()) == list(range(25))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:6]))


def test_chunks_are_those_of_the_official_loop():
    rng, expected, queue = generator(7), [], []
    for _ in range(9):
        if not queue:
            queue = list(torch.split(torch.randperm(12, generator=rng), 5))
        expected.append(queue.pop())
    found = matching.synthetic_batches(12, 5, 9, generator(7))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("batch", [None, 6, 7, 1000])
def test_a_batch_as_large_as_the_set_is_the_set_in_every_step(batch):
    batches = matching.synthetic_batches(6, batch, 4, generator(0))
    assert [b.tolist() for b in batches] == [[0, 1, 2, 3, 4, 5]] * 4


def test_batches_are_spread_evenly_over_the_images():
    counts = Counter()
    for it in range(300):
        counts.update(torch.cat(matching.synthetic_batches(20, 7, 4, generator(0, it))).tolist())
    # 7 + 7 + 6 + 7 minus the sizes that come first: 6, 7, 7, 6 = 26 draws per iteration
    assert sum(counts.values()) == 300 * 26
    assert max(abs(counts[i] - 390) for i in range(20)) < 60


@pytest.mark.parametrize(("low", "high"), [(0, 2), (3, 10), (0, 1)])
def test_start_epochs_are_uniform_below_the_upper_end(make_task, low, high):
    task, draws = make_task(), 10_000 if high == 10 else 1000
    pool = Trajectories((torch.zeros(13, 1),), (None,), 0.0)
    counts = Counter(matching.draw_segment(task, pool, it, low, high, 2).epoch for it in range(draws))
    assert sorted(counts) == list(range(low, high))
    expected = draws / (high - low)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 30  # far beyond the 99.9th percentile for up to 6 degrees of freedom


def test_a_segment_goes_from_its_epoch_to_span_epochs_later(make_task):
    task, network = make_task(), network_for()
    pool = pool_of(network, 4, 9)
    for it in range(20):
        segment = matching.draw_segment(task, pool, it, 2, 7, 3)
        assert torch.equal(segment.start, pool.snapshots[segment.expert][segment.epoch])
        assert torch.equal(segment.target, pool.snapshots[segment.expert][segment.epoch + 3])
        segment.start.zero_()  # a copy: the pool stays what it is
        assert pool.snapshots[segment.expert][segment.epoch].any()


def test_every_expert_is_visited_once_per_pass_in_an_order_drawn_anew():
    passes = [[matching.expert_at(6, it, 0) for it in range(6 * p, 6 * p + 6)] for p in range(20)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert len({tuple(one) for one in passes}) > 15
    assert [matching.expert_at(6, it, 1) for it in range(24)] != [one for each in passes[:4] for one in each]
    assert [matching.expert_at(1, it, 0) for it in range(3)] == [0, 0, 0]


def test_the_window_widens_as_published():
    its = (0, 99, 100, 500, 999, 1000, 5000)
    assert [datm.widened(10, 20, 1000, it) for it in its] == [10, 10, 11, 15, 19, 20, 20]
    ends = [datm.widened(10, 20, 1000, it) for it in range(1200)]
    assert ends == sorted(ends)
    assert set(ends) == set(range(10, 21))


def test_the_window_of_the_methods():
    experts = ExpertSettings(epochs=100)
    method = DATM(start_min=3, start_max=20, window_start=10, window_its=1000, experts=experts)
    assert [method.window(it) for it in (0, 100, 1000)] == [(3, 10), (3, 11), (3, 20)]
    off = replace(method, window_start=None)
    assert {off.window(it) for it in (0, 7, 10_000)} == {(3, 20)}
    assert {MTT(start_max=9, experts=experts).window(it) for it in (0, 7, 10_000)} == {(0, 9)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start_min": 4, "start_max": 4}, "start_min=4 must be below start_max=4"),
        ({"start_max": 5, "span": 2}, "start_max=5 with span=2 reaches epoch 6, but experts.epochs=5"),
        ({"start_max": 1, "span": 6}, "reaches epoch 6"),
    ],
)
@pytest.mark.parametrize("method", [MTT, DATM], ids=["mtt", "datm"])
def test_a_target_beyond_the_experts_is_refused(method, settings, said):
    with pytest.raises(ValueError) as error:
        method(experts=EXPERTS, **settings)
    assert said in str(error.value)
    method(experts=EXPERTS, start_max=4, span=2)  # the last snapshot may be a target


@pytest.mark.parametrize("first", [2, 5])
def test_a_window_must_begin_inside_its_bounds(first):
    with pytest.raises(ValueError, match=f"window_start={first} must be above start_min=2"):
        DATM(start_min=2, start_max=4, window_start=first, experts=EXPERTS)


# --- the inner loss and its augmentation -----------------------------------------------------------------------------

DSA = "color_crop_cutout_flip_scale_rotate"


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_the_inner_loss_by_hand(blobs, make_task, batch, soft):
    task, network = make_task(blobs(strategy=DSA)), network_for()
    rng = generator(1)
    images, labels = torch.randn(8, 1, 8, 8, generator=rng), torch.randn(8, 4, generator=rng)
    batches = matching.synthetic_batches(8, batch, 6, rng)
    loss = matching.student_loss(task, network, 5, batches, DSA, None if soft else task.targets)
    theta = network.flatten(network.module)
    draws = task.generator("inner augmentation", 5)
    for step, index in enumerate(batches):
        z = network(theta, apply(draw(DSA, len(index), (1, 8, 8), draws), images[index]))
        target = labels[index].softmax(1) if soft else task.targets[index]
        found = loss(theta, step, images, labels) if soft else loss(theta, step, images)
        assert found.item() == pytest.approx(F.cross_entropy(z, target).item(), rel=1e-6)
        # asked again, it is the same to the bit
        assert torch.equal(found, loss(theta, step, images, labels) if soft else loss(theta, step, images))


def double_problem(seed=0):
    network, rng = network_for(activation="softplus"), generator(seed, "double")
    images = torch.randn(8, 1, 8, 8, generator=rng, dtype=torch.float64)
    start = network.flatten(network.module).double()
    return network, images, start, start + 0.05 * torch.randn(network.size, generator=rng, dtype=torch.float64)


def image_gradient(backprop, loss, images, start, target, steps):
    x, lr = images.clone().requires_grad_(), torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    (end,) = backprop(loss, start, lr, [x], steps=steps)
    return torch.autograd.grad(matching.trajectory_distance(end, start, target), x)[0]


@pytest.mark.parametrize("strategy", ["none", "color", "crop", "cutout", "flip", "scale", "rotate", DSA])
def test_augmentation_is_replayed_when_a_step_is_computed_again(blobs, make_task, strategy):
    task = make_task(blobs(strategy=strategy))
    network, images, start, target = double_problem()
    batches = matching.synthetic_batches(8, 3, 12, generator(2))
    loss = matching.student_loss(task, network, 0, batches, strategy, task.targets)
    full = image_gradient(FullGraph(), loss, images, start, target, 12)
    ours = image_gradient(Stepwise(), loss, images, start, target, 12)
    assert (ours - full).norm() / full.norm() < 1e-12
    assert torch.equal(ours, image_gradient(Stepwise(), loss, images, start, target, 12))


def test_augmentation_that_is_drawn_again_gives_another_gradient():
    network, images, start, target = double_problem()
    targets = torch.arange(4).repeat_interleave(2)

    def gradient(backprop):
        stream = generator(11)

        def drawing(theta, step, x):
            return F.cross_entropy(network(theta, augment(DSA, x, stream)), targets)

        return image_gradient(backprop, drawing, images, start, target, 12)

    full = gradient(FullGraph())
    assert (gradient(Stepwise()) - full).norm() / full.norm() > 1e-3


# --- whole outer iterations ------------------------------------------------------------------------------------------


def by_hand(method, task, prepared, syn, it):
    """The objective of one outer iteration, written out: every step keeps its graph."""
    draws, start_epoch = task.generator("inner augmentation", it), task.generator("start epoch", it)
    expert = int(torch.randperm(len(prepared.pool), generator=generator(task.seed, "expert order", it // 3))[it % 3])
    low, high = method.window(it)
    epoch = int(torch.randint(low, high, (), generator=start_epoch))
    start = prepared.pool.snapshots[expert][epoch]
    target = prepared.pool.snapshots[expert][epoch + method.span]
    order = task.generator("inner batches", it)
    batches = matching.synthetic_batches(len(syn.images), method.batch, method.steps, order)
    theta = start.clone().requires_grad_()
    strategy = task.data.augment if method.augment else "none"
    for index in batches:
        x = apply(draw(strategy, len(index), (1, 8, 8), draws), syn.images[index])
        y = syn.targets[index] if syn.labels is None else syn.labels[index].softmax(1)
        loss = F.cross_entropy(prepared.network(theta, x), y)
        (g,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - syn.lr * g
    return ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()


CASES = [
    (MTT, {}),
    (MTT, {"batch": 3, "augment": False}),
    (DATM, {"threshold": 100.0, "window_start": 1, "window_its": 4}),
    (DATM, {"threshold": 100.0, "batch": 5}),
]


@pytest.mark.parametrize("backprop", ["full", "stepwise"])
@pytest.mark.parametrize(("cls", "extra"), CASES, ids=["mtt", "mtt-batch", "datm-window", "datm-batch"])
def test_outer_iterations_by_hand(blobs, make_task, cls, extra, backprop):
    task = make_task(blobs(strategy=DSA))
    method = cls(iterations=6, steps=4, start_max=4, lr_img=10.0, lr_lr=1e-6, lr_init=0.05, experts=EXPERTS, **extra)
    network = network_for()
    prepared = prepared_for(method, network, matching.make_backprop(task, network, backprop, method.batch or 8))
    soft = torch.randn(8, 4, generator=generator(6)) if cls is DATM else None

    def fresh():
        return Synthetic(torch.randn(8, 1, 8, 8, generator=generator(5)), task.targets, soft, lr=0.05)

    ours, reference = fresh(), fresh()
    synthesise(method, task, prepared, ours)
    variables = [reference.images, reference.lr] + ([] if soft is None else [reference.labels])
    rates, momenta = [10.0, 1e-6, 2.0], [0.5, 0.5, 0.9]
    velocities = [torch.zeros_like(v) for v in variables]
    for it in range(6):
        gradients = torch.autograd.grad(by_hand(method, task, prepared, reference, it), variables)
        with torch.no_grad():
            for v, g, velocity, rate, momentum in zip(variables, gradients, velocities, rates, momenta, strict=False):
                velocity.mul_(momentum).add_(g)
                v -= rate * velocity
    moved = (reference.images - fresh().images).norm()
    assert moved > 1e-3
    assert (ours.images - reference.images).norm() < 1e-4 * moved
    # the second update of lr is -lr_lr (g2 + momentum g1), and so on
    assert (ours.lr - reference.lr).abs() < 1e-4 * (reference.lr - 0.05).abs()
    if soft is not None:
        assert (ours.labels - reference.labels).norm() < 1e-4 * (reference.labels - soft).norm()
        assert (ours.labels.mean(1) - soft.mean(1)).abs().max() < 1e-5  # rows of the gradient sum to zero


def test_the_first_updates_of_the_learned_lr():
    method = MTT(lr_lr=1e-3, experts=EXPERTS, start_max=4)
    syn = Synthetic(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long), lr=0.5)
    optimisers, moves = method.optimisers(syn), []
    for g in (3.0, -7.0):
        before, syn.lr.grad = syn.lr.item(), torch.tensor(g)
        for optimiser in optimisers:
            optimiser.step()
        moves.append(syn.lr.item() - before)
    assert moves == pytest.approx([-1e-3 * 3.0, -1e-3 * (0.5 * 3.0 - 7.0)], rel=1e-4)


def test_row_means_of_labels_stay_over_a_hundred_steps():
    rng = generator(8)
    y = torch.randn(6, 5, generator=rng, dtype=torch.float64).requires_grad_()
    means, first = y.detach().mean(1), y.detach().clone()
    optimiser = torch.optim.SGD([y], lr=5.0, momentum=0.9)
    for _ in range(100):
        optimiser.zero_grad()
        matching.soft_cross_entropy(torch.randn(6, 5, generator=rng, dtype=torch.float64), y).backward()
        optimiser.step()
    assert (y.detach().mean(1) - means).abs().max() < 1e-12
    assert (y.detach() - first).abs().max() > 0.1


@pytest.mark.parametrize("name", ["mtt", "ftd", "tesla", "datm", "ast"])
def test_a_learned_lr_that_passes_through_zero_leaves_a_set_that_trains_students(make_task, name, caplog):
    cls = get(name)
    method = cls(iterations=1, steps=2, start_max=4, lr_init=5.0, lr_lr=1e6, lr_img=1e-3, experts=EXPERTS)
    method = replace(method, threshold=1e9) if name == "datm" else method
    task, prepared = make_task(), prepared_for(method)
    syn = method.start(task, prepared)
    (term, *_) = method.loss(syn, task, prepared, 0).values()
    assert float(torch.autograd.grad(term, syn.lr)[0]) > 0  # so large an lr overshoots: the update is downwards
    synthesise(method, task, prepared, syn)
    made = method.finish(syn, task, prepared)
    assert made.lr == pytest.approx(0.05)
    assert "learned lr fell to -" in caplog.text


# --- DATM's gate -----------------------------------------------------------------------------------------------------


def gated(make_task, threshold, iterations=1):
    task = make_task()
    experts = EXPERTS
    method = DATM(iterations=iterations, steps=3, start_max=4, threshold=threshold, lr_img=10.0, experts=experts)
    syn = Synthetic(torch.randn(8, 1, 8, 8, generator=generator(5)), task.targets, torch.zeros(8, 4), lr=0.05)
    return method, task, prepared_for(method), syn


def distance_of(method, syn, task, prepared, it, again):
    """The distance on one segment of an iteration, by the segment alone."""
    segment = matching.draw_segment(task, prepared.pool, it, *method.window(it), method.span, again)
    loss, variables = method.student(syn, task, prepared, it)
    (end,) = prepared.backprop(loss, segment.start, syn.lr, variables, steps=method.steps)
    return float(matching.trajectory_distance(end, segment.start, segment.target).detach())


def test_the_gate_opens_at_the_threshold_and_closes_above_it(make_task):
    method, task, prepared, syn = gated(make_task, 100.0)
    value = method.loss(syn, task, prepared, 0)["distance"].item()
    at = replace(method, threshold=value).loss(syn, task, prepared, 0)
    assert at["distance"].item() == value
    others = [distance_of(method, syn, task, prepared, 0, again) for again in range(1, 5)]
    lowest = min([value, *others])
    above = replace(method, threshold=lowest - 1e-6).loss(syn, task, prepared, 0)
    assert isinstance(above, Skip)
    assert above.value == value
    assert "threshold" in above.reason
    assert "of 4 other segments" in above.reason
    assert isinstance(replace(method, threshold=value - 1e-6, tries=1).loss(syn, task, prepared, 0), Skip)
    with torch.no_grad():
        syn.labels[3, 2] = math.nan
    nan = method.loss(syn, task, prepared, 0)
    assert isinstance(nan, Skip)
    assert math.isnan(nan.value)


def test_the_first_segment_below_the_threshold_is_taken(make_task):
    method, task, prepared, syn = gated(make_task, 100.0)
    seen = Counter()
    for it in range(12):
        values = [distance_of(method, syn, task, prepared, it, again) for again in range(5)]
        assert method.loss(syn, task, prepared, it)["distance"].item() == values[0]  # as with no other segments
        threshold = sorted(values)[1]
        first = next(again for again, value in enumerate(values) if value <= threshold)
        taken = replace(method, threshold=threshold).loss(syn, task, prepared, it)
        assert taken["distance"].item() == values[first]
        alone = replace(method, threshold=threshold, tries=1).loss(syn, task, prepared, it)
        assert isinstance(alone, Skip) == (first > 0)
        seen[first] += 1
    assert len(seen) > 2


def test_other_segments_are_any_expert_and_any_epoch_of_the_window(make_task):
    _, task, prepared, _ = gated(make_task, 1.0)
    pool = prepared.pool
    drawn = [matching.draw_segment(task, pool, it, 1, 4, 2, again) for it in range(40) for again in (1, 2, 3)]
    assert Counter(segment.epoch for segment in drawn).keys() == {1, 2, 3}
    assert Counter(segment.expert for segment in drawn).keys() == {0, 1, 2}
    again = [matching.draw_segment(task, pool, it, 1, 4, 2, again) for it in range(40) for again in (1, 2, 3)]
    assert [(s.expert, s.epoch) for s in drawn] == [(s.expert, s.epoch) for s in again]
    firsts = [matching.draw_segment(task, pool, it, 1, 4, 2) for it in range(40)]
    assert [(s.expert, s.epoch) for s in drawn[::3]] != [(s.expert, s.epoch) for s in firsts]


def test_an_interrupted_run_draws_the_same_segments(make_task, tmp_path):
    method, task, prepared, _ = gated(make_task, 100.0, iterations=9)

    def fresh():
        return Synthetic(torch.randn(8, 1, 8, 8, generator=generator(5)), task.targets, torch.zeros(8, 4), lr=0.05)

    values = [distance_of(method, fresh(), task, prepared, it, 0) for it in range(9)]
    method = replace(method, threshold=sorted(values)[3])
    rows = []
    whole = fresh()
    synthesise(method, task, prepared, whole, None, Watch(log=lambda it, row: rows.append(row["skipped"])))
    for stop_after in (1, 4):
        checkpoint = Checkpoint(tmp_path / f"{stop_after}.safetensors", "datm")
        stop = Stop("")

        def end(it, row, stop=stop, at=stop_after):
            stop.requested = signal.SIGTERM if it == at else stop.requested

        with pytest.raises(Interrupted):
            synthesise(method, task, prepared, fresh(), checkpoint, Watch(log=end, stop=stop))
        resumed = fresh()
        synthesise(method, task, prepared, resumed, checkpoint)
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_gated_iteration_changes_nothing(make_task):
    method, task, prepared, syn = gated(make_task, 100.0, iterations=8)
    values = [method.loss(syn, task, prepared, it)["distance"].item() for it in range(8)]

    class Recorded(DATM):
        """DATM that keeps its optimisers where the test can see them."""

        def optimisers(self, syn):
            seen.extend(super().optimisers(syn))
            return seen

        def loss(self, syn, task, prepared, it):
            states.append(state())
            outcomes.append(super().loss(syn, task, prepared, it))
            return outcomes[-1]

    def state():
        buffers = [s["momentum_buffer"].clone() for o in seen for s in o.state.values() if "momentum_buffer" in s]
        return [v.detach().clone() for v in (syn.images, syn.labels, syn.lr)] + buffers

    seen, states, outcomes = [], [], []
    fields = {name: getattr(method, name) for name in method.__dataclass_fields__}
    between = Recorded(**fields | {"threshold": sorted(values)[3] + 1e-9})
    synthesise(between, task, prepared, syn)
    states.append(state())
    skipped = [isinstance(outcome, Skip) for outcome in outcomes]
    assert True in skipped
    assert False in skipped
    assert skipped.index(False) < len(skipped) - 1 - skipped[::-1].index(True)  # a skip with momentum already there
    for skip, before, after in zip(skipped, states[:-1], states[1:], strict=True):
        same = len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == skip


# --- DATM's images and labels at the start ---------------------------------------------------------------------------


def test_mean_correct_logits_leaves_the_wrong_expert_out():
    logits = torch.tensor(
        [
            [[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.5]],
            [[2.0, 0.0, 1.0], [5.0, 1.0, 0.0], [1.0, 0.5, 0.0]],  # wrong about the second image
            [[4.0, 2.0, 2.0], [0.0, 4.0, 0.0], [0.0, 3.0, 1.0]],
        ]
    )
    targets = torch.tensor([0, 1, 2])  # nobody is right about the third
    found = datm.mean_correct_logits(logits, targets)
    expected = torch.tensor([[3.0, 1.0, 1.0], [0.0, 3.0, 0.5], [2 / 3, 3.5 / 3, 0.5]])
    assert torch.allclose(found, expected)
    assert found.isfinite().all()


def test_mean_correct_logits_have_their_class_on_top():
    rng = generator(9)
    logits, targets = torch.randn(5, 400, 3, generator=rng), torch.randint(3, (400,), generator=rng)
    found = datm.mean_correct_logits(logits, targets)
    known = (logits.argmax(2) == targets).any(0)
    assert 0 < (~known).sum() < 200
    assert (found.argmax(1)[known] == targets[known]).all()
    for i in range(400):
        right = [logits[e, i] for e in range(5) if logits[e, i].argmax() == targets[i]]
        chosen = right or list(logits[:, i])
        assert torch.allclose(found[i], sum(chosen) / len(chosen), atol=1e-6)


def hand_made_experts(blobs, make_task, ipc, noise=3.0):
    """Three linear experts of different quality on overlapping blobs, and every expert's verdict on every image."""
    data = blobs(per_class=40, noise=noise)
    task = make_task(data, ipc=ipc)
    network = task.functional()
    pool = pool_of(network, 3, 2, scale=0.0)
    all_images = torch.arange(len(data.train))
    for expert, steps in enumerate((3, 12, 60)):
        theta = pool.snapshots[expert][-1].clone().requires_grad_()
        for _ in range(steps):
            loss = F.cross_entropy(network(theta, data.train.images(all_images)), data.train.labels)
            (g,) = torch.autograd.grad(loss, theta)
            theta = (theta - 0.1 * g).detach().requires_grad_()
        pool.snapshots[expert][-1].copy_(theta.detach())
    with torch.no_grad():
        logits = [network(pool.last(e, task.device), data.train.images(all_images)) for e in range(3)]
    return task, pool, network, torch.stack(logits)


@pytest.mark.parametrize("ipc", [1, 6, 36])
def test_correct_start_takes_distinct_images_that_an_expert_knows(blobs, make_task, ipc):
    task, pool, network, logits = hand_made_experts(blobs, make_task, ipc)
    prepared = sys.modules[MTT.__module__].Prepared(pool, network, FullGraph())
    index = datm.correct_indices(task, prepared)
    labels = task.data.train.labels
    right = logits.argmax(2) == labels
    assert torch.equal(labels[index], task.targets)
    assert len(index.unique()) == len(index) == 4 * ipc
    for c in range(4):
        of_class, chosen = (labels == c).nonzero().flatten(), index[task.targets == c]
        by_first, by_any = right[0][of_class].sum().item(), right.any(0)[of_class].sum().item()
        # an expert comes to turn only when those before it are exhausted
        assert right[0][chosen].sum().item() >= min(ipc, by_first)
        assert right.any(0)[chosen].sum().item() == min(ipc, by_any)
    assert torch.equal(index, datm.correct_indices(task, prepared))


def test_correct_start_has_labels_with_the_class_on_top(blobs, make_task):
    task, pool, network, logits = hand_made_experts(blobs, make_task, 5)
    prepared = sys.modules[MTT.__module__].Prepared(pool, network, FullGraph())
    method = DATM(experts=replace(EXPERTS, epochs=100))
    syn = method.start(task, prepared)
    index = datm.correct_indices(task, prepared)
    known = (logits.argmax(2)[:, index] == task.targets).any(0)
    assert known.sum() > 10
    assert torch.equal(syn.labels.argmax(1)[known], task.targets[known])
    assert torch.allclose(syn.labels, datm.mean_correct_logits(logits[:, index], task.targets), atol=1e-5)
    assert torch.equal(syn.images, task.data.train.images(index))
    assert syn.lr.item() == pytest.approx(method.lr_init)


def test_real_start_has_the_first_experts_logits(blobs, make_task):
    task, pool, network, logits = hand_made_experts(blobs, make_task, 5)
    prepared = sys.modules[MTT.__module__].Prepared(pool, network, FullGraph())
    syn = DATM(start_from="real", experts=replace(EXPERTS, epochs=100)).start(task, prepared)
    index = task.real_indices("start")
    assert torch.equal(task.data.train.labels[index], task.targets)
    assert torch.equal(syn.images, task.data.train.images(index))
    assert torch.allclose(syn.labels, logits[0, index], atol=1e-5)


def test_noise_starts(make_task):
    task = make_task()
    prepared = prepared_for(DATM(experts=EXPERTS, start_max=4))
    hard = MTT(start_from="noise", experts=EXPERTS, start_max=4).start(task, prepared)
    soft = DATM(start_from="noise", experts=EXPERTS, start_max=4).start(task, prepared)
    assert hard.labels is None
    assert torch.equal(hard.images, soft.images)
    assert abs(hard.images.mean()) < 0.2
    assert abs(hard.images.std() - 1) < 0.1
    # a smoothed one-hot: ten to one against all other classes together, roughly
    assert torch.equal(soft.labels.argmax(1), task.targets)
    assert 0.85 < soft.labels.softmax(1).max(1).values.min() < 0.99


def test_real_start_is_distinct_and_class_major(make_task):
    task = make_task(ipc=5)
    syn = MTT(experts=EXPERTS, start_max=4).start(task, None)
    index = task.real_indices("start")
    assert torch.equal(syn.images, task.data.train.images(index))
    assert torch.equal(task.data.train.labels[index], torch.arange(4).repeat_interleave(5))
    assert len(index.unique()) == 20
    assert not torch.equal(index, make_task(ipc=5, seed=1).real_indices("start"))


# --- the choice of backprop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_predicted_bytes_of_a_step_are_those_that_it_saves(blobs, make_task, keep):
    task = make_task(blobs(size=32, classes=10, per_class=2, holdout=0), student=NetworkSpec(width=16))
    network = Functional(closed_form(task.network("skeleton"), keep=keep))
    theta, lr = network.flatten(network.module).requires_grad_(), torch.ones((), requires_grad=True)
    for batch in (2, 8, 30):
        images = torch.zeros(batch, *task.data.shape, requires_grad=True)
        with saved_bytes() as seen:
            loss = F.cross_entropy(network(theta, images), torch.zeros(batch, dtype=torch.long))
            _ = theta - lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
        assert matching.graph_bytes(task, batch, keep=keep) == pytest.approx(sum(seen.values()), rel=0.03)


def test_backprop_follows_shapes_and_the_machine(make_task, monkeypatch):
    task = make_task()
    step = matching.graph_bytes(task, 8, keep=False)
    monkeypatch.setattr(type(task), "total_memory", lambda self: 40 * step)
    assert matching.choose_backprop(task, 10, 8) == "full"
    assert matching.choose_backprop(task, 11, 8) == "stepwise"
    auto = MTT(steps=11, start_max=2, experts=EXPERTS)
    assert auto.settle(task).backprop == "stepwise"
    assert auto.settle(task).experts.stack == 1
    assert replace(auto, steps=10).settle(task).backprop == "full"
    assert replace(auto, steps=10, batch=4).settle(task).backprop == "full"
    assert replace(auto, backprop="full", steps=1000).settle(task).backprop == "full"
    assert replace(auto, backprop="stepwise", steps=1).settle(task).backprop == "stepwise"


def test_maps_are_kept_if_they_fit(make_task, monkeypatch):
    task = make_task()

    def keeps(backprop, steps):
        blocks = matching.make_student(task, backprop, steps, 8).module.features
        return {block.closed.keep for block in blocks}

    step = matching.graph_bytes(task, 8, keep=True)
    monkeypatch.setattr(type(task), "total_memory", lambda self: 160 * step)
    assert keeps("full", 10) == {True}
    assert keeps("full", 11) == {False}
    assert keeps("stepwise", 1000) == keeps("frozen", 1000) == {True}  # of one step
