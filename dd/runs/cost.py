"""What a stage costs, wall seconds and peak memory, and how much memory there is."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Cost:
    """Filled in when the block ends.

    Attributes:
        seconds: wall time.
        peak_memory: bytes; resident set of the process on a CPU, allocated memory on CUDA; None where it is not known.
    """

    seconds: float = 0.0
    peak_memory: int | None = None


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure a block."""
    cost, began = Cost(), time.perf_counter()
    _reset_peak(device)
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        cost.peak_memory = _peak(device)


def total_memory(device: torch.device) -> int:
    """Bytes of memory that a device has in all, in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: 5 resets the peak resident set size, VmHWM
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
