"""The layout of a file's images, inferred from the shape of the real images."""

import re

from torch import Tensor

from dd.data import kind_of
from dd.data.sources.catalogue import CATALOGUE
from dd.errors import UsageError
from dd.exchange.draft import Draft

_LAYOUTS = {"nchw": (0, 1, 2, 3), "nhwc": (0, 3, 1, 2), "chwn": (3, 0, 1, 2)}
_NAMES = {  # names of data sets in other projects' files
    "cifar100": "cifar100",
    "cifar10": "cifar10",
    "fashion": "fashion-mnist",
    "mnist": "mnist",
    "svhn": "svhn",
    "tiny": "tiny-imagenet",
}


def laid_out(draft: Draft, shape: tuple[int, int, int], dataset: str) -> Tensor:
    """Return a draft's images as (n, c, h, w).

    Args:
        draft: the draft, with images (n, c, h, w), (n, h, w, c), (c, h, w, n) or (n, h, w).
        shape: (c, h, w) of the real images.
        dataset: name of the real data.

    Raises:
        UsageError: no layout fits, or two do.
    """
    images = draft.images
    if images.dim() == 3 and shape[0] == 1:
        images = images.unsqueeze(1)
    fitting = [name for name, axes in _LAYOUTS.items() if images.dim() == 4 and _in(images, axes) == shape]
    if len(fitting) == 2 and draft.family:  # in files of these families, the first axis is the number of images
        fitting.remove("chwn")
    if len(fitting) == 1:
        return images.permute(_LAYOUTS[fitting[0]])
    if fitting:
        raise UsageError(
            f"{draft.files[0]}: images of shape {_words(images.shape)} may be {' or '.join(fitting)}; save them as "
            "(number, channels, height, width)"
        )
    raise _another(draft, shape, dataset)


def likely_side(images: Tensor) -> int | None:
    """Return the side of square images in any layout; None if they are not square."""
    if images.dim() < 3:
        return None
    for one, other in ((2, 3), (1, 2)):
        if images.dim() > other and images.shape[one] == images.shape[other]:
            return images.shape[one]
    return None


def _in(images: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(images.shape[axis] for axis in axes[1:])


def _another(draft: Draft, shape: tuple[int, int, int], dataset: str) -> UsageError:
    """Return the error for images of another shape, with a data set that would fit."""
    here = tuple(draft.images.shape[1:])
    said = named_set(draft.files[0].name)
    named = f", whatever its name says ({said})" if said else ""
    fits = [
        name
        for name in CATALOGUE
        if (kind := kind_of(name))
        and here in ((kind.channels, kind.side, kind.side), (kind.side, kind.side, kind.channels))
    ]
    ways = f"; such images are in {', '.join(fits)}" if fits else ""
    side, own = likely_side(draft.images), kind_of(dataset)
    if side is not None and side != shape[1] and (own is None or own.side is None):
        ways += f"; size={side} brings the real images to theirs"
    return UsageError(
        f"{draft.files[0]}: its images are {_words(here)}{named}, and those of {dataset} are {_words(shape)} "
        f"(channels, height, width){ways}"
    )


def named_set(name: str) -> str:
    """Return our name of the data set mentioned in a file name; "" if there is none."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((ours for word, ours in _NAMES.items() if word in plain), "")


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
