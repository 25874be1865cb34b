"""Scores against worked examples, slow loops and scipy."""

import itertools
import math
import statistics

import pytest
import torch
from scipy import stats

from dd.errors import UsageError
from dd.evaluation import scores
from dd.rng import generator

FULL, HARD = (0.845, 0.843, 0.847), (0.512, 0.506, 0.518)
OWN, RANDOM = (0.633, 0.640, 0.629), (0.571, 0.566, 0.575)


def floats(name: str, n: int) -> list[float]:
    return torch.rand(n, generator=generator(0, name), dtype=torch.float64).tolist()


# --- DD-Ranking ------------------------------------------------------------------------------------------------------


def test_dd_rankings_scores_of_the_worked_example():
    hlr = [scores.hard_label_recovery(a, b) for a, b in zip(FULL, HARD, strict=True)]
    ior = [scores.improvement_over_random(a, b) for a, b in zip(OWN, RANDOM, strict=True)]
    assert (hlr[0], ior[0]) == (pytest.approx(0.333), pytest.approx(0.062))
    for weight, lrs in ((0.5, 0.215027), (0.7, 0.245569), (0.0, 0.148439), (1.0, 0.296155)):
        assert scores.label_robust_score(hlr[0], ior[0], weight) == pytest.approx(lrs, abs=1e-6)
    together = scores.ranking(FULL, HARD, OWN, RANDOM)
    assert together.hlr == pytest.approx(statistics.fmean(hlr))
    assert together.ior == pytest.approx(statistics.fmean(ior))
    assert together.lrs.mean == pytest.approx(0.215275, abs=1e-6)
    each = [scores.label_robust_score(a, b) for a, b in zip(hlr, ior, strict=True)]
    assert statistics.fmean(each) == pytest.approx(0.215276, abs=1e-6)
    assert 0 <= statistics.fmean(each) - together.lrs.mean == pytest.approx(1.2e-6, abs=1e-7)  # Jensen


def test_the_augmentation_robust_score_of_the_worked_example():
    assert scores.augmentation_robust_score(0.633, 0.571, 0.548, 0.497) == pytest.approx(0.293672, abs=1e-6)
    assert scores.augmentation_robust_score(0.633, 0.571, 0.548, 0.497, 0.25) == pytest.approx(0.292436, abs=1e-6)


@pytest.mark.parametrize(
    ("alpha", "score"), [(-1, 0), (-0.5, 0.1015), (-0.25, 0.1748), (0, 0.268941), (0.25, 0.3898), (1, 1)]
)
def test_the_map_of_alpha(alpha, score):
    assert scores.label_robust_score(-alpha, alpha) == pytest.approx(score, abs=1e-4)


def test_label_robust_scores_of_the_specification():
    assert scores.label_robust_score(0.374, 0.229) == pytest.approx(0.23919, abs=1e-5)
    assert scores.label_robust_score(0.2, 0.1) == pytest.approx(0.24819, abs=1e-5)
    steps = [i / 10 - 1 for i in range(21)]
    for fixed, (less, more) in itertools.product(steps, itertools.pairwise(steps)):
        assert scores.label_robust_score(fixed, more) > scores.label_robust_score(fixed, less)
        assert scores.label_robust_score(more, fixed) < scores.label_robust_score(less, fixed)


def test_a_set_equal_to_random_images():
    assert scores.improvement_over_random(0.6, 0.4) == -scores.improvement_over_random(0.4, 0.6)
    assert scores.augmentation_robust_score(0.5, 0.5, 0.3, 0.3) == pytest.approx(0.26894, abs=1e-5)


@pytest.mark.parametrize("wrong", [1.0001, 84.5, -0.01, math.nan, math.inf])
def test_percentages_are_refused(wrong):
    for call, count in (
        (scores.hard_label_recovery, 2),
        (scores.improvement_over_random, 2),
        (scores.augmentation_robust_score, 5),
        (lambda *four: scores.ranking(*((0.5, one) for one in four)), 4),
    ):
        for place in range(count):
            with pytest.raises(UsageError, match="fraction"):
                call(*(wrong if i == place else 0.5 for i in range(count)))
    with pytest.raises(UsageError, match="fraction"):
        scores.label_robust_score(0.1, 0.1, wrong)
    with pytest.raises(UsageError, match="fractions"):
        scores.label_robust_score(33.3, 0.062)


