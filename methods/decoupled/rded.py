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
    """Crops of real images that a teacher is most confident of, stitched to images; nothing is optimised.

    1. Cut random crops of real images, and score each by the teacher's cross-entropy for its class.
    2. Keep the best crop of each image, and of these the best n f^2 per class.
    3. Stitch f x f crops to an image.
    4. Label views with the teacher.

    The official code uses f = 1 at 32 and 64 pixels: it selects crops and stitches nothing.
    """

    paper = "https://arxiv.org/abs/2312.03526"

    crops: CropSettings = field(default_factory=CropSettings)
    """How crops are selected."""

    def settle(self, task: Task) -> Self:
        """Refuse classes with too few images before a teacher is trained; nothing else to resolve.

        Raises:
            UsageError: a class has too few images, or the data are whitened.
        """
        settled = super().settle(task)
        require_enough(task, self.crops)
        return settled

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The teachers and the stitched images."""
        return [*super().needs(task), self.patches(task)]

    def patches(self, task: Task) -> Patches:
        """The need for the stitched images."""
        return Patches(task, self.crops, self.staff(task))

    def prepare(self, task: Task, got: Got) -> Committee:
        """The teachers and the stitched images."""
        return replace(super().prepare(task, got), patches=got[self.patches(task)])

    def parts(self, task: Task) -> Sequence[Tensor]:
        """Blocks of classes, to bound memory."""
        places, targets = torch.arange(len(task.targets)), task.targets.cpu()
        blocks = [places[(targets >= first) & (targets < first + BLOCK)] for first in range(0, task.classes, BLOCK)]
        return [block for block in blocks if len(block)]

    def start(self, task: Task, prepared: Committee) -> Synthetic:
        """The stitched images, with hard labels."""
        assert prepared.patches is not None
        pixels = prepared.patches.take(task.targets, task.ranks).to(task.device)
        return Synthetic(task.data.preprocess(pixels), task.targets)
