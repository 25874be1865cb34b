"""Checks for every path that a user names on the command line, in Python or in the environment."""

import contextlib
import os
import re
import stat
from pathlib import Path

from dd.errors import UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(text: str) -> bool:
    """Return whether a text is an address, such as s3://bucket/prefix, rather than a path."""
    return _ADDRESS.match(text) is not None


def user_path(text: str | Path, what: str = "", *, absolute: bool = True) -> Path:
    """Return a user's path with `~` expanded, made absolute; links and `..` are kept.

    Args:
        text: relative or absolute; it need not exist.
        what: the setting or variable that names it, for the message; "dataset=folder:" brings its own separator.
        absolute: whether to make a relative path absolute; False if it is only displayed and written to.

    Raises:
        UsageError: `text` cannot be a path, or is empty.
    """
    if text == "":
        raise UsageError(f"{_said(text, what) or repr(text)}: a path cannot be empty; write . for the current folder")
    if is_address(str(text)):
        raise UsageError(f"{_said(text, what)!r} is an address on the web, not a path on this machine")
    try:
        path = Path(text).expanduser()
        # only malformed paths fail here; callers report a missing or overlong one
        with contextlib.suppress(OSError):
            os.stat(path)
        str(path).encode()  # recipes and reports store it as text
    except (RuntimeError, ValueError) as error:  # unknown user's home; NUL; bytes that are not UTF-8
        raise UsageError(f"{_said(text, what)!r} is not a path: {error}") from error
    return path.absolute() if absolute else path


def _said(text: str | Path, what: str) -> str:
    return f"{what}{'' if what.endswith(':') else '='}{text}" if what else str(text)


def existing(path: Path, named: str) -> Path:
    """Return `path` if it is a regular file or a folder.

    Args:
        path: as returned by `user_path`.
        named: what the user wrote, for the message.

    Raises:
        UsageError: nothing exists there, or it is a pipe, a socket or a device, which may never finish reading.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError | NotADirectoryError) else error.strerror
        raise UsageError(f"{named}: {why}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"{named}: not a regular file, but a pipe, a socket or a device; copy it into a file first")
    return path
