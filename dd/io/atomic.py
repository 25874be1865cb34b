"""Atomic writes: a file is replaced completely or left untouched."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dd.errors import RunError

_NO_ROOM = {errno.ENOSPC: "no space left", errno.EDQUOT: "disk quota exceeded", errno.EFBIG: "file too large"}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds and is deleted if it fails.

    Raises:
        RunError: the disk is full; nothing of the new file remains.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if words := no_room(error):
            raise RunError(
                f"{words} while writing {path}; nothing was half-written: make room, then run the same command"
            ) from error
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it replaces `path` if the block succeeds and is deleted if it fails.

    An existing folder is kept until it is replaced.

    Raises:
        RunError: the disk is full; nothing of the new folder remains.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    except BaseException as error:
        if words := no_room(error):
            raise RunError(f"{words} while writing {path}; nothing is left of it: make room, then repeat") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON-serialisable value atomically, indented, with a trailing newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def no_room(error: BaseException) -> str:
    """Return a description of the error if it means that the disk is full, else an empty string."""
    number = getattr(error, "errno", None)
    if type(error).__name__ == "SafetensorError":  # its I/O errors carry the number only in their text
        found = re.search(r"(?:os error |code: )(\d+)", str(error))
        number = int(found[1]) if found else None
    return _NO_ROOM.get(number or 0, "")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
