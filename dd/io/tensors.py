"""Named tensors in one safetensors file, written atomically and with reproducible bytes."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dd.errors import RunError
from dd.io.atomic import atomic_path, no_room

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PIECE = 8 << 20  # bytes of the rows that are read at a time


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (any device, any layout) and text metadata to a safetensors file, atomically.

    Raises:
        RunError: the disk is full; nothing of the new file remains.
    """
    with atomic_path(Path(path)) as temporary:
        write_tensors(temporary, tensors, metadata or {})


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Like `save_tensors`, but write directly to `path`, not atomically."""
    from safetensors.torch import save_file

    save_file(_own(tensors), path, dict(metadata))
    _sort_metadata(path)


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file, memory-mapped on the CPU; pages are read on first access.

    Raises:
        FileNotFoundError, OSError: the file cannot be opened.
        safetensors.SafetensorError: it is not a safetensors file, or it is truncated.
    """
    from safetensors.torch import load_file

    return load_file(path, device="cpu")


def tensor_in_file(path: Path, shape: "Sequence[int]", dtype: "torch.dtype") -> "Tensor":
    """Return a tensor of undefined values whose memory is a new file, which the system may write out for room.

    The file loses its name at once, so that nothing is left of it when the tensor or the process is gone.

    Args:
        path: the file is made beside this path, whose folder is made too; messages name it.
        shape: of the tensor, with at least one value.
        dtype: of the tensor.

    Raises:
        RunError: the disk is full.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    values = math.prod(shape)
    size, free = values * dtype.itemsize, shutil.disk_usage(path.parent).free
    if size > free:
        raise RunError(f"{path} takes {size:,} bytes, but {free:,} are free: make room, then run the same command")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".map")
    try:
        # writing to a page that the disk has no room for would kill the process
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        return torch.from_file(name, shared=True, size=values, dtype=dtype).view(*shape)
    except OSError as error:
        if words := no_room(error):
            raise RunError(f"{words} while writing {path}: make room, then run the same command") from error
        raise
    finally:
        os.close(handle)
        Path(name).unlink()


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return copies of the tensors of a safetensors file, which do not change when the file does.

    They take their own bytes and those of a few rows; a copy of `load_tensors` would take twice the bytes, because the
    pages of a memory map stay in memory.  Raises as `load_tensors` does.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    return {name: _read(path, name) for name in names}


def _read(path: Path, name: str) -> "Tensor":
    import torch
    from safetensors import safe_open

    whole, done = None, 0
    while whole is None or done < len(whole):
        # opened for every piece, because closing it lets go of the pages that were read
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice(name)
            shape = rows.get_shape()
            if not shape or not shape[0]:
                return file.get_tensor(name).clone()
            one = rows[done : done + 1]
            each = max(1, _PIECE // max(1, one.numel() * one.element_size()))
            piece = rows[done : done + each]
            if whole is None:
                whole = torch.empty(shape, dtype=piece.dtype)
            whole[done : done + each] = piece
            del one, piece, rows
        done += each
    return whole


def _own(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    import torch

    # safetensors rejects tensors that share memory, so copy those
    owned, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.numel() * tensor.element_size() or memory.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(memory.data_ptr())
        owned[name] = tensor
    return owned


def _sort_metadata(path: Path) -> None:
    # safetensors writes metadata in random order; sort it so that equal content means equal bytes
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))
