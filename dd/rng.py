"""Randomness: one root seed, and named generators derived from it.

Every draw in the library comes from `generator(seed, name, ...)`.  A draw therefore depends on the seed and on its own
name alone, never on how many other draws came before, so an interrupted run needs no generator state to resume with the
same bits.  Generators live on the CPU: the same draw reaches every device.
"""

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed that is a function of the root seed and of a path of names and counters."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose, for example `generator(seed, "batches", it)`."""
    return torch.Generator().manual_seed(derive(seed, *path))
