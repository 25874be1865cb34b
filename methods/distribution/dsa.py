"""DSA: dataset condensation with differentiable siamese augmentation (Zhao & Bilen, ICML 2021, arXiv:2102.08259)."""

from dataclasses import dataclass
from typing import Literal

from dd.engine.registry import register

from .dc import DC


@register("dsa")
@dataclass(frozen=True)
class DSA(DC):
    """Gradient matching under siamese augmentation: DC with one random change for a class's real and synthetic images.

    The network between two updates is trained on augmented images too.
    """

    paper = "https://arxiv.org/abs/2102.08259"

    start_from: Literal["real", "noise"] = "real"
    augment: bool = True
