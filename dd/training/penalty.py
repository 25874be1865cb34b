"""The gradient penalty of AST's smooth experts (Shen et al. 2023, arXiv:2310.10541), as in its released code."""

import torch
from torch import Tensor


def gradient_penalty(slope: Tensor) -> Tensor:
    """Mean over images and pixels of (||s||_2 - 1)^2, with the norm over the channels of a pixel.

    Args:
        slope: s, (n, c, h, w), the gradient of the sum of an image's logits with respect to the image.
    """
    return (torch.linalg.vector_norm(slope, dim=1) - 1).square().mean()
