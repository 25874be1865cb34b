"""A differentiable inner loop: SGD steps on a flat parameter vector, and the ways to go backwards through them.

    velocity_{t+1} = momentum * velocity_t + grad_t,    theta_{t+1} = theta_t - lr * velocity_{t+1}

`FullGraph` and `Stepwise` return the same iterates and the same gradients; they differ in memory and time.
`FrozenAdjoint` returns the same iterates and TESLA's gradients, which are others.  The loss is a pure function of
`(theta, step, *variables)`: whatever it draws (batch, augmentation) must depend on `step` alone, because all but
`FullGraph` call it a second time on the way back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

InnerLoss = Callable[..., Tensor]
"""`(theta (P,), step, *variables) -> scalar`, the student's loss at one inner step."""


class Backprop(Protocol):
    """Run `steps` inner steps so that gradients reach `theta`, `lr` and `variables`.

    Args:
        loss: the inner loss.
        theta: (P,) initial parameters.
        lr: scalar step size.
        variables: the tensors that `loss` is a function of, besides theta.
        steps: number of inner steps.
        momentum: heavy-ball momentum of the student.
        at: steps whose iterates are wanted, ascending, in 1..steps; default: the last alone.

    Returns:
        The iterates theta_t for t in `at`, each (P,).
    """

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
        """See the class."""
        ...


@dataclass(frozen=True)
class FullGraph:
    """Autograd keeps every step: the reference.  Memory grows with steps x batch."""

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
        """See `Backprop`."""
        wanted = _wanted(at, steps)
        theta = theta if theta.requires_grad else theta.detach().requires_grad_()
        velocity: Tensor | None = None
        kept = []
        for step in range(steps):
            (grad,) = torch.autograd.grad(loss(theta, step, *variables), theta, create_graph=True)
            velocity = grad if velocity is None or not momentum else momentum * velocity + grad
            theta = theta - lr * velocity
            if step + 1 in wanted:
                kept.append(theta)
        return kept


class _OneStepInMemory:
    _exact: ClassVar[bool]

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
        """See `Backprop`."""
        loop = _Loop(loss, steps, momentum, _wanted(at, steps), self._exact)
        return list(cast("tuple[Tensor, ...]", _Recursion.apply(loop, theta, lr, *variables)))


@dataclass(frozen=True)
class Stepwise(_OneStepInMemory):
    """Exact reverse recursion with one step's graph in memory: each step is computed again on the way back.

    With lambda the adjoint of theta and nu that of the velocity, going backwards from t = steps - 1:

        d lr  += -<lambda, velocity_{t+1}>
        nu    <- nu - lr * lambda
        (h, p) = d<nu, grad_t> / d(theta_t, variables)
        d variables += p;   lambda <- lambda + h (+ the gradient of an intermediate loss);   nu <- momentum * nu

    which is what full back-propagation computes, in another order.  Memory: steps x P floats and one double-backward.
    """

    _exact = True


@dataclass(frozen=True)
class FrozenAdjoint(_OneStepInMemory):
    """TESLA's way back (Cui et al., ICML 2023, arXiv:2211.10586): **not** the gradient of what was computed.

    The recursion of `Stepwise` without its curvature term h: the adjoint stays what it is at the end, as if each step's
    gradient depended on its own images alone and not on where earlier steps led.  Exact for one step, and for a loss
    that is linear in theta; otherwise a factor (I - lr H) is missing for every later step.  What `theta` gets is that
    adjoint.
    """

    _exact = False


@dataclass(frozen=True)
class _Loop:
    loss: InnerLoss
    steps: int
    momentum: float
    wanted: tuple[int, ...]
    exact: bool


class _Recursion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loop: _Loop, theta: Tensor, lr: Tensor, *variables: Tensor) -> tuple[Tensor, ...]:
        iterates, velocities, velocity = [theta.detach()], [], None
        frozen = [v.detach() for v in variables]
        for step in range(loop.steps):
            here = iterates[-1].requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(loop.loss(here, step, *frozen), here)
            velocity = grad if velocity is None or not loop.momentum else loop.momentum * velocity + grad
            if loop.momentum:
                velocities.append(velocity)
            iterates[-1] = here.detach()
            iterates.append(iterates[-1] - lr.detach() * velocity)
        ctx.loop = loop
        ctx.save_for_backward(lr, *variables)
        ctx.iterates, ctx.velocities = iterates, velocities
        return tuple(iterates[step].clone() for step in loop.wanted)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return _recursion_back(ctx, *outer)


@torch.autograd.function.once_differentiable
def _recursion_back(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
    loop: _Loop = ctx.loop
    lr, *variables = ctx.saved_tensors
    incoming = dict(zip(loop.wanted, outer, strict=True))
    needs = ctx.needs_input_grad[3:]
    totals = [torch.zeros_like(v) if need else None for v, need in zip(variables, needs, strict=True)]
    d_lr, adjoint = torch.zeros_like(lr), torch.zeros_like(ctx.iterates[0])
    nu = torch.zeros_like(adjoint)
    for step in reversed(range(loop.steps)):
        if step + 1 in incoming:
            adjoint = adjoint + incoming[step + 1]
        nu = nu - lr * adjoint
        grad, curvature, products = _products(loop, step, ctx.iterates[step], variables, needs, nu)
        velocity = ctx.velocities[step] if loop.momentum else grad
        d_lr -= torch.dot(adjoint, velocity)
        for total, product in zip(totals, products, strict=True):
            if total is not None and product is not None:
                total += product
        if curvature is not None:
            adjoint = adjoint + curvature
        nu = loop.momentum * nu
    return None, adjoint, d_lr, *totals


def _products(
    loop: _Loop, step: int, theta: Tensor, variables: Sequence[Tensor], needs: Sequence[bool], direction: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """The step's gradient; the derivatives of <direction, gradient> by theta, and by each variable that needs one.

    That by theta is None where it is zero, or where the adjoint is frozen.
    """
    theta = theta.detach().requires_grad_()
    leaves = [v.detach().requires_grad_(need) for v, need in zip(variables, needs, strict=True)]
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(loop.loss(theta, step, *leaves), theta, create_graph=True)
        wrt = [*([theta] if loop.exact else ()), *(leaf for leaf in leaves if leaf.requires_grad)]
        found = iter(torch.autograd.grad(torch.dot(direction, grad), wrt, allow_unused=True) if wrt else ())
    curvature = next(found) if loop.exact else None
    products = [next(found) if need else None for need in needs]
    return grad.detach(), curvature, products


def _wanted(at: Sequence[int], steps: int) -> tuple[int, ...]:
    wanted = tuple(at) or (steps,)
    if list(wanted) != sorted(set(wanted)) or wanted[0] < 1 or wanted[-1] > steps:
        raise ValueError(f"at={list(wanted)} must be ascending, distinct and within 1..{steps}")
    return wanted
