"""CA2D, of "Hard truths about soft labels" (Dey et al., CVPR 2026, arXiv:2604.18811)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self

from torch import Tensor

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.labels import LabelSettings
from dd.selection.ranking import best_of_each
from dd.settings import Outside
from dd.training.record import Recorded

from ..decoupled._crops import Patches
from ..decoupled.rded import RDED
from ._cad import OfCad


@dataclass(frozen=True, eq=False)
class Uncertain:
    """The real images of every class with the largest CAD, as the pool that `Patches` cuts crops of.

    Attributes:
        task: the run.
        method: the settled method.
        recorded: the need for the training runs.
    """

    task: Task
    method: OfCad
    recorded: Recorded

    def key(self) -> dict[str, Any]:
        """The records, and how they are scored."""
        method = self.method
        windows = [method.window, method.windows]
        return {"records": [spec for _, spec, _ in self.recorded.artefacts()], "cad": [method.of, *windows]}

    def candidates(self, got: Got, count: int) -> Sequence[Tensor]:
        """Per class, the `count` images with the largest CAD, or all of a smaller class."""
        labels = self.task.data.train.labels.cpu()
        return best_of_each(self.method.cad(got[self.recorded]), labels, [count] * self.task.classes)


@register("ca2d")
@dataclass(frozen=True)
class CA2D(OfCad, RDED):
    """RDED's crops, cut from the images with the largest CAD of every class instead of from random ones.

    The images are trained on with hard labels; no view is labelled by a teacher.
    """

    paper = "https://arxiv.org/abs/2604.18811"

    labels: Annotated[LabelSettings, Outside("images", "labels are made of finished images")] = field(
        default_factory=lambda: LabelSettings(mode="off")
    )
    """How views of the images are labelled; the paper trains on hard labels only."""

    def __post_init__(self) -> None:
        OfCad.__post_init__(self)
        RDED.__post_init__(self)

    def settle(self, task: Task) -> Self:
        """As RDED; also match the epochs of the recorded run to those of a student.

        Raises:
            UsageError: a class has too few images, the data are whitened, or that leaves too few epochs.
        """
        return super().settle(task).matched_to(task)

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The teachers, the recorded runs and the stitched images."""
        return [self.staff(task), Recorded(task, self.record), self.patches(task)]

    def patches(self, task: Task) -> Patches:
        """The need for the stitched images, from the pool of uncertain ones."""
        return replace(super().patches(task), pool=Uncertain(task, self, Recorded(task, self.record)))
