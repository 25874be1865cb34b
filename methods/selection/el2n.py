"""EL2N: deep learning on a data diet (Paul et al., NeurIPS 2021, arXiv:2107.07075)."""

from dataclasses import dataclass

from torch import Tensor

from dd.engine.registry import register
from dd.training.record import Record

from ._recorded import OfOneEpoch


@register("el2n")
@dataclass(frozen=True)
class EL2N(OfOneEpoch):
    """Images on which networks err most early in training, measured on the probabilities.

    The score is ‖p − y‖ for probabilities p and the one-hot label y, averaged over runs.
    """

    paper = "https://arxiv.org/abs/2107.07075"

    def rows(self, record: Record) -> Tensor:
        """The error."""
        return record.el2n
