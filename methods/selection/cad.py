"""CAD-Prune, of "Hard truths about soft labels" (Dey et al., CVPR 2026, arXiv:2604.18811)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from dd.engine.method import Task
from dd.engine.registry import register
from dd.engine.selection import Fact

from ._cad import OfCad
from ._recorded import Ranked, Records


@register("cad")
@dataclass(frozen=True)
class CAD(OfCad, Ranked):
    """Images whose class probability varies most near the end of a training run as short as a student's.

    With p_k the probability of an image's class after epoch k of K, U_k is the standard deviation of p_k, …,
    p_(k + J − 1), and CAD is the mean of U_k over W values of k.  The images with the largest CAD of every class are
    kept.
    """

    paper = "https://arxiv.org/abs/2604.18811"

    def settle(self, task: Task) -> Self:
        """Match the epochs of the recorded run to those of a student.

        Raises:
            UsageError: that leaves too few epochs.
        """
        return self.matched_to(task)

    def wanted(self, records: Records) -> Tensor:
        """CAD."""
        return self.cad(records)

    def facts(self, task: Task, prepared: Records, index: Tensor) -> Mapping[str, Fact]:
        """Adds what varies, and the windows."""
        own = {"of": self.of, "window": self.window, "windows": self.windows, "matched": self.matched}
        return {**super().facts(task, prepared, index), "keep": "large", **own}
