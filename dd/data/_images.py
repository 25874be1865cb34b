"""Image files in, uint8 pixels out: headers first, to settle one size for all, then the pixels, in threads.

Pillow and its codecs release the interpreter's lock, so threads decode as processes would, without copies between them.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dd.data._content import Arrays, Items, Listing, Part
from dd.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

# suffixes of files that hold images, in lower case: what Pillow decodes; of an animated one the first frame is taken
# fmt: off
READABLE = (
    ".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)
# fmt: on
CHUNK = 16  # images a thread takes at a time
_MOST_WORKERS = 16  # of one process, whose interpreter's lock more would wait for
_SHOWN = 5  # broken files named in an error
_GREY = {"1", "L"}
_DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # more than 8 bits per channel


@dataclass(frozen=True)
class Broken:
    """An image that cannot be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before its pixels are decoded; sizes in pixels."""

    width: int
    height: int
    grey: bool
    format: str


@dataclass(frozen=True)
class Target:
    """What all images are brought to: channels, and the side of a square in pixels."""

    channels: int
    side: int


def decode(listing: Listing, channels: int | None = None, side: int | None = None) -> tuple[Arrays, list[Broken]]:
    """Decode both splits of a listing to one size.

    Images of another size have their shorter side resized to it and their centre cropped.  Broken images are left out
    and reported.

    Args:
        listing: the encoded images.
        channels: 1 or 3; None: 1 when all images are grey, else 3.
        side: height and width in pixels; None: those that most images have, of oblong ones the shorter.

    Returns:
        The images with notes on what was done to them, and the broken ones.

    Raises:
        UsageError: not a single image can be read.
    """
    parts = (listing.train, listing.test)
    found, good = all_headers(listing)
    target = choose(good, channels, side)
    decoded = [pixels(part, row, target) for part, row in zip(parts, found, strict=True)]
    (train_images, train_labels, broken), (test_images, test_labels, more) = decoded
    notes = (*listing.notes, *notes_on(good, target))
    arrays = Arrays(train_images, train_labels, test_images, test_labels, listing.classes, notes, jpegs(good))
    return arrays, broken + more


def all_headers(listing: Listing) -> tuple[list[list[Header | Broken]], list[Header]]:
    """The header of every image, split by split, and the good ones of both.

    Raises:
        UsageError: not a single image can be read.
    """
    found = [headers(part.items, range(len(part))) for part in (listing.train, listing.test)]
    good = [header for part in found for header in part if isinstance(header, Header)]
    if not good:
        raise UsageError(f"none of the {len(listing.train) + len(listing.test)} images can be decoded")
    return found, good


def headers(items: Items, index: Sequence[int]) -> list[Header | Broken]:
    """Headers of the images at these positions, in their order."""
    return each(items, index, lambda i: _header(items.load(i)))


def choose(headers: Sequence[Header], channels: int | None = None, side: int | None = None) -> Target:
    """One target for all: the most common size (of equally common ones the smallest), its shorter side."""
    sizes = Counter((header.width, header.height) for header in headers)
    (width, height), _ = min(sizes.items(), key=lambda item: (-item[1], item[0]))
    grey = all(header.grey for header in headers)
    return Target(channels or (1 if grey else 3), side or min(width, height))


def refuse(broken: Sequence[Broken], name: str) -> None:
    """Raise a `UsageError` that names the first few broken images, when there are any."""
    if broken:
        shown = "; ".join(f"{b.file} ({b.reason})" for b in broken[:_SHOWN])
        rest = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        way_out = f"remove or replace them (`dd data check {name}` lists all)"
        raise UsageError(f"{len(broken)} broken images in {name}: {shown}{rest}; {way_out}")


def notes_on(headers: Sequence[Header], target: Target) -> list[str]:
    """What bringing all images to `target` changes."""
    side, notes = target.side, []
    other = sum((header.width, header.height) != (side, side) for header in headers)
    if other:
        notes.append(f"{other:,} of {len(headers):,} images were resized and centre-cropped to {side} x {side} pixels")
    grey = sum(header.grey for header in headers)
    if target.channels == 3 and grey:
        notes.append(f"{grey:,} grey images were turned into colour")
    if target.channels == 1 and grey < len(headers):
        notes.append(f"{len(headers) - grey:,} colour images were turned into grey")
    return notes


def jpegs(headers: Sequence[Header]) -> int:
    """How many of them are JPEG files."""
    return sum(header.format == "JPEG" for header in headers)


def each(items: Items, index: Sequence[int], one: Callable[[int], Any]) -> list[Any]:
    """`one(position)` for these positions, in their order, in threads; what it raises becomes a `Broken`."""
    chunks = [index[start : start + CHUNK] for start in range(0, len(index), CHUNK)]
    results = pool().map(lambda chunk: [attempt(items, i, one) for i in chunk], chunks)
    return [result for chunk in results for result in chunk]


def attempt(items: Items, i: int, one: Callable[[int], Any]) -> Any:
    """`one(i)`, or `Broken` where it raises."""
    try:
        return one(i)
    # a damaged file can make Pillow's decoders raise almost anything
    except Exception as error:
        return Broken(items.name(i), str(error) or type(error).__name__)


@cache
def pool(workers: int | None = None) -> ThreadPoolExecutor:
    """The threads that decode; they live as long as the process."""
    return ThreadPoolExecutor(threads(workers), thread_name_prefix="dd-decode", initializer=_alone)


def _alone() -> None:
    """Start a decoding thread: what it computes stays on its core, as in PyTorch's `DataLoader`."""
    torch.get_num_threads()  # sets the number for this thread, once; ours comes after it
    threadpool_limits(1, user_api="openmp")  # of this thread alone, which torch.set_num_threads is not


