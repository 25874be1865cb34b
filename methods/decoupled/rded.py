"""RDED: on the diversity and realism of distilled data sets (Sun et al., CVPR 2024, arXiv:2312.03526)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from dd.engine.method import Synthetic, Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register

from ._crops import BLOCK, CropSettings, Patches, require_enough
from ._teachers import Committee, Taught


@register("rded")
@dataclass(frozen=True)
class RDED(Taught):
    """Crops of real images that a teacher knows best, several stitched to an image; nothing is optimised.

    With one tile per image, the authors' choice at 32 and 64 pixels, it picks crops and stitches nothing.
    """

    paper = "https://arxiv.org/abs/2312.03526"

    crops: CropSettings = field(default_factory=CropSettings)
    """Which crops."""

    def settle(self, task: Task) -> Self:
        """Nothing is left to decide; classes with too few images are refused before a teacher is trained.

        Raises:
            UsageError: see above; or the data are whitened.
        """
        settled = super().settle(task)
        require_enough(task, self.crops)
        return settled

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """Teachers, and the images that they choose."""
        return [*super().needs(task), self.patches(task)]

    def patches(self, task: Task) -> Patches:
        """The stitched images."""
        return Patches(task, self.crops, self.staff(task))

    def prepare(self, task: Task, got: Got) -> Committee:
        """Teachers, and the images that they choose."""
        return replace(super().prepare(task, got), patches=got[self.patches(task)])

    def parts(self, task: Task) -> Sequence[Tensor]:
        """So many classes at a time, for their memory."""
        places, targets = torch.arange(len(task.targets)), task.targets.cpu()
        blocks = [places[(targets >= first) & (targets < first + BLOCK)] for first in range(0, task.classes, BLOCK)]
        return [block for block in blocks if len(block)]

    def start(self, task: Task, prepared: Committee) -> Synthetic:
        """The stitched images, with hard labels."""
        assert prepared.patches is not None
        pixels = prepared.patches.take(task.targets, task.ranks).to(task.device)
        return Synthetic(task.data.preprocess(pixels), task.targets)
