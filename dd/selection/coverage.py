"""Coverage-centric coreset selection, CCS (Zheng et al., ICLR 2023): drop the hardest images, cover the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dd.errors import UsageError

EDGE = 1.0001  # the strata end at this multiple of the largest score (official code)
_ROUNDING = 1e-9  # so that 0.29 of 100 images are 29


def hard_cut(margins: Tensor, cutoff: float) -> Tensor:
    """The images that stay when the share with the lowest margins (AUM) is dropped: ascending int64 indices.

    Of equal margins, the lower index is dropped first.

    Args:
        margins: (n,).
        cutoff: β, in [0, 1); ⌊β n⌋ images are dropped.
    """
    dropped = int(cutoff * len(margins) + _ROUNDING)
    return margins.argsort(stable=True)[dropped:].sort().values


def strata(scores: Tensor, bins: int) -> Tensor:
    """The stratum (n,) int64 of every score: bins of equal width from the least score to 1.0001 times the largest.

    The last bin includes its right edge, and ends at the largest score if that is not positive, so that every image is
    in a bin.

    Args:
        scores: (n,), finite.
        bins: number of bins.
    """
    values = scores.double()
    low, high = values.min(), values.max()
    width = (torch.maximum(high, EDGE * high) - low) / bins
    if width == 0:
        return torch.zeros(len(scores), dtype=torch.long)
    return ((values - low) / width).floor().long().clamp_max(bins - 1)


def budgets(sizes: Sequence[int], total: int) -> list[int]:
    """How many images every stratum gives: from the smallest to the largest, each min(size, ⌊rest / strata left⌋).

    Args:
        sizes: images per stratum.
        total: images to choose.

    Raises:
        UsageError: the strata together have fewer images.
    """
    given, rest = [0] * len(sizes), total
    order = sorted(range(len(sizes)), key=lambda at: sizes[at])
    for left, at in zip(range(len(sizes), 0, -1), order, strict=True):
        given[at] = min(sizes[at], rest // left)
        rest -= given[at]
    if rest:
        raise UsageError(f"{total} images requested, but the strata have {sum(sizes)}: {rest} short")
    return given


def covering(
    scores: Tensor, margins: Tensor, total: int, cutoff: float, bins: int, generator: torch.Generator
) -> Tensor:
    """Choose images by CCS: (total,) int64 indices, stratum by stratum, from the smallest stratum to the largest.

    Args:
        scores: (n,), the score to cover.
        margins: (n,), AUM; decides which images are dropped, whatever the score.
        total: images to choose.
        cutoff: β, the share of the n images that is dropped.
        bins: number of strata.
        generator: a CPU generator; draws within a stratum.

    Raises:
        UsageError: fewer than `total` images stay.
    """
    stay = hard_cut(margins, cutoff)
    if len(stay) < total:
        raise UsageError(
            f"cutoff={cutoff} drops {len(margins) - len(stay)} of {len(margins)} images, and {total} are to be kept: "
            f"cutoff={max(0.0, 1 - total / len(margins)):.3g} at most"
        )
    stratum = strata(scores[stay], bins)
    sizes = torch.bincount(stratum, minlength=bins).tolist()
    given, chosen = budgets(sizes, total), []
    for at in sorted(range(bins), key=lambda at: sizes[at]):
        own = stay[stratum == at]
        chosen.append(own[torch.randperm(len(own), generator=generator)[: given[at]]])
    return torch.cat(chosen)
