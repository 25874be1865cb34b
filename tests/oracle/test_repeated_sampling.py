"""RS2: rounds of random images, the schedule of its learning rate, time to accuracy (oracles 16 to 18)."""

import math
from collections import Counter

import pytest
import torch

from dd.errors import UsageError
from dd.evaluation import PROTOCOLS
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
    n, k, rounds, times = 5, 2, 5, 3000
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
    """CosineAnnealingLR of torch over E ceil(k / b) steps."""
    protocol = PROTOCOLS[name]
    fit = protocol.fit(n, protocol.lr, "none")
    steps = 200 * math.ceil(n / batch)
    assert fit.steps == steps
    weight = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.SGD([weight], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=1e-4)
    for step in range(0, steps + 1):
        if step % 97 == 0 or step == steps:
            assert fit.rate(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimiser.step()
        schedule.step()
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
