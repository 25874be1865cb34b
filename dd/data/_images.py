"""Image files in, uint8 pixels out: headers first, to settle one size for all, then the pixels, in threads.

Pillow and its codecs release the interpreter's lock, so threads decode as processes would, without copies between them.
"""

import contextlib
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
from dd.data.settings import Depth16, Resize
from dd.errors import UsageError
from dd.networks.spec import USUAL_SIDE

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
_GREY = {"1", "L", "LA"}
_DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # grey, with more than 8 bits; of colour Pillow gives the upper 8
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientation: Pillow's `Transpose` that undoes it
_ORIENTED = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # where Pillow finds one
_FLIPS = (0, 1, 3)  # those that keep width and height
_ORIENTATION = 0x0112  # EXIF's tag
_FULL = (0, 65535)  # of unsigned 16 bits
_ALIKE = 1.5  # shorter sides within this factor of the chosen one are brought to it without a question
_SIDES = (224, 128, 64, 32)  # of images in the papers


@dataclass(frozen=True)
class Broken:
    """An image that cannot be used, and why; `deep` where it is whole, but nobody said how to bring it to 8 bits."""

    file: str
    reason: str
    deep: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before its pixels are decoded.

    Attributes:
        width: in pixels, once it is upright.
        height: likewise.
        grey: whether it has no colour.
        format: Pillow's name of the format.
        turned: whether its orientation (EXIF) is another than the one its pixels are stored in.
        frames: whether it is animated, or has several pages.
        deep: whether it has more than 8 bits per channel.
    """

    width: int
    height: int
    grey: bool
    format: str
    turned: bool = False
    frames: bool = False
    deep: bool = False

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.width, self.height)


@dataclass(frozen=True)
class Target:
    """What images are brought to: channels, the side of a square in pixels, by which way, how 16 bits become 8."""

    channels: int
    side: int
    resize: Resize = "fit"
    depth16: Depth16 | None = None

    def key(self) -> dict[str, Any]:
        """What the pixels depend on, JSON-able; without what is as it was before it could be chosen."""
        chosen: dict[str, Any] = {"channels": self.channels, "side": self.side}
        if self.resize != "fit":
            chosen["resize"] = self.resize
        if self.depth16 is not None:
            chosen["depth16"] = self.depth16
        return chosen


@dataclass(frozen=True)
class Survey:
    """What the headers of a data set's images say together, JSON-able.

    Attributes:
        images: how many there are.
        grey: whether all are.
        side: the shorter side of the most common size (of equally common ones the smallest), in pixels.
        sizes: the least and the greatest width and height.
        median: of the shorter sides.
        one: whether all have the same shorter side.
        usual: whether most have a shorter side that is near `side`.
        turned: how many are turned upright.
        deep: how many have more than 8 bits per channel.
    """

    images: int
    grey: bool
    side: int
    sizes: Sequence[Sequence[int]]
    median: int
    one: bool
    usual: bool
    turned: int
    deep: int


class TooDeep(ValueError):
    """An image has more than 8 bits per channel, and nothing says how they become 8."""


def decode(
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
        channels: 1 or 3; None: 1 when all images are grey, else 3.
        side: height and width in pixels; None: those that most images have, of oblong ones the shorter.
        resize: how images are brought to it, see `DataSettings`.
        depth16: how images of more than 8 bits become 8; see `DataSettings`.

    Returns:
        The images with notes on what was done to them, and the broken ones.

    Raises:
        UsageError: not a single image can be read, or something has to be said about them first; see `questions`.
    """
    parts = (listing.train, listing.test)
    found, good = all_headers(listing)
    require_clear(survey(good), name, side, depth16)
    target = choose(good, channels, side, resize, depth16)
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


def choose(
    headers: Sequence[Header],
    channels: int | None = None,
    side: int | None = None,
    resize: Resize = "fit",
    depth16: Depth16 | None = None,
) -> Target:
    """One target for all: the most common size (of equally common ones the smallest), its shorter side."""
    found = survey(headers)
    return Target(channels or (1 if found.grey else 3), side or found.side, resize, depth16)


