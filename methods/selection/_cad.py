"""CAD, the score of CAD-Prune (Dey et al., CVPR 2026): how much a score varies near the end of a short training run."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self

from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.errors import UsageError
from dd.selection.scores import uncertainty
from dd.training.record import RecordSettings

from ._recorded import Records, over_runs

SHORTEST = 2  # epochs with a standard deviation


def _of_students() -> RecordSettings:
    """Their students under hard labels: SGD at 0.01, one drop after epoch 151 of 300, DSA."""
    return RecordSettings(
        mode="clean", lr=0.01, nesterov=False, schedule="steps", drops=(151 / 300,), augment=True, epochs=300
    )


@dataclass(frozen=True)
class OfCad:
    """The settings of CAD: with K epochs, its windows of J epochs begin in the W epochs K − J − W, …, K − J − 1."""

    matched: bool = True
    """Train the recorded network for as many images as a student sees, whatever `record.epochs`: K epochs of all n
    images with K n = `student_epochs` · the number of chosen images, rounded.  The score depends on it.
    """
    student_epochs: Annotated[int, Field(ge=1, le=10**6)] = 300
    """Epochs of a student on the chosen images."""
    of: Literal["probability", "el2n"] = "probability"
    """What varies: the probability of the image's class, or the norm of the error of all probabilities."""
    window: Annotated[int, Field(ge=SHORTEST)] | None = None
    """J, epochs per window; None: K less W.  The paper states 6, for ImageNet-1K."""
    windows: Annotated[int, Field(ge=1)] = 2
    """W, number of windows; 2 as for ImageNet-1K."""
    record: RecordSettings = field(default_factory=_of_students)
    """How the network is trained and recorded.  Defaults: as the paper's students with hard labels."""

    def __post_init__(self) -> None:
        if not self.matched and (lacking := self._lacking(self.record.recorded)):
            raise ValueError(f"record.epochs={self.record.epochs}{lacking}")

    def matched_to(self, task: Task) -> Self:
        """Return these settings with K epochs, if they are to match, and with J.

        Raises:
            UsageError: K < J + W.
        """
        record = self.record
        if self.matched:
            chosen, images = len(task.targets), len(task.data.train)
            epochs = round(self.student_epochs * chosen / images)
            if lacking := self._lacking(epochs):
                raise UsageError(
                    f"student_epochs={self.student_epochs} on {chosen} images match {epochs} epochs of all {images}"
                    f"{lacking}, or matched=false with record.epochs"
                )
            record = replace(record, epochs=epochs, stop=None)
        return replace(self, record=record, window=self.window or record.recorded - self.windows)

    def cad(self, records: Records) -> Tensor:
        """CAD of the images, (n,) float64, averaged over the runs."""
        window = self.window
        assert window is not None, "settled"
        return over_runs(
            records,
            lambda record: uncertainty(
                record.log_p.exp() if self.of == "probability" else record.el2n, window, self.windows
            ),
        )

    def _lacking(self, epochs: int) -> str:
        """What to do if K epochs are too few; empty if they are enough."""
        least = (self.window or SHORTEST) + self.windows
        if epochs >= least:
            return ""
        return f", fewer than the {least} of window + windows that CAD needs: use more epochs, or smaller windows"
