"""Several processes on one synthesis: shares of the work, and sums over all processes.

Started by `torchrun --nproc-per-node=N -m dd run ...`.  Every process holds all variables and takes the same steps; the
processes divide the classes, or the images of an inner step, among themselves and sum the gradients.  If a set has
several parts, the processes divide the parts instead and make each one in an `alone` block.  In a single process these
functions do nothing.

Gradients are summed where the work is divided (`dd.engine.accumulate`, `dd.engine.shares`), so that what reaches a
variable is in every process the gradient of the whole objective, equal to the bit; nothing is summed a second time.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_PATIENCE = timedelta(days=30)
_ALONE = ContextVar("alone", default=False)


def is_parallel() -> bool:
    """Return whether several processes work together."""
    return not _ALONE.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def started() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process writes, evaluates and logs; also valid before the group is initialised."""
    if _ALONE.get():
        return True
    return int(os.environ.get("RANK", "0")) == 0 if not is_parallel() else dist.get_rank() == 0


def count() -> int:
    """Return the number of processes that work together."""
    return dist.get_world_size() if is_parallel() else 1


def stride() -> slice:
    """Return the positions of this process's share of a sequence, or of the rows of a tensor.

    Every position is in the share of exactly one process.  The first process has the largest share; with more processes
    than positions, some have none.
    """
    return slice(dist.get_rank(), None, count()) if is_parallel() else slice(None)


def share(items: Sequence[T]) -> list[T]:
    """Return this process's share of `items`, see `stride`."""
    return list(items[stride()])


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if is_parallel():
        dist.all_reduce(tensor)
    return tensor


def agreed(value: T) -> T:
    """Return the first process's value in every process."""
    if not is_parallel():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return bool(summed(torch.tensor(float(flag), device=_device()))) if is_parallel() else flag


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Detach this process from the group during the block: it shares no work and waits for no other process.

    If it has not joined the group yet, it does not join it in the block.
    """
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


@contextlib.contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the group that torchrun started, if any, for the duration of the block.

    Args:
        device: device of the run.

    Yields:
        The device of this process: with several processes on CUDA, one GPU each.
    """
    if started() == 1 or "RANK" not in os.environ or dist.is_initialized() or _ALONE.get():
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    # a process may wait for another one's last expert or part, which may take hours
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
