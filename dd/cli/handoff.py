"""Calls intended for the system's block-copying `dd`, which an activated environment shadows.

The two grammars do not overlap: ours starts with a verb, the system's with operands such as `if=`, `of=`, `bs=`.
"""

import os
import re
import sys
from collections.abc import Sequence

_OPERAND = re.compile(r"(if|of|bs|ibs|obs|cbs|count|skip|seek|iseek|oseek|conv|iflag|oflag|status)=")
_OURS = b"dd.__main__"  # found near the top of every console script of dd, in any environment


def hand_off(argv: Sequence[str]) -> None:
    """Replace this process with the next `dd` on the path if the call is for it; otherwise return.

    Args:
        argv: the complete `sys.argv`.

    Raises:
        SystemExit: the call is for the system's dd, but none exists (exit code 2).
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
    """Return whether a call is for the system's dd: it starts with an operand, or is a bare `dd` fed by a pipe."""
    words = [word for word in argv[1:] if word != "--"]
    if words:
        return _OPERAND.match(words[0]) is not None
    is_terminal = getattr(stdin, "isatty", lambda: True)  # without stdin there is nothing to copy
    return os.path.basename(argv[0]) == "dd" and not is_terminal()


def next_dd(own: str, path: str) -> str | None:
    """Return the first `dd` on the path that is neither this program nor that of another environment with dd."""
    ourselves = os.path.realpath(own)
    for folder in path.split(os.pathsep):
        if not os.path.isabs(folder):  # the current folder must not determine what is executed
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
