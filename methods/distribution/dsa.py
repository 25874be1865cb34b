"""DSA: dataset condensation with differentiable siamese augmentation (Zhao & Bilen, ICML 2021, arXiv:2102.08259)."""

from dataclasses import dataclass
from typing import Literal

from dd.engine.registry import register

from .dc import DC


@register("dsa")
@dataclass(frozen=True)
class DSA(DC):
    """Gradient matching under siamese augmentation: DC with one shared augmentation per class.

        L = sum over classes c of D( grad_theta CE(A_c(real images)), grad_theta CE(A_c(synthetic images)) )

    The draw A_c is the same for the real and synthetic images of a class.  The steps are DC's; between image updates,
    the network is trained on augmented images as well.
    """

    paper = "https://arxiv.org/abs/2102.08259"

    start_from: Literal["real", "noise"] = "real"
    augment: bool = True
