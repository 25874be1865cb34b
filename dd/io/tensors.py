"""Named tensors in one safetensors file, written atomically and with reproducible bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dd.io.atomic import atomic_path

if TYPE_CHECKING:
    from torch import Tensor


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
