"""Bins of decreasing representativeness, and samples from them (Dataset Quantization: Zhou et al., ICCV 2023)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Generator, Tensor

Choose: TypeAlias = Callable[[Tensor, int], Tensor]
"""(int64 images (m,), how many) -> int64 positions of the chosen ones in that pool, in order of selection."""


def bins_of(images: Tensor, bins: int, choose: Choose) -> list[Tensor]:
    """Partition the images of one class into bins: each is chosen from what the bins before it left.

    The last bin is the remainder, without a choice.  Sizes differ by at most one; bins are empty if there are fewer
    images than bins.

    Args:
        images: (n,) int64.
        bins: number of bins, at least 1.
        choose: the selection that fills a bin.

    Returns:
        The images of each bin, int64, in order of selection.
    """
    pool, made = images, list[Tensor]()
    for begin, end in pairwise(_cuts(len(images), bins)[:-1]):
        chosen = choose(pool, end - begin) if end > begin else torch.empty(0, dtype=torch.int64)
        made.append(pool[chosen])
        left = torch.ones(len(pool), dtype=torch.bool)
        left[chosen] = False
        pool = pool[left]
    return [*made, pool]


def sampled(bins: Sequence[Tensor], count: int, generator: Generator) -> Tensor:
    """Draw images uniformly from every bin, in proportion to the sizes of the bins.

    Shares are rounded such that they add up to `count`; a single image comes from a bin in the middle.

    Args:
        bins: int64 images of each bin.
        count: number of images, at most that of all bins together.
        generator: a CPU generator.

    Returns:
        (count,) int64, bin by bin.
    """
    total, shares, seen = sum(map(len, bins)), [0], 0
    for one in bins:
        seen += len(one)
        shares.append((2 * count * seen + total) // (2 * total))
    drawn = (
        one[torch.randperm(len(one), generator=generator)[: end - begin]]
        for one, (begin, end) in zip(bins, pairwise(shares), strict=True)
    )
    return torch.cat(list(drawn))


def _cuts(n: int, parts: int) -> list[int]:
    """The (parts + 1) ends of parts of n things."""
    return [n * part // parts for part in range(parts + 1)]
