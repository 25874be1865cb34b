"""What readers yield: arrays, or encoded images that still want decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dd.rng import generator

TEST_SHARE = 0.2  # of the images, where a user's own data have no test part
TEST_SEED = 0


@dataclass(frozen=True, eq=False)
class Arrays:
    """Decoded images: uint8 (n, c, h, w) and int64 labels (n,), on the CPU; `jpeg` counts those from JPEG files."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    jpeg: int = 0


@dataclass(frozen=True)
class Part:
    """Encoded images of one split: bytes of image files or paths to them, labels, and a name of each for messages."""

    items: Sequence[bytes | Path]
    labels: Sequence[int]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: Sequence[int]) -> "Part":
        """The images at these positions."""
        return Part([self.items[i] for i in index], [self.labels[i] for i in index], [self.names[i] for i in index])


@dataclass(frozen=True)
class Listing:
    """Encoded images of both splits, class names in label order, and what a user should know about them."""

    train: Part
    test: Part
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Encoded images that are listed only when their decoded form is not in the cache.

    Attributes:
        identity: JSON-able, changes whenever the files do (paths, sizes, times of change).
        listing: reads the list of images.
    """

    identity: object
    listing: Callable[[], Listing]


def stratified(labels: Tensor, share: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Split positions in two, the same share of every class.

    Args:
        labels: int64 (n,), on the CPU.
        share: part of every class that is taken, in [0, 1); rounded, but at least one image and never all of them.
        seed: the only source of chance besides `purpose`.
        purpose: names the split, so that two splits with one seed differ.

    Returns:
        (kept, taken): disjoint int64 positions, each ascending, together 0 … n-1.
    """
    taken = torch.zeros(len(labels), dtype=torch.bool)
    if share > 0 and len(labels):
        for c in range(int(labels.max()) + 1):
            members = torch.nonzero(labels == c).flatten()
            count = min(max(1, round(share * len(members))), len(members) - 1)
            if count > 0:
                order = torch.randperm(len(members), generator=generator(seed, purpose, c))
                taken[members[order[:count]]] = True
    return torch.nonzero(~taken).flatten(), torch.nonzero(taken).flatten()


def with_test_part(part: Part, classes: tuple[str, ...], notes: tuple[str, ...] = ()) -> Listing:
    """A listing of images that have no test part: a fixed fifth of every class becomes it."""
    kept, taken = stratified(torch.tensor(part.labels, dtype=torch.int64), TEST_SHARE, TEST_SEED, "test part")
    note = f"no test part was found: {TEST_SHARE:.0%} of every class, drawn with a fixed seed, are the test images"
    return Listing(part.take(kept.tolist()), part.take(taken.tolist()), classes, (*notes, note))


def file_identity(paths: Sequence[Path], root: Path) -> list[list[str | int]]:
    """Name, size and time of change of files, which together tell whether they changed."""
    rows: list[list[str | int]] = []
    for path in paths:
        status = path.stat()
        rows.append([path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns])
    return rows
