"""k-center: choose images such that every image is near a chosen one (Sener and Savarese, ICLR 2018).

The greedy algorithm adds the image farthest from those chosen so far.  Its radius, the largest distance of an image to
the nearest chosen one, is at most twice the smallest possible (Gonzalez, 1985).
"""

import torch
from torch import Tensor

from dd.selection.ties import first_best

_CHUNK = 1 << 22  # numbers in one block of differences: 32 MiB


def k_center(features: Tensor, count: int, first: int) -> tuple[Tensor, float]:
    """Choose rows greedily, each the farthest from those chosen before; needs memory for n distances.

    Args:
        features: (n, d), n at least `count`.
        count: number of rows to choose.
        first: index of the first one.

    Returns:
        The rows (count,) int64 in order of selection (the first j are the choice of j rows; ties: lowest index), and
        their radius.
    """
    h, chosen = features.double(), [first]
    nearest = _squared_distances(h, first)
    taken = torch.zeros_like(nearest)
    taken[first] = -torch.inf
    while len(chosen) < count:
        chosen.append(first_best(nearest + taken))
        taken[chosen[-1]] = -torch.inf
        nearest = nearest.minimum(_squared_distances(h, chosen[-1]))
    return torch.tensor(chosen, dtype=torch.int64), float(nearest.max().sqrt())


def nearest_to_mean(features: Tensor) -> int:
    """The index of the row of (n, d) features that is nearest to their mean; ties: lowest index."""
    h = features.double()
    return first_best(-(h - h.mean(0)).square().sum(1))


def _squared_distances(h: Tensor, to: int) -> Tensor:
    """(n,): the squared distances of the rows of (n, d) to one of them, from differences, which are exact near zero."""
    rows = max(1, _CHUNK // max(h.shape[1], 1))
    return torch.cat([(part - h[to]).square().sum(1) for part in h.split(rows)])
