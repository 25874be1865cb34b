"""RDED: on the diversity and realism of distilled data sets (Sun et al., CVPR 2024, arXiv:2312.03526)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dd.engine.method import Synthetic, Task
from dd.engine.registry import register
from dd.training.teachers import teacher_keys

from ._crops import BLOCK, CropSettings, patch_needs, real_patches, require_enough
from ._teachers import Committee, Taught


@register("rded")
@dataclass(frozen=True)
class RDED(Taught):
    """Crops of real images that a teacher knows best, several stitched to an image; nothing is optimised.

    With one tile per image, the authors' choice at 32 and 64 pixels, it picks crops and stitches nothing.

    Attributes beyond those of all of the family:
        crops: which crops.
    """

    paper = "https://arxiv.org/abs/2312.03526"

    crops: CropSettings = field(default_factory=CropSettings)

    def needs(self, task: Task) -> Sequence[tuple[str, Mapping[str, Any], str]]:
        """Teachers and stitched images."""
        return [*super().needs(task), *patch_needs(task, self.crops, self._keys(task))]

    def prepare(self, task: Task) -> Committee:
        """Teachers, and the images that they choose."""
        require_enough(task, self.crops)
        made = super().prepare(task)
        networks = [teacher.network for teacher in made.teachers]
        return replace(made, patches=real_patches(task, self.crops, self._keys(task), networks))

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

    def _keys(self, task: Task) -> list[dict[str, Any]]:
        return teacher_keys(task, self.teachers, self.squeeze)
