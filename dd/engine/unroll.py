"""The differentiable inner loop: SGD steps on a flat parameter vector, with several backward passes to choose from.

    velocity_{t+1} = momentum * velocity_t + grad_t,    theta_{t+1} = theta_t - lr * velocity_{t+1}

`FullGraph` and `Stepwise` return the same iterates and the same gradients, with different memory use and speed.
`FrozenAdjoint` returns the same iterates but the approximate gradients of TESLA.  The loss must be a pure function of
`(theta, step, *variables)`: random draws (batch, augmentation) may depend on `step` only, because every class except
`FullGraph` evaluates the loss again in the backward pass.  These classes see the loss through its `Pieces`, which can
be computed in any equivalent way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

InnerLoss = Callable[..., Tensor]
"""`(theta (P,), step, *variables) -> scalar`: the student's loss at one inner step."""


class Backprop(Protocol):
    """Interface: run `steps` inner steps so that gradients reach `theta`, `lr` and `variables`.

    Args:
        loss: the inner loss.
        theta: (P,) initial parameters.
        lr: scalar step size.
        variables: the other tensors that `loss` depends on.
        steps: number of inner steps.
        momentum: heavy-ball momentum of the student.
        at: steps whose iterates to return, ascending, in 1..steps; default: only the last.

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
        """Run the steps; see the class."""
        ...


@dataclass(frozen=True)
class Products:
    """The derivatives of s = <direction, grad_t> at one inner step.

    Attributes:
        slope: s itself, a scalar.
        theta: (P,), the curvature product ds / d theta; None if it is zero or was not asked for.
        variables: ds / d variable; None where it is zero or not needed.
    """

    slope: Tensor
    theta: Tensor | None
    variables: Sequence[Tensor | None]


class Pieces(Protocol):
    """Interface: what the recursion needs of an inner loss.  Nothing that is given or returned requires a gradient."""

    def gradient(self, theta: Tensor, step: int, variables: Sequence[Tensor]) -> Tensor:
        """Return grad_t: (P,), the gradient of the loss of step `step` with respect to `theta` (P,)."""
        ...

    def products(
        self,
        theta: Tensor,
        step: int,
        variables: Sequence[Tensor],
        direction: Tensor,
        needs: Sequence[bool],
        curvature: bool,
    ) -> Products:
        """Differentiate <direction, grad_t>.

        Args:
            theta: (P,).
            step: number of the step.
            variables: as the loss takes them.
            direction: (P,).
            needs: which variables need their derivative.
            curvature: whether `theta` needs it.
        """
        ...


@dataclass(frozen=True)
class WholeBatch:
    """The pieces of any loss, by plain autograd on the loss itself."""

    loss: InnerLoss

    def gradient(self, theta: Tensor, step: int, variables: Sequence[Tensor]) -> Tensor:
        """See `Pieces`."""
        here = theta.detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(self.loss(here, step, *variables), here)
        return grad

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
        return _Graph(self.loss, theta, step, variables, needs).products(direction, needs, curvature)


class KeptGraphs:
    """The pieces of any loss, by plain autograd, with every step's graph kept until its products are computed.

    A recursion on them needs the time and memory of `FullGraph`.

    Args:
        loss: the loss.
    """

    def __init__(self, loss: InnerLoss) -> None:
        self._loss = loss
        self._kept: dict[int, _Graph] = {}

    def gradient(self, theta: Tensor, step: int, variables: Sequence[Tensor]) -> Tensor:
        """See `Pieces`."""
        graph = _Graph(self._loss, theta, step, variables, [True] * len(variables))
        self._kept[step] = graph
        return graph.gradient.detach().clone()  # the graph must not see what the caller does to it

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
        graph = self._kept.pop(step, None) or _Graph(self._loss, theta, step, variables, needs)
        return graph.products(direction, needs, curvature)


class _Graph:
    """The graph of one step's gradient, down to the parameters and variables that it depends on."""

    def __init__(
        self, loss: InnerLoss, theta: Tensor, step: int, variables: Sequence[Tensor], needs: Sequence[bool]
    ) -> None:
        self._theta = theta.detach().requires_grad_()
        self._variables = [v.detach().requires_grad_(need) for v, need in zip(variables, needs, strict=True)]
        with torch.enable_grad():
            value = loss(self._theta, step, *self._variables)
            (self.gradient,) = torch.autograd.grad(value, self._theta, create_graph=True)

    def products(self, direction: Tensor, needs: Sequence[bool], curvature: bool) -> Products:
        """See `Pieces`; frees the graph."""
        needed = [v for v, need in zip(self._variables, needs, strict=True) if need]
        wrt = [*([self._theta] if curvature else ()), *needed]
        with torch.enable_grad():
            slope = torch.dot(direction, self.gradient)
            found = iter(torch.autograd.grad(slope, wrt, allow_unused=True) if wrt else ())
        return Products(
            slope.detach(), next(found) if curvature else None, [next(found) if need else None for need in needs]
        )


