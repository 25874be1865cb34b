"""Cost of a stage, in wall seconds and peak memory, and what there is: cores, and the total memory of a device."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dd.runs import sampling


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Cost:
    """The cost of a block, filled in when it ends.

    Attributes:
        seconds: wall time.
        peak_memory: bytes: resident set size of the process on a CPU, allocated memory on CUDA; None if unknown.
    """

    seconds: float = 0.0
    peak_memory: int | None = None


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure the cost of the block; of a sample (`dd.runs.sampling`), that of the whole."""
    cost, began = Cost(), sampling.now()
    _reset_peak(device)
    try:
        yield cost
    finally:
        cost.seconds = sampling.now() - began
        cost.peak_memory = _peak(device)


def total_memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes, whether in use or free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: writing 5 resets the peak resident set size, VmHWM
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