def threads(workers: int | None) -> int:
    """How many threads decode: as many as are asked for, else one per core, but at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or min(_MOST_WORKERS, cores)


def fit(item: bytes | Path, target: Target) -> np.ndarray:
    """The pixels of an image, uint8 (c, side, side): shorter side resized (bicubic), centre cropped.

    The same bytes always give the same pixels.
    """
    from PIL import Image, ImageOps

    mode, size = "L" if target.channels == 1 else "RGB", (target.side, target.side)
    with _open(item) as image:
        image.load()
        image = image if image.mode == mode else image.convert(mode)
    if image.size != size:
        image = ImageOps.fit(image, size, method=Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if target.channels == 1 else pixels.transpose(2, 0, 1)


def resized(images: Tensor, side: int) -> Tensor:
    """Decoded images, uint8 (n, c, h, w), brought to (n, c, side, side) as files would be."""
    from PIL import Image, ImageOps

    if images.shape[-2:] == (side, side):
        return images
    rows = np.empty((*images.shape[:2], side, side), dtype=np.uint8)

    def one(i: int) -> None:
        for channel, pixels in enumerate(images[i].numpy()):
            fitted = ImageOps.fit(Image.fromarray(pixels), (side, side), method=Image.Resampling.BICUBIC)
            rows[i, channel] = np.asarray(fitted)

    list(pool().map(one, range(len(images))))
    return torch.from_numpy(rows)


def _open(item: bytes | Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    if not item:
        raise ValueError("no bytes")
    try:
        image = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    except UnidentifiedImageError:
        raise ValueError("not an image") from None  # Pillow's own message holds a memory address
    if image.mode in _DEEP:
        image.close()
        raise ValueError(f"more than 8 bits per channel (mode {image.mode})")
    return image


def _header(item: bytes | Path) -> Header:
    with _open(item) as image:
        return Header(image.width, image.height, image.mode in _GREY, image.format or "")


def pixels(part: Part, headers: Sequence[Header | Broken], target: Target) -> tuple[Tensor, Tensor, list[Broken]]:
    images = torch.empty(len(part), target.channels, target.side, target.side, dtype=torch.uint8)
    rows = images.numpy()

    def one(i: int) -> Broken | None:
        header = headers[i]
        if isinstance(header, Broken):
            return header
        rows[i] = fit(part.items.load(i), target)
        return None

    results = each(part.items, range(len(part)), one)
    broken = [result for result in results if result is not None]
    labels = part.labels
    if broken:
        good = torch.tensor([result is None for result in results])
        images, labels = images[good], labels[good]
    return images, labels, broken
