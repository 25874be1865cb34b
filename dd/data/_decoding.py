"""Images on their way: threads decode them, cut what is wanted from them, and write it into one tensor."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dd.data import _images
from dd.data._content import Items
from dd.data._images import CHUNK, Broken
from dd.data.preprocess import Preprocess

Cut = Callable[[int, bytes | Path], np.ndarray]
"""(place in the batch, encoded image) -> uint8 pixels, of one shape for all; called in threads, in any order."""


@dataclass(frozen=True, eq=False)
class Source:
    """Encoded images and where they go.

    Attributes:
        items: where the encoded images are.
        device: where pixels go.
        name: of the data set, for messages.
        workers: threads; None: one per core, at most 16.
    """

    items: Items
    device: torch.device
    name: str
    workers: int | None = None


class Decoding:
    """Images on their way: threads write them into one tensor, pinned where the device is a GPU.

    Args:
        source: whose images they are.
        index: int64 (k,), which.
        shape: of what is cut from an image.
        cut: what is wanted of an image.
        preprocess: what the threads apply, which takes an image; None: the pixels stay bytes.
    """

    def __init__(
        self, source: Source, index: Tensor, shape: tuple[int, ...], cut: Cut, preprocess: Preprocess | None = None
    ) -> None:
        self.index, self._source, self._cut, self._preprocess = index, source, cut, preprocess
        dtype = torch.float32 if preprocess else torch.uint8
        self._pixels = torch.empty((len(index), *shape), dtype=dtype, pin_memory=source.device.type == "cuda")
        # in the order of storage, so that rows of one file are read together
        slots = torch.argsort(index, stable=True).tolist()
        chunks = [slots[start : start + CHUNK] for start in range(0, len(slots), CHUNK)]
        self._futures: list[Future[list[Broken]]] = [
            _images.pool(source.workers).submit(self._decode, chunk) for chunk in chunks
        ]

    def pixels(self) -> Tensor:
        """(k, *shape) on the device, once all are there: uint8, or float32 in the space of `preprocess`.

        Raises:
            UsageError: images are broken; names them.
        """
        _images.refuse([broken for future in self._futures for broken in future.result()], self._source.name)
        return self._pixels.to(self._source.device, non_blocking=True)

    def cancel(self) -> None:
        """Nobody wants them any more."""
        for future in self._futures:
            future.cancel()

    def _decode(self, slots: list[int]) -> list[Broken]:
        items, cut = self._source.items, self._cut
        rows = np.empty((len(slots), *self._pixels.shape[1:]), dtype=np.uint8)
        broken: list[Broken] = []
        for row, slot, place in zip(rows, slots, self.index[slots].tolist(), strict=True):
            found = _images.attempt(items, place, lambda i, at=slot: cut(at, items.load(i)))
            if isinstance(found, Broken):
                broken.append(found)
            else:
                row[...] = found
        pixels = torch.from_numpy(rows)
        self._pixels[slots] = pixels if self._preprocess is None else self._preprocess(pixels)
        return broken


def ahead(batches: Iterable[Callable[[], Decoding]], size: int, workers: int | None) -> Iterator[Decoding]:
    """What begins batches one after another, begun some batches before they are used.

    Args:
        batches: called in order, each once.
        size: images in a batch.
        workers: threads.
    """
    # at least one, and enough to give every thread two chunks
    some = max(1, -(-2 * CHUNK * _images.threads(workers) // size))
    waiting = iter(batches)
    begun: deque[Decoding] = deque()
    try:
        while True:
            for begin in waiting:
                begun.append(begin())
                if len(begun) > some:
                    break
            if not begun:
                return
            yield begun.popleft()
    finally:
        for batch in begun:
            batch.cancel()
