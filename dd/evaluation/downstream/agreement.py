"""How well one ranking agrees with another: Spearman's correlation over architectures, with its bootstrap interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from dd.evaluation.scores import FEWEST, Interval, percentiles, spearman

ProxyPair: TypeAlias = tuple[Tensor, Tensor]
"""The (n,) float64 accuracies of n architectures on a proxy and on the reference."""
_SMALLEST = 3  # two architectures are either in order or not, which is no correlation


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's rank correlation of several proxies with the reference.

    Attributes:
        rho: of each proxy, in [-1, 1]; None if it is not determined: fewer than three architectures, or equal values.
        interval: the mean of those that are determined, with its interval over the architectures (without ends below
            `scores.FEWEST` of them); None if none is.
    """

    rho: tuple[float | None, ...]
    interval: Interval | None


def agreement(pairs: Sequence[ProxyPair]) -> RankAgreement:
    """Return the rank correlation of each pair, and the bootstrap interval of their mean.

    A bootstrap sample draws architectures, the same ones for every pair.

    Args:
        pairs: the same number of architectures in each.
    """
    n = len(pairs[0][0])
    if n < _SMALLEST:
        return RankAgreement((None,) * len(pairs), None)
    each = [float(spearman(torch.stack(pair)[:, None])) for pair in pairs]
    rho = tuple(None if math.isnan(value) else value for value in each)
    return RankAgreement(rho, _interval(partial(_mean, pairs), n))


def agreement_gap(own: Sequence[ProxyPair], other: Sequence[ProxyPair]) -> Interval | None:
    """Return by how much the mean correlation of one group of pairs exceeds that of another, with its interval.

    Every bootstrap sample has the same architectures for both groups.  None if one of the means is not determined.
    """
    n = len(own[0][0])
    if n < _SMALLEST:
        return None
    return _interval(lambda index: _mean(own, index) - _mean(other, index), n)


def best_of(pair: ProxyPair, k: int) -> ProxyPair:
    """Return the pair of the k architectures that the proxy ranks first; the earlier one of equal ones."""
    order = pair[0].argsort(descending=True, stable=True)[:k]
    return pair[0][order], pair[1][order]


def _interval(statistic: Callable[[Tensor], Tensor], n: int) -> Interval | None:
    """Return a statistic of all n architectures with its interval; None if it is not determined."""
    value = statistic(torch.arange(n)[None]).item()
    if math.isnan(value):
        return None
    low, high = percentiles(statistic, n) if n >= FEWEST else (None, None)
    return Interval(value, low, high, n)


def _mean(pairs: Sequence[ProxyPair], index: Tensor) -> Tensor:
    """Return (draws,): the mean correlation of the pairs in the samples (draws, n), without those not determined."""
    return torch.stack([spearman(torch.stack(pair)[:, index]) for pair in pairs]).nanmean(0)
