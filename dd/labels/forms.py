"""Storage formats (forms) for the labels of views: encode teachers' logits, decode class probabilities.

A form encodes the logits of a batch of views as a few small arrays per view, and decodes these into class
probabilities.  The published forms are all logits (SRe2L, Yin et al., NeurIPS 2023), the k largest probabilities and
hard labels (both FKD, Shen & Xing, ECCV 2022), and two distances (NRR-DD, see `dd.labels.distances`).

For a batch of n views, `own`, int64 (n,), holds the classes of the images, and `partner`, int64 (n,), those of the
images mixed into them, equal to `own` if nothing is mixed in.  Values are rounded to float16 such that no class
overtakes the most probable one; logits closer than the float16 resolution may become equal.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from dd.errors import RunError, UsageError, unknown
from dd.labels.distances import distances, reconstruct

Encoded = Mapping[str, Tensor]
RowType = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""The arrays of one view, by name, as (dtype, shape)."""
_LARGEST = torch.finfo(torch.float16).max
_INT16 = 2**15  # class numbers below it fit into int16; float16 is exact only up to 2048


@dataclass(frozen=True)
class LabelForm(ABC):
    """Base class of the label forms.

    Attributes:
        name: the name that settings use.
        classes: number of classes, k.
    """

    name: ClassVar[str]
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UsageError(f"labels need at least 2 classes, not {self.classes}")

    @abstractmethod
    def layout(self) -> RowType:
        """The arrays of one view, by name, as (dtype, shape)."""

    @abstractmethod
    def _encode(self, logits: Tensor, own: Tensor, partner: Tensor) -> dict[str, Tensor]:
        """See `encode`, with finite float32 logits."""

    @abstractmethod
    def _decode(self, encoded: Encoded, own: Tensor, partner: Tensor, temperature: float) -> Tensor:
        """See `decode`."""

    def encode(self, logits: Tensor, own: Tensor, partner: Tensor) -> dict[str, Tensor]:
        """Encode logits (n, k) as the arrays of `layout` with a leading dimension n, on the same device.

        Raises:
            ValueError: the logits have another shape.
            RunError: some logits are not finite.
        """
        if logits.shape != (len(own), self.classes):
            raise ValueError(f"logits of shape {tuple(logits.shape)}, where ({len(own)}, {self.classes}) is needed")
        logits = logits.detach().float()
        if not bool(logits.isfinite().all()):
            raise RunError("the teachers' logits are NaN or infinite: a teacher diverged; train it again")
        return self._encode(logits, own, partner)

    def decode(self, encoded: Encoded, own: Tensor, partner: Tensor, temperature: float = 1.0) -> Tensor:
        """Decode class probabilities, float32 (n, k), at a temperature, on the device of `encoded`; rows sum to one.

        Raises:
            UsageError: the temperature is not 1, but the form stores probabilities at temperature 1.
        """
        if temperature != 1 and self.name != Logits.name:
            raise UsageError(
                f"labels of form {self.name!r} are probabilities at temperature 1, which cannot be brought to "
                f"{temperature:g}; train at temperature 1, or store form='logits'"
            )
        return self._decode(encoded, own, partner, temperature)

    def damage(self, encoded: Encoded) -> str:
        """Check the values of stored labels (n, ...); returns the fault, or ""."""
        for name, values in encoded.items():
            whole = values.isfinite() if values.is_floating_point() else (values >= 0) & (values < self.classes)
            if not bool(whole.all()):
                return f"some {name} are " + ("NaN or infinite" if values.is_floating_point() else "of no class")
        return ""

    def _index(self) -> torch.dtype:
        return torch.int16 if self.classes <= _INT16 else torch.int32


@dataclass(frozen=True)
class Logits(LabelForm):
    """All logits as float16: 2 k bytes per view; the temperature is applied when decoding."""

    name: ClassVar[str] = "logits"

    def layout(self) -> RowType:
        """See `LabelForm`."""
        return {"logits": (torch.float16, (self.classes,))}

    def _encode(self, logits: Tensor, own: Tensor, partner: Tensor) -> dict[str, Tensor]:
        largest = logits.amax(1, keepdim=True)
        # shift logits that exceed float16, as badly trained teachers' do; the softmax stays the same
        shifted = torch.where(logits.abs().amax(1, keepdim=True) > _LARGEST, logits - largest, logits)
        return {"logits": shifted.clamp_min(-_LARGEST).half()}

    def _decode(self, encoded: Encoded, own: Tensor, partner: Tensor, temperature: float) -> Tensor:
        return (encoded["logits"].float() / temperature).softmax(1)


@dataclass(frozen=True)
class TopK(LabelForm):
    """The `k` largest probabilities as float16 with their classes: 4 k bytes up to 32768 classes, 6 k beyond.

    Attributes:
        k: number of probabilities.
        rest: "smooth" spreads the remaining probability evenly over the other classes (FKD's marginal smoothing);
            "renorm" divides by the sum, so that the other classes get 0.
    """

    name: ClassVar[str] = "topk"
    k: int = 5
    rest: Literal["smooth", "renorm"] = "smooth"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.classes:
            raise UsageError(f"topk labels with k={self.k} of {self.classes} classes; expected 1 to {self.classes}")
        if self.rest not in ("smooth", "renorm"):
            raise unknown("rest of topk labels", str(self.rest), ("smooth", "renorm"))

    def layout(self) -> RowType:
        """See `LabelForm`."""
        return {"indices": (self._index(), (self.k,)), "values": (torch.float16, (self.k,))}

    def _encode(self, logits: Tensor, own: Tensor, partner: Tensor) -> dict[str, Tensor]:
        largest, indices = logits.softmax(1).topk(self.k, 1)
        # round up, so that no other class gets more than the smallest stored one
        values = largest.half()
        values = torch.where(values < largest, _above(values), values)
        if self.k > 1:  # the first stays ahead of the second
            values[:, 0] = torch.where(values[:, 0] == values[:, 1], _above(values[:, 0]), values[:, 0])
        return {"indices": indices.to(self._index()), "values": values}

    def _decode(self, encoded: Encoded, own: Tensor, partner: Tensor, temperature: float) -> Tensor:
        values = encoded["values"].float()
        others = values.new_zeros(len(values), 1)
        if self.rest == "smooth" and self.k < self.classes:
            others = (1 - values.sum(1, keepdim=True)).clamp_min(0) / (self.classes - self.k)
        whole = others.repeat(1, self.classes).scatter(1, encoded["indices"].long(), values)
        return whole / whole.sum(1, keepdim=True)


