"""FTD: minimising the accumulated trajectory error (Du et al., CVPR 2023, arXiv:2211.11004)."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Synthetic, Task
from dd.engine.registry import register
from dd.sets import DistilledSet
from dd.training import ExpertSettings

from .mtt import MTT, Prepared


class Averaged(Synthetic):
    """Synthetic images with their exponential moving average.

    Attributes:
        average: (n, c, h, w), the moving average; at iteration 0, the images themselves.
    """

    average: Tensor

    def __init__(self, images: Tensor, targets: Tensor, lr: float | None) -> None:
        super().__init__(images, targets, lr=lr)
        self.register_buffer("average", images.detach().clone())

    def take(self, images: Tensor, labels: Tensor | None = None, lr: float | None = None) -> None:
        """Load images, and reset the average to them."""
        super().take(images, labels, lr)
        self.average.copy_(self.images.detach())


@register("ftd")
@dataclass(frozen=True)
class FTD(MTT):
    """Flat trajectories: MTT on experts in flat regions, with a moving average of the images as the result.

        S' <- d S' + (1 - d) S   after every update of the images S

    1. Train experts with GSAM (`dd.training.gsam`), which seeks flat regions.
    2. Match trajectories as MTT does.
    3. Keep a moving average of the images, which is the result.

    In evaluation, a student starts each segment where it ended the previous one, not where the expert is; on a flat
    trajectory this accumulated error matters less.  We evaluate the average with fresh networks; the authors' script
    evaluates it with networks just trained on the images themselves.  Only images are averaged.
    """

    paper = "https://arxiv.org/abs/2211.11004"

    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9995
    """Decay d of the moving average, without bias correction; 0 returns the last images. The initial images keep the
    weight d^iterations, so runs with few iterations need a decay far below the published 0.999 to 0.9999.
    """
    experts: ExpertSettings = field(default_factory=lambda: ExpertSettings(kind="ftd"))

    def start(self, task: Task, prepared: Prepared) -> Synthetic:
        """MTT's start, with the average initialised to it."""
        return Averaged(task.first_images(self.start_from), task.targets, self.lr_init)

    def project(self, syn: Synthetic, task: Task) -> None:
        """Update the moving average."""
        assert isinstance(syn, Averaged)
        with torch.no_grad():
            syn.average.lerp_(syn.images, 1 - self.ema)

    def finish(self, syn: Synthetic, task: Task, prepared: Prepared) -> DistilledSet:
        """The averaged images, hard labels, and the final learning rate."""
        assert isinstance(syn, Averaged)
        return replace(super().finish(syn, task, prepared), images=syn.average.clone())
