"""Calls that are meant for the system's `dd`, which copies blocks and whose name an activated environment shadows.

The two grammars do not overlap: ours begins with a verb, the other one's operands are `if=`, `of=`, `bs=` and so on.
"""

import os
import re
import sys
from collections.abc import Sequence

_OPERAND = re.compile(r"(if|of|bs|ibs|obs|cbs|count|skip|seek|iseek|oseek|conv|iflag|oflag|status)=")
_OURS = b"dd.__main__"  # in the first lines of every console script of dd, in whichever environment


def hand_off(argv: Sequence[str]) -> None:
    """Become the next `dd` on the path if the call is one for it; return if it is one for us.

    Args:
        argv: the whole of `sys.argv`.

    Raises:
        SystemExit: it is for the system's dd, and there is none (exit code 2).
    """
    if not is_block_copy(argv, sys.stdin):
        return
    other = next_dd(argv[0], os.environ.get("PATH", os.defpath))
    if other is None:
        operands = " ".join(argv[1:]) or "data on stdin"
        sys.stderr.write(
            f"dd: {operands!r} is a call of the system's dd, which copies blocks, but PATH has no other dd; "
            "this dd distils datasets: dd --help\n"
        )
        raise SystemExit(2)
    os.execv(other, ["dd", *argv[1:]])


def is_block_copy(argv: Sequence[str], stdin: object) -> bool:
    """Whether a call is for the system's dd: its operands come first, or it is bare, named dd and fed by a pipe."""
    words = [word for word in argv[1:] if word != "--"]
    if words:
        return _OPERAND.match(words[0]) is not None
    is_terminal = getattr(stdin, "isatty", lambda: True)  # no stdin at all: nothing to copy
    return os.path.basename(argv[0]) == "dd" and not is_terminal()


def next_dd(own: str, path: str) -> str | None:
    """The first `dd` on the path that is not this program, nor that of another environment with dd."""
    ourselves = os.path.realpath(own)
    for folder in path.split(os.pathsep):
        if not os.path.isabs(folder):  # whatever folder one happens to be in has no say in what is run
            continue
        candidate = os.path.join(folder, "dd")
        if not os.path.isfile(candidate) or not os.access(candidate, os.X_OK):
            continue
        if os.path.realpath(candidate) != ourselves and not _is_ours(candidate):
            return candidate
    return None


def _is_ours(file: str) -> bool:
    try:
        with open(file, "rb") as handle:
            return _OURS in handle.read(1024)
    except OSError:
        return False
