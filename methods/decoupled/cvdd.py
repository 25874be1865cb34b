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
    """SRe2L++ with a committee of architectures, two at a time, weighted by how well a student learns from each alone.

        min over x of  sum over members j of w_j ( CE(f_j(A(x)), y) + r_bn R_BN,j(A(x)) ),   w = softmax(p / tau)

    The prior p_j is the accuracy in percent of a student trained on images distilled from member j alone.

    1. Train the teachers, and get their priors.
    2. Recover every batch as SRe2L++ does, from a pair of teachers with weights w.
    3. Label views with all teachers: weighted logits, batch statistics.
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
    """Teachers of a batch: "pairs" cycles through all pairs, one pair per image of a class (ten pairs of five teachers
    at ipc 10); "random" draws a pair per image of a class (ipc 50); "all" uses all teachers.
    """
    votes: Annotated[Source, _TOGETHER] = "prior"
    """Source of the priors: "prior", the authors' constants for data set and architecture (any width), or "distil" if
    one is missing; "teacher", the teachers' held-out accuracy; "distil", measured here as a student's held-out accuracy
    on images distilled from each teacher alone; "equal", no weighting.
    """
    prior: Annotated[tuple[float, ...] | None, _TOGETHER] = None
    """The priors, one per teacher in percent; None to get them from `votes`."""
    tau: Annotated[float, Field(gt=0), _TOGETHER] = 5.0
    """Temperature of the vote weights."""
    distil: Annotated[DistilSettings, _TOGETHER] = field(default_factory=DistilSettings)
    """How "distil" measures priors."""

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
        """Refuse votes by held-out accuracy if nothing is held out; nothing else to resolve.

        Raises:
            UsageError: there are no held-out images; see also `SRe2L.settle`.
        """
        settled = super().settle(task)
        if self._known(task) is None:
            if self.votes == "prior":
                words = "no published constants for these teachers on %s: their votes are measured"
                log.info(words, task.data.name)
            require_holdout(self.votes, task)
        return settled

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """Teachers, patches, and priors if they must be measured."""
        measured = [self.priors(task)] if self.votes != "teacher" and self._known(task) is None else []
        return [*super().needs(task), *measured]

    def priors(self, task: Task) -> Priors:
        """The need for measured priors."""
        return Priors(self, task, self.distil, self.staff(task))

    def prepare(self, task: Task, got: Got) -> Committee:
        """Teachers, patches and priors."""
        made, prior = super().prepare(task, got), self._known(task)
        if prior is None and self.votes == "teacher":
            prior = tuple(float(teacher.holdout or 0.0) for teacher in made.teachers)
        return replace(made, prior=got[self.priors(task)] if prior is None else prior)

    def members(self, task: Task, prepared: Committee) -> Sequence[Member]:
        """The pair of the batch, or all teachers, weighted by their priors."""
        chosen = self.chosen(task, len(prepared.teachers))
        weights = votes([prepared.prior[i] for i in chosen], self.tau).tolist()
        return [(weight, prepared.teachers[i]) for weight, i in zip(weights, chosen, strict=True)]

    def chosen(self, task: Task, count: int) -> tuple[int, ...]:
        """Indices of the batch's teachers out of `count`, by the rank of its images within their classes."""
        if self.members_by == "all" or count < 3:
            return tuple(range(count))
        pairs, rank = list(combinations(range(count), 2)), int(task.ranks.min())
        if self.members_by == "pairs":
            return pairs[rank % len(pairs)]
        return pairs[int(torch.randint(len(pairs), (), generator=task.common("pair", rank)))]

    def _known(self, task: Task) -> tuple[float, ...] | None:
        """The priors, if they are known without teachers or measurement; else None."""
        if self.prior is not None:
            return self.prior
        if self.votes == "equal":
            return (0.0,) * len(self.teachers)
        return published_priors(task, self.teachers) if self.votes == "prior" else None
