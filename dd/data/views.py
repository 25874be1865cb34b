"""Views of images as training on soft labels uses them: cropped, mirrored, augmented, mixed, and drawn apart.

A `View` decides everything about one batch of views, and applying it adds no randomness, so that a teacher labels
exactly what a student is shown later.  Crops are resized bilinearly, as `torch.nn.functional.interpolate` does with
align_corners=False; a crop is never larger than the image, so antialiasing has nothing to do.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Generator, Tensor

from dd.data.augment import Draw, Shape, apply, draw_sequence, known_strategy, parse
from dd.errors import UsageError

STRETCH = 4 / 3  # largest ratio of a crop's sides (Szegedy et al. 2015, section 6)
_TRIES = 10  # at a crop that fits, as in torchvision

Mix = Literal["none", "cutmix", "mixup"]
Batches = Callable[[Generator, int], Iterator[tuple[Tensor, Tensor]]]
"""One shuffled pass, from a generator and its number: `(images (b, c, h, w), targets that the criterion takes)`."""


def _strategy(value: str) -> str:
    return value if value == "data" else known_strategy(value)


@dataclass(frozen=True)
class ViewPolicy:
    """How views are drawn; the defaults leave images as they are.

    Attributes:
        crop: least share of an image's area that a random resized crop keeps; None for no crop.
        stretch: largest ratio of the sides of a crop; 1 for squares.
        pad: black pixels around an image before a random crop of its own size: a shift by at most so many.
        flip: mirror half of the images.
        tiles: tiles per side whose columns and rows are shuffled before the crop (RDED, Sun et al., CVPR 2024).
        strategy: IDC's augmentation per image, see `dd.data.augment.draw_sequence`; "data" for the data set's DSA
            operations, without cutout where CutMix cuts already.
        mix: "cutmix" (Yun et al., ICCV 2019), "mixup" (Zhang et al., ICLR 2018) or "none", one weight per batch.
        mix_share: probability that a batch is mixed.
        mix_alpha: the weight is drawn from Beta(mix_alpha, mix_alpha).
    """

    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    stretch: Annotated[float, Field(ge=1)] = STRETCH
    pad: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    tiles: Annotated[int, Field(ge=1)] = 1
    strategy: Annotated[str, AfterValidator(_strategy)] = "none"
    mix: Mix = "none"
    mix_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    mix_alpha: Annotated[float, Field(gt=0)] = 1.0

    def operations(self, data_strategy: str) -> str:
        """The strategy with "data" replaced by what the data set's DSA strategy means here."""
        if self.strategy != "data":
            return self.strategy
        names = [name for name in parse(data_strategy) if not (name == "cutout" and self.mix == "cutmix")]
        return "_".join(names) or "none"


@dataclass(frozen=True, eq=False)
class View:
    """One batch of views, fully decided; small CPU tensors, None where nothing is done.

    Attributes:
        tiles: (n, 2, t) int64, for every image the order of its columns and of its rows of tiles.
        boxes: (n, 4) int64 top, left, height, width of the crops in pixels.
        shifts: (n, 2) int64, down and to the right; what comes in is `black`.
        black: (c,) float32, in model space.
        flips: (n,) bool.
        draws: operations in order.
        partner: (n,) int64, the place in the batch of the image that is mixed in.
        weight: the share of an image's own label: of pixels with CutMix, of brightness with MixUp.
        patch: CutMix's box, top, left, height, width; None for MixUp.
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
        """(n, c, h, w) views of as many images; new memory wherever anything is done."""
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
        """(n, k) class probabilities of the views, from those of the images."""
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
    """Decide a batch of `n` views.

    Args:
        policy: how.
        n: images in the batch.
        shape: (channels, height, width) of an image.
        generator: a CPU generator.
        data_strategy: what the policy's strategy "data" stands for.
        black: per channel in model space; needed where the policy pads.

    Raises:
        UsageError: the policy pads, and what is black is not known, as in whitened data.
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


