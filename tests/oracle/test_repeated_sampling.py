"""RS2: rounds of random images, the schedule of its learning rate, time to accuracy (oracles 16 to 18)."""

import math
from collections import Counter

import pytest
import torch

from dd.engine.registry import get
from dd.errors import UsageError
from dd.evaluation import PROTOCOLS, Protocol
from dd.evaluation.arms import selection_arm
from dd.evaluation.evaluate import Evaluator, arm_of
from dd.evaluation.time_to_accuracy import time_to_accuracy
from dd.rng import generator
from dd.selection.rounds import with_replacement, without_replacement

SIZES = [(10, 3, 17), (10, 5, 6), (10, 10, 4), (7, 6, 20), (1, 1, 3), (50, 1, 120), (9, 4, 1)]


@pytest.mark.parametrize(("n", "k", "rounds"), SIZES)
def test_without_replacement_every_round_is_full_and_every_n_entries_are_a_permutation(n, k, rounds):
    for seed in range(20):
        drawn = without_replacement(n, k, rounds, generator(seed, "rounds"))
        assert drawn.shape == (rounds, k)
        assert all(len(set(row)) == k for row in drawn.tolist())
        stream = drawn.flatten().tolist()
        for begin in range(0, len(stream), n):
            part = stream[begin : begin + n]
            assert len(set(part)) == len(part)
            assert set(part) <= set(range(n))


def test_without_replacement_a_longer_schedule_begins_with_a_shorter_one_and_seeds_differ():
    long, short = (without_replacement(10, 3, rounds, generator(0, "rounds")) for rounds in (30, 11))
    assert torch.equal(long[:11], short)
    assert not torch.equal(long, without_replacement(10, 3, 30, generator(1, "rounds")))


def test_without_replacement_no_image_is_favoured():
    """Counts of the images of every position, over many schedules, are those of a uniform draw within 5 sigma."""
    n, k, rounds, times = 5, 2, 5, 1500
    drawn = [without_replacement(n, k, rounds, generator(seed, "rounds")) for seed in range(times)]
    seen = torch.stack(drawn).flatten(1)
    sigma = math.sqrt(times * (1 / n) * (1 - 1 / n))
    for place in range(n * 2):
        counts = torch.bincount(seen[:, place], minlength=n)
        assert (counts - times / n).abs().max() < 5 * sigma


def test_with_replacement_no_image_is_twice_in_a_round_and_the_coverage_is_that_of_independent_rounds():
    n, k, rounds = 2000, 20, 150
    drawn = with_replacement(n, k, rounds, generator(0, "rounds"))
    assert drawn.shape == (rounds, k)
    assert all(len(set(row)) == k for row in drawn.tolist())
    expected = 1 - (1 - k / n) ** rounds
    sigma = math.sqrt(expected * (1 - expected) / n)
    assert abs(len(drawn.unique()) / n - expected) < 3 * sigma
    counts = Counter(drawn.flatten().tolist())
    assert max(counts.values()) > 1  # an image returns, unlike in `without_replacement` below n entries
    assert torch.equal(with_replacement(n, k, 7, generator(0, "rounds")), drawn[:7])


@pytest.mark.parametrize(("name", "batch"), [("rs2", 128), ("deepcore", 256)])
@pytest.mark.parametrize("n", [100, 1000])
def test_lr_falls_from_its_start_to_1e_4_over_the_steps_of_the_subset(name, batch, n):
    """eta_min + (lr - eta_min) (1 + cos(pi t / T)) / 2 with T = E ceil(k / b)."""
    protocol = PROTOCOLS[name]
    fit = protocol.fit(n, protocol.lr, "none")
    steps = 200 * math.ceil(n / batch)
    assert fit.steps == steps
    wanted = [1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps + 1)]
    assert [fit.rate(step) for step in range(steps + 1)] == pytest.approx(wanted)
    assert (fit.rate(0), fit.rate(steps)) == (0.1, pytest.approx(1e-4, rel=1e-12))


