"""Several processes on one synthesis: which classes are whose, and sums over all of them.

Started by `torchrun --nproc-per-node=N -m dd run ...`.  Every process holds all variables and takes the same steps;
they share out the classes and add up what they found.  A set of several parts is shared out part by part instead, and
each process makes its own `alone`.  Alone, nothing here does anything.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_ALONE = ContextVar("alone", default=False)


def is_parallel() -> bool:
    """Whether there are several processes that work together."""
    return not _ALONE.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this process is the one that writes, evaluates and speaks; also before it has joined the others."""
    if _ALONE.get():
        return True
    return int(os.environ.get("RANK", "0")) == 0 if not is_parallel() else dist.get_rank() == 0


def share(items: Sequence[T]) -> list[T]:
    """Those of `items` that are this process's: every so-many-th, so that any number of processes covers each once."""
    return list(items[dist.get_rank() :: dist.get_world_size()]) if is_parallel() else list(items)


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if is_parallel():
        dist.all_reduce(tensor)
    return tensor


def agreed(value: T) -> T:
    """The first process's value, in all of them."""
    if not is_parallel():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def any_of(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    return bool(summed(torch.tensor(float(flag), device=_device()))) if is_parallel() else flag


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work by itself while the block runs: it shares nothing and waits for nobody."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


@contextlib.contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the group that torchrun started, if it did, while the block runs.

    Args:
        device: of the run.

    Yields:
        The device of this process: with several on CUDA, one GPU each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
