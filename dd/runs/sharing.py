"""How processes share the work of a run: for what a process waits, and what it offers to others.

A process that only helps never waits: a lock that another process holds raises `Taken`, and the process ends.  A
process that leads writes a small file whenever there is something to divide, and whoever starts helpers watches it.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from dd.io import lock, write_json

_waits: ContextVar[bool] = ContextVar("waits", default=True)
_file: ContextVar[Path | None] = ContextVar("offers", default=None)
_stage: ContextVar["_Stage | None"] = ContextVar("stage", default=None)


@contextlib.contextmanager
def waiting(wait: bool) -> Iterator[None]:
    """Say whether this process waits, in the block, for what other processes are making."""
    token = _waits.set(wait)
    try:
        yield
    finally:
        _waits.reset(token)


@contextlib.contextmanager
def helping() -> Iterator[None]:
    """Make in the block what no process is making, and end it as soon as there is no such thing."""
    with waiting(False), contextlib.suppress(lock.Taken):
        yield


def waits() -> bool:
    """Return whether this process waits for what other processes are making."""
    return _waits.get()


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, see `dd.io.locked`.

    What is locked is being made, and making it may need other artefacts: the block waits for these, so that no work
    done so far is lost.

    Raises:
        Taken: another process holds it, and this one does not wait.
    """
    with lock.locked(path, what, wait=_waits.get()), waiting(True):
        yield


@dataclass(frozen=True)
class Offer:
    """What others can help with.

    Attributes:
        stage: the stage of the run.
        units: how many artefacts are missing, at least.
        at: when it was made, in seconds since 1970; no two offers of a run are alike.
    """

    stage: str
    units: int
    at: float

    @classmethod
    def read(cls, file: Path) -> "Offer | None":
        """Return the offer in a file; None if there is none."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


@dataclass
class _Stage:
    """A stage in which work is offered; `ahead` is the number of artefacts that it needs altogether, if known."""

    name: str
    ahead: int


@contextlib.contextmanager
def leading(file: Path) -> Iterator[None]:
    """Write what others can help with to `file`, in the block; the file does not outlast the block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    token = _file.set(file)
    try:
        yield
    finally:
        _file.reset(token)
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def stage(name: str, ahead: int = 0) -> Iterator[None]:
    """Offer the missing artefacts of the block to others, if this process leads.

    Args:
        name: the stage of the run.
        ahead: how many artefacts the block needs altogether, if it asks for them in several steps.
    """
    token = _stage.set(_Stage(name, ahead))
    try:
        yield
    finally:
        _stage.reset(token)
        if (file := _file.get()) is not None:
            file.unlink(missing_ok=True)


def offer(missing: Callable[[], int]) -> None:
    """Offer artefacts to others, if this process leads and the stage can be shared; `missing` counts them."""
    file, now = _file.get(), _stage.get()
    if file is None or now is None or (units := missing()) == 0:
        return
    write_json(file, asdict(Offer(now.name, max(units, now.ahead), time.time())))
    now.ahead = 0
