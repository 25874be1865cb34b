"""Readers of the published files of CIFAR and SVHN (through torchvision) and Tiny-ImageNet."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd.data.sources.content import Arrays, EncodedSet, Listing, file_identity
from dd.data.sources.folder import images_below, images_listed, paths_of, read_class_folders
from dd.errors import UsageError


def read_cifar(folder: Path, hundred: bool) -> Arrays:
    """Read CIFAR-10 or CIFAR-100 from its pickled batches; torchvision verifies their checksums before opening them.

    Raises:
        UsageError: a batch is missing or its checksum is wrong.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    try:
        train, test = [(CIFAR100 if hundred else CIFAR10)(str(folder.parent), train=part) for part in (True, False)]
    except RuntimeError as error:
        raise UsageError(
            f"{folder} is incomplete or damaged (a checksum differs); remove it and fetch it again"
        ) from error
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    labels = [torch.tensor(part.targets, dtype=torch.int64) for part in (train, test)]
    return Arrays(images[0], labels[0], images[1], labels[1], tuple(train.classes))


def read_svhn(folder: Path, classes: tuple[str, ...]) -> Arrays:
    """Read SVHN's cropped digits from MATLAB files; the published label 10 becomes 0.

    Raises:
        UsageError: scipy is missing, a file is missing, or its checksum is wrong.
    """
    from torchvision.datasets import SVHN

    parts: list[Tensor] = []
    for split in ("train", "test"):
        try:
            found = SVHN(str(folder), split=split)
        except ImportError as error:
            raise UsageError("svhn's MATLAB files need scipy: pip install scipy (its parquet form does not)") from error
        except RuntimeError as error:
            raise UsageError(
                f"{folder}/{split}_32x32.mat is missing or damaged; remove it and fetch it again"
            ) from error
        parts += [torch.from_numpy(np.ascontiguousarray(found.data)), torch.from_numpy(found.labels.astype(np.int64))]
    return Arrays(parts[0], parts[1], parts[2], parts[3], classes)


def read_tiny_imagenet(folder: Path) -> EncodedSet:
    """Read Tiny-ImageNet's folders; the validation part is the test part, because the real one has no labels.

    Raises:
        UsageError: the validation part is missing, or it names an unknown class.
    """
    validation, annotations = folder / "val", folder / "val" / "val_annotations.txt"
    if not validation.is_dir():
        raise UsageError(f"{folder} lacks its folder val; fetch the data set again")
    if not (validation / "images").is_dir() or not annotations.is_file():
        return read_class_folders(folder, folder / "train", validation)  # a copy that was sorted into class folders
    classes, train, notes = images_below(folder / "train", folder)
    test = images_listed(folder, annotations, "val/images", classes)
    paths = [*paths_of(train), *(path for path in paths_of(test) if (folder / path).exists())]
    identity = {"files": file_identity(paths, folder), "classes": classes}
    return EncodedSet(identity, lambda: Listing(train, test, classes, notes), notes)
