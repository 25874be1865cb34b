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
from dd.networks import captured, embed

from ._classes import Group, class_means
from .dm import DM

LOW_RESOLUTION = 32  # pixels: CIFAR's, in the paper's words


def attention(maps: Tensor, power: float) -> Tensor:
    """(n, h w) spatial attention of feature maps (n, c, h, w): sum over channels of |F|^power, each of norm 1."""
    summed = maps.abs().pow(power) if power != 1 else maps.abs()
    return F.normalize(summed.sum(1).flatten(1), dim=1, eps=1e-12)


@register("datadam")
@dataclass(frozen=True)
class DataDAM(DM):
    """Attention matching: where a random network looks in the classes, and their mean features.

    L = 100 sum over classes and layers of || mean attention of real - of synthetic images ||^2
      + 100 weight sum over classes of || mean feature of real - of synthetic images ||^2,
    with the attention of every activation but the last, each image's normalised before the mean.  The factor of 100 and
    the sum over classes are the released code's.  Paper and code disagree about the norm, the power and the number of
    iterations: recipes have both as `preset=paper` and `preset=code`.
    """

    paper = "https://arxiv.org/abs/2310.00093"

    lr_img: Annotated[float, Field(gt=0)] = 1.0
    """SGD learning rate of the pixels; the paper's, where nothing else is said: 1 up to ipc 50, 10 beyond."""
    power: Annotated[float, Field(gt=0)] = 4.0
    """Power of the attention [p]."""
    weight: Annotated[float | None, Field(ge=0)] = None
    """Weight of the features' term [lambda]; None for the paper's table: 0.01 up to 32 pixels, 0.02 above."""

    @classmethod
    def by_ipc(cls, ipc: int) -> Mapping[str, Any]:
        """The paper's learning rates."""
        return {"lr_img": 1.0 if ipc <= 50 else 10.0}

    def settle(self, task: Task) -> Self:
        """Chunks as DM's, and the weight by the images' size."""
        weight = 0.01 if task.data.size <= LOW_RESOLUTION else 0.02
        return replace(super().settle(task), weight=weight if self.weight is None else self.weight)

    def loss(self, syn: Synthetic, task: Task, prepared: None, it: int) -> Objective:
        """The distance of mean attention maps and that of mean features."""
        network, weight = task.network("matching", it).requires_grad_(False), self.weight
        assert weight is not None, "settled"

        def seen(images: Tensor, sizes: list[int]) -> tuple[list[Tensor], Tensor]:
            with captured(network, (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus)) as maps:
                features = embed(network, images)
            spatial = [m for m in maps if m.dim() == 4]
            if len(spatial) < 2:
                raise UsageError(
                    f"student.arch={task.student.arch} has {len(spatial)} maps behind activations, but attention is "
                    "matched on all but the last: use a convolutional architecture"
                )
            return [class_means(attention(m, self.power), sizes) for m in spatial[:-1]], class_means(features, sizes)

        def discrepancy(group: Group) -> Terms:
            with torch.no_grad():
                real_maps, real = seen(group.real, list(group.real_sizes))
            maps, ours = seen(group.synthetic, list(group.sizes))
            apart = torch.stack([(a - b).square().sum() for a, b in zip(real_maps, maps, strict=True)]).sum()
            return {"attention": 100 * apart, "features": 100 * weight * (real - ours).square().sum()}

        return self.summed(syn, task, it, network, discrepancy, ("attention", "features"))
