"""Random numbers: named generators derived from one root seed.

Every draw in the library comes from `generator(seed, name, ...)`.  A draw depends only on the seed and on its own name,
never on earlier draws, so an interrupted run resumes with the same bits without saving any generator state.
Generators live on the CPU, so all devices see the same draws.
"""

import hashlib

import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed, a function of the root seed and a path of names and counters."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose, for example `generator(seed, "batches", it)`."""
    return torch.Generator().manual_seed(derive(seed, *path))
