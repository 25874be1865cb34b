"""Hashes of the tensors of sets, which may be gigabytes: each once, while nobody can change them."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

from dd.io import sha256_tensors

_known: ContextVar[dict[tuple[str, int], tuple[Tensor, str]] | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def hashed_once() -> Iterator[None]:
    """While the block runs, a tensor of a set is hashed once, however many ask: it must not be written to."""
    token = _known.set({}) if _known.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _known.reset(token)


def sha256(name: str, tensor: Tensor) -> str:
    """SHA-256 over name, shape, type and bytes of a tensor."""
    known = _known.get()
    if known is None:
        return sha256_tensors({name: tensor})
    key = name, id(tensor)
    if key not in known:
        known[key] = tensor, sha256_tensors({name: tensor})  # kept beside, so that no other gets its id
    return known[key][1]
