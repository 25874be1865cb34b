"""Multi-threaded decoding of image files into uint8 pixels.

Pillow and its codecs release the GIL, so threads decode as fast as processes, without copying between processes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dd.data.settings import Depth16, Resize
from dd.data.sources.content import Arrays, EncodedSplit, Items, Listing
from dd.data.sources.pixels import Header, Target, TooDeep, header_of, pixels_of, shorter_side, squared
from dd.data.sources.survey import Broken, choose_target, image_notes, jpegs, refuse, require_clear, survey
from dd.errors import UsageError
from dd.runs.cost import cores

CHUNK = 16  # images per task of a thread
_MOST_WORKERS = 16  # per process; more would contend for the GIL

_T = TypeVar("_T")
Cut = Callable[[int, bytes | Path], np.ndarray]
"""(slot in the batch, encoded image) -> uint8 pixels, the same shape for all; called from threads, in any order."""
Transform = Callable[[Tensor], Tensor]
"""uint8 pixels -> float32 values of the same shape; called from threads."""


def decode_listing(
    listing: Listing,
    name: str,
    channels: int | None = None,
    side: int | None = None,
    resize: Resize = "fit",
    depth16: Depth16 | None = None,
) -> tuple[Arrays, list[Broken]]:
    """Decode both splits of a listing to one size.

    Broken images are left out and reported.

    Args:
        listing: the encoded images.
        name: of the data set, for messages.
        channels: 1 or 3; None: 1 if all images are grey, else 3.
        side: height and width in pixels; None: the shorter side of the most common size.
        resize: how images are resized; see `DataSettings`.
        depth16: how images of more than 8 bits are converted to 8; see `DataSettings`.

    Returns:
        The images, with notes on what was done to them, and the broken images.

    Raises:
        UsageError: no image can be read, or a setting is missing; see `questions`.
    """
    parts = (listing.train, listing.test)
    found, good = all_headers(listing)
    require_clear(survey(good), name, side, depth16)
    target = choose_target(good, channels, side, resize, depth16)
    decoded = [decode_split(part, row, target) for part, row in zip(parts, found, strict=True)]
    (train_images, train_labels, broken), (test_images, test_labels, more) = decoded
    notes = (*listing.notes, *image_notes(good, target))
    arrays = Arrays(train_images, train_labels, test_images, test_labels, listing.classes, notes, jpegs(good))
    return arrays, broken + more


def all_headers(listing: Listing) -> tuple[list[list[Header | Broken]], list[Header]]:
    """Read the header of every image; returns them split by split, and the readable ones of both in one list.

    Raises:
        UsageError: no image can be read.
    """
    found = [headers(part.items, range(len(part))) for part in (listing.train, listing.test)]
    good = [header for part in found for header in part if isinstance(header, Header)]
    if not good:
        raise UsageError(f"none of the {len(listing.train) + len(listing.test)} images can be decoded")
    return found, good


def headers(items: Items, index: Sequence[int]) -> list[Header | Broken]:
    """Read the headers of the images at these positions, in order."""
    return each(items, index, lambda i: header_of(items.load(i)))


def decode_split(
    part: EncodedSplit, headers: Sequence[Header | Broken], target: Target
) -> tuple[Tensor, Tensor, list[Broken]]:
    """Decode the images of one split whose headers are known.

    Args:
        part: the n encoded images.
        headers: one per image; see `headers`.
        target: channels and size of the result.

    Returns:
        The k decoded images, uint8 (k, c, side, side), their labels, int64 (k,), and the n - k broken images.
    """
    images = torch.empty(len(part), target.channels, target.side, target.side, dtype=torch.uint8)
    rows = images.numpy()

    def one(i: int) -> Broken | None:
        header = headers[i]
        if isinstance(header, Broken):
            return header
        rows[i] = pixels_of(part.items.load(i), target)
        return None

    results = each(part.items, range(len(part)), one)
    broken = [result for result in results if result is not None]
    labels = part.labels
    if broken:
        good = torch.tensor([result is None for result in results])
        images, labels = images[good], labels[good]
    return images, labels, broken


def resized(images: Tensor, side: int, resize: Resize = "fit") -> Tensor:
    """Resize decoded images, uint8 (n, c, h, w), to (n, c, side, side), exactly as files are resized."""
    from PIL import Image

    if images.shape[-2:] == (side, side) and (resize != "shorter" or shorter_side(side) == side):
        return images
    rows = np.empty((*images.shape[:2], side, side), dtype=np.uint8)

    def one(i: int) -> None:
        for channel, pixels in enumerate(images[i].numpy()):
            rows[i, channel] = np.asarray(squared(Image.fromarray(pixels), side, resize))

    list(pool().map(one, range(len(images))))
    return torch.from_numpy(rows)


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Encoded images, and the device that receives their pixels.

    Attributes:
        items: the encoded images.
        device: device of the pixels.
        name: of the data set, for messages.
        workers: number of threads; None: one per core, at most 16.
    """

    items: Items
    device: torch.device
    name: str
    workers: int | None = None


