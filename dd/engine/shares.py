"""An inner loop whose steps several processes share.

The loss of a step is a sum over images.  Every process holds the same theta and differentiates the terms of its own
images.  What the recursion of `dd.engine.unroll` needs is summed over all processes; in the notation of `Stepwise`:

    grad_t, P numbers per step, in the forward pass
    h_t, P numbers per step, in the backward pass; not with `FrozenAdjoint`, which has none
    d lr and d variables, once, at the end

So the iterates and all gradients are those of the whole batch, and equal in all processes to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dd.engine import parallel
from dd.engine.unroll import FrozenAdjoint, InnerLoss, Pieces, Products, Stepwise


class OwnLoss(Protocol):
    """Interface: one process's terms of an inner loss.  The sum over all processes is the loss of the whole batch."""

    def __call__(self, theta: Tensor, step: int, *variables: Tensor) -> Tensor:
        """Return the sum of the terms; not called if there are none."""
        ...

    def is_empty(self, step: int) -> bool:
        """Return whether this process has no terms in step `step`."""
        ...


class SharedLoss(Protocol):
    """Interface: an inner loss that can be shared."""

    def own(self) -> OwnLoss:
        """Return this process's terms."""
        ...


@dataclass(frozen=True)
class InShares:
    """Runs a recursion on this process's share of every step; alone, on the whole batches.

    All processes must call it, and back-propagate, the same number of times.  The gradients of `theta`, `lr` and the
    variables are those of the whole batches.

    Attributes:
        backprop: the recursion; its pieces must accept an `OwnLoss`.
    """

    backprop: Stepwise | FrozenAdjoint

    def __call__(
        self,
        loss: InnerLoss,
        theta: Tensor,
        lr: Tensor,
        variables: Sequence[Tensor],
        *,
        steps: int,
        momentum: float = 0.0,
        at: Sequence[int] = (),
    ) -> list[Tensor]:
        """See `Backprop`; `loss` must be a `SharedLoss`."""
        backprop = self.backprop
        if parallel.is_parallel():
            loss = cast(SharedLoss, loss).own()
            lr, *variables = _gradients_summed([lr, *variables])
            backprop = replace(backprop, pieces=partial(_shared_pieces, backprop.pieces))
        return backprop(loss, theta, lr, variables, steps=steps, momentum=momentum, at=at)


@dataclass(frozen=True)
class _SharedPieces:
    """The pieces of the whole batch; only the slope and the derivatives of variables are this process's own."""

    own: Pieces
    loss: OwnLoss

    def gradient(self, theta: Tensor, step: int, variables: Sequence[Tensor]) -> Tensor:
        """See `Pieces`."""
        if self.loss.is_empty(step):
            return parallel.summed(torch.zeros_like(theta))
        return parallel.summed(self.own.gradient(theta, step, variables))

    def products(
        self,
        theta: Tensor,
        step: int,
        variables: Sequence[Tensor],
        direction: Tensor,
        needs: Sequence[bool],
        curvature: bool,
    ) -> Products:
        """See `Pieces`."""
        if self.loss.is_empty(step):
            found = Products(torch.zeros_like(direction[0]), None, [None] * len(needs))
        else:
            found = self.own.products(theta, step, variables, direction, needs, curvature)
        if not curvature:
            return found
        return replace(found, theta=parallel.summed(torch.zeros_like(theta) if found.theta is None else found.theta))


def _shared_pieces(pieces: Any, loss: OwnLoss) -> Pieces:
    return _SharedPieces(pieces(loss), loss)


def _gradients_summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors, such that gradients that reach them are summed over all processes first."""
    summed = iter(_SummedGradients.apply(*(t for t in tensors if t.requires_grad)) or ())
    return [next(summed) if t.requires_grad else t for t in tensors]


class _SummedGradients(torch.autograd.Function):
    """The identity; one node for all tensors, so that all processes sum them in the same order."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _summed_once(ctx, *gradients)


@torch.autograd.function.once_differentiable
def _summed_once(_: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
    return tuple(parallel.summed(gradient.clone()) for gradient in gradients)
