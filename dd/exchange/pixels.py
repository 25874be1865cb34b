"""From the value space of a file into ours, exactly: to pixels where 0 is black and 1 white, and from there."""

from collections.abc import Callable

import torch
from torch import Tensor

from dd.data import RealData
from dd.data.preprocess import moments, whitening
from dd.errors import UsageError
from dd.exchange.spaces import NAMED, ValueSpace

_EPS = 0.1  # of the published whitenings
_LARGEST = 12_288  # numbers of an image up to which a matrix of their square is made
_AT_ONCE = 1000


def in_our_space(
    images: Tensor, space: ValueSpace, data: RealData, whole: Callable[[str], RealData]
) -> tuple[Tensor, str]:
    """Bring images of a file into the space of `data`; the second value says what was done, "" if nothing notable.

    Where theirs is ours to the last constant they stay as they are, to the bit; values are never clamped.

    Args:
        images: float32 or uint8 (n, c, h, w); bytes stay bytes.
        space: of `images`.
        data: whose space they go to.
        whole: opens all training images as one part, preprocessed in the way that is named.

    Raises:
        UsageError: the way back from theirs cannot be had.
    """
    if images.dtype == torch.uint8:
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
    """Undo z = (y - m) T of normalised y; T from the covariance of pixels, scaled."""
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
    """Mean and deviation (c, 1, 1) float64; "ours" are those of `data`."""
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