@dataclass(frozen=True)
class FullGraph:
    """Plain autograd through every step: the reference.  Memory grows with steps x batch."""

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
    pieces: Callable[..., Pieces]
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
        loop = _Loop(self.pieces(loss), steps, momentum, _wanted(at, steps), self._exact)
        return list(cast("tuple[Tensor, ...]", _Recursion.apply(loop, theta, lr, *variables)))


@dataclass(frozen=True)
class Stepwise(_OneStepInMemory):
    """Exact reverse-mode recursion that holds the graph of one step: each step is recomputed in the backward pass.

    With lambda the adjoint of theta and -lr u that of the velocity, going backwards from t = steps - 1:

        u <- momentum * u + lambda
        (s, h, p) = <u, grad_t> and its derivatives with respect to theta_t and the variables
        d lr -= s;   d variables -= lr p;   lambda <- lambda - lr h (+ the gradient of an intermediate loss)

    This is full back-propagation in a different order.  Memory: steps x P floats and one double backward.

    Attributes:
        pieces: the pieces of a loss, for each call.
    """

    pieces: Callable[..., Pieces] = WholeBatch
    _exact: ClassVar[bool] = True


@dataclass(frozen=True)
class FrozenAdjoint(_OneStepInMemory):
    """The backward pass of TESLA (Cui et al., ICML 2023, arXiv:2211.10586), which is **not** the exact gradient.

    This is the recursion of `Stepwise` without its curvature term h: the adjoint keeps its final value, as if the
    gradient of each step depended only on that step's images and not on the earlier steps.  It is exact for one step
    and for a loss that is linear in theta; otherwise a factor (I - lr H) is missing for every later step.  The gradient
    of `theta` is this adjoint.

    Attributes:
        pieces: the pieces of a loss, for each call.
    """

    pieces: Callable[..., Pieces] = WholeBatch
    _exact: ClassVar[bool] = False


@dataclass(frozen=True)
class _Loop:
    pieces: Pieces
    steps: int
    momentum: float
    wanted: tuple[int, ...]
    exact: bool


class _Recursion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loop: _Loop, theta: Tensor, lr: Tensor, *variables: Tensor) -> tuple[Tensor, ...]:
        iterates, velocity = [theta.detach()], None
        frozen = [v.detach() for v in variables]
        for step in range(loop.steps):
            grad = loop.pieces.gradient(iterates[-1], step, frozen)
            velocity = grad if velocity is None or not loop.momentum else loop.momentum * velocity + grad
            iterates.append(iterates[-1] - lr.detach() * velocity)
        ctx.loop, ctx.iterates = loop, iterates
        ctx.save_for_backward(lr, *variables)
        return tuple(iterates[step].clone() for step in loop.wanted)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return _recursion_back(ctx, *outer)


@torch.autograd.function.once_differentiable
def _recursion_back(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
    loop: _Loop = ctx.loop
    lr, *variables = ctx.saved_tensors
    frozen = [v.detach() for v in variables]
    incoming = dict(zip(loop.wanted, outer, strict=True))
    needs = ctx.needs_input_grad[3:]
    totals = [torch.zeros_like(v) if need else None for v, need in zip(variables, needs, strict=True)]
    d_lr, adjoint = torch.zeros_like(lr), torch.zeros_like(ctx.iterates[0])
    direction = torch.zeros_like(adjoint)
    for step in reversed(range(loop.steps)):
        if step + 1 in incoming:
            adjoint = adjoint + incoming[step + 1]
        direction = loop.momentum * direction + adjoint if loop.momentum else adjoint
        found = loop.pieces.products(ctx.iterates[step], step, frozen, direction, needs, loop.exact)
        d_lr -= found.slope
        for total, product in zip(totals, found.variables, strict=True):
            if total is not None and product is not None:
                total -= lr * product
        if found.theta is not None:
            adjoint = adjoint - lr * found.theta
    return None, adjoint, d_lr, *totals


def _wanted(at: Sequence[int], steps: int) -> tuple[int, ...]:
    wanted = tuple(at) or (steps,)
    if list(wanted) != sorted(set(wanted)) or wanted[0] < 1 or wanted[-1] > steps:
        raise ValueError(f"at={list(wanted)} must be ascending, distinct and within 1..{steps}")
    return wanted
