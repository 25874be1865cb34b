"""Out-of-memory errors in one line: how much was requested, for what, and which setting needs less."""

import contextlib
import re
from collections.abc import Iterator

from dd.errors import RunError
from dd.sizes import readable_size

_BYTES = re.compile(r"allocate (\d+) bytes")  # torch on a CPU
_WORDS = re.compile(r"[Aa]llocate ([\d.]+ [KMGTP]i?B)")  # numpy, and torch on a GPU


@contextlib.contextmanager
def enough_memory(what: str, setting: str) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a one-line `RunError`.

    Args:
        what: the current activity: "training experts".
        setting: a setting that needs less memory: "experts.batch=64".

    Raises:
        RunError: out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (asked := asked_for(error)) is None:
            raise
        raise RunError(f"out of memory while {what}: {asked}; {setting} needs less; finished work is kept") from error


def asked_for(error: BaseException) -> str | None:
    """Describe how much memory was requested; None if the error is not about memory."""
    text = str(error)
    if found := _BYTES.search(text):
        return f"{readable_size(int(found[1]))} were requested"
    ours = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch, not imported here
    if ours and (found := _WORDS.search(text)):
        return f"{found[1]} were requested"
    return "more was requested than is available" if ours else None
