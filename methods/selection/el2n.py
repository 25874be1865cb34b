"""EL2N: deep learning on a data diet (Paul et al., NeurIPS 2021, arXiv:2107.07075)."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import Tensor

from dd.engine.registry import register
from dd.training.record import RecordSettings

from ._recorded import OfDifficulty, Records, over_runs


@register("el2n")
@dataclass(frozen=True)
class EL2N(OfDifficulty):
    """Images on which networks err most early in training, measured on the probabilities.

    The score is ‖p − y‖ for probabilities p and the one-hot label y, averaged over runs.  Defaults: 10 runs after 20
    epochs, on the images as they are.
    """

    paper = "https://arxiv.org/abs/2107.07075"

    record: RecordSettings = field(default_factory=lambda: RecordSettings(mode="clean", runs=10, stop=20))
    """How networks are trained and recorded."""
    window: Annotated[int, Field(ge=1)] = 1
    """Number of epochs, the last recorded ones, over which the error is averaged; CCS's code takes the first 10 epochs
    of one run in training mode (`window=10 record.stop=10 record.runs=1 record.mode=train`).
    """

    def __post_init__(self) -> None:
        if self.window > self.record.recorded:
            raise ValueError(f"window={self.window} must be at most the {self.record.recorded} recorded epochs")

    def difficulty(self, records: Records) -> Tensor:
        """The error, averaged over the window and the runs."""
        return over_runs(records, lambda record: record.el2n[-self.window :].double().mean(0))
