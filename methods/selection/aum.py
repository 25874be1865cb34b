"""AUM: identifying mislabeled data using the area under the margin ranking (Pleiss et al., NeurIPS 2020)."""

from dataclasses import dataclass

from torch import Tensor

from dd.engine.registry import register

from ._recorded import Margin, OfDifficulty, Records, aum


@register("aum")
@dataclass(frozen=True)
class AUM(OfDifficulty):
    """Images with the smallest margin between their class and the best other one, averaged over the training."""

    paper = "https://arxiv.org/abs/2001.10528"

    margin: Margin = "logit"
    """The margin: of "logit" values as in the paper, or of each "probability" as in CCS's code.  Their rankings differ.
    """

    def difficulty(self, records: Records) -> Tensor:
        """The negative mean margin."""
        return -aum(records, self.margin)
