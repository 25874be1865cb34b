"""TDDS: spanning training progress, temporal dual-depth scoring for dataset pruning (Zhang et al., CVPR 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.engine.registry import register
from dd.engine.selection import Fact
from dd.selection.scores import tdds
from dd.training.record import RecordSettings

from ._recorded import Ranked, Records, over_runs


@register("tdds")
@dataclass(frozen=True)
class TDDS(Ranked):
    """Images whose probabilities change unevenly from epoch to epoch, mostly in the last recorded epochs.

    Defaults: those for CIFAR-100 at 10 %, 30 of 200 epochs at batch 100 (official code).  With `decay` 0.9, the last
    two windows make 99 % of the weight.
    """

    paper = "https://arxiv.org/abs/2311.13613"

    balanced: bool = False
    """Choose as many images of each class as requested; false: as published, the same total over all classes."""
    record: RecordSettings = field(default_factory=lambda: RecordSettings(batch=100, stop=30))
    """How networks are trained and recorded."""
    window: Annotated[int, Field(ge=3)] = 10
    """L, epochs per window."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """η: the window that ends k epochs before the last has the weight η (1 - η)^k."""

    def __post_init__(self) -> None:
        if self.window > self.record.recorded:
            raise ValueError(f"window={self.window} must be at most the {self.record.recorded} recorded epochs")

    def wanted(self, records: Records) -> Tensor:
        """The score, averaged over the runs."""
        return over_runs(records, lambda record: tdds(record.change[1:], self.window, self.decay))

    def facts(self, task: Task, prepared: Records, index: Tensor) -> Mapping[str, Fact]:
        """Adds window and decay."""
        return {**super().facts(task, prepared, index), "keep": "large", "window": self.window, "decay": self.decay}
