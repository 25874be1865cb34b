"""A network from elsewhere behind the conventions of this run: its value space, its classes, its image size."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd.errors import UsageError


class Adapted(nn.Module):
    """A network that takes images in model space and gives one logit per class of the data, in their order.

    Args:
        network: the network inside.
        invert: brings images in model space to pixels where 0 is black and 1 white; differentiable.
        normalise: (mean, std) per channel in [0, 1] units that the network inside wants; None where it takes model
            space itself.  Grey images are repeated for a network of three channels.
        size: side in pixels that images are resized to, bilinearly; None for as they are.
        outputs: which of its outputs are wanted, by class; None for all.
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
    """Which outputs of a network answer to the classes of the data.

    Args:
        theirs: names of its outputs; None where they are not known.
        count: number of its outputs.
        ours: class names of the data in label order.

    Returns:
        Positions in the order of `ours`; None for all of them as they are, which is also the answer where nothing is
        known but that there are as many.

    Raises:
        UsageError: nothing tells which they are; the line names the first class that is missing.
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