@dataclass(frozen=True)
class Hard(LabelForm):
    """Only the most probable class: 2 bytes up to 32768 classes, 4 beyond.

    Attributes:
        smoothing: label smoothing, 0 to 1: the probability spread evenly over all classes.
    """

    name: ClassVar[str] = "hard"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing <= 1:
            raise UsageError(f"hard labels with smoothing={self.smoothing:g}; expected 0 to 1")

    def layout(self) -> RowType:
        """See `LabelForm`."""
        return {"classes": (self._index(), ())}

    def _encode(self, logits: Tensor, own: Tensor, partner: Tensor) -> dict[str, Tensor]:
        return {"classes": logits.argmax(1).to(self._index())}

    def _decode(self, encoded: Encoded, own: Tensor, partner: Tensor, temperature: float) -> Tensor:
        return smoothed(encoded["classes"].long(), self.classes, self.smoothing)


@dataclass(frozen=True)
class Distances(LabelForm):
    """NRR-DD's two distances as float16: 4 bytes for any number of classes; see `dd.labels.distances`."""

    name: ClassVar[str] = "distances"

    def layout(self) -> RowType:
        """See `LabelForm`."""
        return {"distances": (torch.float16, (2,))}

    def _encode(self, logits: Tensor, own: Tensor, partner: Tensor) -> dict[str, Tensor]:
        exact = distances(logits, own, partner)
        # round down, so that the two classes do not lose probability to the others, and keep their order
        stored = exact.half()
        stored = torch.where(stored > exact, _below(stored), stored)
        tied, first = stored[:, 0] == stored[:, 1], exact[:, 0] < exact[:, 1]
        further = torch.stack([tied & (exact[:, 1] < exact[:, 0]), tied & first], 1)
        return {"distances": torch.where(further, _above(stored), stored)}

    def _decode(self, encoded: Encoded, own: Tensor, partner: Tensor, temperature: float) -> Tensor:
        return reconstruct(encoded["distances"].float(), own, partner, self.classes)


FORMS: Mapping[str, type[LabelForm]] = {form.name: form for form in (Logits, TopK, Hard, Distances)}


def form_of(name: str, classes: int, **parameters: Any) -> LabelForm:
    """Build a form by name: "logits", "topk" (k, rest), "hard" (smoothing) or "distances".

    Raises:
        UsageError: an unknown name or parameter, or a value out of range.
    """
    if name not in FORMS:
        raise unknown("form of labels", name, FORMS)
    known = [f.name for f in fields(FORMS[name]) if f.name != "classes"]
    for parameter in parameters:
        if parameter not in known:
            raise unknown(f"parameter of {name!r} labels", parameter, known)
    return FORMS[name](classes, **parameters)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Smoothed one-hot labels, float32 (n, classes), of int64 labels (n,); `smoothing` is spread over all classes."""
    return (1 - smoothing) * functional.one_hot(labels, classes).float() + smoothing / classes


def calibrate(probabilities: Tensor, own: Tensor, low: float, high: float, smooth: float) -> Tensor:
    """Calibrate the labels of crops by the teacher's confidence in the image's class, after FerKD (Shen, ICCV 2023).

    Let p be the teacher's probability of the image's class.  Confident crops (p ≥ high) keep their soft label, crops
    with low ≤ p < high get the smoothed hard label, and background crops (p < low) get a uniform label.  The thresholds
    are not published; keeping background crops, with uniform labels, is our completion.

    Args:
        probabilities: (n, k), of unmixed views.
        own: (n,) int64, the classes of the images.
        low: below this confidence a crop counts as background; 0 to `high`.
        high: from this confidence on, the soft label is kept; at most 1.
        smooth: label smoothing of the hard labels.

    Returns:
        (n, k).

    Raises:
        UsageError: the thresholds are out of order.
    """
    if not 0 <= low <= high <= 1:
        raise UsageError(f"calibration needs 0 <= low <= high <= 1, not low={low:g}, high={high:g}")
    classes = probabilities.shape[1]
    sure = probabilities.gather(1, own[:, None])
    doubtful = smoothed(own, classes, smooth).to(probabilities)
    calibrated = torch.where(sure >= high, probabilities, doubtful)
    return torch.where(sure < low, torch.full_like(probabilities, 1 / classes), calibrated)


def _above(halves: Tensor) -> Tensor:
    """The next larger float16, for non-negative values."""
    return (halves.view(torch.int16) + 1).view(torch.float16)


def _below(halves: Tensor) -> Tensor:
    """The next smaller float16, for positive values."""
    return (halves.view(torch.int16) - 1).view(torch.float16)
