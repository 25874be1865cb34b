"""Read one image: its header, without decoding, or its pixels, resized."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dd.data.settings import Depth16, Resize
from dd.data.sources import jpeg
from dd.io import Json

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = {"1", "L", "LA"}
_DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # grey with more than 8 bits; for colour Pillow gives the upper 8
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> the Pillow `Transpose` that undoes it
_ORIENTED = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # keys under which Pillow finds it
_FLIPS = (0, 1, 3)  # transposes that keep width and height
_ORIENTATION = 0x0112  # EXIF's tag
_FULL = (0, 65535)  # of unsigned 16 bits


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image tells without decoding.

    Attributes:
        width: in pixels, after EXIF rotation.
        height: in pixels, after EXIF rotation.
        grey: whether it is grey.
        format: Pillow's name of the format.
        turned: whether EXIF says that the stored pixels must be rotated or mirrored.
        frames: whether it is animated or has several pages.
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
    """The format of decoded images: channels, side in pixels, how they are resized, and how 16 bits become 8."""

    channels: int
    side: int
    resize: Resize = "fit"
    depth16: Depth16 | None = None

    @property
    def scaled_to(self) -> int:
        """The length of the shorter side before the centre is cropped; an image that has it is not scaled."""
        return shorter_side(self.side) if self.resize == "shorter" else self.side

    def key(self) -> dict[str, Json]:
        """What the pixels depend on, JSON-serialisable; omits defaults of newer settings, so old keys stay valid."""
        chosen: dict[str, Json] = {"channels": self.channels, "side": self.side}
        if self.resize != "fit":
            chosen["resize"] = self.resize
        if self.depth16 is not None:
            chosen["depth16"] = self.depth16
        return chosen


class TooDeep(ValueError):
    """An image has more than 8 bits per channel, and `data.depth16` is not set."""


def header_of(item: bytes | Path) -> Header:
    """Read the header of an image, without decoding pixels.

    Raises:
        Exception: whatever Pillow raises for a file that it cannot read.
    """
    with _open(item) as image:
        turn, (width, height) = _TURNS.get(_orientation(image)), image.size
        if turn is not None and turn not in _FLIPS and image.format != "TIFF":  # Pillow swaps the size of a TIFF
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


def pixels_of(item: bytes | Path, target: Target) -> np.ndarray:
    """The pixels of an image, uint8 (c, side, side), resized as the target says.

    The result depends on the bytes and the target alone.
    """
    found = _original(item, target.channels, target.depth16)
    if isinstance(found, np.ndarray):
        if min(found.shape[:2]) != target.scaled_to:
            return jpeg.squared(found, target.side, target.scaled_to, target.resize)
        found = _image(found)
    pixels = np.asarray(squared(found, target.side, target.resize))
    return pixels[None] if target.channels == 1 else pixels.transpose(2, 0, 1)


def original(item: bytes | Path, channels: int, depth16: Depth16 | None = None) -> "Image":
    """Decode an image at its own size, with EXIF rotation applied, 8 bits, in grey (1 channel) or colour (3).

    Raises:
        TooDeep: it has more than 8 bits, and `depth16` is None.
    """
    found = _original(item, channels, depth16)
    return _image(found) if isinstance(found, np.ndarray) else found


def _original(item: bytes | Path, channels: int, depth16: Depth16 | None) -> "Image | np.ndarray":
    """See `original`; as pixels, uint8 (h, w, c), if it is a JPEG file of which Pillow only has to read the header."""
    from PIL.Image import Transpose

    mode = "L" if channels == 1 else "RGB"
    data = item if isinstance(item, bytes) else item.read_bytes()
    with _open(data) as image:
        if image.mode in _DEEP and depth16 is None:
            raise TooDeep(f"more than 8 bits per channel (mode {image.mode})")
        # libjpeg's own grey of a colour image differs from Pillow's
        if image.format == "JPEG" and image.mode in ("L", mode) and _orientation(image) not in _TURNS:
            pixels = jpeg.decoded(data, grey=channels == 1)
            if pixels is not None:
                return pixels
        image.load()
        turn = _TURNS.get(_orientation(image))  # None for a TIFF, which Pillow rotates while loading
        if depth16 is not None and image.mode in _DEEP:
            image = _of_8_bits(image, depth16)
        if image.mode == "P":
            image.info.pop("transparency", None)  # the conversion would only warn about it
        image = image if image.mode == mode else image.convert(mode)
    return image if turn is None else image.transpose(Transpose(turn))


def _image(pixels: np.ndarray) -> "Image":
    from PIL import Image

    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def shorter_side(side: int) -> int:
    """Length of the shorter side before "shorter" crops the centre of `side` pixels: 224 -> 256, 32 -> 32.

    This is the rule of RDED's official code for every size; at 224 it is the usual ImageNet transform.
    """
    return side // 7 * 8


def squared(image: "Image", side: int, resize: Resize = "fit") -> "Image":
    """Bring a decoded image to a square of `side` pixels; see `DataSettings.resize` for the modes.

    "fit" is bicubic.  The other modes follow torchvision's `Resize`, like the code they reproduce: bilinear.  All are
    antialiased, as always in Pillow.
    """
    from PIL import ImageOps
    from PIL.Image import Resampling

    if resize == "shorter":
        least, (width, height) = shorter_side(side), image.size
        # as in torchvision: truncate the longer side, round the margins
        size = (least, int(least * height / width)) if width <= height else (int(least * width / height), least)
        image = image if image.size == size else image.resize(size, Resampling.BILINEAR)
        left, top = (round((length - side) / 2) for length in size)
        return image.crop((left, top, left + side, top + side))
    if image.size == (side, side):
        return image
    if resize == "squash":
        return image.resize((side, side), Resampling.BILINEAR)
    return ImageOps.fit(image, (side, side), method=Resampling.BICUBIC)


def _open(item: bytes | Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    if not item:
        raise ValueError("no bytes")
    try:
        image = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    except UnidentifiedImageError:
        empty = isinstance(item, Path) and not item.stat().st_size
        # Pillow's own message contains a memory address
        raise ValueError("no bytes" if empty else "not an image") from None
    return image


def _is_grey(image: "Image") -> bool:
    if image.mode != "P" or image.palette is None:
        return image.mode in _GREY
    order, data = image.palette.getdata()
    if order not in ("RGB", "BGR", "RGBA", "BGRX"):
        return False
    colours = np.frombuffer(bytes(data), dtype=np.uint8)
    colours = colours[: len(colours) // len(order) * len(order)].reshape(-1, len(order))[:, :3]
    return bool((colours == colours[:, :1]).all())


def _orientation(image: "Image") -> int:
    """The orientation, 1 to 8, from EXIF or XMP; 1 if there is none or it cannot be read."""
    if image.format != "TIFF" and not _ORIENTED & image.info.keys():
        return 1  # without this, Pillow would decode a whole PNG to look for EXIF
    # damaged EXIF can make Pillow raise almost any exception, but the pixels are still good
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _of_8_bits(image: "Image", depth16: Depth16) -> "Image":
    """Scale a grey image of more than 8 bits linearly to 0 … 255; see `DataSettings.depth16`."""
    from PIL import Image

    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ValueError("values that are not numbers")
    low, high = (least, most) if depth16 == "image" else _FULL if depth16 == "full" else depth16
    if depth16 == "full" and (least < low or most > high):
        raise ValueError(f"values from {least:g} to {most:g}, beyond those of data.depth16=full: give [LOW, HIGH]")
    scaled = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
