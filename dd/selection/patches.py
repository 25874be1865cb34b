"""Patches of images: which are kept, and the pixels that belong to them (Dataset Quantization: Zhou et al., ICCV 2023).

An image of s x s pixels is divided into g x g patches, numbered row by row: pixel (y, x) belongs to the patch in row
floor((y + 1/2) g / s) and column floor((x + 1/2) g / s).  If g does not divide s, the patches differ in size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kept_patches(importance: Tensor, grid: int, drop: float) -> Tensor:
    """Keep the most important patches of every image.

    Args:
        importance: (n, h, w), a map of each image at any resolution; resized to the grid.
        grid: patches per side [g].
        drop: share of patches to drop [m], 0 to 1.

    Returns:
        bool (n, g²): the floor(g² (1 - m)) patches of largest importance; ties: lowest number.
    """
    resized = importance[:, None].double()
    if tuple(importance.shape[1:]) != (grid, grid):
        resized = F.interpolate(resized, (grid, grid), mode="bilinear", antialias=True)
    order = resized.flatten(1).argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros(len(importance), grid**2, dtype=torch.bool, device=importance.device)
    return kept.scatter_(1, order[:, : kept_count(grid, drop)], True)


def kept_count(grid: int, drop: float) -> int:
    """Number of patches that are kept, floor(g² (1 - m)); 156 of 196 for m = 0.2."""
    return int(grid**2 * (1 - drop) + 1e-9)  # not one less because of rounding


def visible(kept: Tensor, size: int) -> Tensor:
    """The pixels that belong to kept patches.

    Args:
        kept: bool (n, g²).
        size: side of the images in pixels, at least g.

    Returns:
        bool (n, 1, size, size).
    """
    grid = round(kept.shape[1] ** 0.5)
    line = ((torch.arange(size, device=kept.device) * 2 + 1) * grid) // (2 * size)
    return kept.view(-1, grid, grid)[:, line][:, :, line][:, None]


def pasted(original: Tensor, reconstructed: Tensor, kept: Tensor) -> Tensor:
    """Images with the original pixels in the kept patches, and reconstructed ones elsewhere.

    Args:
        original: (n, c, s, s), any dtype.
        reconstructed: (n, c, s, s), the same dtype.
        kept: bool (n, g²).
    """
    return torch.where(visible(kept, original.shape[-1]), original, reconstructed)
