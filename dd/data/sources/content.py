"""What the readers of a data set return: decoded arrays, or lists of encoded images."""

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

from dd.data.positions import relabelled, stratified
from dd.errors import UsageError, unknown
from dd.io import Json, digest

TEST_SHARE = 0.2  # share of the images that become the test part of a user's own data without one
TEST_SEED = 0
NO_TEST_PART = f"no test part was found: {TEST_SHARE:.0%} of every class, drawn with a fixed seed, are the test images"


@dataclass(frozen=True, eq=False)
class Arrays:
    """Decoded images, uint8 (n, c, h, w), and int64 labels (n,), on the CPU; `jpeg` counts those from JPEG files."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    jpeg: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Images and labels of both splits, by field name."""
        return {
            "train_images": self.train_images,
            "train_labels": self.train_labels,
            "test_images": self.test_images,
            "test_labels": self.test_labels,
        }

    def check(self, channels: int) -> None:
        """Raise `ValueError` unless types, shapes, labels and the number of channels are right."""
        for name, tensor in self.tensors().items():
            wanted, dimensions = (torch.uint8, 4) if name.endswith("images") else (torch.int64, 1)
            if not isinstance(tensor, Tensor) or tensor.dtype != wanted or tensor.ndim != dimensions:
                given = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
                shape = "(n, c, h, w)" if dimensions == 4 else "(n,)"
                raise ValueError(f"{name} is {given}, not a tensor of {wanted} {shape}")
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if len(images) != len(labels) or not len(images):
                raise ValueError(f"{len(images):,} {part}_images with {len(labels):,} {part}_labels")
            if images.shape[1:] != (channels, *self.train_images.shape[2:]):
                raise ValueError(f"{part}_images are {tuple(images.shape)}: {channels} channels, one size for all")
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise ValueError(f"{part}_labels are not all in 0 to {len(self.classes) - 1}")

    def only(self, numbers: Sequence[int]) -> "Arrays":
        """The images of these classes, relabelled in the order of `numbers`."""
        kept, labels = zip(*(relabelled(part, numbers) for part in (self.train_labels, self.test_labels)), strict=True)
        images = [a.index_select(0, b) for a, b in zip((self.train_images, self.test_images), kept, strict=True)]
        classes = tuple(self.classes[number] for number in numbers)
        return Arrays(images[0], labels[0], images[1], labels[1], classes, self.notes, self.jpeg)


class Items(Protocol):
    """Access to encoded images by position; compact for millions of images, and safe to read from many threads."""

    @property
    def run(self) -> int:
        """How many neighbouring images can be read at about the cost of one."""
        ...

    def __len__(self) -> int: ...

    def load(self, i: int) -> bytes | Path:
        """The bytes of image `i`, or the path of its file."""
        ...

    def name(self, i: int) -> str:
        """The name of image `i` in messages."""
        ...

    def take(self, index: Sequence[int]) -> "Items":
        """The images at these positions."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Image files, by their paths relative to a folder."""

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
class EncodedSplit:
    """Encoded images of one split and their labels, int64 (n,), on the CPU."""

    items: Items
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "EncodedSplit":
        """The images at these positions."""
        return EncodedSplit(self.items.take(index.tolist()), self.labels[index])

    def only(self, numbers: Sequence[int]) -> "EncodedSplit":
        """The images of these classes, relabelled in the order of `numbers`."""
        kept, labels = relabelled(self.labels, numbers)
        return EncodedSplit(self.items.take(kept.tolist()), labels)


@dataclass(frozen=True)
class Listing:
    """Encoded images of both splits, class names in label order, and what a user should know about them."""

    train: EncodedSplit
    test: EncodedSplit
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def only(self, numbers: Sequence[int]) -> "Listing":
        """The images of these classes, relabelled in the order of `numbers`."""
        classes = tuple(self.classes[number] for number in numbers)
        return Listing(self.train.only(numbers), self.test.only(numbers), classes, self.notes)


@dataclass(frozen=True)
class EncodedSet:
    """Encoded images whose listing is lazy.

    Attributes:
        identity: changes whenever the files do (paths, sizes, modification times).
        listing: returns the list of images; reads it once.
        notes: what is known in advance but not part of the identity, such as files that are skipped.
    """

    identity: Json
    listing: Callable[[], Listing]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity, length=64)


def only_classes(content: Arrays | EncodedSet, names: tuple[str, ...]) -> Arrays | EncodedSet:
    """Restrict a data set to some classes, relabelled in the order of `names`.

    Args:
        content: a whole data set.
        names: class names, or labels if no class name is itself a number; () keeps all.

    Raises:
        UsageError: a class does not exist or is named twice; for encoded images, raised when they are listed.
    """
    if not names:
        return content
    if isinstance(content, Arrays):
        return content.only(_numbers(names, content.classes))

    @cache
    def listing() -> Listing:
        whole = content.listing()
        return whole.only(_numbers(names, whole.classes))

    return EncodedSet({"of": content.identity, "classes": names}, listing, content.notes)


def with_test_part(part: EncodedSplit, classes: tuple[str, ...], notes: tuple[str, ...] = ()) -> Listing:
    """A listing of images that have no test part; a fixed fifth of every class becomes the test part."""
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
    """Hash the names, sizes and modification times of files; the hash changes whenever a file does.

    Args:
        paths: of the files, absolute or relative to `root`; there may be millions.
        root: the folder that names are relative to.
    """
    total = hashlib.sha256()
    for path in paths:
        name = path if isinstance(path, str) else path.relative_to(root).as_posix()
        try:
            status = os.stat(os.path.join(root, path))
            rest = f"\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:  # a dangling link; reported when the image is read
            rest = "\0missing\n"
        total.update(os.fsencode(name) + rest.encode())
    return total.hexdigest()


def regular(path: Path) -> Path:
    """Return the path if it is a regular file.

    Raises:
        ValueError: there is no file, or it is a pipe or a device, which might block forever.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ValueError("a link that leads nowhere" if path.is_symlink() else "no such file") from None
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")
    return path
