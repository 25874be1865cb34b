"""Exact conversion from the value space of a file to ours, by way of pixels from 0 (black) to 1 (white)."""

from collections.abc import Callable

import torch
from torch import Tensor

from dd.data import RealData
from dd.data.preprocess import moments, whitening
from dd.errors import UsageError
from dd.exchange.spaces import NAMED, ValueSpace

_EPS = 0.1  # of the published implementations of whitening
_LARGEST = 12_288  # values per image up to which a square matrix of that size is built
_AT_ONCE = 1000


def in_our_space(
    images: Tensor, space: ValueSpace, data: RealData, whole: Callable[[str], RealData]
) -> tuple[Tensor, str]:
    """Convert images of a file to the value space of `data`; also return a remark on the conversion, or "".

    If both spaces have the same constants, images are returned unchanged, bit for bit. Values are never clamped.

    Args:
        images: float32 or uint8 (n, c, h, w); uint8 is preserved.
        space: value space of `images`.
        data: the real data with the target space.
        whole: opens all training images as one part, given the name of a preprocessing.

    Raises:
        UsageError: the file's space cannot be inverted.
    """
    if images.dtype == torch.uint8 or space.word == "network":
        return images, ""
    if space.word == "normalised" and data.preprocess.kind == "standard":
        mean, std = _constants(space, data)
        ours = data.preprocess.state()
        if all(torch.equal(a.flatten().float(), b.cpu()) for a, b in ((mean, ours["mean"]), (std, ours["std"]))):
            return images, ""
    if space.word == "zca" and data.preprocess.spec() == whole("zca").preprocess.spec():
        return images, ""
    pixels, note = _pixels(images, space, data, whole)
    encoded = [data.preprocess.encode(part.to(data.preprocess.device)).cpu() for part in pixels.float().split(_AT_ONCE)]
    return torch.cat(encoded), note


def _pixels(images: Tensor, space: ValueSpace, data: RealData, whole: Callable[[str], RealData]) -> tuple[Tensor, str]:
    if space.word == "pixels":
        return images, ""
    if space.word == "bytes":
        return images / 255, ""
    if space.word == "normalised":
        mean, std = _constants(space, whole("standard"))
        return (images.double() * std + mean).float(), f"brought back to pixels with the constants of {space.constants}"
    everything = whole("zca" if space.word == "zca" else "standard")
    count = f"{len(everything.train):,} training images of {data.name}"
    if space.word == "zca":
        device = everything.preprocess.device
        parts = [everything.preprocess.invert(part.to(device)).cpu() for part in images.split(_AT_ONCE)]
        return torch.cat(parts), f"brought back to pixels by a ZCA of all {count} (eps {_EPS})"
    pixels = _unwhitened(images, space, everything)
    return pixels, f"brought back to pixels by a ZCA (eps {_EPS}) of all {count}, normalised with {space.constants}"


def _unwhitened(images: Tensor, space: ValueSpace, everything: RealData) -> Tensor:
    """Invert z = (y - m) T of normalised y; T is derived from the scaled covariance of pixels."""
    size = images[0].numel()
    if size > _LARGEST:
        raise UsageError(
            f"whitened images of {size:,} numbers would need a matrix of their square to be brought back; that is "
            f"made up to {_LARGEST:,} only"
        )
    mean, std = _constants(space, everything)
    pixels = everything.train.raw(torch.arange(len(everything.train))).cpu()
    centre, covariance = moments(pixels)
    scale = (1 / std).expand(*images.shape[1:]).flatten()
    shift = mean.expand(*images.shape[1:]).flatten()
    _, inverse = whitening(covariance * torch.outer(scale, scale), _EPS)
    normalised = images.flatten(1).double() @ inverse + (centre - shift) * scale
    return (normalised / scale + shift).float().view(images.shape)


def _constants(space: ValueSpace, data: RealData) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, (c, 1, 1) float64; "ours" are those of `data`."""
    if space.constants == "ours":
        state = data.preprocess.state()
        found = state["mean"].tolist(), state["std"].tolist()
    else:
        found = NAMED[space.constants]
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in found)
    if len(mean) != data.channels:
        raise UsageError(
            f"the constants of {space.constants} are of {len(mean)} channels, and {data.name} has {data.channels}: "
            "value_space=normalised:NAME names others"
        )
    return mean, std
