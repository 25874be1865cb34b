"""Random real images with labels from an early-stopped network (Qin et al., NeurIPS 2024, arXiv:2406.10485)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.engine.selection import Fact, Selection
from dd.networks import NetworkSpec
from dd.sets.distilled import LabelKind
from dd.settings import OnlyWith
from dd.training import Experts, ExpertSettings, expert_logits
from dd.training.fitness import require_fit
from dd.training.teachers import SqueezeSettings, Teachers, file_digests

AT_ONCE = 1024  # images labelled at a time

Labellers = Callable[[Tensor], Tensor]
"""Indices (b,) of training images -> logits (members, b, classes)."""


@register("softlabel")
@dataclass(frozen=True)
class SoftLabel(Selection[Labellers]):
    """Random real images with one soft label each, from a network that stopped training early.

        y = softmax(tau * mean of logits(x)),   x not augmented, networks in eval mode

    The fewer images per class, the earlier the epoch that labels them best: early labels hold what is common to the
    images of a class, late ones approach the hard labels.
    """

    paper = "https://arxiv.org/abs/2406.10485"

    experts: Annotated[ExpertSettings, OnlyWith("teachers", ((),))] = field(
        default_factory=lambda: ExpertSettings(count=1, epochs=50)
    )
    """The networks that label, unless there are `teachers`; with several, the mean of their logits counts."""
    epoch: Annotated[Annotated[int, Field(ge=1)] | None, OnlyWith("teachers", ((),))] = None
    """Epoch of the experts that labels; None for their last."""
    teachers: tuple[str, ...] = ()
    """Networks that label instead of experts, named as for `method=rded`; for example, those with batch norm. A teacher
    that is trained here stops early with `squeeze.epochs` and `squeeze.schedule=constant`.
    """
    squeeze: Annotated[SqueezeSettings, OnlyWith("teachers")] = field(default_factory=SqueezeSettings)
    """How teachers are trained, unless they are pretrained."""
    tau: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Factor of the logits before the softmax: an inverse temperature."""

    def __post_init__(self) -> None:
        if self.epoch is not None and self.epoch > self.experts.epochs:
            raise ValueError(
                f"epoch={self.epoch} is after the last one of the experts: give experts.epochs={self.epoch} or more"
            )

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """The hashes of the files of experts or teachers, if they are read from files."""
        return file_digests(self.teachers, student) if self.teachers else self.experts.digests()

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The teachers, or else the experts."""
        return [self._teachers(task) if self.teachers else Experts(task, self.experts)]

    def _teachers(self, task: Task) -> Teachers:
        return Teachers(task, self.teachers, self.squeeze, lambda teacher: require_fit(teacher, task))

    def prepare(self, task: Task, got: Got) -> Labellers:
        """The function that labels."""
        if self.teachers:
            networks = [teacher.network for teacher in got[self._teachers(task)]]
            return lambda index: torch.stack([network(task.data.train.images(index)) for network in networks])
        pool, epoch = got[Experts(task, self.experts)], -1 if self.epoch is None else self.epoch
        return lambda index: expert_logits(task, pool, index, epoch=epoch)

    def choose(self, task: Task, prepared: Labellers) -> Tensor:
        """One draw without replacement per class."""
        return task.real_indices("start")

    @torch.no_grad()
    def label(self, task: Task, prepared: Labellers, index: Tensor) -> tuple[Tensor, LabelKind]:
        """The probabilities of the experts or teachers."""
        logits = torch.cat([prepared(some).mean(0).cpu() for some in index.split(AT_ONCE)])
        return (self.tau * logits).softmax(1), "probabilities"

    def facts(self, task: Task, prepared: Labellers, index: Tensor) -> Mapping[str, Fact]:
        """Who labelled, at which epoch."""
        if self.teachers:
            return {"score": "random", "labels": ", ".join(self.teachers), "tau": self.tau}
        epoch = self.experts.epochs if self.epoch is None else self.epoch
        return {"score": "random", "labels": "experts", "count": self.experts.count, "epoch": epoch, "tau": self.tau}
