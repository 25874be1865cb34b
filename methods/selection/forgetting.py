"""Forgetting: an empirical study of example forgetting (Toneva et al., ICLR 2019, arXiv:1812.05159)."""

from dataclasses import dataclass

from torch import Tensor

from dd.engine.registry import register
from dd.selection.scores import NeverLearned, forgetting

from ._recorded import OfDifficulty, Records, over_runs


@register("forgetting")
@dataclass(frozen=True)
class Forgetting(OfDifficulty):
    """Images that a network learns and forgets most often."""

    paper = "https://arxiv.org/abs/1812.05159"

    never_learned: NeverLearned = "inf"
    """Score of images that are never classified correctly: "inf" as in the paper, where they are the hardest; "zero" as
    in DeepCore's and CCS's code, where they are as easy as those that are never forgotten.
    """

    def difficulty(self, records: Records) -> Tensor:
        """The number of forgetting events, averaged over the runs."""
        return over_runs(records, lambda record: forgetting(record.correct, self.never_learned))
