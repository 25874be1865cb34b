"""Herding: real images whose mean feature matches the class's (Welling, ICML 2009; Rebuffi et al., CVPR 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dd.engine.method import Task
from dd.engine.registry import register
from dd.engine.selection import Fact
from dd.selection.herding import herd

from ._features import FromFeatures, OfFeatures, Rng, SelectionPool


@register("herding")
@dataclass(frozen=True)
class Herding(OfFeatures):
    """Real images whose mean feature is close to the mean feature of their class.

    Each next image is the one that brings the sum of the chosen features nearest to its target:

        argmin_i || (|A| + 1) m - sum_{j in A} h_j - h_i ||
    """

    paper = "https://arxiv.org/abs/1611.07725"

    normalise: bool = False
    """Scale features to length 1 first, as iCaRL does; DeepCore and the papers on condensation do not."""
    farthest: bool = False
    """Take the argmax, which chooses outliers: what DeepCore calls herding, and with it papers that use its code."""

    def pick(self, pool: SelectionPool, count: int, rng: Rng) -> Tensor:
        """Herd."""
        return herd(pool.features, count, normalise=self.normalise, farthest=self.farthest)

    def facts(self, task: Task, prepared: FromFeatures, index: Tensor) -> Mapping[str, Fact]:
        """What the choice depends on."""
        direction = "farthest from the mean (DeepCore's defect)" if self.farthest else "nearest to the mean"
        return {**super().facts(task, prepared, index), "direction": direction}
