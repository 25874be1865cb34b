"""Locks between processes, so that two runs never build the same artefact at once."""

import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


class Taken(Exception):
    """Another process holds a lock, and the caller does not wait for it; the message says what it is making."""


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, logging one warning if another process holds it.

    Args:
        path: the lock file, created if missing and never deleted.
        what: the thing being built, for the message: "expert 3 of cifar10".
        wait: whether to wait for another process that holds it.

    Raises:
        Taken: another process holds it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as timeout:
        if not wait:
            raise Taken(what) from timeout
        log.warning("waiting for another process that is making %s (lock: %s)", what, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock file `path`; creates nothing."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # not writable: whoever wants to lock it will say so
        return False
    lock.release()
    return False


_PROBE = "import sys, filelock; filelock.FileLock(sys.argv[1]).acquire(timeout=0)"


def locks_work(folder: Path) -> bool:
    """Return whether a lock that this process holds in a folder keeps another process out; leaves no file.

    Raises:
        OSError: the folder cannot be written to.
    """
    with TemporaryDirectory(prefix=".locks-", dir=folder) as place:
        path = Path(place) / "lock"
        try:
            with FileLock(path):
                held = subprocess.run([sys.executable, "-c", _PROBE, str(path)], capture_output=True, check=False)
            free = subprocess.run([sys.executable, "-c", _PROBE, str(path)], capture_output=True, check=False)
        except (OSError, NotImplementedError):  # the file system has no locks
            return False
    return held.returncode != 0 and free.returncode == 0
