"""What readers yield: arrays, or encoded images that still want decoding."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dd.data.positions import relabelled, stratified
from dd.errors import UsageError, unknown
from dd.io import Json, digest

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

    def tensors(self) -> dict[str, Tensor]:
        """Images and labels of both splits, by the names of the fields."""
        return {
            "train_images": self.train_images,
            "train_labels": self.train_labels,
            "test_images": self.test_images,
            "test_labels": self.test_labels,
        }

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
class EncodedSplit:
    """Encoded images of one split, and their labels: int64 (n,), on the CPU."""

    items: Items
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "EncodedSplit":
        """The images at these positions."""
        return EncodedSplit(self.items.take(index.tolist()), self.labels[index])

    def only(self, numbers: Sequence[int]) -> "EncodedSplit":
        """The images of these classes, labelled by their place among them."""
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
        """The images of these classes, labelled by their place among them."""
        classes = tuple(self.classes[number] for number in numbers)
        return Listing(self.train.only(numbers), self.test.only(numbers), classes, self.notes)


@dataclass(frozen=True)
class EncodedSet:
    """Encoded images that are listed only when they are wanted.

    Attributes:
        identity: changes whenever the files do (paths, sizes, times of change).
        listing: the list of images, read once.
        notes: what is known of them beforehand that the identity does not tell, such as files that are not read.
    """

    identity: Json
    listing: Callable[[], Listing]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity, length=64)


def only_classes(content: Arrays | EncodedSet, names: tuple[str, ...]) -> Arrays | EncodedSet:
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

    return EncodedSet({"of": content.identity, "classes": names}, listing, content.notes)


def with_test_part(part: EncodedSplit, classes: tuple[str, ...], notes: tuple[str, ...] = ()) -> Listing:
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
        raise ValueError("not a regular file")
    return path
