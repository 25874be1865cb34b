"""Out of memory, in one line: how much was asked for, for what, and which setting needs less."""

import contextlib
import re
from collections.abc import Iterator

from dd.errors import RunError
from dd.sizes import readable_size

_BYTES = re.compile(r"allocate (\d+) bytes")  # torch on a CPU
_WORDS = re.compile(r"[Aa]llocate ([\d.]+ [KMGTP]i?B)")  # numpy, and torch on a GPU


@contextlib.contextmanager
def enough_memory(what: str, setting: str) -> Iterator[None]:
    """Turn "out of memory" in the block into one line.

    Args:
        what: was under way: "training experts".
        setting: that needs less: "experts.batch=64".

    Raises:
        RunError: there was not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (asked := asked_for(error)) is None:
            raise
        raise RunError(f"out of memory while {what}: {asked}; {setting} needs less; finished work is kept") from error


def asked_for(error: BaseException) -> str | None:
    """How much was asked for, in words; None where an error is about something else."""
    text = str(error)
    if found := _BYTES.search(text):
        return f"{readable_size(int(found[1]))} were requested"
    ours = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, not imported here
    if ours and (found := _WORDS.search(text)):
        return f"{found[1]} were requested"
    return "more was requested than is available" if ours else None
