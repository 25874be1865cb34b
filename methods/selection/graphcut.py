"""Graph cut: real images that are similar to their class and not to one another (as in DeepCore, 2022)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from dd.engine.registry import register
from dd.selection.similarity import Cosine
from dd.selection.submodular import graph_cut

from ._features import OfSimilarity, Rng, SelectionPool


@register("graphcut")
@dataclass(frozen=True)
class GraphCut(OfSimilarity):
    """Real images that are similar to all images of their class, and not to one another.

    Greedily maximises the submodular function

        f(A) = trade sum_{i in V, j in A} s_ij - sum_{i, j in A} s_ij,    s_ij = 1/2 + cos(g_i, g_j) / 2
    """

    paper = "https://arxiv.org/abs/2204.08499"

    trade: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """The weight of similarity to all images against that among the chosen ones."""

    def pick(self, pool: SelectionPool, count: int, rng: Rng) -> Tensor:
        """Greedy graph cut."""
        draw = self.candidates(len(pool), count, rng)
        return graph_cut(Cosine(pool.features, pool.errors), count, trade=self.trade, draw=draw)[0]