def test_time_to_accuracy():
    grid = [0.0, 10.0, 20.0, 30.0, 40.0]
    assert time_to_accuracy(grid, grid, 30.0) == 30.0  # acc(t) = t
    assert time_to_accuracy(grid, grid, 25.0) == 30.0  # the first measurement that is high enough
    assert time_to_accuracy(grid, grid, 40.1) is None
    assert time_to_accuracy(grid, grid, 30.0, before=7.5) == 37.5
    assert time_to_accuracy(grid, [0, 50, 20, 60, 10], 45.0) == 10.0  # first, though it falls again
    assert time_to_accuracy([], [], 1.0) is None
    with pytest.raises(UsageError, match="5 times, but 4 accuracies"):
        time_to_accuracy(grid, grid[1:], 1.0)
    with pytest.raises(UsageError, match="ascend"):
        time_to_accuracy([1.0, 0.5], [1.0, 2.0], 1.0)


# ---- the method -----------------------------------------------------------------------------------------------------

RS2 = get("rs2")


def made(method, task):
    method = method.settle(task)
    return method.finish(method.start(task, None), task, None)


@pytest.mark.parametrize("replacement", [False, True])
def test_every_round_has_the_requested_images_of_every_class(make_task, blobs, replacement):
    task = make_task(blobs(per_class=7), ipc=3)
    found = made(RS2(rounds=9, replacement=replacement), task)
    found.check()
    assert (found.image_kind, tuple(found.images.shape), found.n) == ("schedule", (9, 12), 12)
    labels = task.data.train.labels[found.images]
    assert torch.equal(labels, task.targets.expand(9, -1))
    assert torch.equal(found.labels, labels)
    facts = found.provenance["selection"]
    assert facts["rounds"] == 9
    assert facts["images_read"] == len(set(found.images.flatten().tolist()))
    if not replacement:  # 9 rounds of 3 read the 7 images of a class 3 or 4 times
        counts = torch.bincount(found.images.flatten(), minlength=28)
        assert set(counts.tolist()) == {3, 4}


def test_unbalanced_rounds_read_all_images_in_turn(make_task, blobs):
    task = make_task(blobs(per_class=7), ipc=3)
    found = made(RS2(rounds=7, balanced=False), task)
    assert set(torch.bincount(found.images.flatten(), minlength=28).tolist()) == {3}  # 7 x 12 = 3 x 28
    counts = {tuple(torch.bincount(row, minlength=4).tolist()) for row in found.labels}
    assert len(counts) > 1
    assert all(bool((row.diff() >= 0).all()) for row in found.labels)


@pytest.mark.parametrize("replacement", [False, True])
def test_rounds_of_all_images_are_ordinary_training_bit_by_bit(make_task, blobs, replacement):
    """Oracle 17: r = 1."""
    data = blobs(noise=1.5, per_class=6)
    task = make_task(data, ipc=len(data.train) // 4)
    protocol = Protocol(steps=None, epochs=3, inclusive=False, batch=5, students=1, lr=0.05, full=False)
    evaluator = Evaluator(task, protocol)
    schedule = made(RS2(rounds=3, replacement=replacement), task)
    whole = made(get("random")(copy=False), task)
    index = torch.cat([data.train.of_class(c) for c in range(4)])
    fixed = selection_arm("all", whole.__class__(**(vars(whole) | {"images": index})), data)
    rounds, plain = (evaluator._batches(arm, 0)[0] for arm in (arm_of("rounds", schedule, evaluator), fixed))
    for number in range(3):
        pairs = zip(rounds(generator(number), number), plain(generator(number), number), strict=True)
        assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)
    scores = [evaluator.score(arm, 0.05, 1) for arm in (arm_of("rounds", schedule, evaluator), fixed)]
    assert scores[0] == scores[1]


def test_more_passes_than_rounds_and_copies_are_refused(make_task, blobs):
    task = make_task(blobs(per_class=7), ipc=3)
    evaluator = Evaluator(task, Protocol(steps=None, epochs=4, inclusive=False, batch=12, students=1, full=False))
    with pytest.raises(UsageError, match="3 passes, but 4 are needed"):
        arm_of("rounds", made(RS2(rounds=3), task), evaluator)
    with pytest.raises(UsageError, match="copy=true: rs2 makes a schedule"):
        RS2(copy=True).settle(task)