def survey(headers: Sequence[Header]) -> Survey:
    """What at least one header, or many, say together."""
    sizes = Counter((header.width, header.height) for header in headers)
    ((width, height), _), sides = min(sizes.items(), key=lambda item: (-item[1], item[0])), Counter[int]()
    for size, count in sizes.items():
        sides[min(size)] += count
    side = min(width, height)
    near = sum(count for other, count in sides.items() if side / _ALIKE <= other <= side * _ALIKE)
    return Survey(
        images=len(headers),
        grey=all(header.grey for header in headers),
        side=side,
        sizes=[min(sizes), max(sizes)],
        median=sorted(sides.elements())[len(headers) // 2],
        one=len(sides) == 1,
        usual=2 * near > len(headers),
        turned=sum(header.turned for header in headers),
        deep=sum(header.deep for header in headers),
    )


def questions(found: Survey, name: str, side: int | None, depth16: Depth16 | None, *, exact: bool = False) -> list[str]:
    """What has to be said about images before they are used, a line each.

    Args:
        found: what their headers say.
        name: of the data set.
        side: `data.size`.
        depth16: `data.depth16`.
        exact: whether any difference in size has to be settled, as where only some of the headers were read.
    """
    asked = []
    if found.deep and depth16 is None:
        asked.append(deep_words(f"{found.deep:,} of {found.images:,} images of {name} have"))
    if side is None and not (found.one if exact else found.usual):
        (width, height), (other, tall) = found.sizes
        asked.append(
            f"the images of {name} differ in size ({width} x {height} and {other} x {tall} pixels among them): say "
            f"what they are brought to, such as data.size={suggested(found.median)}"
        )
    elif side is None and found.side > USUAL_SIDE:
        asked.append(large_words(name, found.side))
    return asked


def require_clear(found: Survey, name: str, side: int | None, depth16: Depth16 | None, *, exact: bool = False) -> None:
    """Raise a `UsageError` with the `questions`, where there are any."""
    if asked := questions(found, name, side, depth16, exact=exact):
        raise UsageError("\n".join(asked))


def deep_words(subject: str) -> str:
    """The line that asks how more than 8 bits per channel become 8."""
    return (
        f"{subject} more than 8 bits per channel, and pixels have 8 here: say how they are scaled, data.depth16=full "
        "(0 to 65,535), image (darkest to brightest of each image) or [LOW, HIGH], such as [0, 4095] for 12 bits"
    )


def large_words(name: str, side: int) -> str:
    """The line that asks what large images are brought to."""
    return (
        f"the images of {name} are large ({side:,} pixels, where a ConvNet has a usual depth up to {USUAL_SIDE}): say "
        f"what they are brought to, such as data.size={suggested(side)}, or data.size={side} to keep them"
    )


def suggested(side: int) -> int:
    """A usual size of images that is not above theirs, unless theirs is below all usual ones."""
    return next((usual for usual in _SIDES if usual <= side), _SIDES[-1])


def refuse(broken: Sequence[Broken], name: str) -> None:
    """Raise a `UsageError` that names the first few broken images, when there are any."""
    if deep := [b for b in broken if b.deep]:
        raise UsageError(deep_words(f"{deep[0].file} in {name} has"))
    if broken:
        shown = "; ".join(f"{b.file} ({b.reason})" for b in broken[:_SHOWN])
        rest = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        way_out = f"remove or replace them (`dd data check {name}` lists all)"
        raise UsageError(f"{len(broken)} broken images in {name}: {shown}{rest}; {way_out}")


def notes_on(headers: Sequence[Header], target: Target) -> list[str]:
    """What bringing all images to `target` changes."""
    side, notes = target.side, []
    kept = target.resize != "shorter" or shorter_side(side) == side
    other = sum(not kept or (header.width, header.height) != (side, side) for header in headers)
    if other:
        done = "squashed" if target.resize == "squash" else "resized and centre-cropped"
        notes.append(f"{other:,} of {len(headers):,} images were {done} to {side} x {side} pixels")
    grey = sum(header.grey for header in headers)
    if target.channels == 3 and grey:
        notes.append(f"{grey:,} grey images were turned into colour")
    if target.channels == 1 and grey < len(headers):
        notes.append(f"{len(headers) - grey:,} colour images were turned into grey")
    if turned := sum(header.turned for header in headers):
        notes.append(f"{turned:,} images were turned upright, as their EXIF says")
    if frames := sum(header.frames for header in headers):
        notes.append(f"of {frames:,} images with several frames the first was taken")
    if target.depth16 is not None and (deep := sum(header.deep for header in headers)):
        notes.append(f"{deep:,} images were brought to 8 bits, data.depth16={_shown(target.depth16)}")
    return notes


def jpegs(headers: Sequence[Header]) -> int:
    """How many of them are JPEG files; those of many telephones come as MPO, which is JPEG with more behind it."""
    return sum(header.format in ("JPEG", "MPO") for header in headers)


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
        return Broken(items.name(i), str(error) or type(error).__name__, isinstance(error, TooDeep))


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
    """The pixels of an image, uint8 (c, side, side), brought to size as the target says.

    The same bytes always give the same pixels.
    """
    pixels = np.asarray(squared(original(item, target.channels, target.depth16), target.side, target.resize))
    return pixels[None] if target.channels == 1 else pixels.transpose(2, 0, 1)


def original(item: bytes | Path, channels: int, depth16: Depth16 | None = None) -> "Image":
    """An image in its own size, upright, of 8 bits, in grey (1 channel) or colour (3).

    Raises:
        TooDeep: it has more than 8 bits, and `depth16` does not say how they become 8.
    """
    from PIL.Image import Transpose

    mode = "L" if channels == 1 else "RGB"
    with _open(item) as image:
        if image.mode in _DEEP and depth16 is None:
            raise TooDeep(f"more than 8 bits per channel (mode {image.mode})")
        image.load()
        turn = _TURNS.get(_orientation(image))  # TIFF files are turned as they are loaded
        if depth16 is not None and image.mode in _DEEP:
            image = _of_8_bits(image, depth16)
        if image.mode == "P":
            image.info.pop("transparency", None)  # of which a conversion to colour makes nothing but a warning
        image = image if image.mode == mode else image.convert(mode)
    return image if turn is None else image.transpose(Transpose(turn))


def shorter_side(side: int) -> int:
    """What "shorter" brings the shorter side to before the centre of `side` pixels is cut out: 224 -> 256, 32 -> 32.

    RDED's rule for every size (official code), which at 224 is everybody's: an eighth is cut away.
    """
    return side // 7 * 8


def squared(image: "Image", side: int, resize: Resize = "fit") -> "Image":
    """A decoded image as a square of `side` pixels; see `DataSettings` for the ways.

    "fit" is bicubic.  The others are torchvision's `Resize`, as those whom they follow have it: bilinear, and
    antialiased like all of Pillow's resizing.
    """
    from PIL import ImageOps
    from PIL.Image import Resampling

    if resize == "shorter":
        least, (width, height) = shorter_side(side), image.size
        # as torchvision: the longer side is truncated, the margins are rounded
        size = (least, int(least * height / width)) if width <= height else (int(least * width / height), least)
        image = image if image.size == size else image.resize(size, Resampling.BILINEAR)
        left, top = (round((length - side) / 2) for length in size)
        return image.crop((left, top, left + side, top + side))
    if image.size == (side, side):
        return image
    if resize == "squash":
        return image.resize((side, side), Resampling.BILINEAR)
    return ImageOps.fit(image, (side, side), method=Resampling.BICUBIC)


def resized(images: Tensor, side: int, resize: Resize = "fit") -> Tensor:
    """Decoded images, uint8 (n, c, h, w), brought to (n, c, side, side) as files would be."""
    from PIL import Image

    if images.shape[-2:] == (side, side) and (resize != "shorter" or shorter_side(side) == side):
        return images
    rows = np.empty((*images.shape[:2], side, side), dtype=np.uint8)

    def one(i: int) -> None:
        for channel, pixels in enumerate(images[i].numpy()):
            rows[i, channel] = np.asarray(squared(Image.fromarray(pixels), side, resize))

    list(pool().map(one, range(len(images))))
    return torch.from_numpy(rows)


def _open(item: bytes | Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    if not item:
        raise ValueError("no bytes")
    try:
        image = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    except UnidentifiedImageError:
        empty = isinstance(item, Path) and not item.stat().st_size
        # Pillow's own message holds a memory address
        raise ValueError("no bytes" if empty else "not an image") from None
    return image


def _header(item: bytes | Path) -> Header:
    with _open(item) as image:
        turn, (width, height) = _TURNS.get(_orientation(image)), image.size
        if turn is not None and turn not in _FLIPS and image.format != "TIFF":  # whose size Pillow turns already
            width, height = height, width
        deep = image.mode in _DEEP
        return Header(
            width,
            height,
            grey=deep or _is_grey(image),
            format=image.format or "",
            turned=turn is not None,
            frames=image.format != "MPO" and getattr(image, "is_animated", False),
            deep=deep,
        )


def _is_grey(image: "Image") -> bool:
    if image.mode != "P" or image.palette is None:
        return image.mode in _GREY
    order, data = image.palette.getdata()
    if order not in ("RGB", "BGR", "RGBA", "BGRX"):
        return False
    colours = np.frombuffer(data, dtype=np.uint8)
    colours = colours[: len(colours) // len(order) * len(order)].reshape(-1, len(order))[:, :3]
    return bool((colours == colours[:, :1]).all())


def _orientation(image: "Image") -> int:
    """Its orientation (EXIF, or what XMP says), 1 to 8; 1 where there is none or it cannot be read."""
    if image.format != "TIFF" and not _ORIENTED & image.info.keys():
        return 1  # Pillow would decode a PNG file to look for more
    # damaged EXIF can make Pillow raise almost anything, and the pixels are none the worse for it
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _of_8_bits(image: "Image", depth16: Depth16) -> "Image":
    """A grey image of more than 8 bits, its values brought to 0 … 255 linearly; see `DataSettings`."""
    from PIL import Image

    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ValueError("values that are no numbers")
    low, high = (least, most) if depth16 == "image" else _FULL if depth16 == "full" else depth16
    if depth16 == "full" and (least < low or most > high):
        raise ValueError(f"values from {least:g} to {most:g}, beyond those of data.depth16=full: give [LOW, HIGH]")
    scaled = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def _shown(depth16: Depth16) -> str:
    return depth16 if isinstance(depth16, str) else f"[{depth16[0]:g}, {depth16[1]:g}]"


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
