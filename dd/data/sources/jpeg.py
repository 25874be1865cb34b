"""JPEG files, decoded by libjpeg-turbo without Pillow's copies, and resized by PyTorch's vector code.

Decoding gives the bits of Pillow, which uses the same library.  Resizing gives the same bits with and without AVX, but
not those of Pillow: they differ by at most two grey levels where the same pixels are resized; see also `squared`.
"""

import numpy as np
import torch
import torch.nn.functional as F

from dd.data.settings import Resize

RESIZED = "torch"  # what resizes JPEG files, in the keys of data whose pixels depend on it


def decoded(data: bytes, *, grey: bool) -> np.ndarray | None:
    """Decode a JPEG file at its own size, as stored, in grey or colour.

    Returns:
        uint8 (h, w, c), c = 1 if grey, else 3; None if the decoder refuses or warns, so that Pillow must judge.
    """
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB")
    except ValueError:
        return None


def squared(pixels: np.ndarray, side: int, shorter: int, resize: Resize = "fit") -> np.ndarray:
    """Bring decoded pixels to a square of `side` pixels, in the ways of `dd.data.sources.pixels.squared`.

    Unlike there, "fit" cuts the centre at whole pixels before it resizes.  So where the sides differ by an odd number,
    the picture moves by half a pixel of the file, and no pixel outside the square influences its border.

    Args:
        pixels: uint8 (h, w, c).
        side: height and width of the result in pixels.
        shorter: length of the shorter side before "shorter" crops.
        resize: the way.

    Returns:
        uint8 (c, side, side).
    """
    height, width, _ = pixels.shape
    if resize == "squash":
        pixels = _resized(pixels, (side, side), "bilinear")
    elif resize == "shorter":
        # as in torchvision: truncate the longer side
        size = (int(shorter * height / width), shorter) if width <= height else (shorter, int(shorter * width / height))
        pixels = _centre(_resized(pixels, size, "bilinear"), side)
    else:
        pixels = _resized(_centre(pixels, min(height, width)), (side, side), "bicubic")
    return pixels.transpose(2, 0, 1)


def _centre(pixels: np.ndarray, side: int) -> np.ndarray:
    # as in torchvision: round the margins
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _resized(pixels: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    if pixels.shape[:2] == size:
        return pixels
    # channels last, which is the layout of the fastest code
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return F.interpolate(images, size, mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()
