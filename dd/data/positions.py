"""Index helpers over labels: the images of one class, of several classes, or of a share of every class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dd.rng import generator


def relabelled(labels: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ascending positions of the images of some classes, and their new labels: each class's place in `numbers`."""
    place = torch.full((max([*numbers, int(labels.max()) if len(labels) else 0]) + 1,), -1, dtype=torch.int64)
    place[list(numbers)] = torch.arange(len(numbers))
    kept = torch.nonzero(place[labels] >= 0).flatten()
    return kept, place[labels[kept]]


def stratified(labels: Tensor, share: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Split positions in two, taking the same share of every class.

    Args:
        labels: int64 (n,), on the CPU.
        share: share of every class to take, in [0, 1); rounded, but at least one image and never all of them.
        seed: seeds the draw, together with `purpose`.
        purpose: names the split, so that two splits with the same seed differ.

    Returns:
        (kept, taken): disjoint int64 positions, each ascending; together they are 0 … n-1.
    """
    taken = torch.zeros(len(labels), dtype=torch.bool)
    if share > 0 and len(labels):
        for c, members in enumerate(by_class(labels, int(labels.max()) + 1)):
            count = min(max(1, round(share * len(members))), len(members) - 1)
            if count > 0:
                order = torch.randperm(len(members), generator=generator(seed, purpose, c))
                taken[members[order[:count]]] = True
    return torch.nonzero(~taken).flatten(), torch.nonzero(taken).flatten()


def by_class(labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Ascending positions of the images of each class, for int64 labels (n,)."""
    counts = torch.bincount(labels, minlength=classes)
    return torch.argsort(labels, stable=True).split(counts.tolist())


def pass_order(images: int, generator: torch.Generator | None) -> Tensor:
    """The order (images,) int64 of one pass: shuffled if a CPU generator is given, as the first that it draws."""
    return torch.arange(images) if generator is None else torch.randperm(images, generator=generator)
