"""DM: dataset condensation with distribution matching (Zhao & Bilen, WACV 2023, arXiv:2110.04181)."""

from dataclasses import dataclass
from typing import Any

import torch

from dd.engine.accumulate import Terms
from dd.engine.method import Objective, Synthetic, Task
from dd.engine.registry import register
from dd.networks import embed

from ._classes import FeatureMatching, Group, class_means


@register("dm")
@dataclass(frozen=True)
class DM(FeatureMatching):
    """Distribution matching: the classes' mean features under a fresh random network, those of real images.

    L = sum over classes of || mean f(A(real)) - mean f(A(synthetic)) ||^2, with a new network every iteration.
    """

    paper = "https://arxiv.org/abs/2110.04181"

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        """The distance of the class means, summed over classes and features."""
        network = task.network("matching", it).requires_grad_(False)

        def discrepancy(group: Group) -> Terms:
            with torch.no_grad():
                real = class_means(embed(network, group.real), group.real_sizes)
            ours = class_means(embed(network, group.synthetic), group.sizes)
            return {"distance": (real - ours).square().sum()}

        return self.matched(syn, task, it, network, discrepancy, ("distance",))