class Decoding:
    """A batch being decoded: threads write its images into one tensor, pinned if the device is a GPU.

    Args:
        reader: the encoded images.
        index: int64 (k,), which images.
        shape: of the result for one image.
        cut: computes that result from an encoded image.
        transform: applied by the threads to uint8 pixels (k, *shape), such as a `Preprocess`; None: they stay uint8.
    """

    def __init__(
        self, reader: ImageReader, index: Tensor, shape: tuple[int, ...], cut: Cut, transform: Transform | None = None
    ) -> None:
        self.index, self._reader, self._cut, self._transform = index, reader, cut, transform
        dtype = torch.float32 if transform else torch.uint8
        self._pixels = torch.empty((len(index), *shape), dtype=dtype, pin_memory=reader.device.type == "cuda")
        # in storage order, so that rows of one file are read together
        slots = torch.argsort(index, stable=True).tolist()
        chunks = [slots[start : start + CHUNK] for start in range(0, len(slots), CHUNK)]
        self._futures: list[Future[list[Broken]]] = [
            pool(reader.workers).submit(self._decode, chunk) for chunk in chunks
        ]

    def pixels(self) -> Tensor:
        """Wait for the batch: (k, *shape) on the device, uint8, or float32 after `transform`.

        Raises:
            UsageError: images are broken; the message names them.
        """
        refuse([broken for future in self._futures for broken in future.result()], self._reader.name)
        return self._pixels.to(self._reader.device, non_blocking=True)

    def cancel(self) -> None:
        """Drop the tasks that have not started; the pixels are no longer needed."""
        for future in self._futures:
            future.cancel()

    def _decode(self, slots: list[int]) -> list[Broken]:
        items, cut = self._reader.items, self._cut
        rows = np.empty((len(slots), *self._pixels.shape[1:]), dtype=np.uint8)
        broken: list[Broken] = []
        for row, slot, place in zip(rows, slots, self.index[slots].tolist(), strict=True):
            found = attempt(items, place, lambda i, at=slot: cut(at, items.load(i)))
            if isinstance(found, Broken):
                broken.append(found)
            else:
                row[...] = found
        pixels = torch.from_numpy(rows)
        self._pixels[slots] = pixels if self._transform is None else self._transform(pixels)
        return broken


def ahead(batches: Iterable[Callable[[], Decoding]], size: int, workers: int | None) -> Iterator[Decoding]:
    """Prefetch: yield batches in order, starting each some batches before it is used.

    Args:
        batches: functions that start a batch; called in order, once each.
        size: images per batch.
        workers: number of threads; see `threads`.
    """
    # at least one, and enough to give every thread two chunks
    some = max(1, -(-2 * CHUNK * threads(workers) // size))
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


def each(items: Items, index: Sequence[int], one: Callable[[int], _T]) -> list[_T | Broken]:
    """Call `one(position)` for these positions in threads; results in order, exceptions as `Broken`."""
    chunks = [index[start : start + CHUNK] for start in range(0, len(index), CHUNK)]
    results = pool().map(lambda chunk: [attempt(items, i, one) for i in chunk], chunks)
    return [result for chunk in results for result in chunk]


def attempt(items: Items, i: int, one: Callable[[int], _T]) -> _T | Broken:
    """Call `one(i)`; an exception becomes a `Broken`."""
    try:
        return one(i)
    # a damaged file can make Pillow's decoders raise almost any exception
    except Exception as error:
        return Broken(items.name(i), str(error) or type(error).__name__, isinstance(error, TooDeep))


@cache
def pool(workers: int | None = None) -> ThreadPoolExecutor:
    """The pool of decoding threads; it lives as long as the process."""
    return ThreadPoolExecutor(threads(workers), thread_name_prefix="dd-decode", initializer=_alone)


def threads(workers: int | None) -> int:
    """Number of decoding threads: `workers`, or one per core, at most 16."""
    return workers or min(_MOST_WORKERS, cores())


def _alone() -> None:
    """Initialise a decoding thread: limit it to one core, as PyTorch's `DataLoader` does for its workers."""
    torch.get_num_threads()  # initialises this thread's limit, so that it cannot override ours later
    threadpool_limits(1, user_api="openmp")  # this thread only; torch.set_num_threads would affect all
