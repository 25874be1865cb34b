"""Images as pyramids: sums of upsampled levels, in decorrelated colours, squashed to the range of pixels."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from dd.data import Preprocess
from dd.engine.method import Synthetic
from dd.errors import UsageError

# square root of the covariance of the colours of natural images, rows R, G, B, divided by its largest column norm
# (Olah et al., "Feature Visualization", Distill 2017)
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))
COLOUR_NORM = 0.4620

Added = Literal["noise", "zero"]


def sides_of(size: int) -> tuple[int, ...]:
    """Sides of the levels for images of `size` pixels: powers of two below it, and the size itself."""
    return (*(1 << power for power in range((size - 1).bit_length())), size)


def coloured(values: Tensor) -> Tensor:
    """Map decorrelated colours (n, 3, h, w) to RGB; values of other channel counts are returned as they are."""
    if values.shape[1] != 3:
        return values
    matrix = torch.tensor(COLOURS, dtype=values.dtype, device=values.device) / COLOUR_NORM
    return torch.einsum("oc,nchw->nohw", matrix, values)


def decoded(levels: Sequence[Tensor], size: int, colour: bool = True) -> Tensor:
    """Pixels in (0, 1), (n, c, size, size): sigmoid(2 · colours of the sum of the upsampled levels (n, c, s, s))."""
    whole = (size, size)
    summed = torch.stack([F.interpolate(level, whole, mode="bilinear") for level in levels]).sum(0)
    return torch.sigmoid(2 * (coloured(summed) if colour else summed))


class Pyramid(Synthetic):
    """Synthetic images whose variables are the levels of pyramids, finer ones added in the course of the synthesis.

    `images` always holds the decoded images in model space; it is not optimised.  All levels are in one parameter,
    `values` (n, numbers of all levels); those of the levels not yet added are zero and have no gradient.

    Args:
        targets: (n,) int64.
        shape: (c, size, size) of an image.
        preprocess: maps pixels to model space.
        generator: draws the first level, N(0, 1).
        colour: whether colours are decorrelated.
    """

    levels: Tensor

    def __init__(
        self,
        targets: Tensor,
        shape: tuple[int, int, int],
        preprocess: Preprocess,
        generator: torch.Generator,
        colour: bool = True,
    ) -> None:
        super().__init__(torch.zeros(len(targets), *shape, device=targets.device), targets)
        self.images.requires_grad_(False)
        self.shape, self.sides, self.colour = shape, sides_of(shape[1]), colour
        self._preprocess = preprocess
        numbers = shape[0] * sum(side * side for side in self.sides)
        self.values = torch.nn.Parameter(torch.zeros(len(targets), numbers, device=targets.device))
        self.register_buffer("levels", torch.ones((), dtype=torch.int64))
        with torch.no_grad():
            first = self._level(0)
            first.copy_(torch.randn(first.shape, generator=generator))
        self.refresh()

    def decode(self) -> Tensor:
        """The images in model space, with gradient."""
        levels = [self._level(number) for number in range(int(self.levels))]
        return self._preprocess.encode(decoded(levels, self.shape[1], self.colour))

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring `images` up to date with the levels."""
        self.images.copy_(self.decode())

    @torch.no_grad()
    def grow(self, added: Added, generator: torch.Generator) -> None:
        """Add the next level, if there is one: n levels are multiplied by n / (n + 1), the new one by 1 / (n + 1).

        Args:
            added: "noise", N(0, 1), or "zero".
            generator: draws the noise.
        """
        n = int(self.levels)
        if n == len(self.sides):
            return
        self.values.mul_(n / (n + 1))
        if added == "noise":
            level = self._level(n)
            level.copy_(torch.randn(level.shape, generator=generator) / (n + 1))
        self.levels.fill_(n + 1)
        self.refresh()

    def take(self, images: Tensor, labels: Tensor | None = None, lr: float | None = None) -> None:
        """Refuse: no pyramid of few levels has given pixels.

        Raises:
            UsageError: always.
        """
        raise UsageError("init: a pyramid cannot start from given images; use variables=pixels")

    def _level(self, number: int) -> Tensor:
        """A view (n, c, s, s) of one level."""
        channels, side = self.shape[0], self.sides[number]
        first = channels * sum(s * s for s in self.sides[:number])
        rows = self.values[:, first : first + channels * side * side]
        return rows.unflatten(1, (channels, side, side))


class RestartedAdam(Adam):
    """Adam that forgets its moments after every `every` steps, at most `restarts` times.

    The number of steps is in its state, so that a resumed run restarts at the same steps.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, every: int, restarts: int) -> None:
        super().__init__(parameters, lr=lr, foreach=False)
        self._every, self._restarts = every, restarts
        self.param_groups[0]["steps"] = 0

    def step(self, closure: Any = None) -> Any:
        """One step, after a restart if it is due."""
        (group,) = self.param_groups
        done, rest = divmod(group["steps"], self._every)
        if not rest and 0 < done <= self._restarts:
            self.state.clear()
        group["steps"] += 1
        return super().step(closure)
