"""How real images are split, sized, kept and transformed."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dd.data.augment import known_strategy

Resize = Literal["fit", "squash", "shorter"]
"""How an image becomes a square: see `DataSettings.resize`."""


@dataclass(frozen=True)
class DataSettings:
    """How real images are split, sized, kept and transformed.

    Attributes:
        holdout: share of every class of the training images that is set aside for probes; 0 reproduces the papers.
        holdout_seed: the only source of chance of that split.
        preprocess: "standard" (mean and deviation per channel), "zca", or "none", pixels from 0 to 1 as they are.
        zca_eps: added to the eigenvalues of the covariance; 0.1 in the published work.
        augment: DSA strategy; None takes the data set's own, "none" switches it off.
        size: height and width in pixels to which images are brought; None for their own.
        resize: how: "fit", the shorter side to `size` and the centre kept, which shows 75 % of a picture of 500 x 375;
            "squash", both sides to `size`, which shows all of it out of proportion (the trajectory family); "shorter",
            the shorter side to an eighth more and the centre kept, 57 % of it (256 to 224, as networks for ImageNet are
            tested).
        stream: whether images are decoded each time they are used instead of once; "auto" where their pixels would take
            more than a quarter of the device's memory (in all, in use or not).
        workers: threads that decode streamed images; None: one per core, at most 16.  No number depends on it.
    """

    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    holdout_seed: Annotated[int, Field(ge=0)] = 0
    preprocess: Literal["standard", "zca", "none"] = "standard"
    zca_eps: Annotated[float, Field(gt=0)] = 0.1
    augment: Annotated[str | None, AfterValidator(known_strategy)] = None
    size: Annotated[int | None, Field(ge=1)] = None
    resize: Resize = "fit"
    stream: Literal["auto"] | bool = "auto"
    workers: Annotated[int | None, Field(ge=1)] = None
