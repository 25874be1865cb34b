"""Greedy maximisation of submodular functions of a set A of images: graph cut and facility location.

    graph cut:          f(A) = c sum_{i in V, j in A} s_ij - sum_{i, j in A} s_ij
    facility location:  f(A) = sum_{i in V} w_i max_{j in A} s_ij

V is all images and s their similarities.  Every step adds the image with the largest gain f(A + j) - f(A).
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from dd.selection.similarity import Matrix, Similarity
from dd.selection.ties import TIE, first_best

WHOLE = 1 << 24
"""Similarities up to this number (128 MiB, 4,096 images) are computed once, more of them whenever they are needed."""
_ASKED = 16  # rows of similarities computed at a time

CandidateDraw: TypeAlias = Callable[[Tensor], Tensor]
"""int64 indices (m,) of the images that are not chosen yet -> those among which the next one is chosen, ascending."""


def sample_size(images: int, count: int, epsilon: float) -> int:
    """Candidates per step of stochastic greedy: -ln(epsilon) n / k, rounded, at least 1 (Mirzasoleiman et al., 2015).

    The expected value is at least 1 - 1/e - epsilon of the optimum.  DeepCore's epsilon of 0.9 leaves a single
    candidate, and so a random choice, from a tenth of the images on.

    Args:
        images: n, from which images are chosen.
        count: k, how many are chosen.
        epsilon: in (0, 1).
    """
    return max(round(-math.log(epsilon) * images / count), 1)


def sampled(size: int, rng: torch.Generator) -> CandidateDraw:
    """Draw `size` candidates without replacement at every step; see `sample_size`."""
    return lambda free: free[torch.randperm(len(free), generator=rng)[:size]].sort().values


def graph_cut(
    similarity: Similarity, count: int, *, trade: float = 1.0, draw: CandidateDraw | None = None
) -> tuple[Tensor, Tensor]:
    """Maximise graph cut greedily: similar to all images, and not to one another.

    A step costs one row of similarities.  The gains are c sum_{i in V} s_ij - 2 sum_{i in A} s_ij; those of f are
    lower by s_jj, which is 1 for every image.

    Args:
        similarity: s, of n images; s_jj must be the same for all j.
        count: number of images to choose.
        trade: c, the weight of similarity to all images.
        draw: draws the candidates of a step; None for all.

    Returns:
        The images (count,) int64 in order of selection (ties: lowest index), and their gains (count,) float64.
    """
    gains, chosen, values = trade * similarity.sums(), list[int](), list[float]()
    for _ in range(count):
        free = _others(len(similarity), chosen)
        some = free if draw is None else draw(free)
        best = int(some[first_best(gains[some])])
        chosen.append(best)
        values.append(float(gains[best]))
        gains = gains - 2 * similarity.rows(torch.tensor([best]))[0]
    return _result(chosen, values)


def facility_location(
    similarity: Similarity, count: int, *, weights: Tensor | None = None, draw: CandidateDraw | None = None
) -> tuple[Tensor, Tensor]:
    """Maximise facility location greedily: every image has a similar one among the chosen.

    Lazy greedy (Minoux, 1978), which equals plain greedy: gains only fall, so an image whose last known gain is below
    the best is not looked at.

    Args:
        similarity: s, of n images.
        count: number of images to choose.
        weights: w, (n,), not negative: the demand of each image; 1 if None.
        draw: draws the candidates of a step; None for all.

    Returns:
        The images (count,) int64 in order of selection (ties: lowest index), and their gains (count,) float64.
    """
    n = len(similarity)
    similarity = Matrix(similarity.rows(torch.arange(n))) if n * n <= WHOLE else similarity
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    served, bounds = torch.zeros(n, dtype=torch.float64), similarity.sums(weights)
    chosen, values = list[int](), list[float]()

    def gains(index: Tensor) -> Tensor:
        return (similarity.rows(index) - served).clamp_min_(0) @ weights

    for _ in range(count):
        free = _others(n, chosen)
        best = _largest(gains, bounds, free if draw is None else draw(free))
        chosen.append(best)
        values.append(float(bounds[best]))
        served = served.maximum(similarity.rows(torch.tensor([best]))[0])
    return _result(chosen, values)


def _largest(gains: Callable[[Tensor], Tensor], bounds: Tensor, some: Tensor) -> int:
    """The candidate with the largest gain, found from the top of the bounds, which are replaced by the gains seen."""
    tolerance = TIE * float(bounds[some].max())
    order = some[bounds[some].argsort(descending=True, stable=True)]
    seen, highest = list[Tensor](), -math.inf
    for index in order.split(_ASKED):
        if float(bounds[index[0]]) < highest - tolerance:
            break
        bounds[index] = gains(index)
        highest = max(highest, float(bounds[index].max()))
        seen.append(index)
    looked = torch.cat(seen).sort().values
    return int(looked[first_best(bounds[looked])])


def _others(n: int, chosen: Sequence[int]) -> Tensor:
    free = torch.ones(n, dtype=torch.bool)
    free[list(chosen)] = False
    return free.nonzero().flatten()


def _result(chosen: list[int], values: list[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(chosen, dtype=torch.int64), torch.tensor(values, dtype=torch.float64)
