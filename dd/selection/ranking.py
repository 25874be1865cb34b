"""Keep the images with the largest scores, per class or over all classes, with a fixed order of ties."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ranked(scores: Tensor) -> Tensor:
    """Positions (n,) by falling score; equal scores by rising position.

    Args:
        scores: (n,), without NaN; infinite values are allowed.
    """
    return scores.argsort(descending=True, stable=True)


def best_of_each(scores: Tensor, labels: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """The images of every class with the largest scores, best first.

    A smaller count gives a prefix of a larger one.

    Args:
        scores: (n,).
        labels: (n,) int64.
        counts: images per class; at most as many as the class has.

    Returns:
        Per class, (count,) int64 indices.
    """
    kept: list[Tensor] = []
    for c, count in enumerate(counts):
        own = (labels == c).nonzero().flatten()
        kept.append(own[ranked(scores[own])[:count]])
    return kept


def best(scores: Tensor, count: int) -> Tensor:
    """The (count,) images with the largest scores, best first, whatever their classes."""
    return ranked(scores)[:count]


def grouped(index: Tensor, labels: Tensor) -> Tensor:
    """The (n,) chosen images, sorted by class; within a class they stay in their order.

    Args:
        index: (n,) int64 positions.
        labels: int64, the classes of all images.
    """
    return index[labels[index].argsort(stable=True)]


def tied(scores: Tensor, kept: Tensor) -> float:
    """The share of the kept images that only the order of ties decides.

    That is the images whose score is that of the best image left out, or less.

    Args:
        scores: (n,).
        kept: (k,) int64 indices of the kept images, k ≥ 1.
    """
    left = torch.ones(len(scores), dtype=torch.bool)
    left[kept] = False
    if not left.any():
        return 0.0
    return float((scores[kept] <= scores[left].max()).double().mean())


def tied_of_each(scores: Tensor, labels: Tensor, kept: Tensor) -> float:
    """As `tied`, where every class has its own cut: the share over all kept images."""
    decided = 0.0
    for c in labels[kept].unique().tolist():
        own = (labels == c).nonzero().flatten()
        places = (labels[kept] == c).nonzero().flatten()
        decided += len(places) * tied(scores[own], torch.searchsorted(own, kept[places]))
    return decided / len(kept)
