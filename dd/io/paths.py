"""The one road of every path that a user names, on the command line, in Python or in the environment."""

import contextlib
import os
import stat
from pathlib import Path

from dd.errors import UsageError


def user_path(text: str | Path, what: str = "", *, absolute: bool = True) -> Path:
    """A path as a user wrote it: `~` expanded, made absolute; links and `..` are left as they are.

    Args:
        text: relative or absolute; it need not exist.
        what: the setting or variable that names it, for the message; "dataset=folder:" ends in its own sign.
        absolute: whether a relative one becomes absolute; False where it is only shown and written to.

    Raises:
        UsageError: it stands for no path.
    """
    try:
        path = Path(text).expanduser()
        # what is missing, or too long, is told by those who want it to be there
        with contextlib.suppress(OSError):
            os.stat(path)
        str(path).encode()  # recipes and reports are text, and name it
    except (RuntimeError, ValueError) as error:  # no such user's home; a NUL; bytes that are not UTF-8
        named = f"{what}{'' if what.endswith(':') else '='}{text}" if what else str(text)
        raise UsageError(f"{named!r} is not a path: {error}") from error
    return path.absolute() if absolute else path


def existing(path: Path, named: str) -> Path:
    """A path that a regular file or a folder is at.

    Args:
        path: as `user_path` gives it.
        named: what the user wrote, for the message.

    Raises:
        UsageError: nothing is there, or a pipe, a socket or a device, of which reading may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError | NotADirectoryError) else error.strerror
        raise UsageError(f"{named}: {why}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"{named}: not a regular file, but a pipe, a socket or a device; copy it into a file first")
    return path
