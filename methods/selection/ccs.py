"""CCS: coverage-centric coreset selection for high pruning rates (Zheng et al., ICLR 2023, arXiv:2210.15809)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.engine.registry import register
from dd.engine.selection import Fact
from dd.selection.coverage import covering
from dd.selection.ranking import grouped
from dd.selection.scores import forgetting

from ._recorded import Margin, OfRecords, Records, aum, over_runs


@register("ccs")
@dataclass(frozen=True)
class CCS(OfRecords):
    """Random images from strata of a score, after the hardest images are dropped.

    1. Drop the share `cutoff` of the images, those with the lowest margins (AUM).
    2. Split the range of the score of the others into strata of equal width.
    3. Draw about as many images from each stratum; what a small one lacks, the larger ones give.
    """

    paper = "https://arxiv.org/abs/2210.15809"

    balanced: bool = False
    """Choose as many images of each class as requested, where steps 1 to 3 are applied to each class alone; false: as
    published, the same total over all classes together.
    """
    score: Literal["aum", "forgetting", "el2n"] = "aum"
    """The score that is covered: the mean margin, the number of forgetting events (0 if never learned), or the error
    averaged over all recorded epochs.
    """
    margin: Margin = "probability"
    """The margin, see `aum`."""
    cutoff: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share β of the images that is dropped; at most 1 minus the fraction that is kept.  The paper's for CIFAR-10 at
    10 %.
    """
    strata: Annotated[int, Field(ge=1, le=10**6)] = 50
    """Number of strata."""

    def choose(self, task: Task, prepared: Records) -> Tensor:
        """Cover all images or, if `balanced`, each class."""
        margins, score, labels = aum(prepared, self.margin), self._covered(prepared), task.data.train.labels.cpu()

        def cover(pool: Tensor, total: int, rng: torch.Generator) -> Tensor:
            return pool[covering(score[pool], margins[pool], total, self.cutoff, self.strata, rng)]

        if self.balanced:
            counts = torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()
            each = [
                cover(task.data.train.of_class(c), count, task.generator("strata", c)) for c, count in enumerate(counts)
            ]
            return torch.cat(each)
        index = grouped(cover(torch.arange(len(labels)), len(task.targets), task.generator("strata")), labels)
        self.require_all_classes(task, index)
        return index

    def facts(self, task: Task, prepared: Records, index: Tensor) -> Mapping[str, Fact]:
        """Adds what is covered and how much is dropped."""
        own = {"covered": self.score, "margin": self.margin, "cutoff": self.cutoff, "strata": self.strata}
        return {**super().facts(task, prepared, index), **own}

    def _covered(self, records: Records) -> Tensor:
        match self.score:
            case "aum":
                return aum(records, self.margin)
            case "forgetting":
                return over_runs(records, lambda record: forgetting(record.correct, "zero"))
            case "el2n":
                return over_runs(records, lambda record: record.el2n.double().mean(0))
