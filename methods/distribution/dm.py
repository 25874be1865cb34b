"""DM: dataset condensation with distribution matching (Zhao & Bilen, WACV 2023, arXiv:2110.04181)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import nn
from torch.optim import SGD, Optimizer

from dd.engine.accumulate import Terms, accumulated
from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.registry import register
from dd.networks import embed, in_closed_form

from ._classes import Group, chunk_size, chunks, class_means, features_of, group


@register("dm")
@dataclass(frozen=True)
class DM(Method[None]):
    """Distribution matching: class means of random features agree on real and synthetic images.

        L = sum over classes of || mean f(A(real)) - mean f(A(synthetic)) ||^2

    1. Draw a random network f, a batch of real images per class and one siamese augmentation A per class.
    2. Compute the mean features of real and synthetic images.
    3. Take one SGD step on the synthetic images.
    """

    paper = "https://arxiv.org/abs/2110.04181"

    iterations: Annotated[int, Field(ge=0)] = 20_000
    """Updates of the images."""
    lr_img: Annotated[float, Field(gt=0)] = 1.0
    """SGD learning rate of the pixels, in model space."""
    momentum_img: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the pixels' optimiser."""
    batch_real: Annotated[int, Field(ge=1)] = 256
    """Real images per class and iteration."""
    start_from: Literal["real", "noise"] = "real"
    """Initial images: random "real" ones of each class, or "noise" N(0, 1) in model space."""
    augment: bool = True
    """Whether to use siamese DSA: one draw per class and iteration, with the data set's strategy."""
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Classes per forward pass. None: about a thousand images, limited to an eighth of the device's total memory, and
    on a CPU to what keeps it busy. It affects memory and time, not results.
    """
    batchnorm: Literal["class", "all"] = "class"
    """Forward passes of networks with batch norm, in which classes affect each other: "class" gives each class its own
    pass, "all" puts all classes into one, as the authors' code does.
    """

    def settle(self, task: Task) -> Self:
        """Resolve the number of classes per forward pass."""
        return replace(self, chunk=self.chunk or chunk_size(task, self.batch_real))

    def start(self, task: Task, prepared: None) -> Synthetic:
        """Real images or noise, with hard labels."""
        return Synthetic(task.first_images(self.start_from), task.targets)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """Momentum SGD on the pixels; its state is elementwise, so classes stay independent."""
        return [SGD([syn.images], lr=self.lr_img, momentum=self.momentum_img)]

    def loss(self, syn: Synthetic, task: Task, prepared: None, it: int) -> Objective:
        """The distance of the class means, summed over classes and features."""
        network = task.network("matching", it).requires_grad_(False)

        def discrepancy(group: Group) -> Terms:
            with in_closed_form(network, task.compile):
                with torch.no_grad():
                    real = class_means(features_of(network, group.real), group.real_sizes)
                ours = class_means(embed(network, group.synthetic), group.sizes)
            return {"distance": (real - ours).square().sum()}

        return self.summed(syn, task, it, network, discrepancy, ("distance",))

    def summed(
        self,
        syn: Synthetic,
        task: Task,
        it: int,
        network: nn.Module,
        discrepancy: Callable[[Group], Terms],
        names: Sequence[str],
    ) -> Terms:
        """The terms `names` of a discrepancy, summed over all classes of iteration `it`, one chunk at a time."""
        strategy = task.data.augment if self.augment else "none"

        def of(classes: Sequence[int]) -> Terms:
            return discrepancy(group(syn, task, it, classes, self.batch_real, strategy))

        found = chunks(task, network, self.chunk, self.batchnorm)
        return accumulated([partial(of, classes) for classes in found], syn.images, names)
