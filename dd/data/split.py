"""The interface of one part of a data set, wherever its images are stored, and the result of opening a data set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dd.data.originals import Originals
from dd.data.preprocess import Preprocess
from dd.data.settings import Resize
from dd.errors import UsageError


class Split(Protocol):
    """Images and labels of one part of a data set, wherever they are stored."""

    @property
    def labels(self) -> Tensor:
        """int64 (n,), on the device."""
        ...

    @property
    def originals(self) -> Originals | None:
        """The image files before resizing; None if there are none, or if the images were not resized."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def images(self, index: Tensor) -> Tensor:
        """float32 (k, c, h, w) in model space, on the device, at int64 positions (k,) on any device; always a copy."""
        ...

    def raw(self, index: Tensor) -> Tensor:
        """The pixels, uint8 (k, c, h, w), on the device; always a copy."""
        ...

    def of_class(self, c: int) -> Tensor:
        """Positions of the images of class `c`: int64, ascending, on the CPU."""
        ...

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over (images, labels), in the order of `pass_order`; the last batch may be shorter."""
        ...


@dataclass(frozen=True, eq=False)
class Opened:
    """A data set, split and transformed.

    Attributes:
        train: the training images, without the held-out ones.
        holdout: the held-out training images.
        test: the test images.
        preprocess: fitted on `train`.
        shape: (c, h, w) of an image.
        content: hash of everything that the pixels and labels depend on.
        test_as: returns the test images resized in another way.
    """

    train: Split
    holdout: Split
    test: Split
    preprocess: Preprocess
    shape: tuple[int, int, int]
    content: str
    test_as: Callable[[Resize], Split]


def require_usable(name: str, classes: tuple[str, ...], train_labels: Tensor, test_labels: Tensor) -> None:
    """Raise a `UsageError` if no classifier can be trained on the data: one class only, or parts without images."""
    if len(classes) < 2:
        raise UsageError(f"{name} has a single class ({', '.join(classes)}); distillation needs at least two")
    for part, labels in (("training", train_labels), ("test", test_labels)):
        counts = torch.bincount(labels, minlength=len(classes))
        empty = [classes[c] for c in torch.nonzero(counts == 0).flatten().tolist()]
        if (part == "training" and empty) or not len(labels):
            named = f" of {', '.join(empty[:5])}" if len(labels) else ""
            raise UsageError(f"{name} has no {part} images{named}; `dd data check {name}` counts them")
