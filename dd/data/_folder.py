"""A user's own images in folders, one per class (torchvision's `ImageFolder` rules)."""

from collections.abc import Sequence
from pathlib import Path

from dd.data._content import Encoded, Listing, Part, file_identity, with_test_part
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


def encoded(root: Path, train: Path, test: Path | None, notes: tuple[str, ...] = ()) -> Encoded:
    """The images below two class-folder trees; without a test tree, a fixed part of the training images is taken."""
    classes, train_part = images_below(train, root)
    test_part = _relabelled(test, root, classes) if test else None
    paths = [Path(str(path)) for part in (train_part, test_part) if part for path in part.items]

    def listing() -> Listing:
        if test_part is None:
            return with_test_part(train_part, classes, notes)
        return Listing(train_part, test_part, classes, notes)

    return Encoded({"files": file_identity(paths, root), "classes": classes, "split": test is not None}, listing)


def images_below(folder: Path, root: Path) -> tuple[tuple[str, ...], Part]:
    """Class names in alphabetical order, and all images of the class folders.

    Raises:
        UsageError: there is no class folder, or none holds an image.
    """
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder), allow_empty=True)
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no class folders; it wants {folder.name}/CLASS/IMAGE.png") from error
    if not found.samples:
        raise UsageError(f"the {len(found.classes)} folders in {folder} hold no images (png, jpg, bmp, webp, …)")
    return tuple(found.classes), part([Path(path) for path, _ in found.samples], [c for _, c in found.samples], root)


def part(paths: Sequence[Path], labels: Sequence[int], root: Path) -> Part:
    """Image files with their labels, named by their paths below `root`."""
    return Part(paths, labels, [path.relative_to(root).as_posix() for path in paths])


def _relabelled(folder: Path, root: Path, classes: tuple[str, ...]) -> Part:
    names, found = images_below(folder, root)
    for name in names:
        if name not in classes:
            raise unknown(f"class in {folder}:", name, classes)
    return Part(found.items, [classes.index(names[label]) for label in found.labels], found.names)
