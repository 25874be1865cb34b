"""GraNd: deep learning on a data diet (Paul et al., NeurIPS 2021, arXiv:2107.07075)."""

from dataclasses import dataclass, field

from torch import Tensor

from dd.engine.registry import register
from dd.training.record import RecordSettings

from ._recorded import OfDifficulty, Records, over_runs


@register("grand")
@dataclass(frozen=True)
class GraNd(OfDifficulty):
    """Images with the largest gradient of the loss with respect to the last layer, averaged over networks.

    The paper's gradient is that of all weights; the last layer's approximates it, as in DeepCore.  Defaults: 10 runs
    after 20 epochs, on the images as they are.
    """

    paper = "https://arxiv.org/abs/2107.07075"

    record: RecordSettings = field(default_factory=lambda: RecordSettings(mode="clean", runs=10, stop=20))
    """How networks are trained and recorded."""

    def difficulty(self, records: Records) -> Tensor:
        """The norm of the gradient after the last recorded epoch, averaged over the runs."""
        return over_runs(records, lambda record: record.grand[-1])
