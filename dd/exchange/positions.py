"""Selections: files of positions in the original training order instead of images.

DQ, and others  a `.npy` of integers; (n,) for one selection, (e, n) for one per epoch (RS2)
DeepCore        a checkpoint whose `subset` holds `indices`
CCS, TDDS       the same, or a ranking of all images, which is not a selection
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dd.errors import UsageError
from dd.exchange.draft import Asked, Draft
from dd.exchange.reader import Reader, Recognised
from dd.exchange.source import ForeignFiles
from dd.exchange.tree import Tree

_TENSORS = ("torch", "npy")
_KEYS = ("indices", "index", "idx", "selected_indices")


class PositionReader(Reader):
    """Positions of images of the real data."""

    formats: ClassVar[dict[str, str]] = {
        "indices": "positions in the training data: DQ, RS2",
        "deepcore": "a checkpoint of DeepCore with its subset",
    }

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        if len(source.paths) != 1 or source.container(source.paths[0]) not in _TENSORS:
            return ()
        content = source.content(source.paths[0])
        found = _positions(content)
        if found is None:
            return ()
        kind = "deepcore" if isinstance(content, Mapping) and "subset" in content else "indices"
        shape = " x ".join(f"{side:,}" for side in found.shape)
        return (Recognised(kind, (f"{shape} whole numbers from {int(found.min())} to {int(found.max()):,}",)),)

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        path = source.paths[0]
        found = _positions(source.content(path))
        assert found is not None, "it was recognised"
        if int(found.min()) < 0:
            raise UsageError(f"{path}: position {int(found.min())} is negative")
        flat = found.flatten()
        if found.dim() == 1 and len(flat.unique()) == len(flat) == int(flat.max()) + 1:
            raise UsageError(
                f"{path}: it holds every position from 0 to {int(flat.max()):,}, which is an order of all images "
                "(a ranking by a score), not a selection; save the positions that are kept"
            )
        return [
            Draft(
                format=recognised.format,
                images=found,
                labels=None,
                files=source.paths,
                evidence=recognised.evidence,
                assumed=("positions count the training images in their original order, from 0",),
            )
        ]


def _positions(found: Tree) -> Tensor | None:
    """Return integers (n,) or (e, n), without the containers around them."""
    if isinstance(found, Mapping):
        if "subset" in found:
            return _positions(found["subset"])
        return next((_positions(found[key]) for key in _KEYS if key in found), None)
    if isinstance(found, Sequence) and not isinstance(found, str | bytes):
        whole = bool(found) and all(isinstance(one, int) and not isinstance(one, bool) for one in found)
        return torch.tensor(found) if whole else None
    if not isinstance(found, Tensor) or found.dim() not in (1, 2) or not found.numel():
        return None
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        return None
    if found.dim() == 2 and found.shape[1] < 2:
        return found.flatten().long()
    return found.long()


READERS = [PositionReader()]
