"""SRe2L: squeeze, recover and relabel (Yin et al., NeurIPS 2023, arXiv:2306.13092)."""

from dataclasses import dataclass

from dd.engine.registry import register

from ._recover import Recovered


@register("sre2l")
@dataclass(frozen=True)
class SRe2L(Recovered):
    """Images from noise that a teacher recognises and that leave its BatchNorm statistics unmoved.

    One image per class in a batch, and one crop, one flip and one shift per iteration for all of them.  What is kept is
    the last iterate; the released code means to keep the best one and keeps the last.
    """

    paper = "https://arxiv.org/abs/2306.13092"
