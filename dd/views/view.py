"""Augmented views for training on soft labels: cropped, flipped, augmented and mixed.

A `View` fully determines one batch of views, and applying it adds no randomness, so a teacher labels exactly what a
student sees later.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Generator, Tensor

from dd.errors import UsageError
from dd.views.crops import STRETCH, draw_boxes, draw_patch, resized_crop, shifted, shuffled_tiles
from dd.views.dsa import Draw, Shape, apply, draw_sequence, known_strategy, operations

Mix = Literal["none", "cutmix", "mixup"]
Batches = Callable[[Generator, int], Iterator[tuple[Tensor, Tensor]]]
"""(generator, number of the pass) -> one shuffled pass of (images (b, c, h, w), targets for the criterion)."""


def _strategy(value: str) -> str:
    return value if value == "data" else known_strategy(value)


@dataclass(frozen=True)
class ViewPolicy:
    """How views are drawn; the defaults leave images as they are."""

    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Smallest share of an image's area that a random resized crop keeps; None for no crop."""
    stretch: Annotated[float, Field(ge=1, le=100)] = STRETCH
    """Largest aspect ratio of a crop; 1 for squares."""
    pad: Annotated[int, Field(ge=0, le=1024)] = 0
    """Padding in black pixels before a random crop of the original size: a shift by at most this many pixels."""
    flip: bool = False
    """Flip half of the images horizontally."""
    tiles: Annotated[int, Field(ge=1, le=64)] = 1
    """Tiles per side whose columns and rows are shuffled before the crop (RDED, Sun et al., CVPR 2024)."""
    strategy: Annotated[str, AfterValidator(_strategy)] = "none"
    """IDC's augmentation per image, see `dd.views.dsa.draw_sequence`; "data" uses the data set's DSA operations,
    without cutout if CutMix is on.
    """
    mix: Mix = "none"
    """How the images of a batch are mixed, with one weight per batch: "cutmix" (Yun et al., ICCV 2019), "mixup" (Zhang
    et al., ICLR 2018) or "none".
    """
    mix_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Probability that a batch is mixed."""
    mix_alpha: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """The mixing weight is drawn from Beta(mix_alpha, mix_alpha)."""

    def operations(self, data_strategy: str) -> str:
        """The strategy, with "data" replaced by the operations of the data set's DSA strategy."""
        if self.strategy != "data":
            return self.strategy
        names = [name for name in operations(data_strategy) if not (name == "cutout" and self.mix == "cutmix")]
        return "_".join(names) or "none"


@dataclass(frozen=True, eq=False)
class View:
    """One batch of views, fully determined, as small CPU tensors; None means that an operation is off.

    Attributes:
        tiles: int64 (n, 2, t), order of the columns and of the rows of tiles, per image.
        boxes: int64 (n, 4), crops as (top, left, height, width) in pixels.
        shifts: int64 (n, 2), (down, right) in pixels; vacated pixels become `black`.
        black: float32 (c,), in model space.
        flips: bool (n,), horizontal flips.
        draws: DSA operations, in order.
        partner: int64 (n,), position in the batch of the image that is mixed in.
        weight: weight of an image's own label: its share of the pixels (CutMix), or its mixing weight (MixUp).
        patch: CutMix's box, (top, left, height, width); None for MixUp.
    """

    tiles: Tensor | None = None
    boxes: Tensor | None = None
    flips: Tensor | None = None
    draws: Sequence[Draw] = ()
    partner: Tensor | None = None
    weight: float = 1.0
    patch: tuple[int, int, int, int] | None = None
    shifts: Tensor | None = None
    black: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the view to images (n, c, h, w); returns new memory unless all operations are off."""
        if self.tiles is not None:
            images = shuffled_tiles(images, self.tiles)
        if self.boxes is not None:
            images = resized_crop(images, self.boxes)
        if self.shifts is not None:
            assert self.black is not None, "it comes with the shifts"
            images = shifted(images, self.shifts, self.black)
        if self.flips is not None:
            images = torch.where(self.flips.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
        for one in self.draws:
            images = apply(one, images)
        if self.partner is None:
            return images
        others = images[self.partner.to(images.device)]
        if self.patch is None:
            return torch.lerp(others, images, self.weight)
        top, left, height, width = self.patch
        mixed = images.clone()
        mixed[:, :, top : top + height, left : left + width] = others[:, :, top : top + height, left : left + width]
        return mixed

    def mixed(self, targets: Tensor) -> Tensor:
        """Class probabilities (n, k) of the views, mixed from those of the images."""
        if self.partner is None:
            return targets
        return self.weight * targets + (1 - self.weight) * targets[self.partner.to(targets.device)]


def draw_view(
    policy: ViewPolicy,
    n: int,
    shape: Shape,
    generator: Generator,
    data_strategy: str = "none",
    black: Sequence[float] | None = None,
) -> View:
    """Draw a batch of `n` views.

    Args:
        policy: how views are drawn.
        n: images in the batch.
        shape: (channels, height, width) of an image.
        generator: a CPU generator.
        data_strategy: the DSA strategy that the policy's "data" resolves to.
        black: per channel in model space; required if the policy pads.

    Raises:
        UsageError: the policy pads but `black` is None, as for whitened data.
    """
    tiles = boxes = shifts = flips = None
    if policy.tiles > 1:
        tiles = torch.rand(n, 2, policy.tiles, generator=generator).argsort(2)
    if policy.crop is not None:
        boxes = draw_boxes(n, shape[1:], (policy.crop, 1.0), generator, policy.stretch)
    if policy.pad:
        if black is None:
            raise UsageError("views with a pad of black need data.preprocess=standard: whitened pixels have no black")
        shifts = torch.randint(-policy.pad, policy.pad + 1, (n, 2), generator=generator)
    if policy.flip:
        flips = torch.rand(n, generator=generator) < 0.5
    strategy = policy.operations(data_strategy)
    draws = draw_sequence(strategy, n, shape, generator) if strategy != "none" else ()
    filled = None if shifts is None or black is None else torch.tensor(black)
    view = View(tiles, boxes, flips, draws, shifts=shifts, black=filled)
    if policy.mix == "none" or float(torch.rand((), generator=generator)) >= policy.mix_share:
        return view
    partner = torch.randperm(n, generator=generator)
    own = _beta(policy.mix_alpha, generator)
    if policy.mix == "mixup":
        return replace(view, partner=partner, weight=own)
    patch = draw_patch(1 - own, shape[1:], generator)
    share = patch[2] * patch[3] / (shape[1] * shape[2])
    return replace(view, partner=partner, weight=1 - share, patch=patch)


def _beta(alpha: float, generator: Generator) -> float:
    if alpha == 1:
        return float(torch.rand((), generator=generator))
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
