"""NRR-DD: non-critical region refinement (Tran et al., CVPR 2025, arXiv:2503.18267)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dd.engine.method import Objective, Synthetic, Task
from dd.engine.registry import register
from dd.labels import LabelSettings
from dd.networks.activation import activation_maps
from dd.training.teachers import Teacher

from ._crops import CropSettings, Judge, Patches
from ._teachers import Committee
from .sre2l import SRe2L

_CHUNK = 100  # images per batch of activation maps


@dataclass(frozen=True)
class CriticalCrops(CropSettings):
    """Patches that contain a class's critical regions, and that teachers are least confident of."""

    crops: Annotated[int, Field(ge=1)] = 10
    order: Literal["low", "medium", "high"] = "high"
    keep: Annotated[int, Field(ge=1)] = 3
    """Eligible crops per real image: those with the largest share of its activation map."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Smallest share of the activation map's sum that an eligible crop contains; excludes background crops."""


class Refined(Synthetic):
    """Images with a mask that scales the update of every pixel.

    Attributes:
        mask: (n, 1, h, w), in [0, 1]; pixels with 0 never change.
        before: (n, c, h, w), the images before the current update.
    """

    mask: Tensor
    before: Tensor

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        super().__init__(images, targets)
        self.register_buffer("mask", torch.ones_like(images[:, :1]))
        self.register_buffer("before", images.detach().clone(), persistent=False)


@register("nrrdd")
@dataclass(frozen=True)
class NRRDD(SRe2L):
    """Real patches whose non-critical regions are refined, with two distances per view as labels.

        x_p <- x_p + (M_p / epsilon) * update_p,   M = max(0, epsilon - C),

    where C is the class-activation map of the initial image, in [0, 1], computed once.  Critical regions, C >= epsilon,
    never change.

    1. Select crops by their share of the activation map, take the least confident ones, and stitch them.
    2. Optimise SRe2L's loss, cross-entropy and BatchNorm statistics, with masked updates.
    3. Label views with two distances, see `dd.labels.distances`.

    We had no access to the full text.  The sources we have describe the selection by activation maps, the stitching,
    the loss, the mask and the distances.  **Our completion**: RDED's crops, of which each image keeps a few by their
    share of the map, with a minimum share; epsilon, learning rate and iterations; the division by epsilon, so that the
    learning rate does not shrink with it; and masking Adam's *update*, because Adam normalises the gradient, so that
    scaling it would have no effect except where the mask is 0.
    """

    paper = "https://arxiv.org/abs/2503.18267"

    iterations: Annotated[int, Field(ge=0)] = 1000
    lr_img: Annotated[float, Field(gt=0)] = 0.1
    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    flip: bool = False
    roll: Annotated[int, Field(ge=0)] = 0
    start_from: Literal["noise", "real", "crops"] = "crops"
    crops: CriticalCrops = field(default_factory=CriticalCrops)  # pyright: ignore[reportIncompatibleVariableOverride]
    labels: LabelSettings = field(default_factory=lambda: LabelSettings(form="distances"))
    epsilon: Annotated[float, Field(ge=0)] = 0.5
    """Activation at and above which a pixel is critical; 0 refines nothing."""
    scaled: bool = True
    """Divide the mask by epsilon."""

    def start(self, task: Task, prepared: Committee) -> Refined:
        """Start from patches; the mask is computed in the first iteration."""
        made = super().start(task, prepared)
        return Refined(made.images, made.targets)

    def mask(self, activation: Tensor) -> Tensor:
        """Factor of a pixel's update, elementwise, from its activation in [0, 1]."""
        if self.epsilon == 0:
            return torch.zeros_like(activation)
        return (self.epsilon - activation).clamp_min(0) / (self.epsilon if self.scaled else 1.0)

    def loss(self, syn: Synthetic, task: Task, prepared: Committee, it: int) -> Objective:
        """SRe2L's loss: cross-entropies and statistics losses."""
        assert isinstance(syn, Refined)
        with torch.no_grad():
            syn.before.copy_(syn.images)
        if it == 0:
            syn.mask.copy_(self.mask(looked_at(prepared.teachers, syn.images, syn.targets))[:, None])
        return super().loss(syn, task, prepared, it)

    def project(self, syn: Synthetic, task: Task) -> None:
        """Scale the update by the mask, and clamp pixels to the range from black to white."""
        assert isinstance(syn, Refined)
        with torch.no_grad():
            syn.images.copy_(syn.before + syn.mask * (syn.images - syn.before))
            super().project(syn, task)
            syn.images.copy_(torch.where(syn.mask > 0, syn.images, syn.before))

    def patches(self, task: Task) -> Patches:
        """The need for patches, restricted to critical crops."""
        return Patches(task, self.crops, self.staff(task), self.judge)

    def judge(self, teachers: Sequence[Teacher]) -> Judge:
        """Eligible crops: at least `share` of the activation map, and among the `keep` best of their image."""

        def allowed(images: Tensor, boxes: Tensor, c: int) -> Tensor:
            targets = torch.full((len(images),), c, device=images.device)
            maps = looked_at(teachers, images, targets)
            inside = held(maps, boxes.view(len(images), -1, 4).to(images.device))
            most = inside.topk(min(self.crops.keep, inside.shape[1]), 1).indices
            return torch.zeros_like(inside, dtype=torch.bool).scatter(1, most, True) & (inside >= self.crops.share)

        return allowed


def looked_at(teachers: Sequence[Teacher], images: Tensor, targets: Tensor) -> Tensor:
    """Activation maps (n, h, w), averaged over the teachers."""
    chunks = zip(images.split(_CHUNK), targets.split(_CHUNK), strict=True)
    return torch.cat([
        torch.stack([activation_maps(teacher.network, part, own) for teacher in teachers]).mean(0)
        for part, own in chunks
    ])  # fmt: skip


def held(maps: Tensor, boxes: Tensor) -> Tensor:
    """Share (k, m) of the sum of maps (k, h, w) inside boxes (k, m, 4); share of the area for a map that is all 0."""
    empty = maps.sum((1, 2), keepdim=True) == 0
    sums = F.pad(torch.where(empty, 1.0, maps.double()).cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, left, height, width = boxes.unbind(2)
    k = torch.arange(len(maps), device=maps.device)[:, None]
    bottom, right = top + height, left + width
    inside = sums[k, bottom, right] - sums[k, top, right] - sums[k, bottom, left] + sums[k, top, left]
    return inside / sums[:, -1:, -1]
