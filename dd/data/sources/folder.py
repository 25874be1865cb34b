"""A user's own images in folders, one per class."""

import os
from collections.abc import Iterable
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from dd.data.sources.content import EncodedSet, EncodedSplit, ImageFiles, Listing, file_identity, with_test_part
from dd.data.sources.layout import ClassFolders, annotations, class_folders, laid_out, layout_notes
from dd.data.sources.walk import join, walk
from dd.errors import UsageError, in_one_line, unknown


def read_folder(root: Path) -> EncodedSet:
    """Read a user's folder of images, in any layout that `dd.data.sources.layout` knows.

    Raises:
        UsageError: the folder does not exist, holds no images or is ambiguous, or the test part has a class that the
            training part lacks.
    """
    if not os.path.isdir(root):
        raise UsageError(f"there is no folder {root}; folder:PATH holds PATH/train/CLASS/… or PATH/CLASS/…")
    top, passed = walk(root)
    found = laid_out(top, root)
    classes = _names(found.train)
    test = None
    if found.test is not None:
        _require_known(root, found.test, classes)
        test = _labelled(root, found.test, classes)
    elif found.listed is not None:
        part = found.listed
        test = images_listed(root, root / part.path / (annotations(part) or ""), join(part.path, "images"), classes)
    notes = tuple(found.notes) + passed.notes()
    return _encoded(root, _labelled(root, found.train, classes), test, classes, notes)


def read_class_folders(
    root: Path, train: Path, test: Path | None, notes: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> EncodedSet:
    """Read two trees of class folders; without a test tree, a fixed fifth of the training images is the test part.

    Args:
        root: the folder that image paths are relative to.
        train: holds one folder per class.
        test: holds folders of the same names, or None.
        notes: notes for the user; those of the reader are appended.
        only: the classes to read, in label order; None: all, in alphabetical order.

    Raises:
        UsageError: there is no image, or the test part has a class that the training part lacks.
    """
    classes, part, more = images_below(train, root, only)
    notes += more
    test_part = None
    if test:
        found, more = _class_folders(test, only)
        _require_known(test, found, classes)
        test_part = _labelled(test, found, classes, root)
        notes += more
    return _encoded(root, part, test_part, classes, notes)


def images_below(
    folder: Path, root: Path, only: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], EncodedSplit, tuple[str, ...]]:
    """List a tree of class folders without opening images: class names in label order, the images, and notes.

    Raises:
        UsageError: there is no class folder, or none of them holds an image.
    """
    found, notes = _class_folders(folder, only)
    classes = only or _names(found)
    return classes, _labelled(folder, found, classes, root), notes


def images_listed(root: Path, file: Path, images: str, classes: tuple[str, ...]) -> EncodedSplit:
    """The images whose labels are listed in a file, like Tiny-ImageNet's validation part: name, tab, class.

    Args:
        root: the folder that image paths are relative to.
        file: the list.
        images: the folder of the images, relative to `root`.
        classes: names in label order.

    Raises:
        UsageError: the list cannot be read, or it names an unknown class.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        labels = [numbers[row[1]] for row in rows]
    except (KeyError, IndexError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} does not go with the class folders of {root} ({in_one_line(error)})") from error
    return EncodedSplit(
        ImageFiles(root, [f"{images}/{row[0]}" for row in rows]), torch.tensor(labels, dtype=torch.int64)
    )


def _encoded(
    root: Path, train: EncodedSplit, test: EncodedSplit | None, classes: tuple[str, ...], notes: tuple[str, ...]
) -> EncodedSet:
    @cache
    def listing() -> Listing:
        return Listing(train, test, classes, notes) if test else with_test_part(train, classes, notes)

    files = chain(paths_of(train), paths_of(test) if test else ())
    identity = {"files": file_identity(files, root), "classes": classes, "split": test is not None}
    return EncodedSet(identity, listing, notes)


def paths_of(part: EncodedSplit) -> Iterable[str]:
    """The relative paths of a part's images."""
    assert isinstance(part.items, ImageFiles)
    return part.items.paths


def _class_folders(folder: Path, only: tuple[str, ...] | None) -> tuple[ClassFolders, tuple[str, ...]]:
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder}")
    top, passed = walk(folder, only)
    return class_folders(top, folder), (*layout_notes(top), *passed.notes())


def _labelled(
    root: Path, found: ClassFolders, classes: tuple[str, ...], named_from: Path | None = None
) -> EncodedSplit:
    """The images of class folders below `root`, labelled by the position of their class in `classes`."""
    before = root.relative_to(named_from).as_posix() + "/" if named_from and named_from != root else ""
    numbers = {name: number for number, name in enumerate(classes)}
    every: list[str] = []
    counts, labels = [], []
    for name in sorted(found):
        files = [before + path for folder in found[name] for path in folder.files()]
        every += files
        counts.append(len(files))
        labels.append(numbers[name])
    return EncodedSplit(ImageFiles(named_from or root, every), _repeated(labels, counts))


def _repeated(values: list[int], counts: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


def _names(found: ClassFolders) -> tuple[str, ...]:
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the name of the class folder {name!r} is not text (UTF-8); rename it") from error
    return tuple(found)


def _require_known(where: Path, found: ClassFolders, classes: tuple[str, ...]) -> None:
    for name in found:
        if name not in classes:
            raise unknown(f"class in {where}:", name, classes)
