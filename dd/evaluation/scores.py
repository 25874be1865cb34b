"""Scores computed from accuracies and predictions: DD-Ranking's, intervals of gaps, calibration, correlation.

Accuracies of DD-Ranking's formulas are fractions in [0, 1]; those of a `Score` are percentages.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dd.errors import UsageError
from dd.rng import generator

LEVEL = 0.95  # of every interval
DRAWS = 10_000  # bootstrap samples: the ends of a 95 % interval rest on 250 samples each
BINS = 15  # of the calibration error (Guo et al., ICML 2017)
FEWEST = 8  # subsets from which a correlation can be interpreted (our choice)


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile bootstrap interval at `LEVEL`; `low` and `high` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def above(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low is not None and self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high is not None and self.high < 0


def bootstrap(values: Sequence[float]) -> Interval:
    """Return the mean of some values with its percentile bootstrap interval (Efron & Tibshirani 1993).

    Raises:
        UsageError: there are no values.
    """
    if not values:
        raise UsageError("an interval needs at least one value")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(mean, None, None, n)
    low, high = percentiles(lambda index: torch.tensor(values, dtype=torch.float64)[index].mean(1), n)
    return Interval(mean, low, high, n)


def paired_gap(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Return the mean of `one[j] - other[j]` with its paired bootstrap interval.

    Entries at the same place share what is random: the student's initial weights, or the seed of a distillation.

    Raises:
        UsageError: they differ in number.
    """
    if len(one) != len(other):
        raise UsageError(
            f"{len(one)} values cannot be paired with {len(other)}: score both with the same eval.students"
        )
    return bootstrap([a - b for a, b in zip(one, other, strict=True)])


