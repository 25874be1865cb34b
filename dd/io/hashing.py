"""Content hashes: of files, of tensors, of plain values."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

SEAL = "seal"
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON can hold."""


def digest(value: Json, length: int = 16) -> str:
    """Hash of a value; equal values have equal hashes, whatever their key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def sealed(facts: Mapping[str, object]) -> dict[str, Json]:
    """JSON-able facts with a hash over all of them as "seal", by which `holds` knows them again."""
    read: dict[str, Json] = json.loads(json.dumps(facts))  # as it will be read
    return {**read, SEAL: digest(read, length=64)}


def holds(value: object) -> bool:
    """Whether `value` is what `sealed` gave, to the last digit."""
    if not isinstance(value, dict) or SEAL not in value:
        return False
    return value[SEAL] == digest({name: fact for name, fact in value.items() if name != SEAL}, length=64)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensors(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, shapes, types and bytes of named tensors, in the order of their names."""
    import torch  # not above: what is listed without a tensor does not wait for it

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
