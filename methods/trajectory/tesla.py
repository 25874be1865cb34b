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
    """MTT with an approximate gradient that needs the memory of one step, and optional labels from the target network.

        dL/dX = sum over steps t of -eta grad_X < lambda_N, grad_theta CE(X_t; theta_t) >,
        lambda_N = 2 (theta_N - theta*_{s+M}) / || theta*_s - theta*_{s+M} ||^2

    The steps are MTT's.  The paper calls the gradient exact, but it is the adjoint recursion with the adjoint frozen at
    its final value lambda_N (`dd.engine.unroll.FrozenAdjoint`), which points in roughly the same direction.
    `backprop=stepwise` needs as little memory and is exact; `backprop=frozen` is the default because it is the method.
    The released code loses the factor 2 of the image gradient; halve its learning rates to reproduce it here.

    With `labels="target"`, the student of an iteration learns from the probabilities that the segment's target network
    assigns to the unaugmented images.  The authors evaluate with the labels of the last segment, and with hard labels
    before the first.  Here the finished set, and the set at iteration 0, get the mean logits of all experts at the last
    possible target epoch, so that the labels do not depend on a random draw.
    """

    paper = "https://arxiv.org/abs/2211.10586"

    iterations: int = 10_000
    labels: Literal["hard", "target"] = "hard"
    """Labels of the set: "hard", or soft labels from the "target" network."""
    backprop: Literal["auto", "full", "stepwise", "frozen"] = "frozen"

    def loss(self, syn: Synthetic, task: Task, prepared: Prepared, it: int) -> Objective:
        """MTT's distance, with the target network's labels if `labels` is "target"."""
        segment = draw_segment(task, prepared.pool, it, *self.window(it), self.span)
        labels = prepared.network.predict(segment.target, syn.images) if self.labels == "target" else None
        return {"distance": self.distance(syn, task, prepared, it, segment, labels)}

    def finish(self, syn: Synthetic, task: Task, prepared: Prepared) -> DistilledSet:
        """The images, with hard labels or with the experts' mean logits at the last possible target epoch."""
        made = super().finish(syn, task, prepared)
        if self.labels == "hard":
            return made
        last, pool = self.start_max - 1 + self.span, prepared.pool
        thetas = [pool.snapshot(member, last, task.device) for member in range(len(pool))]
        logits = torch.stack([prepared.network.predict(theta, syn.images) for theta in thetas])
        return replace(made, labels=logits.mean(0), label_kind="logits")
