"""Settings of real images: how they are split, resized, stored and transformed."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dd.settings import Outside
from dd.views.dsa import known_strategy

Resize = Literal["fit", "squash", "shorter"]
"""How an image becomes a square: see `DataSettings.resize`."""


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError(f"data.depth16=[{bounds[0]:g}, {bounds[1]:g}]: the first must be below the second")
    return bounds


def _as_names(value: Any) -> Any:
    """Class numbers as strings; a single class as a tuple of one."""
    items = [value] if isinstance(value, int) else value
    if not isinstance(items, list | tuple):
        return value
    return tuple(str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in items)


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"data.classes names {', '.join(twice)} more than once")
    return names


Depth16 = Literal["full", "image"] | Annotated[tuple[float, float], AfterValidator(_rising)]
Classes = Annotated[tuple[str, ...], BeforeValidator(_as_names), AfterValidator(_distinct)]


@dataclass(frozen=True)
class DataSettings:
    """How real images are split, resized, stored and transformed."""

    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training images of every class that is set aside for probes; 0 reproduces the papers."""
    holdout_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the split into training and held-out images; nothing else affects the split."""
    preprocess: Literal["standard", "zca", "none"] = "standard"
    """How pixels are transformed: "standard" (per-channel mean and standard deviation), "zca" (whitening), or "none"
    (pixels stay in [0, 1]).
    """
    zca_eps: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Added to the eigenvalues of the covariance; 0.1 in the published work."""
    augment: Annotated[str | None, AfterValidator(known_strategy)] = None
    """DSA strategy; None uses the data set's own, "none" switches it off."""
    size: Annotated[int | None, Field(ge=1, le=2**14)] = None
    """Height and width in pixels to which images are resized; None keeps their own size, if most have the same one
    and networks take it.
    """
    resize: Resize = "fit"
    """How an image becomes a square. "fit": resize the shorter side to `size` and crop the centre (keeps 75 % of a
    500 x 375 image). "squash": resize both sides to `size`, ignoring the aspect ratio (the trajectory family).
    "shorter": resize the shorter side to 8/7 of `size` and crop the centre (keeps 57 %; 256 then 224, the usual
    ImageNet test transform). JPEG files are scaled by PyTorch and all others by Pillow: the same filter, but up to two
    grey levels apart, and "fit" cuts the centre of a JPEG file at whole pixels.
    """
    depth16: Depth16 | None = None
    """How grey images of more than 8 bits are scaled linearly to 8: "full" maps 0 to 65,535; "image" maps the darkest
    to the brightest value of each image, as is usual for X-rays; [low, high] maps that window and clips the rest, like
    a radiologist's window. None refuses such images. Colour images always keep their upper 8 bits.
    """
    classes: Classes = ()
    """Classes to use, by name or by number (the label in the whole data set), labelled in this order; if the class
    names are themselves numbers, a number is a name. () uses all.
    """
    stream: Literal["auto"] | bool = "auto"
    """Whether images are decoded every time they are used instead of once; "auto" does so if their pixels would take
    more than a quarter of the device's total memory.
    """
    workers: Annotated[int | None, Field(ge=1, le=1024), Outside("run", "no result depends on it")] = None
    """Number of threads that decode streamed images; None: one per core, at most 16."""
