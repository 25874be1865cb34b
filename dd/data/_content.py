"""What readers yield: arrays, or encoded images that still want decoding."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dd.errors import UsageError, unknown
from dd.io import digest
from dd.rng import generator

TEST_SHARE = 0.2  # of the images, where a user's own data have no test part
TEST_SEED = 0
NO_TEST_PART = f"no test part was found: {TEST_SHARE:.0%} of every class, drawn with a fixed seed, are the test images"


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

    def only(self, numbers: Sequence[int]) -> "Arrays":
        """The images of these classes, labelled by their place among them."""
        kept, labels = zip(*(relabelled(part, numbers) for part in (self.train_labels, self.test_labels)), strict=True)
        images = [a.index_select(0, b) for a, b in zip((self.train_images, self.test_images), kept, strict=True)]
        classes = tuple(self.classes[number] for number in numbers)
        return Arrays(images[0], labels[0], images[1], labels[1], classes, self.notes, self.jpeg)


class Items(Protocol):
    """Where encoded images are, by position; millions of them take little memory, and threads may read at once."""

    @property
    def run(self) -> int:
        """How many neighbours are read at about the cost of one."""
        ...

    def __len__(self) -> int: ...

    def load(self, i: int) -> bytes | Path:
        """The bytes of image `i`, or the path of its file."""
        ...

    def name(self, i: int) -> str:
        """What to call it in messages."""
        ...

    def take(self, index: Sequence[int]) -> "Items":
        """Those at these positions."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Image files by their paths below a folder."""

    root: Path
    paths: Sequence[str]
    run: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, i: int) -> Path:
        """See `Items`."""
        return regular(self.root / self.paths[i])

    def name(self, i: int) -> str:
        """See `Items`."""
        return self.paths[i].encode(errors="backslashreplace").decode()  # a name need not be text

    def take(self, index: Sequence[int]) -> "ImageFiles":
        """See `Items`."""
        return ImageFiles(self.root, [self.paths[i] for i in index])


@dataclass(frozen=True, eq=False)
class Part:
    """Encoded images of one split, and their labels: int64 (n,), on the CPU."""

    items: Items
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Part":
        """The images at these positions."""
        return Part(self.items.take(index.tolist()), self.labels[index])

    def only(self, numbers: Sequence[int]) -> "Part":
        """The images of these classes, labelled by their place among them."""
        kept, labels = relabelled(self.labels, numbers)
        return Part(self.items.take(kept.tolist()), labels)


@dataclass(frozen=True)
class Listing:
    """Encoded images of both splits, class names in label order, and what a user should know about them."""

    train: Part
    test: Part
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def only(self, numbers: Sequence[int]) -> "Listing":
        """The images of these classes, labelled by their place among them."""
        classes = tuple(self.classes[number] for number in numbers)
        return Listing(self.train.only(numbers), self.test.only(numbers), classes, self.notes)


@dataclass(frozen=True)
class Encoded:
    """Encoded images that are listed only when they are wanted.

    Attributes:
        identity: JSON-able, changes whenever the files do (paths, sizes, times of change).
        listing: the list of images, read once.
        notes: what is known of them beforehand that the identity does not tell, such as files that are not read.
    """

    identity: object
    listing: Callable[[], Listing]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity, length=64)


def only_classes(content: Arrays | Encoded, names: tuple[str, ...]) -> Arrays | Encoded:
    """What was found, with the images of some classes alone; their labels follow the order of `names`.

    Args:
        content: a whole data set.
        names: of classes, or their labels where no class is named by a number; () takes all.

    Raises:
        UsageError: there is no such class, or one is named twice; of encoded images when they are listed.
    """
    if not names:
        return content
    if isinstance(content, Arrays):
        return content.only(_numbers(names, content.classes))

    @cache
    def listing() -> Listing:
        whole = content.listing()
        return whole.only(_numbers(names, whole.classes))

    return Encoded({"of": content.identity, "classes": names}, listing, content.notes)


def relabelled(labels: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Positions of the images of some classes, ascending, and their places among these, for int64 labels (n,)."""
    place = torch.full((max([*numbers, int(labels.max()) if len(labels) else 0]) + 1,), -1, dtype=torch.int64)
    place[list(numbers)] = torch.arange(len(numbers))
    kept = torch.nonzero(place[labels] >= 0).flatten()
    return kept, place[labels[kept]]


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
        for c, members in enumerate(by_class(labels, int(labels.max()) + 1)):
            count = min(max(1, round(share * len(members))), len(members) - 1)
            if count > 0:
                order = torch.randperm(len(members), generator=generator(seed, purpose, c))
                taken[members[order[:count]]] = True
    return torch.nonzero(~taken).flatten(), torch.nonzero(taken).flatten()


def by_class(labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Positions of the images of every class, ascending, for int64 labels (n,)."""
    counts = torch.bincount(labels, minlength=classes)
    return torch.argsort(labels, stable=True).split(counts.tolist())


def with_test_part(part: Part, classes: tuple[str, ...], notes: tuple[str, ...] = ()) -> Listing:
    """A listing of images that have no test part: a fixed fifth of every class becomes it."""
    kept, taken = stratified(part.labels, TEST_SHARE, TEST_SEED, "test part")
    return Listing(part.take(kept), part.take(taken), classes, (*notes, NO_TEST_PART))


def _numbers(names: tuple[str, ...], classes: tuple[str, ...]) -> list[int]:
    known, how = {name: number for number, name in enumerate(classes)}, ""
    if not any(name.isdecimal() for name in classes):
        known |= {str(number): number for number in range(len(classes))}
        how = f", or a label from 0 to {len(classes) - 1}"
    if odd := [name for name in names if name not in known]:
        raise UsageError(f"{unknown('class in data.classes:', odd[0], classes)}{how}")
    numbers = [known[name] for name in names]
    if twice := [classes[number] for i, number in enumerate(numbers) if number in numbers[:i]]:
        raise UsageError(f"data.classes has {twice[0]} more than once, by name and by label")
    return numbers


def file_identity(paths: Iterable[Path | str], root: Path) -> str:
    """A hash of name, size and time of change of files, which together tell whether they changed.

    Args:
        paths: of the files, absolute or below `root`; millions may come.
        root: what their names are relative to.
    """
    total = hashlib.sha256()
    for path in paths:
        name = path if isinstance(path, str) else path.relative_to(root).as_posix()
        try:
            status = os.stat(os.path.join(root, path))
            rest = f"\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:  # a link that leads nowhere, which is told where the image is wanted
            rest = "\0missing\n"
        total.update(os.fsencode(name) + rest.encode())
    return total.hexdigest()


def regular(path: Path) -> Path:
    """The path of an image file.

    Raises:
        ValueError: there is none, or it is a pipe or a device, of which reading may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ValueError("a link that leads nowhere" if path.is_symlink() else "no such file") from None
    if not stat.S_ISREG(mode):
        raise ValueError("no regular file")
    return path
