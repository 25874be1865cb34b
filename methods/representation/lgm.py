"""LGM: dataset distillation for pre-trained vision models (Cazenavette et al., NeurIPS 2025, arXiv:2511.16674)."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from dd.engine.method import Objective
from dd.engine.registry import register
from dd.training.ridge import with_bias

from ._frozen import FrozenHead


def head_gradient(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gradient (k, d + 1) of the mean cross-entropy of a linear head: (softmax(Wφ + b) - y) [φ, 1]ᵀ, averaged.

    Args:
        features: φ (n, d).
        labels: y (n, k), class probabilities.
        weight: W (k, d).
        bias: b (k,).
    """
    residual = (features @ weight.T + bias).softmax(1) - labels
    return residual.T @ with_bias(features) / len(features)


@register("lgm")
@dataclass(frozen=True)
class LGM(FrozenHead):
    """Linear gradient matching: random linear heads on a frozen encoder get the same gradient from both kinds of image.

        L = 1 - cos( grad_(W,b) CE(real views), grad_(W,b) CE(synthetic views) ),   W ~ N(0, scale²), b = 0

    The cosine is over the whole vector of the gradient, which has a closed form.  Images are pyramids in decorrelated
    colours, to which a finer level is added at regular intervals.

    1. Draw a head, and a batch of real images from all classes together.
    2. Compute both gradients, on augmented views.
    3. Take one Adam step on the levels of the pyramid.

    Crops are torchvision's; the official code's may be larger than the image, filled with zeros.
    """

    paper = "https://arxiv.org/abs/2511.16674"

    scale: Annotated[float, Field(ge=0)] = 0.01
    """Standard deviation of the weights of the random heads; the paper's text has 1 and no bias."""

    def objective(self, ours: Tensor, labels: Tensor, real: Tensor, classes: Tensor, rng: Generator) -> Objective:
        """One minus the cosine of the two gradients."""
        weight = self.scale * torch.randn(labels.shape[1], ours.shape[1], generator=rng).to(ours)
        bias = ours.new_zeros(labels.shape[1])
        target = head_gradient(real, classes, weight, bias).flatten()
        return 1 - F.cosine_similarity(head_gradient(ours, labels, weight, bias).flatten(), target, dim=0)
