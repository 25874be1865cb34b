"""A pool of networks that regress the representations of synthetic images, trained in the course of a synthesis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class PoolSettings:
    """The pool, and how its networks are trained.  Defaults: the paper's."""

    count: Annotated[int, Field(ge=1)] = 10
    """Networks in the pool."""
    steps: Annotated[int, Field(ge=2)] = 1000
    """Training steps after which a network starts afresh; initial ones have between 1 and one less than this."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of SGD."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """L2 penalty."""
    reset_counter: bool = True
    """Whether the steps of a network are counted from zero when it starts afresh, as in the paper. In the released code
    they are not, so that every later visit starts it afresh: nearly all networks are then untrained ones.
    """


class NetworkPool(nn.Module):
    """Networks f(x) = W ω(x) + b, each trained by momentum SGD on mean (f(X) - Y)² over whole sets (X, Y).

    Networks, velocities and counters are part of its state.  Their parameters have no gradient outside `visit`.

    Args:
        networks: freshly initialised.
        settings: how they are trained.
    """

    ages: Tensor

    def __init__(self, networks: Sequence[nn.Module], settings: PoolSettings) -> None:
        super().__init__()
        self.settings = settings
        self.networks = nn.ModuleList(network.requires_grad_(False) for network in networks)
        for number, network in enumerate(networks):
            velocity = torch.cat([torch.zeros_like(p).flatten() for p in network.parameters()])
            self.register_buffer(f"velocity{number}", velocity)
        self.register_buffer("ages", torch.zeros(len(networks), dtype=torch.int64))

    def start(self, images: Tensor, targets: Tensor, rng: Generator) -> None:
        """Train every network for between 1 and `steps` - 1 steps, as drawn from `rng`."""
        for number, steps in enumerate(torch.randint(1, self.settings.steps, self.ages.shape, generator=rng).tolist()):
            for _ in range(steps):
                self._train(number, images, targets)
            self.ages[number] = steps

    def visit(self, number: int, images: Tensor, targets: Tensor, fresh: Callable[[], nn.Module]) -> None:
        """Train a network for one step; or replace it by a fresh one if it has all its steps.

        Args:
            number: which network.
            images: X (m, c, h, w).
            targets: Y (m, d).
            fresh: returns a freshly initialised network.
        """
        if int(self.ages[number]) < self.settings.steps:
            self._train(number, images, targets)
            self.ages[number] += 1
            return
        self.networks[number].load_state_dict(fresh().state_dict())
        self._velocity(number).zero_()
        if self.settings.reset_counter:
            self.ages[number] = 0

    def _velocity(self, number: int) -> Tensor:
        return self.get_buffer(f"velocity{number}")

    def _train(self, number: int, images: Tensor, targets: Tensor) -> None:
        """One step: v <- momentum v + gradient + weight_decay θ; θ <- θ - lr v."""
        settings, network = self.settings, self.networks[number].train().requires_grad_(True)
        parameters = list(network.parameters())
        with torch.enable_grad():
            gradients = torch.autograd.grad(F.mse_loss(network(images.detach()), targets.detach()), parameters)
        network.requires_grad_(False).eval()
        start = 0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            velocity = self._velocity(number)[start : start + parameter.numel()].view_as(parameter)
            velocity.mul_(settings.momentum).add_(gradient).add_(parameter, alpha=settings.weight_decay)
            parameter.data.sub_(velocity, alpha=settings.lr)
            start += parameter.numel()
