"""How real images are split, sized, kept and transformed."""

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
    """Numbers of classes as texts; one class as a list of one."""
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
    """How real images are split, sized, kept and transformed."""

    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of every class of the training images that is set aside for probes; 0 reproduces the papers."""
    holdout_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the split into training and held-out images, its only source of chance."""
    preprocess: Literal["standard", "zca", "none"] = "standard"
    """How pixels become values: "standard" (mean and deviation per channel), "zca", or "none", pixels from 0 to 1 as
    they are.
    """
    zca_eps: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """Added to the eigenvalues of the covariance; 0.1 in the published work."""
    augment: Annotated[str | None, AfterValidator(known_strategy)] = None
    """DSA strategy; None takes the data set's own, "none" switches it off."""
    size: Annotated[int | None, Field(ge=1, le=2**14)] = None
    """Height and width in pixels to which images are brought; None for their own, where most are of one size that
    networks take.
    """
    resize: Resize = "fit"
    """How an image becomes a square: "fit", the shorter side to `size` and the centre kept, which shows 75 % of a
    picture of 500 x 375; "squash", both sides to `size`, which shows all of it out of proportion (the trajectory
    family); "shorter", the shorter side to an eighth more and the centre kept, 57 % of it (256 to 224, as networks for
    ImageNet are tested).
    """
    depth16: Depth16 | None = None
    """How grey images of more than 8 bits become 8, linearly: "full", 0 to 65,535 (of colour the upper 8 bits are
    taken, whatever is said); "image", the darkest to the brightest value of each image, as is usual for X-rays; or
    [low, high], beyond which values are black and white, as a radiologist's window; None: such images are refused.
    """
    classes: Classes = ()
    """Classes to take, by name or by number (label of the whole data set), labelled in this order; where names are
    numbers, names are meant. () takes all.
    """
    stream: Literal["auto"] | bool = "auto"
    """Whether images are decoded each time they are used instead of once; "auto" where their pixels would take more
    than a quarter of the device's memory (in all, in use or not).
    """
    workers: Annotated[int | None, Field(ge=1, le=1024), Outside("run", "no result depends on it")] = None
    """Threads that decode streamed images; None: one per core, at most 16."""
