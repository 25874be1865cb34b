"""Crops, shifts and tiles: positions are drawn first, and applying them is deterministic.

Crops are resized bilinearly, like `torch.nn.functional.interpolate` with align_corners=False.  By default a crop is
resized to the size of its image, which is never smaller, so antialiasing has no effect.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

STRETCH = 4 / 3  # largest aspect ratio of a crop (Szegedy et al. 2015, section 6)
_TRIES = 10  # attempts to draw a crop that fits, as in torchvision


@dataclass(frozen=True, eq=False)
class BoxDraw:
    """Random resized crops, drawn before the sizes of the images are known.

    Attributes:
        shares: float64 (n, tries), share of the image's area.
        ratios: float64 (n, tries), width / height.
        places: float64 (n, 2) in [0, 1), relative position (vertical, horizontal).
        stretch: largest aspect ratio.
    """

    shares: Tensor
    ratios: Tensor
    places: Tensor
    stretch: float

    @property
    def count(self) -> int:
        """Number of crops."""
        return len(self.shares)

    def of(self, start: int, stop: int) -> "BoxDraw":
        """The crops from `start` up to, but not including, `stop`."""
        rows = slice(start, stop)
        return BoxDraw(self.shares[rows], self.ratios[rows], self.places[rows], self.stretch)

    def boxes(self, size: tuple[int, int]) -> Tensor:
        """Boxes (top, left, height, width), int64 (n, 4), in an image of `size` (height, width) pixels."""
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
    """Draw random resized crops, like torchvision, for images of unknown size; see `draw_boxes`."""
    shares = area[0] + (area[1] - area[0]) * torch.rand(n, _TRIES, generator=generator, dtype=torch.float64)
    ratios = (math.log(stretch) * (2 * torch.rand(n, _TRIES, generator=generator, dtype=torch.float64) - 1)).exp()
    return BoxDraw(shares, ratios, torch.rand(n, 2, generator=generator, dtype=torch.float64), stretch)


def draw_boxes(
    n: int, size: tuple[int, int], area: tuple[float, float], generator: Generator, stretch: float = STRETCH
) -> Tensor:
    """Draw random resized crops, like torchvision: boxes (top, left, height, width), int64 (n, 4).

    The area is uniform in `area`, as a share of the image's; the aspect ratio is log-uniform in [1/stretch, stretch].
    The first of ten boxes that fits is used; if none fits, the largest centred one.

    Args:
        n: number of boxes.
        size: (height, width) of the image in pixels.
        area: smallest and largest share of the area.
        generator: a CPU generator.
        stretch: largest aspect ratio.
    """
    return draw_shares(n, area, generator, stretch).boxes(size)


def draw_patch(share: float, size: tuple[int, int], generator: Generator) -> tuple[int, int, int, int]:
    """Draw CutMix's box (top, left, height, width): sides sqrt(share) of the image's, uniform centre, clipped."""
    centres = torch.rand(2, generator=generator).tolist()
    box: list[tuple[int, int]] = []
    for side, place in zip(size, centres, strict=True):
        length, centre = int(side * math.sqrt(share)), int(place * side)
        low, high = max(0, centre - length // 2), min(side, centre + length // 2)
        box.append((low, high - low))
    return box[0][0], box[1][0], box[0][1], box[1][1]


def resized_crop(images: Tensor, boxes: Tensor, side: int | None = None) -> Tensor:
    """Crop images and resize each crop, by default to the images' size; differentiable any number of times.

    Args:
        images: (n, c, h, w), floating point.
        boxes: int64 (n, 4), as (top, left, height, width), or (1, 4), one box for all.
        side: height and width of the result in pixels; then downsampling is antialiased, like `interpolate` with
            antialias=True.  None for the images' size.

    Returns:
        (n, c, h, w), or (n, c, side, side).
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
    """Translate images by whole pixels, int64 (n, 2), (down, right); vacated pixels become `fill`, (c,)."""
    n, _, height, width = images.shape
    shifts, fill = shifts.to(images.device), fill.to(images).view(1, -1, 1, 1)
    rows = torch.arange(height, device=images.device) - shifts[:, :1]
    columns = torch.arange(width, device=images.device) - shifts[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    each = torch.arange(n, device=images.device)[:, None, None]
    at = (each, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :])
    return torch.where(inside, images.permute(0, 2, 3, 1)[at].permute(0, 3, 1, 2), fill)


def shuffled_tiles(images: Tensor, orders: Tensor) -> Tensor:
    """Permute the columns, then the rows, of tiles in each image.

    Args:
        images: (n, c, h, w); if a side is not divisible, the first tiles are one pixel larger, and keep their size.
        orders: int64 (n, 2, t), see `View.tiles`.
    """
    index = []
    for axis, side in ((1, images.shape[2]), (0, images.shape[3])):
        parts = torch.arange(side).tensor_split(orders.shape[2])
        index.append(torch.stack([torch.cat([parts[t] for t in order]) for order in orders[:, axis].tolist()]))
    rows, columns = (i.to(images.device) for i in index)
    n = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _weights(start: Tensor, length: Tensor, side: int, kind: torch.dtype) -> Tensor:
    """Resampling matrices (n, side, side): row y holds the weights of the source pixels for output pixel y."""
    # compute positions in float64, like `interpolate` on float64 images, and cast the weights to the images' dtype
    place = (torch.arange(side, device=start.device) + 0.5) * (length[:, None].double() / side) - 0.5
    place = place.clamp_min(0).minimum(length[:, None] - 1.0)
    low = place.floor()
    high = (low + 1).minimum(length[:, None] - 1.0)
    share = (place - low).to(kind)
    weights = torch.zeros(len(start), side, side, dtype=kind, device=start.device)
    weights.scatter_add_(2, (start[:, None] + low.long())[:, :, None], (1 - share)[:, :, None])
    return weights.scatter_add_(2, (start[:, None] + high.long())[:, :, None], share[:, :, None])


def _triangles(start: Tensor, length: Tensor, side: int, target: int, kind: torch.dtype) -> Tensor:
    """Antialiased resampling matrices (n, target, side): triangle filter, as wide as an output pixel's footprint."""
    scale = length[:, None, None].double() / target
    place = (torch.arange(target, device=start.device)[:, None] + 0.5) * scale - 0.5
    source = torch.arange(side, device=start.device) - start[:, None, None]
    weights = (1 - (source - place).abs() / scale.clamp_min(1)).clamp_min(0)
    weights = weights * ((source >= 0) & (source < length[:, None, None]))
    return (weights / weights.sum(2, keepdim=True)).to(kind)