def test_the_interval_of_the_score_is_the_map_of_the_interval_of_alpha():
    found = scores.ranking(FULL, HARD, OWN, RANDOM).lrs
    alpha = [0.5 * (o - r) - 0.5 * (f - h) for f, h, o, r in zip(FULL, HARD, OWN, RANDOM, strict=True)]
    ends = scores.bootstrap(alpha)
    assert found.low == pytest.approx(scores.label_robust_score(-ends.low, ends.low))
    assert found.high == pytest.approx(scores.label_robust_score(-ends.high, ends.high))
    assert found.low < found.mean < found.high
    two = scores.ranking((0.8, 0.9), HARD, OWN, RANDOM)  # fewer students on all images: their mean
    assert two.hlr == pytest.approx(0.85 - statistics.fmean(HARD))
    with pytest.raises(UsageError, match="paired"):
        scores.ranking(FULL, HARD[:2], OWN, RANDOM)


# --- intervals -------------------------------------------------------------------------------------------------------


def exact_percentiles(values: list[float]) -> tuple[float, float]:
    """Percentiles of the means of all n^n bootstrap samples."""
    means = sorted(statistics.fmean(sample) for sample in itertools.product(values, repeat=len(values)))
    return tuple(means[min(int(share * len(means)), len(means) - 1)] for share in (0.025, 0.975))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_bootstrap_interval_is_that_of_all_samples(n):
    values = floats("values", n)
    found, (low, high) = scores.bootstrap(values), exact_percentiles(values)
    spread = max(values) - min(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03 * spread), pytest.approx(high, abs=0.03 * spread))
    assert scores.bootstrap(values) == found


def test_the_interval_of_many_values_is_the_normal_ones():
    values = torch.randn(400, generator=generator(1, "normal"), dtype=torch.float64).tolist()
    found, half = scores.bootstrap(values), 1.96 * statistics.stdev(values) / 20
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)


def test_paired_gaps():
    one, other = floats("one", 5), floats("other", 5)
    there, back = scores.paired_gap(one, other), scores.paired_gap(other, one)
    assert there.mean == pytest.approx(-back.mean)
    assert there.low == pytest.approx(-back.high, abs=0.02)
    shifted = scores.paired_gap([value + 3 for value in other], other)  # what varies is shared: no spread is left
    assert (shifted.low, shifted.high) == (pytest.approx(3), pytest.approx(3))
    assert (shifted.above, shifted.below) == (True, False)
    assert (back.above, back.below) == (there.below, there.above)
    alone = scores.paired_gap([2.0], [1.0])
    assert (alone.mean, alone.low, alone.high, alone.above, alone.below) == (1.0, None, None, False, False)
    with pytest.raises(UsageError, match="5 values cannot be paired with 4"):
        scores.paired_gap(one, other[:4])
    with pytest.raises(UsageError, match="at least one"):
        scores.bootstrap([])


def test_spread_between_sets_and_students_by_hand():
    """Means 2, 7, 3, of variance 7; variances 2, 8, 0 within: within^2 = 10/3, between^2 = 7 - 10/3/2."""
    between, within = scores.nested_std([[1, 3], [5, 9], [3, 3]])
    assert within == pytest.approx(math.sqrt(10 / 3))
    assert between == pytest.approx(math.sqrt(7 - 5 / 3))
    assert scores.nested_std([[1, 9], [2, 8]])[0] == 0  # never below 0
    assert scores.nested_std([[1, 3]]) == (None, pytest.approx(math.sqrt(2)))
    assert scores.nested_std([[1], [3]]) == (None, None)  # one student per set: both spreads in one
    with pytest.raises(UsageError, match="same number"):
        scores.nested_std([[1, 2], [3]])


