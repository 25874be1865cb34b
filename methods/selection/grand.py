"""GraNd: deep learning on a data diet (Paul et al., NeurIPS 2021, arXiv:2107.07075)."""

from dataclasses import dataclass

from torch import Tensor

from dd.engine.registry import register
from dd.training.record import Record

from ._recorded import OfOneEpoch


@register("grand")
@dataclass(frozen=True)
class GraNd(OfOneEpoch):
    """Images with the largest gradient of the loss with respect to the last layer, averaged over networks.

    The paper's gradient is that of all weights; the last layer's approximates it, as in DeepCore.
    """

    paper = "https://arxiv.org/abs/2107.07075"

    def rows(self, record: Record) -> Tensor:
        """The norm of the gradient."""
        return record.grand
