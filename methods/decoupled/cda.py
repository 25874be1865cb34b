"""CDA: curriculum data augmentation (Yin & Shen, TMLR 2024, arXiv:2311.18838)."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from dd.engine.registry import register

from .sre2l import SRe2L


@dataclass(frozen=True)
class Curriculum:
    """Schedule of the smallest crop share a_t, from the whole image to its final value a.

        cosine: a_t = a + (1 - a) (1 + cos(pi t / t_m)) / 2;   linear: a_t = a + (1 - a) (1 - t / t_m);   step: a_t = 1

    for t < t_m = milestone * iterations, and a_t = a afterwards.
    """

    shape: Literal["cosine", "linear", "step"] = "cosine"
    """How the share falls: "cosine", "linear", or "step" (the whole image until the milestone)."""
    milestone: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the iterations after which the final value is reached; 0 for no curriculum, which is SRe2L."""
    reverse: bool = False
    """Run the schedule backwards, from the final value to the whole image, as a control."""

    def __call__(self, it: int, iterations: int, last: float) -> float:
        """The smallest share of the area that a crop keeps in iteration `it`; it moves from 1 to `last`."""
        arrived = self.milestone * iterations
        if it >= arrived:
            left = 0.0
        elif self.shape == "cosine":
            left = (1 + math.cos(math.pi * it / arrived)) / 2
        else:
            left = 1.0 if self.shape == "step" else 1 - it / arrived
        share = last + (1 - last) * left
        return min(1.0, 1 + last - share if self.reverse else share)


@register("cda")
@dataclass(frozen=True)
class CDA(SRe2L):
    """SRe2L with a curriculum of crops, from the whole image to small crops: first outlines, then details."""

    paper = "https://arxiv.org/abs/2311.18838"

    curriculum: Curriculum = field(default_factory=Curriculum)
    """Schedule of the smallest crop share, from 1 to `crop`."""

    def least(self, it: int) -> float | None:
        """The curriculum's share in iteration `it`."""
        return None if self.crop is None else self.curriculum(it, self.iterations, self.crop)
