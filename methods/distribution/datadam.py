"""DataDAM: dataset distillation with attention matching (Sajedi et al., ICCV 2023, arXiv:2310.00093)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dd.engine.accumulate import Terms
from dd.engine.method import Objective, Synthetic, Task
from dd.engine.registry import register
from dd.errors import UsageError
from dd.networks import captured, embed, portions
from dd.networks.portion import PORTION

from ._classes import Group, class_means
from .dm import DM

LOW_RESOLUTION = 32  # largest side in pixels that the paper calls low resolution (CIFAR)


def attention(maps: Tensor, power: float) -> Tensor:
    """Spatial attention (n, h w) of feature maps F (n, c, h, w): sum over channels of |F|^power, L2-normalised."""
    summed = maps.abs().pow(power) if power != 1 else maps.abs()
    return F.normalize(summed.sum(1).flatten(1), dim=1, eps=1e-12)


@register("datadam")
@dataclass(frozen=True)
class DataDAM(DM):
    """Attention matching: a random network's mean attention maps and mean features agree on real and synthetic images.

        L = 100 sum over classes, layers of || mean attention of A(real) - mean attention of A(synthetic) ||^2
          + 100 weight sum over classes of || mean feature of A(real) - mean feature of A(synthetic) ||^2

    Attention is that of every activation layer but the last, normalised per image before averaging.

    1. Draw a random network, a batch of real images per class and one siamese augmentation A per class.
    2. Compute attention maps and features of real and synthetic images.
    3. Take one SGD step on the synthetic images.

    The factor of 100 and the sum over classes come from the released code.  Paper and code disagree about the norm, the
    power and the number of iterations; recipes have both, as `preset=paper` and `preset=code`.
    """

    paper = "https://arxiv.org/abs/2310.00093"

    lr_img: Annotated[float, Field(gt=0)] = 1.0
    """SGD learning rate of the pixels; by default the paper's, 1 up to ipc 50 and 10 above."""
    power: Annotated[float, Field(gt=0)] = 4.0
    """Power of the attention [p]."""
    weight: Annotated[float | None, Field(ge=0)] = None
    """Weight of the feature term [lambda]; None for the paper's values: 0.01 up to 32 pixels, 0.02 above."""

    @classmethod
    def by_ipc(cls, ipc: int) -> Mapping[str, Any]:
        """The paper's learning rates."""
        return {"lr_img": 1.0 if ipc <= 50 else 10.0}

    def settle(self, task: Task) -> Self:
        """Resolve the chunk size, and the weight from the image size."""
        weight = 0.01 if task.data.size <= LOW_RESOLUTION else 0.02
        return replace(super().settle(task), weight=weight if self.weight is None else self.weight)

    def loss(self, syn: Synthetic, task: Task, prepared: None, it: int) -> Objective:
        """The distances of mean attention maps and of mean features."""
        network, weight = task.network("matching", it).requires_grad_(False), self.weight
        assert weight is not None, "settled"

        def seen(images: Tensor) -> list[Tensor]:
            """Attention (n, h w) of each layer but the last, and features (n, d)."""
            with captured(network, (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus)) as maps:
                features = embed(network, images)
            spatial = [m for m in maps if m.dim() == 4]
            if len(spatial) < 2:
                raise UsageError(
                    f"student.arch={task.student.arch} has {len(spatial)} maps behind activations, but attention is "
                    "matched on all but the last: use a convolutional architecture"
                )
            return [*(attention(m, self.power) for m in spatial[:-1]), features]

        def discrepancy(group: Group) -> Terms:
            with torch.no_grad():  # smaller portions, because all maps are kept until their attention is known
                each = zip(*(seen(part) for part in portions(network, group.real, PORTION // 2)), strict=True)
                *real_maps, real = (class_means(torch.cat(parts), group.real_sizes) for parts in each)
            *maps, ours = (class_means(found, group.sizes) for found in seen(group.synthetic))
            apart = torch.stack([(a - b).square().sum() for a, b in zip(real_maps, maps, strict=True)]).sum()
            return {"attention": 100 * apart, "features": 100 * weight * (real - ours).square().sum()}

        return self.summed(syn, task, it, network, discrepancy, ("attention", "features"))
