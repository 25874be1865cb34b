"""Content hashes of files, tensors and plain values."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

SEAL = "seal"
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""Any value that JSON can represent."""


def digest(value: Json, length: int = 16) -> str:
    """Return the hash of a value; equal values have equal hashes, regardless of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def sealed(facts: Mapping[str, object]) -> dict[str, Json]:
    """Return JSON-serialisable facts plus "seal", a hash over all of them that `holds` verifies."""
    read: dict[str, Json] = json.loads(json.dumps(facts))  # hash what a reader will see
    return {**read, SEAL: digest(read, length=64)}


def holds(value: object) -> bool:
    """Return whether `value` is exactly what `sealed` returned."""
    if not isinstance(value, dict) or SEAL not in value:
        return False
    return value[SEAL] == digest({name: fact for name, fact in value.items() if name != SEAL}, length=64)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensors(tensors: "Mapping[str, Tensor]") -> str:
    """Return the SHA-256 over the names, shapes, dtypes and bytes of named tensors, sorted by name."""
    import torch  # lazy: commands that only list things do not import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
