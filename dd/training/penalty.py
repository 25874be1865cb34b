"""The gradient penalty of smooth experts (AST, Shen et al. 2023, arXiv:2310.10541; formula of its released code)."""

import torch
from torch import Tensor


def gradient_penalty(slope: Tensor) -> Tensor:
    """Mean over images and pixels of (||s||_2 - 1)^2, the norm running over the channels of one pixel.

    Args:
        slope: (n, c, h, w), the derivative of the sum of an image's logits by the image.
    """
    return (torch.linalg.vector_norm(slope, dim=1) - 1).square().mean()
