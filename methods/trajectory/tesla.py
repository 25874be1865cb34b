"""TESLA: trajectory matching with constant memory (Cui et al., ICML 2023, arXiv:2211.10586)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from dd.engine.method import Objective, Synthetic, Task
from dd.engine.registry import register
from dd.sets import DistilledSet

from ._matching import draw_segment
from .mtt import MTT, Prepared


@register("tesla")
@dataclass(frozen=True)
class TESLA(MTT):
    """MTT's objective with the gradient that TESLA takes for its own, and labels from the network to be matched.

    The paper calls its gradient exact.  It is the adjoint recursion with the adjoint frozen at its last value
    (`dd.engine.unroll.FrozenAdjoint`), which points roughly the same way.  `backprop=stepwise` has as little memory and
    is exact; `backprop=frozen` is the default because it is the method.  The released code loses the factor 2 of the
    image gradient; its learning rates correspond to half as much here.

    With `labels="target"` the student of an iteration learns from the probabilities that the segment's target network
    gives the unaugmented images.  The authors evaluate with those of whichever segment came last, and with hard labels
    before the first; here a finished set, at iteration 0 too, is labelled by the mean logits of all experts at the last
    epoch a target can have, so that its labels depend on no draw and `start` has them as well.
    """

    paper = "https://arxiv.org/abs/2211.10586"

    iterations: int = 10_000
    labels: Literal["hard", "target"] = "hard"
    """Labels of the set: "hard", or "target" for those soft labels."""
    backprop: Literal["auto", "full", "stepwise", "frozen"] = "frozen"

    def loss(self, syn: Synthetic, task: Task, prepared: Prepared, it: int) -> Objective:
        """MTT's distance; the labels of the segment's target where they are asked for."""
        segment = draw_segment(task, prepared.pool, it, *self.window(it), self.span)
        labels = prepared.network.predict(segment.target, syn.images) if self.labels == "target" else None
        return {"distance": self.distance(syn, task, prepared, it, segment, labels)}

    def finish(self, syn: Synthetic, task: Task, prepared: Prepared) -> DistilledSet:
        """The images, with hard labels or with the logits of the experts at the last target epoch."""
        made = super().finish(syn, task, prepared)
        if self.labels == "hard":
            return made
        last, pool = self.start_max - 1 + self.span, prepared.pool
        thetas = [pool.snapshot(member, last, task.device) for member in range(len(pool))]
        logits = torch.stack([prepared.network.predict(theta, syn.images) for theta in thetas])
        return replace(made, labels=logits.mean(0), label_kind="logits")
