"""Image files in, one uint8 tensor out: headers first, to settle one size for all, then the pixels, in threads."""

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dd.data._content import Arrays, Listing, Part
from dd.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK = 256  # images a thread takes at a time
_SHOWN = 5  # broken files named in an error
_GREY = {"1", "L"}
_DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # more than 8 bits per channel


@dataclass(frozen=True)
class Broken:
    """An image that cannot be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
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


def decode(listing: Listing, channels: int | None = None) -> tuple[Arrays, list[Broken]]:
    """Decode both splits of a listing to one size.

    Images of another size than the most common one have their shorter side resized to it and their centre cropped.
    Broken images are left out and reported.

    Args:
        listing: the encoded images.
        channels: 1 or 3; None: 1 when all images are grey, else 3.

    Returns:
        The images with notes on what was done to them, and the broken ones.

    Raises:
        UsageError: not a single image can be read.
    """
    parts = (listing.train, listing.test)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        headers = [_map(pool, _header, part) for part in parts]
        good = [header for part in headers for header in part if isinstance(header, Header)]
        if not good:
            raise UsageError(f"none of the {len(listing.train) + len(listing.test)} images can be decoded")
        target = choose(good, channels)
        decoded = [_pixels(pool, part, header, target) for part, header in zip(parts, headers, strict=True)]
    (train_images, train_labels, broken), (test_images, test_labels, more) = decoded
    notes = (*listing.notes, *_notes(good, target))
    jpeg = sum(header.format == "JPEG" for header in good)
    arrays = Arrays(train_images, train_labels, test_images, test_labels, listing.classes, notes, jpeg)
    return arrays, broken + more


def choose(headers: Sequence[Header], channels: int | None = None) -> Target:
    """One target for all: the most common size (of equally common ones the smallest), its shorter side."""
    sizes = Counter((header.width, header.height) for header in headers)
    (width, height), _ = min(sizes.items(), key=lambda item: (-item[1], item[0]))
    return Target(channels or (1 if all(header.grey for header in headers) else 3), min(width, height))


def refuse(broken: Sequence[Broken], name: str) -> None:
    """Raise a `UsageError` that names the first few broken images, when there are any."""
    if broken:
        shown = "; ".join(f"{b.file} ({b.reason})" for b in broken[:_SHOWN])
        rest = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        way_out = f"remove or replace them (`dd data check {name}` lists all)"
        raise UsageError(f"{len(broken)} broken images in {name}: {shown}{rest}; {way_out}")


def _notes(headers: Sequence[Header], target: Target) -> list[str]:
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


def _map(pool: ThreadPoolExecutor, one: Callable[..., Any], part: Part, *more: Sequence[Any]) -> list[Any]:
    """`one(item, …)` for every image, in order, in chunks; what it raises becomes a `Broken`."""

    def work(start: int) -> list[Any]:
        span = slice(start, start + _CHUNK)
        return [
            _guarded(one, name, *row)
            for name, *row in zip(part.names[span], part.items[span], *(m[span] for m in more), strict=True)
        ]

    return [result for chunk in pool.map(work, range(0, len(part), _CHUNK)) for result in chunk]


def _guarded(one: Callable[..., Any], name: str, *row: Any) -> Any:
    try:
        return one(*row)
    # a damaged file can make Pillow's decoders raise almost anything
    except Exception as error:
        return Broken(name, str(error) or type(error).__name__)


def _open(item: bytes | Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    if not item:
        raise ValueError("no bytes")
    try:
        return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    except UnidentifiedImageError:
        raise ValueError("not an image") from None  # Pillow's own message holds a memory address


def _header(item: bytes | Path) -> Header:
    with _open(item) as image:
        if image.mode in _DEEP:
            raise ValueError(f"more than 8 bits per channel (mode {image.mode})")
        return Header(image.width, image.height, image.mode in _GREY, image.format or "")


def _pixels(
    pool: ThreadPoolExecutor, part: Part, headers: Sequence[Header | Broken], target: Target
) -> tuple[Tensor, Tensor, list[Broken]]:
    images = torch.empty(len(part), target.channels, target.side, target.side, dtype=torch.uint8)
    rows = images.numpy()

    def one(item: bytes | Path, header: Header | Broken, position: int) -> Broken | None:
        if isinstance(header, Broken):
            return header
        with _open(item) as image:
            rows[position] = _fit(image, target)
        return None

    results = _map(pool, one, part, headers, range(len(part)))
    broken = [result for result in results if result is not None]
    labels = torch.tensor(part.labels, dtype=torch.int64)
    if broken:
        good = torch.tensor([result is None for result in results])
        images, labels = images[good], labels[good]
    return images, labels, broken


def _fit(image: "Image", target: Target) -> np.ndarray:
    from PIL import Image, ImageOps

    image = image.convert("L" if target.channels == 1 else "RGB")
    if image.size != (target.side, target.side):
        image = ImageOps.fit(image, (target.side, target.side), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if target.channels == 1 else pixels.transpose(2, 0, 1)
