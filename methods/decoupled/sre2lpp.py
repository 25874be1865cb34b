"""SRe2L++: SRe2L from real patches, with batch-specific labels (Cui et al., CV-DD, arXiv:2501.07575)."""

from dataclasses import dataclass, field
from typing import Literal

from dd.engine.registry import register
from dd.labels import LabelSettings

from ._crops import CropSettings
from .sre2l import SRe2L


@register("sre2lpp")
@dataclass(frozen=True)
class SRe2LPlusPlus(SRe2L):
    """SRe2L that starts from real patches of medium difficulty, with labels from batch statistics.

    The authors ship their patches as files and do not define easy, medium and hard.  Here patches are ranked by the
    teachers' cross-entropy, and the medium ones are the middle of the ranking; that is our completion.
    """

    paper = "https://arxiv.org/abs/2501.07575"

    start_from: Literal["noise", "real", "crops"] = "crops"
    crops: CropSettings = field(default_factory=lambda: CropSettings(order="medium"))
    labels: LabelSettings = field(default_factory=lambda: LabelSettings(teacher_mode="batch"))
