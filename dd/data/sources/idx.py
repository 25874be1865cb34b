"""Reader of the idx format of MNIST and its relatives, plain or gzip-compressed."""

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from dd.data.sources.content import Arrays
from dd.errors import UsageError

_BYTES = 0x08  # the format's code for unsigned bytes


def parse_idx(data: bytes, where: str) -> Tensor:
    """Parse an uncompressed idx file into a uint8 tensor.

    Raises:
        UsageError: it is not an idx file of bytes, or it is truncated.
    """
    if len(data) < 4 or data[:3] != bytes((0, 0, _BYTES)):
        raise UsageError(f"{where} is not an idx file of bytes; fetch it again")
    axes = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)[4 + 4 * axes :]
    if len(values) != torch.Size(shape).numel():
        raise UsageError(
            f"{where} is cut off: {len(values)} bytes instead of {torch.Size(shape).numel()}; fetch it again"
        )
    return values.view(shape)


def read_idx(folder: Path, classes: tuple[str, ...]) -> Arrays:
    """Read the four idx files of a folder.

    Raises:
        UsageError: one is missing or damaged.
    """
    tensors = [_load(folder, f"{split}-{kind}") for split in ("train", "t10k") for kind in ("images", "labels")]
    return idx_arrays(tensors, classes, str(folder))


def idx_arrays(tensors: list[Tensor], classes: tuple[str, ...], where: str) -> Arrays:
    """Convert the tensors of idx files (training images, labels, test images, labels) to our shapes and dtypes."""
    train_images, train_labels, test_images, test_labels = tensors
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UsageError(f"{where}: {tuple(images.shape)} images do not go with {tuple(labels.shape)} labels")
    return Arrays(train_images.unsqueeze(1), train_labels.long(), test_images.unsqueeze(1), test_labels.long(), classes)


def _load(folder: Path, stem: str) -> Tensor:
    axes = 3 if stem.endswith("images") else 1
    names = [f"{stem}{dot}idx{axes}-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(f"{folder} lacks {names[0]} (or {names[2]}); fetch the data set again")
    try:
        data = path.read_bytes()
        return parse_idx(gzip.decompress(data) if path.suffix == ".gz" else data, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); fetch it again") from error
