"""Differentiable siamese augmentation (DSA): one operation per batch, drawn first and applied later.

Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021.  An augmentation consists of a
`Draw` (an operation, and small tensors of parameters per image) and a pure function of the draw and the images.  So a
recomputed step replays its draw bit-identically.  Every operation is affine in the images, with constant coefficients,
so it can be differentiated any number of times.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dd.errors import UsageError, unknown

CROP = 1 / 8  # largest translation, as a share of the side
CUTOUT = 1 / 2  # side of the erased square, as a share of the side
SCALE = 1.2  # largest zoom, in or out
ROTATE = math.radians(15)  # largest angle, in either direction

_MARGIN = 3  # zero padding per axis: one pixel before and two after, so that every position has a next neighbour

Shape = tuple[int, int, int]
Params = dict[str, Tensor]
_Text = TypeVar("_Text", str, str | None)


@dataclass(frozen=True, eq=False)
class Draw:
    """One augmentation of one batch, fully determined: `apply` adds no randomness.

    Attributes:
        op: name of the operation, or "none".
        params: its parameters, small CPU tensors whose first axis counts the images.
    """

    op: str
    params: Mapping[str, Tensor] = field(default_factory=dict)


@lru_cache(maxsize=64)
def operations(strategy: str) -> tuple[str, ...]:
    """Parse a strategy into its operations, in order.

    Args:
        strategy: names joined by "_", for example "color_crop_cutout_flip_scale_rotate"; "none" or "" is off.

    Returns:
        The names; empty if augmentation is off.

    Raises:
        UsageError: a name is unknown or repeated.
    """
    if strategy in ("", "none"):
        return ()
    names = tuple(strategy.split("_"))
    for name in names:
        if name not in _OPS:
            raise unknown(f"augmentation in {strategy!r}:", name, _OPS)
        if names.count(name) > 1:
            raise UsageError(f"augmentation {strategy!r} names {name!r} twice; name each operation once")
    return names


def known_strategy(strategy: _Text) -> _Text:
    """Validate a strategy (None: the data set's own) for pydantic: a ValueError if `operations` refuses it."""
    try:
        operations(strategy or "none")
    except UsageError as error:
        raise ValueError(str(error)) from error
    return strategy


def draw(strategy: str, n: int, shape: Shape, generator: Generator) -> Draw:
    """Draw one operation of the strategy uniformly, and its parameters independently for every image.

    Args:
        strategy: see `operations`.
        n: number of images in the batch.
        shape: (channels, height, width) of an image; the ranges of crop and cutout depend on it.
        generator: a CPU generator; not used if the strategy is off.

    Returns:
        The draw; its operation is "none" if the strategy is off.
    """
    names = operations(strategy)
    if not names:
        return Draw("none")
    name = names[int(torch.randint(len(names), (), generator=generator))]
    return Draw(name, _OPS[name][0](n, shape, generator))


def apply(draw: Draw, images: Tensor) -> Tensor:
    """Augment a batch: a pure function of the draw and the images, differentiable in the images.

    Args:
        draw: made for the same number of images, of the same shape.
        images: (n, c, h, w), any floating dtype, any device, in model space.

    Returns:
        (n, c, h, w), same dtype and device; the input itself if the operation is "none".

    Raises:
        ValueError: the draw is for another number of images.
    """
    if draw.op == "none":
        return images
    counts = {len(value) for value in draw.params.values()}
    if counts != {len(images)}:
        raise ValueError(f"a draw of {draw.op!r} for {sorted(counts)} images meets a batch of {len(images)}")
    params = {name: value.to(images.device) for name, value in draw.params.items()}
    return _OPS[draw.op][1](images, params)


def some(draw: Draw, rows: slice) -> Draw:
    """The draw of some images of a batch, which augments them as `draw` does."""
    return Draw(draw.op, {name: value[rows] for name, value in draw.params.items()})


def siamese(draw: Draw, n: int) -> Draw:
    """Siamese version of a draw: the parameters of its first image, repeated for `n` images."""
    return Draw(draw.op, {name: value[:1].expand(n, *value.shape[1:]) for name, value in draw.params.items()})


def draw_sequence(strategy: str, n: int, shape: Shape, generator: Generator) -> list[Draw]:
    """Draw IDC's augmentation (Kim et al., ICML 2022), a sequence of operations to apply in order.

    DSA applies one operation of the strategy.  IDC applies flip and color, then one of crop, scale and rotate chosen
    uniformly, then cutout; operations that the strategy does not name are skipped.

    Args:
        strategy: see `operations`.
        n: number of images in the batch.
        shape: (channels, height, width) of an image.
        generator: a CPU generator.
    """
    names = operations(strategy)
    moving = [name for name in names if name in ("crop", "scale", "rotate")]
    chosen = [moving[int(torch.randint(len(moving), (), generator=generator))]] if moving else []
    order = [name for name in ("flip", "color", *chosen, "cutout") if name in names]
    return [Draw(name, _OPS[name][0](n, shape, generator)) for name in order]


def augment(strategy: str, images: Tensor, generator: Generator) -> Tensor:
    """Draw and apply in one call, if the draw is not needed again.

    Args:
        strategy: see `operations`.
        images: (n, c, h, w), floating point.
        generator: a CPU generator.
    """
    n, c, h, w = images.shape
    return apply(draw(strategy, n, (c, h, w), generator), images)


# --- color: brightness, then saturation, then contrast -------------------------------------------------------------


def _draw_color(n: int, shape: Shape, generator: Generator) -> Params:
    u = torch.rand(3, n, generator=generator)
    return {"brightness": u[0] - 0.5, "saturation": 2 * u[1], "contrast": u[2] + 0.5}


def _color(images: Tensor, p: Params) -> Tensor:
    brightness, saturation, contrast = (
        p[name].to(images.dtype).view(-1, 1, 1, 1) for name in ("brightness", "saturation", "contrast")
    )
    images = images + brightness
    if images.shape[1] > 1:  # grey images have no saturation
        grey = images.mean(1, keepdim=True)
        images = (images - grey) * saturation + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


# --- crop: whole-pixel translation, filled with zeros --------------------------------------------------------------


def _draw_crop(n: int, shape: Shape, generator: Generator) -> Params:
    reach = [int(side * CROP + 0.5) for side in shape[1:]]
    return {"shift": torch.stack([_integers(-r, r, n, generator) for r in reach], 1)}


def _crop(images: Tensor, p: Params) -> Tensor:
    h, w = images.shape[2:]
    rows, columns = (_along(side, p["shift"][:, axis, None]) for axis, side in enumerate((h, w)))
    # positions outside the image fall on its zero margin
    rows, columns = rows.clamp(-1, h) + 1, columns.clamp(-1, w) + 1
    index = rows[:, :, None] * (w + _MARGIN) + columns[:, None, :]
    return _gather(_margin(images), index.flatten(1)).view_as(images)


# --- cutout: a square of zeros, clipped at the border --------------------------------------------------------------


def _draw_cutout(n: int, shape: Shape, generator: Generator) -> Params:
    # the centre of an even square is between pixels, so there is one more position
    last = [side - int(side * CUTOUT + 0.5) % 2 for side in shape[1:]]
    return {"centre": torch.stack([_integers(0, high, n, generator) for high in last], 1)}


def _cutout(images: Tensor, p: Params) -> Tensor:
    inside = []
    for axis, side in enumerate(images.shape[2:]):
        square = int(side * CUTOUT + 0.5)
        offset = _along(side, square // 2 - p["centre"][:, axis, None])
        inside.append((offset >= 0) & (offset < square))
    erased = inside[0][:, :, None] & inside[1][:, None, :]
    return images.masked_fill(erased[:, None], 0)


# --- flip ----------------------------------------------------------------------------------------------------------


def _draw_flip(n: int, shape: Shape, generator: Generator) -> Params:
    return {"flip": torch.rand(n, generator=generator) < 0.5}


def _flip(images: Tensor, p: Params) -> Tensor:
    return torch.where(p["flip"].view(-1, 1, 1, 1), images.flip(3), images)


# --- scale and rotate: bilinear, zeros outside, corner pixels at -1 and 1 ------------------------------------------


def _draw_scale(n: int, shape: Shape, generator: Generator) -> Params:
    return {"scale": torch.rand(n, 2, generator=generator) * (SCALE - 1 / SCALE) + 1 / SCALE}


def _scale(images: Tensor, p: Params) -> Tensor:
    return _affine(images, torch.diag_embed(p["scale"].to(_geometry_type(images))))


def _draw_rotate(n: int, shape: Shape, generator: Generator) -> Params:
    return {"angle": (2 * torch.rand(n, generator=generator) - 1) * ROTATE}


def _rotate(images: Tensor, p: Params) -> Tensor:
    angle = p["angle"].to(_geometry_type(images))
    cos, sin = angle.cos(), angle.sin()
    return _affine(images, torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2))


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Affine transform by matrices (n, 2, 2) in (x, y) order: `affine_grid` and `grid_sample` with align_corners=True.

    It uses gathers and constant weights, because the backward pass of `grid_sample` is not differentiable.
    """
    h, w = images.shape[2:]
    m = matrix[:, :, :, None, None]
    x, y = _axis(w, matrix), _axis(h, matrix)[:, None]
    column, right = _taps(m[:, 0, 0] * x, m[:, 0, 1] * y, w)
    row, below = _taps(m[:, 1, 0] * x, m[:, 1, 1] * y, h)
    index = torch.add(column, row, alpha=w + _MARGIN).flatten(1)
    right, below = (weight.flatten(1)[:, None].to(images.dtype) for weight in (right, below))
    flat = _margin(images)
    # the four neighbours share one index, into views that start one pixel or one row later
    corner, beside, under, across = (_gather(flat[:, :, k:], index) for k in (0, 1, w + _MARGIN, w + _MARGIN + 1))
    upper, lower = torch.lerp(corner, beside, right), torch.lerp(under, across, right)
    return torch.lerp(upper, lower, below).view_as(images)


def _taps(a: Tensor, b: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Bilinear taps of positions a + b in [-1, 1]: the preceding pixel, margin included, and the next one's weight."""
    half = (side - 1) / 2
    # scale a and b while they are still rows and columns; only their sum has the size of the images
    place = (half * a + (half + 1) + half * b).clamp_(0, side + 1)
    return place.long(), place.frac()


# --- small parts ---------------------------------------------------------------------------------------------------


def _integers(low: int, high: int, n: int, generator: Generator) -> Tensor:
    return torch.randint(low, high + 1, (n,), generator=generator)


def _along(side: int, offset: Tensor) -> Tensor:
    return torch.arange(side, device=offset.device) + offset


def _axis(side: int, like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, side, dtype=like.dtype, device=like.device) if side > 1 else like.new_zeros(1)


def _geometry_type(images: Tensor) -> torch.dtype:
    return torch.promote_types(images.dtype, torch.float32)  # half precision cannot resolve pixel positions


def _margin(images: Tensor) -> Tensor:
    return F.pad(images, (1, 2, 1, 2)).flatten(2)


def _gather(flat: Tensor, index: Tensor) -> Tensor:
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))


_OPS: dict[str, tuple[Callable[[int, Shape, Generator], Params], Callable[[Tensor, Params], Tensor]]] = {
    "color": (_draw_color, _color),
    "crop": (_draw_crop, _crop),
    "cutout": (_draw_cutout, _cutout),
    "flip": (_draw_flip, _flip),
    "scale": (_draw_scale, _scale),
    "rotate": (_draw_rotate, _rotate),
}