@dataclass(frozen=True, eq=False)
class BoxDraw:
    """Random resized crops as far as they can be drawn before the sizes of their images are known.

    Attributes:
        shares: (n, tries) float64, of an image's area.
        ratios: (n, tries) float64, of width to height.
        places: (n, 2) float64 in [0, 1), down and to the right.
        stretch: largest ratio of the sides.
    """

    shares: Tensor
    ratios: Tensor
    places: Tensor
    stretch: float

    @property
    def count(self) -> int:
        """How many."""
        return len(self.shares)

    def of(self, start: int, stop: int) -> "BoxDraw":
        """Those from `start` to before `stop`."""
        rows = slice(start, stop)
        return BoxDraw(self.shares[rows], self.ratios[rows], self.places[rows], self.stretch)

    def boxes(self, size: tuple[int, int]) -> Tensor:
        """(n, 4) int64 boxes (top, left, height, width) in an image of `size` (height, width) pixels."""
        height, width = size
        wide = (self.shares * height * width * self.ratios).sqrt().round().long()
        high = (self.shares * height * width / self.ratios).sqrt().round().long()
        fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
        first = fits.long().argmax(1, keepdim=True)
        high, wide = high.gather(1, first).squeeze(1), wide.gather(1, first).squeeze(1)
        top, left = (self.places[:, 0] * (height - high + 1)).long(), (self.places[:, 1] * (width - wide + 1)).long()
        boxes = torch.stack([top, left, high, wide], 1)
        whole = (min(height, round(width * self.stretch)), min(width, round(height * self.stretch)))
        centred = torch.tensor([(height - whole[0]) // 2, (width - whole[1]) // 2, *whole])
        return torch.where(fits.any(1, keepdim=True), boxes, centred)


def draw_shares(n: int, area: tuple[float, float], generator: Generator, stretch: float = STRETCH) -> BoxDraw:
    """Random resized crops, as torchvision draws them, of images whose size is not known yet; see `draw_boxes`."""
    shares = area[0] + (area[1] - area[0]) * torch.rand(n, _TRIES, generator=generator, dtype=torch.float64)
    ratios = (math.log(stretch) * (2 * torch.rand(n, _TRIES, generator=generator, dtype=torch.float64) - 1)).exp()
    return BoxDraw(shares, ratios, torch.rand(n, 2, generator=generator, dtype=torch.float64), stretch)


def draw_boxes(
    n: int, size: tuple[int, int], area: tuple[float, float], generator: Generator, stretch: float = STRETCH
) -> Tensor:
    """(n, 4) int64 boxes (top, left, height, width) of random resized crops, as torchvision draws them.

    The area is uniform in `area`, a share of the image's; the ratio of the sides log-uniform in [1/stretch, stretch];
    the first of ten boxes that fit is taken, or else the largest centred one.

    Args:
        n: how many.
        size: (height, width) of the image in pixels.
        area: least and largest share.
        generator: a CPU generator.
        stretch: largest ratio of the sides.
    """
    return draw_shares(n, area, generator, stretch).boxes(size)


def draw_patch(share: float, size: tuple[int, int], generator: Generator) -> tuple[int, int, int, int]:
    """CutMix's box (top, left, height, width): sides sqrt(share) of the image's, centre uniform, clipped."""
    centres = torch.rand(2, generator=generator).tolist()
    box: list[tuple[int, int]] = []
    for side, place in zip(size, centres, strict=True):
        length, centre = int(side * math.sqrt(share)), int(place * side)
        low, high = max(0, centre - length // 2), min(side, centre + length // 2)
        box.append((low, high - low))
    return box[0][0], box[1][0], box[0][1], box[1][1]


def resized_crop(images: Tensor, boxes: Tensor, side: int | None = None) -> Tensor:
    """(n, c, h, w) crops of as many images, each brought to the images' size; differentiable any number of times.

    Args:
        images: (n, c, h, w), floating.
        boxes: (n, 4) int64 top, left, height, width; or (1, 4), one box for all.
        side: height and width of the result in pixels, where it is to be another; then crops that are made smaller are
            antialiased, as `interpolate` with antialias=True does it.
    """
    boxes = boxes.to(images.device)
    if side is not None:
        rows, columns = (
            _triangles(boxes[:, axis], boxes[:, axis + 2], images.shape[axis + 2], side, images.dtype)
            for axis in (0, 1)
        )
        return rows[:, None] @ images @ columns[:, None].transpose(2, 3)
    rows = _weights(boxes[:, 0], boxes[:, 2], images.shape[2], images.dtype)
    columns = _weights(boxes[:, 1], boxes[:, 3], images.shape[3], images.dtype)
    return rows[:, None] @ images @ columns[:, None].transpose(2, 3)


def shifted(images: Tensor, shifts: Tensor, fill: Tensor) -> Tensor:
    """Images moved by whole pixels, (n, 2) int64 down and to the right; what comes in is `fill`, (c,)."""
    n, _, height, width = images.shape
    shifts, fill = shifts.to(images.device), fill.to(images).view(1, -1, 1, 1)
    rows = torch.arange(height, device=images.device) - shifts[:, :1]
    columns = torch.arange(width, device=images.device) - shifts[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    each = torch.arange(n, device=images.device)[:, None, None]
    at = (each, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :])
    return torch.where(inside, images.permute(0, 2, 3, 1)[at].permute(0, 3, 1, 2), fill)


def shuffled_tiles(images: Tensor, orders: Tensor) -> Tensor:
    """Images with their columns and then their rows of tiles in another order.

    Args:
        images: (n, c, h, w); where a side does not divide, the first tiles are a pixel larger, and keep their size.
        orders: (n, 2, t) int64, see `View.tiles`.
    """
    index = []
    for axis, side in ((1, images.shape[2]), (0, images.shape[3])):
        parts = torch.arange(side).tensor_split(orders.shape[2])
        index.append(torch.stack([torch.cat([parts[t] for t in order]) for order in orders[:, axis].tolist()]))
    rows, columns = (i.to(images.device) for i in index)
    n = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _weights(start: Tensor, length: Tensor, side: int, kind: torch.dtype) -> Tensor:
    """(n, side, side): row y holds the weights of the source pixels that make pixel y of a resized interval."""
    # in float64: the weights of interpolate in float64 to the last digit, and of the images' type after that
    place = (torch.arange(side, device=start.device) + 0.5) * (length[:, None].double() / side) - 0.5
    place = place.clamp_min(0).minimum(length[:, None] - 1.0)
    low = place.floor()
    high = (low + 1).minimum(length[:, None] - 1.0)
    share = (place - low).to(kind)
    weights = torch.zeros(len(start), side, side, dtype=kind, device=start.device)
    weights.scatter_add_(2, (start[:, None] + low.long())[:, :, None], (1 - share)[:, :, None])
    return weights.scatter_add_(2, (start[:, None] + high.long())[:, :, None], share[:, :, None])


def _triangles(start: Tensor, length: Tensor, side: int, target: int, kind: torch.dtype) -> Tensor:
    """(n, target, side): as `_weights`, of a triangle that is as wide as what a pixel of the result covers."""
    scale = length[:, None, None].double() / target
    place = (torch.arange(target, device=start.device)[:, None] + 0.5) * scale - 0.5
    source = torch.arange(side, device=start.device) - start[:, None, None]
    weights = (1 - (source - place).abs() / scale.clamp_min(1)).clamp_min(0)
    weights = weights * ((source >= 0) & (source < length[:, None, None]))
    return (weights / weights.sum(2, keepdim=True)).to(kind)


def _beta(alpha: float, generator: Generator) -> float:
    if alpha == 1:
        return float(torch.rand((), generator=generator))
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
