"""The one road of every path that a user names, on the command line, in Python or in the environment."""

import contextlib
import os
from pathlib import Path

from dd.errors import UsageError


def user_path(text: str | Path, what: str = "", *, absolute: bool = True) -> Path:
    """A path as a user wrote it: `~` expanded, made absolute; links and `..` are left as they are.

    Args:
        text: relative or absolute; it need not exist.
        what: the setting or variable that names it, for the message.
        absolute: whether a relative one becomes absolute; False where it is only shown and written to.

    Raises:
        UsageError: it stands for no path.
    """
    try:
        path = Path(text).expanduser()
        # what is missing, or too long, is told by those who want it to be there
        with contextlib.suppress(OSError):
            os.stat(os.fsencode(path))
    except (RuntimeError, ValueError) as error:  # no such user's home; a NUL, or a character no file name can have
        named = f"{what}={text}" if what else str(text)
        raise UsageError(f"{named!r} is no path: {error}") from error
    return path.absolute() if absolute else path
