"""A user's own images in folders, one per class (torchvision's `ImageFolder` rules)."""

import os
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from dd.data._content import Encoded, ImageFiles, Listing, Part, file_identity, with_test_part
from dd.errors import UsageError, unknown

TEST_NAMES = ("test", "val", "valid", "validation")


def read(root: Path) -> Encoded:
    """The images of ROOT/train/CLASS/… and ROOT/test (or val)/CLASS/…, or of ROOT/CLASS/… alone.

    Raises:
        UsageError: there is no such folder, it holds no images, or the test part has a class of its own.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}; folder:PATH wants PATH/train/CLASS/… or PATH/CLASS/…")
    train = root / "train"
    # a folder "train" that holds images rather than folders is a class of vehicles
    if train.is_dir() and any(entry.is_dir() for entry in train.iterdir()):
        test = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
        return encoded(root, train, test)
    return encoded(root, root, None)


def encoded(
    root: Path, train: Path, test: Path | None, notes: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> Encoded:
    """The images below two class-folder trees; without a test tree, a fixed part of the training images is taken.

    Args:
        root: what images are named from.
        train: holds a folder for each class.
        test: holds folders of the same names, or None.
        notes: what a user should know, added to what is found.
        only: the classes to read, in label order; None: all of them, in alphabetical order.

    Raises:
        UsageError: there is no image, or the test part has a class of its own.
    """
    classes, files, labels = images_below(train, root, only)
    paths, part = files.paths, Part(files, labels)
    test_part: Part | None = None
    if test:
        test_files, test_labels = _relabelled(test, root, classes, only)
        paths, test_part = chain(paths, test_files.paths), Part(test_files, test_labels)

    @cache
    def listing() -> Listing:
        return Listing(part, test_part, classes, notes) if test_part else with_test_part(part, classes, notes)

    identity = {"files": file_identity(paths, root), "classes": classes, "split": test is not None}
    return Encoded(identity, listing)


def images_below(
    folder: Path, root: Path, only: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], ImageFiles, Tensor]:
    """Class names in label order, all images of the class folders, which are not opened, and their labels (n,).

    Raises:
        UsageError: there is no class folder, or none holds an image.
    """
    from torchvision.datasets import ImageFolder

    class Some(ImageFolder):
        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            names, numbers = super().find_classes(directory)
            if only is None:
                return names, numbers
            return list(only), {name: number for number, name in enumerate(only) if name in numbers}

    try:
        found = Some(str(folder), allow_empty=True)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no class folders; it wants {folder.name}/CLASS/IMAGE.png") from error
    if not found.samples:
        raise UsageError(f"the {len(found.classes)} folders in {folder} hold no images (png, jpg, bmp, webp, …)")
    skip = len(str(root)) + 1
    paths = [path[skip:].replace(os.sep, "/") for path, _ in found.samples]
    return tuple(found.classes), ImageFiles(root, paths), torch.tensor(found.targets, dtype=torch.int64)


def _relabelled(
    folder: Path, root: Path, classes: tuple[str, ...], only: tuple[str, ...] | None
) -> tuple[ImageFiles, Tensor]:
    names, files, labels = images_below(folder, root, only)
    numbers = {name: number for number, name in enumerate(classes)}
    for name in names:
        if name not in numbers:
            raise unknown(f"class in {folder}:", name, classes)
    return files, torch.tensor([numbers[name] for name in names])[labels]
