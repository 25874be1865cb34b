"""Reader of image arrays in one `.npz` file, in MedMNIST's layout; pickles are refused, so no code is executed."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from dd.data.positions import stratified
from dd.data.sources.content import NO_TEST_PART, TEST_SEED, TEST_SHARE, Arrays
from dd.errors import UsageError, in_one_line

_SHAPES = "uint8 (n, h, w), (n, h, w, 1) or (n, h, w, 3)"
# what numpy and zipfile raise for damaged or malicious files
_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    MemoryError,
    SyntaxError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> Arrays:
    """Read the arrays `train_images`, `train_labels` and `test_…` (or `val_…`); class names are the numbers.

    Raises:
        UsageError: it is not an npz file, or an array does not hold images with one label each; the message names it.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}; npz:PATH names one with train_images and train_labels in it")
    with path.open("rb") as opened:  # numpy does not close files that it cannot read
        try:
            file = np.load(opened, allow_pickle=False)
        except _DAMAGED as error:
            raise UsageError(f"{path} cannot be read as npz: {in_one_line(error)}") from error
        if not isinstance(file, NpzFile):
            raise UsageError(f"{path} holds a single array; an npz file has train_images and train_labels (np.savez)")
        return _arrays(file, path)


def _arrays(file: NpzFile, path: Path) -> Arrays:
    images, labels = _part(file, path, "train")
    test = next((name for name in ("test", "val") if f"{name}_images" in file), None)
    unused = test == "test" and "val_images" in file
    notes = ["val_images are not used: data.holdout takes from train_images"] if unused else []
    if test:
        test_images, test_labels = _part(file, path, test)
    else:
        kept, taken = stratified(labels, TEST_SHARE, TEST_SEED, "test part")
        test_images, test_labels, images, labels = images[taken], labels[taken], images[kept], labels[kept]
        notes.append(NO_TEST_PART)
    if images.shape[1:] != test_images.shape[1:]:
        ours, theirs = (" x ".join(map(str, part.shape[1:])) for part in (images, test_images))
        raise UsageError(f"{path}: train_images are {ours} (channels first), and {test}_images {theirs}")
    return Arrays(images, labels, test_images, test_labels, _classes(path, labels, test_labels), tuple(notes))


def _part(file: NpzFile, path: Path, part: str) -> tuple[Tensor, Tensor]:
    """The images of one part, uint8 (n, c, h, w), and their labels, int64 (n,)."""
    images = _array(file, path, f"{part}_images")
    if images.dtype == np.uint16:
        raise UsageError(f"{path}: {part}_images have 16 bits per channel; scale them to 8 first (uint8)")
    known = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not known or 0 in images.shape[1:]:
        raise UsageError(f"{path}: {part}_images are {images.dtype} {images.shape}; images are {_SHAPES}")
    labels = _labels(_array(file, path, f"{part}_labels"), path, f"{part}_labels")
    if len(labels) != len(images):
        raise UsageError(f"{path}: {len(images):,} {part}_images do not go with {len(labels):,} {part}_labels")
    pixels = torch.from_numpy(images)
    return (pixels.unsqueeze(1) if images.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()), labels


def _labels(labels: np.ndarray, path: Path, name: str) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise UsageError(
            f"{path}: {name} are {labels.shape}, {labels.shape[1]} for each image (multi-label, as ChestMNIST's); "
            "classification needs one"
        )
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise UsageError(f"{path}: {name} are {labels.dtype} {labels.shape}; labels are whole numbers (n,) or (n, 1)")
    return torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _array(file: NpzFile, path: Path, name: str) -> np.ndarray:
    try:
        return file[name]
    except KeyError as error:
        there = ", ".join(file.files[:10]) or "nothing"
        raise UsageError(f"{path} lacks {name}; it has {there}") from error
    except _DAMAGED as error:
        raise UsageError(f"{path}: {name} cannot be read: {in_one_line(error)}") from error


def _classes(path: Path, train: Tensor, test: Tensor) -> tuple[str, ...]:
    if not len(train):
        raise UsageError(f"{path}: train_images hold no images")
    both = torch.cat([train, test])
    least, most = int(both.min()), int(both.max())
    if least < 0 or most >= len(train):  # one class per number up to a huge label would exhaust memory
        raise UsageError(
            f"{path}: labels go from {least:,} to {most:,}; those of {len(train):,} training images are whole numbers "
            f"from 0 to at most {len(train) - 1:,}"
        )
    return tuple(str(number) for number in range(most + 1))
