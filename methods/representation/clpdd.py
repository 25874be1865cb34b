"""CLP-DD: dataset distillation with closed-form linear probes (arXiv:2605.07194, 2026)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from dd.engine.method import Objective
from dd.engine.registry import register
from dd.training.ridge import dual_weights, share_of_trace
from dd.views import ViewPolicy

from ._frozen import FrozenHead, NoiseSettings


def probe_loss(ours: Tensor, labels: Tensor, real: Tensor, classes: Tensor, ridge: float, tau: float) -> Tensor:
    """CE(softmax(φ_r W / τ), y_r) of the ridge head W = Φᵀ (ΦΦᵀ + λI)⁻¹ Y with λ = ridge · tr(ΦΦᵀ) / m.

    Args:
        ours: Φ (m, d).
        labels: Y (m, k).
        real: φ_r (b, d).
        classes: y_r (b, k).
        ridge: the penalty, as a share of the mean diagonal of the kernel.
        tau: the temperature.
    """
    penalty = share_of_trace(ours @ ours.T, ridge / len(ours))
    return F.cross_entropy(real @ dual_weights(ours, labels, penalty) / tau, classes)


@register("clpdd")
@dataclass(frozen=True)
class CLPDD(FrozenHead):
    """Closed-form linear probes: the ridge head of the synthetic images classifies real images well.

        W = Φᵀ (ΦΦᵀ + lambda I)⁻¹ Y,   L = CE( softmax(φ(x_r) W / tau), y_r )

    with Φ the features of the synthetic images under a frozen encoder.

    1. Solve for W, exactly, in the space of the synthetic images.
    2. Compute the cross-entropy of a batch of real images.
    3. Take one Adam step on the images.

    The paper's values of lambda, tau, learning rate and iterations, its normalisation and its parameters of images are
    not public: the defaults are ours.
    """

    paper = "https://arxiv.org/abs/2605.07194"

    ridge: Annotated[float, Field(gt=0)] = 0.1
    """Penalty of the ridge head, as a share of the mean diagonal of the kernel [lambda]."""
    tau: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the softmax."""
    normalise: bool = True
    """Whether features are scaled to unit length."""
    variables: Literal["pyramid", "pixels"] = "pixels"
    """Variables of the images: the levels of a "pyramid", or "pixels" in model space."""
    copies: Annotated[int, Field(ge=1)] = 1
    """Views of each synthetic image per iteration."""
    batch_real: Annotated[int, Field(ge=1)] | None = 1024
    """Real images per iteration, of all classes together; None: as many as views of synthetic images."""
    views: ViewPolicy = field(default_factory=ViewPolicy)
    """How views of real and synthetic images are drawn; without any operation, real features are computed once."""
    noise: NoiseSettings = field(default_factory=lambda: NoiseSettings(share=0.0))
    """Noise on the views."""

    def objective(self, ours: Tensor, labels: Tensor, real: Tensor, classes: Tensor, rng: Generator) -> Objective:
        """The cross-entropy of the ridge head on real images."""
        if self.normalise:
            ours, real = F.normalize(ours), F.normalize(real)
        return probe_loss(ours, labels, real, classes, self.ridge, self.tau)
