"""Mosaics: several small images stored in one, IDC's multi-formation (Kim et al., ICML 2022, arXiv:2205.14959).

With decode factor f, a stored image is a mosaic of f x f tiles; each tile is upsampled to a training image.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dd.data import Preprocess

GREY = 0.5  # value of the padding pixels, as in the official code


def decode(images: Tensor, factor: int) -> Tensor:
    """Decode mosaics into training images; differentiable.

    If a side is not divisible by the factor, mid-grey padding at the right and bottom makes all tiles the same size.

    Args:
        images: pixels (n, c, h, w), 0 black and 1 white.
        factor: tiles per side.

    Returns:
        (n * factor^2, c, h, w), upsampled bilinearly: first tile of all images, then the second, ..., in row-major
        order.
    """
    if factor == 1:
        return images
    h, w = images.shape[2:]
    tile_h, tile_w = -(-h // factor), -(-w // factor)
    images = F.pad(images, (0, tile_w * factor - w, 0, tile_h * factor - h), value=GREY)
    rows = images.split(tile_h, 2)
    tiles = torch.cat([tile for row in rows for tile in row.split(tile_w, 3)])
    return F.interpolate(tiles, size=(h, w), mode="bilinear", align_corners=False)


def decoded(images: Tensor, factor: int, preprocess: "Preprocess") -> Tensor:
    """`decode` for mosaics in model space: convert to pixels, decode, convert back."""
    if factor == 1:
        return images
    if preprocess.kind == "standard" and images.shape[2] % factor == images.shape[3] % factor == 0:
        return decode(images, factor)  # upsampling commutes with a scale and shift per channel
    return preprocess.encode(decode(preprocess.invert(images), factor))


def mosaic(images: Tensor, factor: int, side: int | None = None) -> Tensor:
    """Downsample images (nearest neighbour) and combine each group of factor^2 into one mosaic.

    If a side is not divisible by the factor, the first rows and columns of tiles are one pixel larger.

    Args:
        images: (n * factor^2, c, h, w); consecutive images form a group.
        factor: tiles per side.
        side: height and width of the result in pixels; None: those of the images.

    Returns:
        (n, c, h, w), or (n, c, side, side).
    """
    if factor == 1 and side is None:
        return images
    h, w = images.shape[2:] if side is None else (side, side)
    groups = images.view(-1, factor, factor, *images.shape[1:])
    rows = []
    for i in range(factor):
        tiles = [
            F.interpolate(groups[:, i, j], size=(_part(h, factor, i), _part(w, factor, j)), mode="nearest")
            for j in range(factor)
        ]
        rows.append(torch.cat(tiles, 3))
    return torch.cat(rows, 2)


def decoded_labels(labels: Tensor, factor: int, n: int) -> Tensor:
    """Labels (n * factor^2, ...) of the images that `decode` returns, given one per mosaic or one per decoded image."""
    if len(labels) == n * factor**2:
        return labels
    return labels.repeat(factor**2, *[1] * (labels.dim() - 1))


def _part(side: int, factor: int, number: int) -> int:
    return side // factor + (number < side % factor)