def unpaired_gap(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Return mean(one) - mean(other) of values that share nothing, with its bootstrap interval.

    Both are drawn anew in every bootstrap sample, independently of each other; `n` is the smaller number of values.

    Raises:
        UsageError: one of them has no values.
    """
    if not one or not other:
        raise UsageError("an interval needs at least one value")
    n, m = len(one), len(other)
    values = torch.tensor([*one, *other], dtype=torch.float64)
    mean = statistics.fmean(one) - statistics.fmean(other)
    if min(n, m) == 1:
        return Interval(mean, None, None, 1)

    def gap(index: Tensor) -> Tensor:
        # of n + m independent uniform draws, the first n choose among `one`, the others among `other`
        return values[index[:, :n] % n].mean(1) - values[n + index[:, n:] % m].mean(1)

    return Interval(mean, *percentiles(gap, n + m, n * m), min(n, m))


def gap_to_best(own: Sequence[float], references: Sequence[Sequence[float]]) -> Interval:
    """Return mean(own) - max of the references' means, with its paired bootstrap interval.

    The maximum is taken anew in every bootstrap sample, which draws the same students of all.

    Raises:
        UsageError: there is no reference, or they differ in number.
    """
    if not references or any(len(reference) != len(own) for reference in references):
        raise UsageError("a gap needs references, with as many students as the set")
    values = torch.tensor([own, *references], dtype=torch.float64)

    def gap(index: Tensor) -> Tensor:
        means = values[:, index].mean(-1)
        return means[0] - means[1:].amax(0)

    n = len(own)
    mean = gap(torch.arange(n)).item()
    return Interval(mean, *(percentiles(gap, n) if n > 1 else (None, None)), n)


def nested_std(groups: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Separate the spread between distilled sets from the spread between students of one set.

    A one-way random-effects analysis of variance with equal groups: within^2 is the mean variance inside the groups
    (ddof 1), and between^2 = variance of the group means - within^2 / students, at least 0.

    Args:
        groups: per set, the accuracies of its students; the same number for every set.

    Returns:
        (between, within); None where one set, or one student per set, does not determine it.

    Raises:
        UsageError: the sets have different numbers of students.
    """
    sizes = {len(group) for group in groups}
    if len(sizes) != 1 or 0 in sizes:
        raise UsageError(f"every set needs the same number of students, not {', '.join(map(str, sorted(sizes)))}")
    (students,) = sizes
    within = statistics.fmean(map(statistics.variance, groups)) if students > 1 else None
    between = statistics.variance(map(statistics.fmean, groups)) if len(groups) > 1 else None
    if between is not None:
        between = max(between - within / students, 0.0) if within is not None else None
    return None if between is None else math.sqrt(between), None if within is None else math.sqrt(within)


def recovery_ratio(own: float, full: float) -> float:
    """Return the share of the accuracy on all real images that the set reaches; 1 means equal."""
    if full <= 0:
        raise UsageError(f"the accuracy on all real images is {full:g}: no ratio to it exists")
    return own / full


def hard_label_recovery(full: float, hard: float) -> float:
    """Return DD-Ranking's HLR: accuracy on all real images minus that on the set, both with hard labels.

    Args:
        full: accuracy on all real images, a fraction in [0, 1].
        hard: accuracy on the set with hard labels, a fraction in [0, 1].

    Raises:
        UsageError: an accuracy is not a fraction.
    """
    return _fraction("full", full) - _fraction("hard", hard)


def improvement_over_random(own: float, random: float) -> float:
    """Return DD-Ranking's IOR: accuracy on the set minus that on as many random real images, by the same recipe.

    Raises:
        UsageError: an accuracy is not a fraction in [0, 1].
    """
    return _fraction("own", own) - _fraction("random", random)


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """Return DD-Ranking's LRS in [0, 1], from alpha = weight * IOR - (1 - weight) * HLR.

    A set that equals all real images and beats random ones by nothing scores 0.2689, not 1.

    Raises:
        UsageError: a difference of fractions is outside [-1, 1], or the weight outside [0, 1].
    """
    for name, value in (("hlr", hlr), ("ior", ior)):
        if not -1 <= value <= 1:
            raise UsageError(f"{name}={value:g}: give a difference of fractions in [-1, 1], not of percentages")
    return _mapped(_fraction("weight", weight) * ior - (1 - weight) * hlr)


def augmentation_robust_score(
    own: float, random: float, own_plain: float, random_plain: float, weight: float = 0.5
) -> float:
    """Return DD-Ranking's ARS in [0, 1], from weight * IOR with augmentation + (1 - weight) * IOR without.

    Args:
        own: accuracy on the set with augmentation, a fraction in [0, 1].
        random: the same on as many random real images.
        own_plain: accuracy on the set without augmentation.
        random_plain: the same on random real images.
        weight: weight of the gain with augmentation.

    Raises:
        UsageError: an accuracy or the weight is not a fraction in [0, 1].
    """
    plain = improvement_over_random(own_plain, random_plain)
    return _mapped(_fraction("weight", weight) * improvement_over_random(own, random) + (1 - weight) * plain)


@dataclass(frozen=True)
class Ranking:
    """DD-Ranking's scores over several students.

    Attributes:
        hlr: mean hard label recovery, a fraction; smaller is better.
        ior: mean improvement over random, a fraction.
        lrs: label-robust score of the mean alpha, with its bootstrap interval over the students.
    """

    hlr: float
    ior: float
    lrs: Interval

    def in_words(self) -> str:
        """Format them: `HLR 0.0512, IOR +0.1440, LRS 0.5203 [0.5101, 0.5290] (fractions; 1 is best for LRS)`."""
        ends = "" if self.lrs.low is None else f" [{self.lrs.low:.4f}, {self.lrs.high:.4f}]"
        return f"HLR {self.hlr:.4f}, IOR {self.ior:+.4f}, LRS {self.lrs.mean:.4f}{ends} (fractions; 1 is best for LRS)"


def ranking(
    full: Sequence[float],
    hard: Sequence[float],
    own: Sequence[float],
    random: Sequence[float],
    weight: float = 0.5,
) -> Ranking:
    """Return DD-Ranking's scores of paired students, from fractions in [0, 1].

    The mean of the students' LRS would be above the LRS of their mean alpha (Jensen); this is the latter.

    Args:
        full: accuracies on all real images with hard labels; one for each student, or their number may differ, in
            which case the mean is used for every student.
        hard: on the set with hard labels.
        own: on the set by its own recipe.
        random: on as many random real images by that recipe.
        weight: of the improvement over random.

    Raises:
        UsageError: an accuracy is not a fraction, or the numbers of students differ.
    """
    if not len(hard) == len(own) == len(random):
        raise UsageError(f"{len(hard)}, {len(own)} and {len(random)} students cannot be paired")
    whole = full if len(full) == len(hard) else [statistics.fmean(full)] * len(hard)
    hlr = [hard_label_recovery(a, b) for a, b in zip(whole, hard, strict=True)]
    ior = [improvement_over_random(a, b) for a, b in zip(own, random, strict=True)]
    alpha = bootstrap([_fraction("weight", weight) * b - (1 - weight) * a for a, b in zip(hlr, ior, strict=True)])
    low, high = (None if end is None else _mapped(end) for end in (alpha.low, alpha.high))
    return Ranking(
        hlr=statistics.fmean(hlr),
        ior=statistics.fmean(ior),
        lrs=Interval(_mapped(alpha.mean), low, high, alpha.n),  # the map is increasing: it carries percentiles over
    )


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error in [0, 1] (Guo et al., ICML 2017).

    Predictions are binned by confidence in `bins` intervals of equal width, each closed on the right; the error is the
    mean over all images of |accuracy - mean confidence| of their bin.

    Args:
        logits: (n, k).
        labels: (n,) int64.
        bins: number of bins.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    surplus = (predicted == labels).double() - confidence
    return (surplus.new_zeros(bins).index_add_(0, bin_of, surplus).abs().sum() / len(labels)).item()


def top_k(logits: Tensor, labels: Tensor, k: int = 5) -> float:
    """Return the percentage of images whose label is among the k largest logits.

    Args:
        logits: (n, classes), classes >= k.
        labels: (n,) int64.
        k: number of guesses.
    """
    return 100.0 * (logits.topk(k, 1).indices == labels[:, None]).any(1).double().mean().item()


@dataclass(frozen=True)
class Correlation:
    """A Spearman correlation over subsets.

    Attributes:
        rho: in [-1, 1].
        low: lower end of its bootstrap interval; None where it cannot be interpreted.
        high: upper end.
        n: number of subsets.
    """

    rho: float
    low: float | None
    high: float | None
    n: int

    @property
    def interpretable(self) -> bool:
        """Whether there are at least `FEWEST` subsets."""
        return self.n >= FEWEST

    def in_words(self) -> str:
        """`0.41 [0.10, 0.66] over 12 subsets`, or that it is not interpretable."""
        if not self.interpretable:
            return f"{self.rho:.2f} over {self.n} subsets: not interpretable, {FEWEST} are needed"
        assert self.low is not None, "an interval where there are enough subsets"
        return f"{self.rho:.2f} [{self.low:.2f}, {self.high:.2f}] over {self.n} subsets"


def distillation_correlation(
    losses: Sequence[float], objective: Sequence[float], sizes: Sequence[float] | None = None
) -> Correlation:
    """Return the distillation correlation score (DCS): Spearman's rho of test loss and a method's own objective.

    Source: Dey et al., "Hard Truths about Soft Labels", CVPR 2026.

    Args:
        losses: downstream test loss of each subset.
        objective: the method's objective on each subset.
        sizes: number of images of each subset; given, rho is the partial correlation at equal size, because more images
            lower both losses.

    Raises:
        UsageError: the numbers differ, fewer than 3 subsets, or one of the sequences is constant.
    """
    columns = [losses, objective] if sizes is None else [losses, objective, sizes]
    n = len(losses)
    if n < 3 or any(len(column) != n for column in columns):
        raise UsageError(f"a correlation needs 3 or more subsets, and one value of each kind for all, not {n}")
    if any(len(set(column)) == 1 for column in columns):
        raise UsageError("a correlation needs values that differ between subsets: losses, objective or sizes are equal")
    values = torch.tensor(columns, dtype=torch.float64)
    rho = spearman(values[:, None]).item()
    if not math.isfinite(rho):
        raise UsageError("no correlation at equal size: the sizes order the subsets as the losses or the objective do")
    if n < FEWEST:
        return Correlation(rho, None, None, n)
    low, high = percentiles(lambda index: spearman(values[:, index]), n)
    return Correlation(rho, low, high, n)


def spearman(values: Tensor) -> Tensor:
    """Return Spearman's rank correlations (draws,) of rows 0 and 1, given row 2 if there is one.

    Ties get their average rank; the result is NaN where a row is constant.

    Args:
        values: (2 or 3, draws, n).
    """
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(values.numpy(), axis=-1))
    ranks = ranks - ranks.mean(-1, keepdim=True)
    unit = ranks / ranks.norm(dim=-1, keepdim=True)
    if len(unit) == 2:
        return (unit[0] * unit[1]).sum(-1)
    ab, ac, bc = ((unit[i] * unit[j]).sum(-1) for i, j in ((0, 1), (0, 2), (1, 2)))
    return (ab - ac * bc) / ((1 - ac**2) * (1 - bc**2)).sqrt()


def percentiles(statistic: Callable[[Tensor], Tensor], n: int, below: int | None = None) -> tuple[float, float]:
    """Return the percentiles at `LEVEL` of a statistic of bootstrap samples, always the same ones for an n.

    Args:
        statistic: indices (draws, n) -> (draws,) values; NaN where a sample does not determine it.
        n: number of values.
        below: the indices are below this; None for n.
    """
    index = torch.randint(below or n, (DRAWS, n), generator=generator(0, "bootstrap", n))
    found = statistic(index)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = found[found.isfinite()].quantile(ends).tolist()
    return low, high


def _mapped(alpha: float) -> float:
    """Return (e^alpha - e^-1) / (e - e^-1): -1, 0, 1 become 0, 0.2689, 1."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UsageError(f"{name}={value:g}: give a fraction in [0, 1], not a percentage")
    return value
