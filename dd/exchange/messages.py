"""Checkpoints of flax: msgpack with arrays as extension types, which this module decodes."""

import math
from pathlib import Path

import msgpack
import numpy as np
import torch

from dd.errors import UsageError, in_one_line
from dd.exchange.tree import Tree
from dd.sizes import readable_size

_ARRAY, _SCALAR = 1, 3  # extension types of flax.serialization; 2 is a complex number
_ITEMS = 10_000  # maximum number of items in a map or list
_LARGEST = 4 << 30  # maximum bytes of a file
_DEPTH = 64
_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
_FAILURES = (ValueError, OSError, EOFError, TypeError, RecursionError, MemoryError, msgpack.UnpackException)


def read(path: Path) -> Tree:
    """Read a checkpoint of flax as maps of tensors and plain values.

    Raises:
        UsageError: the file is damaged, holds objects other than arrays, or declares more data than it has.
    """
    size = path.stat().st_size
    if size > _LARGEST:
        raise UsageError(f"{path} is refused: a set of {readable_size(size)} is not one that flax writes in one file")
    try:
        return _plain(_unpacked(path.read_bytes(), _extension))
    except _FAILURES as error:
        raise UsageError(f"{path} cannot be read as msgpack: {in_one_line(error)}") from error


def _unpacked(content: bytes, extension: object) -> object:
    return msgpack.unpackb(
        content,
        raw=False,
        strict_map_key=False,
        ext_hook=extension,
        max_str_len=_ITEMS,
        max_array_len=_ITEMS,
        max_map_len=_ITEMS,
        max_bin_len=len(content),
        max_ext_len=len(content),
    )


def _extension(code: int, content: bytes) -> object:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {code} is no array")
    fields = _unpacked(content, _no_extension)
    if not isinstance(fields, list) or len(fields) != 3:
        raise ValueError("an array is not described by shape, type and values")
    shape, dtype, values = fields
    whole = isinstance(shape, list) and all(isinstance(side, int) and 0 <= side < 2**40 for side in shape)
    if not whole or dtype not in _DTYPES or not isinstance(values, bytes):
        raise ValueError(f"an array is of type {str(dtype)[:20]!r}, not one of {', '.join(_DTYPES)}")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(values):
        raise ValueError(f"an array declares {math.prod(shape):,} values, and has {len(values):,} bytes")
    return torch.from_numpy(np.frombuffer(bytearray(values), dtype).reshape(shape))


def _no_extension(code: int, content: bytes) -> object:
    raise ValueError("an array within an array")


def _plain(value: object, depth: int = 0) -> Tree:
    if depth > _DEPTH:
        raise ValueError("its maps are nested as no program writes them")
    if isinstance(value, dict):
        return {key if isinstance(key, str | int) else str(key): _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, depth + 1) for one in value]
    if value is None or isinstance(value, torch.Tensor | str | bytes | bool | int | float):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")
