"""Cached hashes of the tensors of sets, which may be gigabytes."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

from dd.io import sha256_tensors

_known: ContextVar[dict[tuple[str, int], tuple[Tensor, str]] | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def hashed_once() -> Iterator[None]:
    """Hash each tensor of a set at most once inside the block; the tensors must not be modified meanwhile."""
    token = _known.set({}) if _known.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _known.reset(token)


def sha256(name: str, tensor: Tensor) -> str:
    """SHA-256 of the name, shape, dtype and bytes of a tensor."""
    known = _known.get()
    if known is None:
        return sha256_tensors({name: tensor})
    key = name, id(tensor)
    if key not in known:
        known[key] = tensor, sha256_tensors({name: tensor})  # a reference to the tensor, so that its id is not reused
    return known[key][1]
