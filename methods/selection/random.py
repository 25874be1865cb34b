"""Random real images, class-balanced, with hard labels: the baseline for every other method."""

from dataclasses import dataclass

from dd.engine.method import Method, Synthetic, Task
from dd.engine.registry import register


@register("random")
@dataclass(frozen=True)
class Random(Method[None]):
    """Random real images with hard labels."""

    def start(self, task: Task, prepared: None) -> Synthetic:
        """One draw without replacement per class."""
        return Synthetic(task.first_images(), task.targets)
