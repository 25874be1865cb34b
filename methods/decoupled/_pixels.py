"""Images in model space as the pixels that they are saved as."""

import torch
from torch import Tensor

from dd.data import Preprocess


@torch.no_grad()
def to_bytes(preprocess: Preprocess, images: Tensor) -> Tensor:
    """uint8 (n, c, h, w) of images in model space, rounded."""
    return (preprocess.invert(images).clamp(0, 1) * 255).round().byte()


@torch.no_grad()
def clip_(preprocess: Preprocess, images: Tensor) -> Tensor:
    """Bring pixels in place into the range from black to white, channel by channel."""
    black = preprocess.encode(images.new_zeros(1, images.shape[1], 1, 1))
    white = preprocess.encode(images.new_ones(1, images.shape[1], 1, 1))
    return images.copy_(images.clamp(black, white))
