"""Several small images stored in one: the multi-formation of IDC (Kim et al., ICML 2022, arXiv:2205.14959).

An image of a set with decode factor f is a mosaic of f x f tiles; each tile, enlarged, is a training image.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dd.data import Preprocess

GREY = 0.5  # of a pixel that pads a mosaic, as in the official code


def decode(images: Tensor, factor: int) -> Tensor:
    """The training images that mosaics stand for; differentiable.

    Where the side does not divide, mid-grey is added at the right and below, so that all tiles are as large.

    Args:
        images: (n, c, h, w) pixels where 0 is black and 1 white.
        factor: tiles per side.

    Returns:
        (n * factor^2, c, h, w), enlarged bilinearly: the first tile of all images, then their second, row by row.
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
    """`decode` for mosaics in model space: what they stand for as pixels, taken to model space."""
    if factor == 1:
        return images
    if preprocess.kind == "standard" and images.shape[2] % factor == images.shape[3] % factor == 0:
        return decode(images, factor)  # one scale and shift per channel goes through an enlargement
    return preprocess.encode(decode(preprocess.invert(images), factor))


def mosaic(images: Tensor, factor: int, side: int | None = None) -> Tensor:
    """Put groups of factor^2 images, made smaller by taking the nearest pixels, into one image each.

    Where the side does not divide, the first rows and columns of tiles are a pixel larger.

    Args:
        images: (n * factor^2, c, h, w); consecutive ones go together.
        factor: tiles per side.
        side: height and width of the result in pixels, where it is not that of the images.

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
    """Labels (n * factor^2, ...) of what `decode` gives of n images, from one label per image or per decoded image."""
    if len(labels) == n * factor**2:
        return labels
    return labels.repeat(factor**2, *[1] * (labels.dim() - 1))


def _part(side: int, factor: int, number: int) -> int:
    return side // factor + (number < side % factor)
