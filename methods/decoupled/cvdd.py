"""CV-DD: dataset distillation via committee voting (Cui et al., arXiv:2501.07575)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.labels import LabelSettings
from dd.settings import Outside
from dd.training.committee import votes

from ._crops import CropSettings
from ._prior import DistilSettings, Priors, Source, published_priors, require_holdout
from ._teachers import Committee, Names
from .sre2l import Member, SRe2L

log = logging.getLogger(__name__)
_TOGETHER = Outside("member", "it says how several work together")


@register("cvdd")
@dataclass(frozen=True)
class CVDD(SRe2L):
    """SRe2L++ with two of several architectures at a time, which vote by how well a student learns from each alone.

    The members of a batch weigh softmax(p / tau), p being their priors in percent.  All teachers label.
    """

    paper = "https://arxiv.org/abs/2501.07575"
    votes_on_labels: ClassVar[bool] = True

    teachers: Names = (
        "resnet18",
        "torchvision:resnet50",
        "torchvision:shufflenet_v2_x0_5",
        "torchvision:mobilenet_v2",
        "torchvision:densenet121",
    )
    start_from: Literal["noise", "real", "crops"] = "crops"
    crops: CropSettings = field(default_factory=lambda: CropSettings(order="medium"))
    labels: LabelSettings = field(
        default_factory=lambda: LabelSettings(ensemble="logit_weighted", teacher_mode="batch")
    )
    members_by: Annotated[Literal["pairs", "random", "all"], _TOGETHER] = "pairs"
    """Which teachers a batch has: "pairs", all pairs in the order of `teachers`, one per image of a class (ipc 10 of
    five); "random", a pair drawn per image of a class (ipc 50); "all" at once.
    """
    votes: Annotated[Source, _TOGETHER] = "prior"
    """Where the priors come from: "prior", the authors' constants for a data set and an architecture of any width, or,
    where one is missing, as "distil"; "teacher", the teachers' held-out accuracy; "distil", a student's held-out
    accuracy on images distilled from each alone, measured here; "equal".
    """
    prior: Annotated[tuple[float, ...] | None, _TOGETHER] = None
    """The priors themselves, one per teacher in percent; None for those that `votes` says."""
    tau: Annotated[float, Field(gt=0), _TOGETHER] = 5.0
    """Temperature of the votes."""
    distil: Annotated[DistilSettings, _TOGETHER] = field(default_factory=DistilSettings)
    """How "distil" measures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members_by != "all" and len(self.teachers) > 2 and self.layout != "one-per-class":
            raise ValueError(
                f"members_by={self.members_by} depends on an image's position in its class, which a batch shares with "
                f"layout=one-per-class, not with layout={self.layout}; use that, or members_by=all"
            )
        if self.prior is not None and len(self.prior) != len(self.teachers):
            raise ValueError(f"prior has {len(self.prior)} numbers for {len(self.teachers)} teachers")

    def settle(self, task: Task) -> Self:
        """Nothing is left to decide; votes by held-out images where nothing is held out are refused.

        Raises:
            UsageError: see above, and `SRe2L.settle`.
        """
        settled = super().settle(task)
        if self._known(task) is None:
            if self.votes == "prior":
                words = "no published constants for these teachers on %s: their votes are measured"
                log.info(words, task.data.name)
            require_holdout(self.votes, task)
        return settled

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """Teachers, patches, and what a prior is measured by."""
        measured = [self.priors(task)] if self.votes != "teacher" and self._known(task) is None else []
        return [*super().needs(task), *measured]

    def priors(self, task: Task) -> Priors:
        """Those that are measured here."""
        return Priors(self, task, self.distil, self.staff(task))

    def prepare(self, task: Task, got: Got) -> Committee:
        """Teachers, patches and priors."""
        made, prior = super().prepare(task, got), self._known(task)
        if prior is None and self.votes == "teacher":
            prior = tuple(float(teacher.holdout or 0.0) for teacher in made.teachers)
        return replace(made, prior=got[self.priors(task)] if prior is None else prior)

    def members(self, task: Task, prepared: Committee) -> Sequence[Member]:
        """The pair of the batch, or all, with votes by their priors."""
        chosen = self.chosen(task, len(prepared.teachers))
        weights = votes([prepared.prior[i] for i in chosen], self.tau).tolist()
        return [(weight, prepared.teachers[i]) for weight, i in zip(weights, chosen, strict=True)]

    def chosen(self, task: Task, count: int) -> tuple[int, ...]:
        """Which of so many teachers the batch has: those of its first image's place among the images of its class."""
        if self.members_by == "all" or count < 3:
            return tuple(range(count))
        pairs, rank = list(combinations(range(count), 2)), int(task.ranks.min())
        if self.members_by == "pairs":
            return pairs[rank % len(pairs)]
        return pairs[int(torch.randint(len(pairs), (), generator=task.common("pair", rank)))]

    def _known(self, task: Task) -> tuple[float, ...] | None:
        """Priors that need neither teachers nor a measurement."""
        if self.prior is not None:
            return self.prior
        if self.votes == "equal":
            return (0.0,) * len(self.teachers)
        return published_priors(task, self.teachers) if self.votes == "prior" else None
