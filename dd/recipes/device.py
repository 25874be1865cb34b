"""`device=auto` and what becomes of it."""

import re

from dd.errors import UsageError

_FORM = re.compile(r"auto|cpu|mps|cuda(?::\d+)?")


def resolve_device(asked: str) -> str:
    """The device a run uses: itself, or for "auto" a CUDA device where there is one, else the CPU.

    Apple's "mps" is taken only when it is asked for by name.

    Raises:
        UsageError: not a device, or not one of this machine.
    """
    if not _FORM.fullmatch(asked):
        raise UsageError(f"device={asked!r} is not a device; use auto, cpu, cuda, cuda:N or mps")
    if asked == "cpu":
        return asked
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda" if cuda else "cpu"
    if asked == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device=mps is not available here; device=auto takes the best there is")
    if asked.startswith("cuda") and int(asked.partition(":")[2] or 0) >= cuda:
        seen = f"{cuda} CUDA device{'s' * (cuda != 1)} found" if cuda else "no CUDA device found"
        raise UsageError(f"device={asked}: {seen}; device=auto takes the best there is")
    return asked