def test_spread_between_sets_recovers_the_truth():
    rng, sets, students = generator(2, "anova"), 4000, 3
    centres = 2 * torch.randn(sets, 1, generator=rng, dtype=torch.float64)
    between, within = scores.nested_std((centres + torch.randn(sets, students, generator=rng)).tolist())
    assert (between, within) == (pytest.approx(2, rel=0.04), pytest.approx(1, rel=0.04))


def test_recovery_ratio():
    assert scores.recovery_ratio(40.0, 80.0) == 0.5
    with pytest.raises(UsageError, match="no ratio"):
        scores.recovery_ratio(40.0, 0.0)


# --- predictions -----------------------------------------------------------------------------------------------------


def slow_calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    total = 0.0
    each = zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True)
    rows = [(max(row), row.index(max(row)) == label) for row, label in each]
    for b in range(bins):
        inside = [(conf, hit) for conf, hit in rows if b / bins < conf <= (b + 1) / bins]
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(rows) * abs(accuracy - sum(conf for conf, _ in inside) / len(inside))
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_in_slow_loops(bins):
    rng = generator(3, "logits")
    logits, labels = 2 * torch.randn(300, 5, generator=rng), torch.randint(5, (300,), generator=rng)
    expected = slow_calibration_error(logits, labels, bins)
    assert scores.calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_in_closed_form():
    sure = torch.tensor([[50.0, 0.0]] * 4)
    assert scores.calibration_error(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)
    assert scores.calibration_error(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3])) == pytest.approx(0)  # 1/4 right


def test_top_k_in_slow_loops():
    rng = generator(4, "top")
    logits, labels = torch.randn(200, 8, generator=rng), torch.randint(8, (200,), generator=rng)
    rows = list(zip(logits.tolist(), labels.tolist(), strict=True))
    for k in (1, 3, 5, 8):
        hits = sum(sum(other > row[label] for other in row) < k for row, label in rows)
        assert scores.top_k(logits, labels, k) == pytest.approx(100 * hits / 200)


# --- correlation -----------------------------------------------------------------------------------------------------


def test_distillation_correlation_of_the_specification():
    found = scores.distillation_correlation((3, 1, 2, 4), (0.3, 0.1, 0.4, 0.2))
    assert found.rho == pytest.approx(0.2)
    assert (found.interpretable, found.low) == (False, None)
    assert "not interpretable" in found.in_words()


def test_distillation_correlation_is_scipys_with_ties():
    a, b = [round(value, 1) for value in floats("a", 30)], [round(value, 1) for value in floats("b", 30)]
    assert len(set(a)) < 30
    found = scores.distillation_correlation(a, b)
    assert found.rho == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert found.low < found.rho < found.high
    assert scores.distillation_correlation(a, a).rho == pytest.approx(1)
    assert scores.distillation_correlation(a, [-value for value in a]).rho == pytest.approx(-1)


def test_the_partial_correlation_is_that_of_the_residuals():
    sizes = [float(i % 7) for i in range(40)]
    losses = [value - size for value, size in zip(floats("l", 40), sizes, strict=True)]
    objective = [value - size for value, size in zip(floats("o", 40), sizes, strict=True)]
    ranks = [stats.rankdata(column) for column in (losses, objective, sizes)]
    residuals = [rank - stats.linregress(ranks[2], rank).slope * ranks[2] for rank in ranks[:2]]
    found = scores.distillation_correlation(losses, objective, sizes)
    assert found.rho == pytest.approx(stats.pearsonr(*residuals).statistic, abs=1e-10)
    assert scores.distillation_correlation(losses, objective).rho > 0.8 > abs(found.rho)  # the size drove both


def test_what_has_no_correlation_is_refused():
    for wrong in (((1, 2), (1, 2)), ((1, 2, 3), (1, 2)), ((1, 1, 1), (1, 2, 3))):
        with pytest.raises(UsageError, match="correlation needs"):
            scores.distillation_correlation(*wrong)
    with pytest.raises(UsageError, match="equal size"):
        scores.distillation_correlation((1, 2, 3, 4), (2, 1, 4, 3), (1, 2, 3, 4))
