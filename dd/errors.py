"""The three ways a run ends that are not success, and the words that help out of them."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(Exception):
    """Wrong use: one clear line that names the value and the way out.  Exit code 2."""


class RunError(Exception):
    """The run failed through no fault of the command line (a NaN, a damaged file).  Exit code 1."""


class Interrupted(BaseException):
    """The run was stopped by a signal after its state had been saved.

    Like `KeyboardInterrupt` no `Exception`: it comes up wherever the program stands, and torch's compiler, for one,
    takes exceptions for a reason to go on without compiling.

    Attributes:
        exit_code: 130 after Ctrl-C, 75 ("saved, start me again") after SIGTERM.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def in_one_line(error: object) -> str:
    """The first line of what an error says, or its kind where it says nothing, as an `EOFError` does."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str, keep: str = "\n\t") -> str:
    """A text that a terminal shows and does nothing else with.

    Control characters, those that turn the direction of writing, and what is no character at all come out as Python
    writes them: an escape sequence in a file's name could set the window's title, or clear the screen.
    """
    return "".join(c if c in keep or not _is_control(c) else c.encode("unicode_escape").decode() for c in text)


def _is_control(c: str) -> bool:
    # Cc: C0, DEL and C1; Cf: marks of direction among others; Cs: bytes of a name that are no UTF-8; Zl, Zp: line ends
    return not (" " <= c <= "~") and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'convnet'?"` for the close matches of `name` among `known`, else the whole list."""
    known = sorted(known)
    close = close_matches(name, known, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(f"{c!r}" for c in close) + "?"
    return f"; known: {', '.join(known)}" if known else ""


def close_matches(name: str, known: Iterable[str], n: int = 3, cutoff: float = 0.6) -> list[str]:
    """The close matches of a name, the closest first; capital letters make no difference."""
    spelled = {one.lower(): one for one in known}
    return [spelled[one] for one in get_close_matches(name.lower(), sorted(spelled), n=n, cutoff=cutoff)]


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """A ready-made error for a name that is not in a list."""
    return UsageError(f"unknown {kind} {name!r}{nearest(name, known)}")
