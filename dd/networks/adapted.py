"""Adapter for a third-party network: converts value space, image size and class order to those of the run."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd.errors import UsageError


class Adapted(nn.Module):
    """A network that takes images in model space and returns one logit per class of the data, in label order.

    Args:
        network: the wrapped network.
        invert: maps model space to pixels, 0 black and 1 white; differentiable.
        normalise: per-channel (mean, std), in [0, 1] units, of the wrapped network; None if it takes model space.
            Grey images are broadcast to three channels.
        size: side in pixels to which images are resized, bilinearly; None for no resizing.
        outputs: index of the output for each class; None for all outputs in order.
    """

    mean: Tensor
    std: Tensor
    outputs: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        invert: Callable[[Tensor], Tensor],
        normalise: tuple[Sequence[float], Sequence[float]] | None = None,
        size: int | None = None,
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalise = normalise is not None
        self.size = size
        self._invert = invert
        mean, std = normalise or ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.register_buffer("outputs", None if outputs is None else torch.tensor(outputs), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, c, h, w) in model space to (n, classes)."""
        if self.normalise:
            pixels = self._invert(images)
            if self.size is not None and pixels.shape[-1] != self.size:
                side = (self.size, self.size)
                pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True)
            images = (pixels - self.mean) / self.std
        logits = self.network(images)
        return logits if self.outputs is None else logits.index_select(1, self.outputs)


def pick(theirs: Sequence[str] | None, count: int, ours: Sequence[str]) -> list[int] | None:
    """Find the outputs of a network that correspond to the classes of the data.

    Args:
        theirs: names of its outputs; None if unknown.
        count: number of its outputs.
        ours: class names of the data in label order.

    Returns:
        Positions in the order of `ours`; None for all outputs in order, also if only their number is known and
        matches.

    Raises:
        UsageError: the outputs cannot be identified; the message names the first missing class.
    """
    place = {name: at for at, name in enumerate(theirs or ())}
    if all(name in place for name in ours):
        chosen = [place[name] for name in ours]
        return None if chosen == list(range(count)) else chosen
    if count == len(ours):
        return None
    missing = next(name for name in ours if name not in place)
    why = f"none of them is {missing!r}" if theirs else "their names are not known"
    retrain = "retrain its last layer for these classes"
    if theirs is None and count > len(ours):
        retrain = f"save {{'state_dict': …, 'classes': [names of its outputs]}} if they are among them, or {retrain}"
    raise UsageError(f"it has {count} outputs for {len(ours)} classes, and {why}: {retrain}")
