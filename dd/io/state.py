"""What something that takes long resumes from after a crash: a safetensors file that knows whether it is whole.

A hash over tensors and metadata stands in the metadata.  The state before the last one is kept as a second file, so
that a damaged one costs no more than what was done in between.
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
    """What is wrong with a file."""


def previous(path: Path) -> Path:
    """The file that holds the state before the one in `path`."""
    return path.with_suffix(".previous")


def remove_state(path: Path) -> int:
    """Delete a state, and the one before it; returns bytes freed."""
    files = [file for file in (path, previous(path)) if file.is_file()]
    freed = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink(missing_ok=True)
    return freed


def save_state(path: Path, tensors: "Mapping[str, Tensor]", meta: Mapping[str, str]) -> None:
    """Write a state, atomically; the one that was there becomes the one before it.

    Raises:
        RunError: the disk is full; the old state stays.
    """
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, {**meta, _HASH: _hash(tensors, meta)})
        _keep(path)


def load_state(path: Path, wanted: Mapping[str, str], *, quiet: bool = False) -> State | None:
    """The last state that holds; None where there is none, or one of something else.

    Args:
        path: the file.
        wanted: metadata that it must have; a whole file with others is of something else.
        quiet: say nothing about damage, which the log otherwise gets one line about.
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
    """Make what is in `path` the state before, at no cost; `path` itself stays until it is replaced."""
    if path.is_file():
        previous(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a disk without links keeps one state
            os.link(path, previous(path))


def _read(path: Path) -> State:
    from safetensors import safe_open

    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():  # a pipe would be waited for
        raise _DamagedState("it is not a file")
    try:
        with safe_open(path, "pt") as file:
            meta = dict(file.metadata() or {})
        tensors = load_tensors(path)
    except Exception as error:  # damage comes out as whatever it happens to break
        raise _DamagedState(f"{type(error).__name__}: {error}") from error
    if (said := meta.pop(_HASH, None)) is None:
        raise _DamagedState("it has no hash, as those of an earlier dd")
    if said != _hash(tensors, meta):
        raise _DamagedState("its hash is wrong")
    return State(tensors, meta)


def _hash(tensors: "Mapping[str, Tensor]", meta: Mapping[str, str]) -> str:
    return digest([sha256_tensors(tensors), dict(meta)], length=64)
