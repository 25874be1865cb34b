"""k-center: real images such that every image has a chosen one near it (Sener and Savarese, ICLR 2018)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dd.engine.registry import register
from dd.selection.kcenter import k_center, nearest_to_mean

from ._features import OfFeatures, Rng, SelectionPool


@register("kcenter")
@dataclass(frozen=True)
class KCenter(OfFeatures):
    """Real images that cover their class: each next one is the farthest, in features, from those chosen so far."""

    paper = "https://arxiv.org/abs/1708.00489"

    first: Literal["random", "mean"] = "random"
    """The first image of a class: a random one, or the nearest to the mean."""

    def pick(self, pool: SelectionPool, count: int, rng: Rng) -> Tensor:
        """Greedy k-center."""
        if self.first == "mean":
            first = nearest_to_mean(pool.features)
        else:
            first = int(torch.randint(len(pool), (), generator=rng()))
        return k_center(pool.features, count, first)[0]
