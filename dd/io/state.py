"""Resumable state of long computations, in a safetensors file that carries its own checksum.

The metadata holds a hash over tensors and metadata.  The previous state is kept in a second file, so a damaged state
costs only the work done since the one before it.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dd.io.atomic import atomic_path
from dd.io.hashing import digest, sha256_tensors
from dd.io.tensors import load_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_HASH = "sha256"


class State(NamedTuple):
    """Named tensors, memory-mapped on the CPU, and text metadata."""

    tensors: "dict[str, Tensor]"
    meta: dict[str, str]


class _DamagedState(Exception):
    """A state file is damaged; the message says how."""


def previous(path: Path) -> Path:
    """Return the path of the backup: the state saved before the one in `path`."""
    return path.with_suffix(".previous")


def remove_state(path: Path) -> int:
    """Delete a state and its backup; return the number of bytes freed."""
    files = [file for file in (path, previous(path)) if file.is_file()]
    freed = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink(missing_ok=True)
    return freed


def save_state(path: Path, tensors: "Mapping[str, Tensor]", meta: Mapping[str, str]) -> None:
    """Write a state atomically; the existing state becomes the backup.

    Raises:
        RunError: the disk is full; the old state stays.
    """
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, {**meta, _HASH: _hash(tensors, meta)})
        _keep(path)


def load_state(path: Path, wanted: Mapping[str, str], *, quiet: bool = False) -> State | None:
    """Return the newest intact state, or None if there is none or it belongs to something else.

    Args:
        path: the state file.
        wanted: metadata that the state must have; an intact file with other values belongs to something else.
        quiet: do not log a warning about damage.
    """
    state, damage = None, ""
    try:
        state = _read(path)
    except FileNotFoundError:
        return None
    except _DamagedState as found:
        damage = str(found)
        with contextlib.suppress(FileNotFoundError, _DamagedState):
            state = _read(previous(path))
    if state is not None and any(state.meta.get(name) != value for name, value in wanted.items()):
        state = None
    if damage and not quiet:
        way_on = "starting over" if state is None else "resuming from the state before it"
        log.warning("%s is damaged (%s); %s", path, damage, way_on)
    return state


def _keep(path: Path) -> None:
    """Hard-link the state in `path` as the backup, without copying; `path` stays until it is replaced."""
    if path.is_file():
        previous(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # file systems without hard links keep one state only
            os.link(path, previous(path))


def _read(path: Path) -> State:
    from safetensors import safe_open

    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():  # opening a pipe would block
        raise _DamagedState("it is not a file")
    try:
        with safe_open(path, "pt") as file:
            meta = dict(file.metadata() or {})
        tensors = load_tensors(path)
    except Exception as error:  # a damaged file can raise almost anything
        raise _DamagedState(f"{type(error).__name__}: {error}") from error
    if (said := meta.pop(_HASH, None)) is None:
        raise _DamagedState("it has no hash")
    if said != _hash(tensors, meta):
        raise _DamagedState("its hash is wrong")
    return State(tensors, meta)


def _hash(tensors: "Mapping[str, Tensor]", meta: Mapping[str, str]) -> str:
    return digest([sha256_tensors(tensors), dict(meta)], length=64)
