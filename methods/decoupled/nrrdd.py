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

_CHUNK = 100  # images whose maps are made at once


@dataclass(frozen=True)
class CriticalCrops(CropSettings):
    """Patches that hold what a class is recognised by, and that teachers are least sure of."""

    crops: Annotated[int, Field(ge=1)] = 10
    order: Literal["low", "medium", "high"] = "high"
    keep: Annotated[int, Field(ge=1)] = 3
    """Crops of each real image that may be chosen, those with most of its activation map."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Least share of the map's sum that a crop holds; background alone cannot win."""


class Refined(Synthetic):
    """Images with the share of each update that every pixel follows.

    Attributes:
        mask: (n, 1, h, w); 0 where an image stays as it began.
        before: (n, c, h, w) the images before the update that is under way.
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
    """Real patches whose uncritical regions are refined, with two distances per view for labels.

    With C the class-activation map of the first image, from 0 to 1, and M = max(0, epsilon - C), every update of pixel
    p counts M_p / epsilon: critical regions stay as they are, to the bit.  C is computed once.

    What was to be had of the paper says: activation maps choose patches, the least confident ones are stitched; L_C of
    cross entropy and BatchNorm statistics; the mask; the two distances.  **Our completion**: crops as RDED's, of which
    each image keeps a few by their share of the map, and a least share; epsilon, learning rate and iterations; dividing
    by epsilon, so that the learning rate does not shrink with it; and masking Adam's *update*: a masked gradient would
    do nothing there but for its zeros, as Adam divides by its size.
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
    """Activation from which on a pixel is critical; 0 refines nothing."""
    scaled: bool = True
    """Divide the mask by epsilon."""

    def start(self, task: Task, prepared: Committee) -> Refined:
        """Patches; the mask is made in the first iteration, of whatever images are there then."""
        made = super().start(task, prepared)
        return Refined(made.images, made.targets)

    def mask(self, activation: Tensor) -> Tensor:
        """Share of an update that a pixel follows, from its activation in [0, 1]; elementwise."""
        if self.epsilon == 0:
            return torch.zeros_like(activation)
        return (self.epsilon - activation).clamp_min(0) / (self.epsilon if self.scaled else 1.0)

    def loss(self, syn: Synthetic, task: Task, prepared: Committee, it: int) -> Objective:
        """Cross entropies and statistics losses, as SRe2L's."""
        assert isinstance(syn, Refined)
        with torch.no_grad():
            syn.before.copy_(syn.images)
        if it == 0:
            syn.mask.copy_(self.mask(looked_at(prepared.teachers, syn.images, syn.targets))[:, None])
        return super().loss(syn, task, prepared, it)

    def project(self, syn: Synthetic, task: Task) -> None:
        """The update counts as much as the mask says; pixels stay between black and white."""
        assert isinstance(syn, Refined)
        with torch.no_grad():
            syn.images.copy_(syn.before + syn.mask * (syn.images - syn.before))
            super().project(syn, task)
            syn.images.copy_(torch.where(syn.mask > 0, syn.images, syn.before))

    def patches(self, task: Task) -> Patches:
        """Crops with enough of the activation map."""
        return Patches(task, self.crops, self.staff(task), self.judge)

    def judge(self, teachers: Sequence[Teacher]) -> Judge:
        """Crops with enough of the activation map, and of each image those with most."""

        def allowed(images: Tensor, boxes: Tensor, c: int) -> Tensor:
            targets = torch.full((len(images),), c, device=images.device)
            maps = looked_at(teachers, images, targets)
            inside = held(maps, boxes.view(len(images), -1, 4).to(images.device))
            most = inside.topk(min(self.crops.keep, inside.shape[1]), 1).indices
            return torch.zeros_like(inside, dtype=torch.bool).scatter(1, most, True) & (inside >= self.crops.share)

        return allowed


def looked_at(teachers: Sequence[Teacher], images: Tensor, targets: Tensor) -> Tensor:
    """(n, h, w) the teachers' mean activation maps."""
    chunks = zip(images.split(_CHUNK), targets.split(_CHUNK), strict=True)
    return torch.cat([
        torch.stack([activation_maps(teacher.network, part, own) for teacher in teachers]).mean(0)
        for part, own in chunks
    ])  # fmt: skip


def held(maps: Tensor, boxes: Tensor) -> Tensor:
    """(k, m) share of the sum of maps (k, h, w) inside boxes (k, m, 4); of the area, where a map is 0 everywhere."""
    empty = maps.sum((1, 2), keepdim=True) == 0
    sums = F.pad(torch.where(empty, 1.0, maps.double()).cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, left, height, width = boxes.unbind(2)
    k = torch.arange(len(maps), device=maps.device)[:, None]
    bottom, right = top + height, left + width
    inside = sums[k, bottom, right] - sums[k, top, right] - sums[k, bottom, left] + sums[k, top, left]
    return inside / sums[:, -1:, -1]
