"""Facility location: real images such that every image has a similar one among them (as in DeepCore, 2022)."""

from dataclasses import dataclass

from torch import Tensor

from dd.engine.registry import register
from dd.selection.similarity import Cosine
from dd.selection.submodular import facility_location

from ._features import OfSimilarity, Pool, Rng


@register("facility")
@dataclass(frozen=True)
class Facility(OfSimilarity):
    """Real images such that every image of their class has a similar one among them.

    Greedily maximises the submodular function

        f(A) = sum_{i in V} max_{j in A} s_ij,    s_ij = 1/2 + cos(g_i, g_j) / 2
    """

    paper = "https://arxiv.org/abs/2204.08499"

    clipped: bool = False
    """Use s_ij = max(0, cos(g_i, g_j)) instead."""

    def pick(self, pool: Pool, count: int, rng: Rng) -> Tensor:
        """Lazy greedy facility location."""
        draw = self.candidates(len(pool), count, rng)
        return facility_location(Cosine(pool.features, pool.errors, clipped=self.clipped), count, draw=draw)[0]
