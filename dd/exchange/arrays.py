"""numpy files: sizes declared in a header are checked against the file before memory is allocated."""

import math
import tokenize
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch

from dd.errors import UsageError, in_one_line
from dd.exchange import zips
from dd.exchange.tree import Tree
from dd.sizes import readable_size

_HEADER = 10_000  # bytes; numpy's own limit for untrusted files
_NUMBERS, _TEXTS = "biuf", "US"
_ITEMS = 100_000  # maximum number of strings (class names)
_NAMED = 64  # maximum number of members: a set has images, labels and little else
_FAILURES = (
    ValueError,
    tokenize.TokenError,
    OSError,
    EOFError,
    SyntaxError,
    TypeError,
    NotImplementedError,
    MemoryError,
    zipfile.error,
)


def read_npy(path: Path) -> Tree:
    """Read the array of a `.npy` file as a tensor.

    Raises:
        UsageError: the file is damaged, holds objects, or declares more data than it has.
    """
    try:
        with path.open("rb") as file:
            return _array(file, path.stat().st_size, str(path))
    except _FAILURES as error:
        raise UsageError(f"{path} cannot be read: {in_one_line(error)}") from error


def read_npz_tree(path: Path) -> Tree:
    """Read the arrays of a `.npz` file by name: numbers as tensors, strings as lists.

    Raises:
        UsageError: the file is damaged, holds objects, or declares more data than a file of its size can hold.
    """
    sizes = zips.members(path, packed=True)
    if len(sizes) > _NAMED:
        raise UsageError(f"{path} is refused: it holds {len(sizes):,} arrays, and a set few")
    found: dict[str | int, Tree] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name, size in sizes.items():
                with file.open(name) as member:
                    found[name.removesuffix(".npy")] = _array(member, size, f"{path}: {name}")
    except _FAILURES as error:
        raise UsageError(f"{path} cannot be read: {in_one_line(error)}") from error
    return found


def _array(file: IO[bytes], size: int, named: str) -> torch.Tensor | list[str]:
    """Read numbers as a tensor, strings as a list."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the format is unknown")
    shape, fortran, dtype = read(file, max_header_size=_HEADER)
    if dtype.kind not in _NUMBERS + _TEXTS or dtype.hasobject:
        raise UsageError(f"{named} is refused: it holds {dtype}, not numbers or texts; nothing in it was run")
    declared = math.prod(shape) * dtype.itemsize
    if declared > size or any(side < 0 for side in shape):
        raise UsageError(f"{named} is refused: it declares {readable_size(declared)}, and has {readable_size(size)}")
    content = file.read(declared)
    if len(content) < declared:
        raise EOFError(f"{named} is cut off")
    array = np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")
    if dtype.kind in _TEXTS:
        return [str(text) for text in array.astype("U").flatten()[:_ITEMS]]
    return torch.from_numpy(np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)))
