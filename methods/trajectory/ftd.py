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
    """Variables with a moving average of the images beside them.

    Attributes:
        average: (n, c, h, w), the images at iteration 0 and then their exponential moving average.
    """

    average: Tensor

    def __init__(self, images: Tensor, targets: Tensor, lr: float | None) -> None:
        super().__init__(images, targets, lr=lr)
        self.register_buffer("average", images.detach().clone())

    def take(self, images: Tensor, labels: Tensor | None = None, lr: float | None = None) -> None:
        """The average begins where the images do."""
        super().take(images, labels, lr)
        self.average.copy_(self.images.detach())


@register("ftd")
@dataclass(frozen=True)
class FTD(MTT):
    """Flat trajectories: MTT on experts that sit in flat regions, with a moving average of the images as the result.

    An evaluated student starts a segment where it ended the one before and not where the expert is; on a flat
    trajectory (GSAM, `dd.training.gsam`) that offset matters less.  The average is evaluated with fresh networks; the
    authors' script evaluates it with networks that the images themselves have just trained.  Only images are averaged.
    """

    paper = "https://arxiv.org/abs/2211.11004"

    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9995
    """Decay d of the average, S' <- d S' + (1 - d) S after every update, without bias correction; 0 for the last
    images.  With few iterations it must be far below the published .999 to .9999: d^iterations of the average is still
    the images at iteration 0.
    """
    experts: ExpertSettings = field(default_factory=lambda: ExpertSettings(kind="ftd"))

    def start(self, task: Task, prepared: Prepared) -> Synthetic:
        """MTT's start; the average begins there."""
        return Averaged(task.first_images(self.start_from), task.targets, self.lr_init)

    def project(self, syn: Synthetic, task: Task) -> None:
        """Move the average."""
        assert isinstance(syn, Averaged)
        with torch.no_grad():
            syn.average.lerp_(syn.images, 1 - self.ema)

    def finish(self, syn: Synthetic, task: Task, prepared: Prepared) -> DistilledSet:
        """The averaged images, hard labels, and the present learning rate."""
        assert isinstance(syn, Averaged)
        return replace(super().finish(syn, task, prepared), images=syn.average.clone())
