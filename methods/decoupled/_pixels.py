"""Conversions between model space and pixels."""

import torch
from torch import Tensor

from dd.data import Preprocess


@torch.no_grad()
def to_bytes(preprocess: Preprocess, images: Tensor) -> Tensor:
    """Convert images in model space to uint8 (n, c, h, w), clamped and rounded."""
    return (preprocess.invert(images).clamp(0, 1) * 255).round().byte()


@torch.no_grad()
def clip_(preprocess: Preprocess, images: Tensor) -> Tensor:
    """Clamp images in model space, in place, to the range from black to white of each channel."""
    black = preprocess.encode(images.new_zeros(1, images.shape[1], 1, 1))
    white = preprocess.encode(images.new_ones(1, images.shape[1], 1, 1))
    return images.copy_(images.clamp(black, white))
