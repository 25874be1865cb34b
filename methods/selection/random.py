"""Random real images, class-balanced, with hard labels: the baseline for every other method."""

from dataclasses import dataclass

from torch import Tensor

from dd.engine.method import Task
from dd.engine.registry import register
from dd.engine.selection import Selection


@register("random")
@dataclass(frozen=True)
class Random(Selection[None]):
    """Random real images with hard labels."""

    copy: bool = True
    """Store copies of the chosen images instead of their indices, so that the set can be used without the data set."""

    def choose(self, task: Task, prepared: None) -> Tensor:
        """One draw without replacement per class."""
        return task.real_indices("start")
