"""The exceptions that end a run, and helpers for error messages."""

import json
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(Exception):
    """Wrong usage, reported in one line that names the value and the fix.  Exit code 2."""


class RunError(Exception):
    """A failure that the command line did not cause, such as a NaN or a damaged file.  Exit code 1."""


class Interrupted(BaseException):
    """A signal stopped the run after its state was saved.

    Derives from `BaseException`, like `KeyboardInterrupt`: it can be raised anywhere, and some callers swallow an
    `Exception`.  torch's compiler, for one, falls back to running uncompiled.

    Attributes:
        exit_code: 130 after Ctrl-C, 75 ("saved, start me again") after SIGTERM.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def in_one_line(error: object) -> str:
    """Return the first line of an error's message, or its class name if the message is empty (e.g. `EOFError`)."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str, keep: str = "\n\t") -> str:
    """Return `text` with everything escaped that a terminal would interpret instead of showing.

    Control characters, bidirectional marks and invalid code points are written as Python escapes.  Otherwise an escape
    sequence in a file name could set the window title or clear the screen.
    """
    return "".join(c if c in keep or not _is_control(c) else c.encode("unicode_escape").decode() for c in text)


def shortened(value: object, most: int) -> str:
    """Return a setting for a table, as text or JSON of at most `most` characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _is_control(c: str) -> bool:
    # Cc: C0, DEL, C1; Cf: bidirectional marks and others; Cs: non-UTF-8 bytes in a file name; Zl, Zp: line separators
    return not (" " <= c <= "~") and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'convnet'?"` for close matches of `name` in `known`, else a list of all of `known`."""
    known = sorted(known)
    close = close_matches(name, known, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(f"{c!r}" for c in close) + "?"
    return f"; known: {', '.join(known)}" if known else ""


def close_matches(name: str, known: Iterable[str], n: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the close matches of `name`, closest first, ignoring case."""
    spelled = {one.lower(): one for one in known}
    return [spelled[one] for one in get_close_matches(name.lower(), sorted(spelled), n=n, cutoff=cutoff)]


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not in `known`, with suggestions."""
    return UsageError(f"unknown {kind} {name!r}{nearest(name, known)}")
