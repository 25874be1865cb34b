"""From bytes to the space that networks see, and back: normalisation per channel, or ZCA whitening.

Whatever is fitted is fitted on the training part only.  Sums over uint8 pixels are exact, so means and covariances are
the same to the bit on every machine, whatever the order of summation or the number of threads.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from dd.data._entry import Constants
from dd.errors import UsageError
from dd.io import sha256_tensors
from dd.runs.store import Store

_FIT_ROWS = 1024  # (2^7)^2 * 1024 = 2^24: sums of that many products of centred bytes are exact in float32
_CENTRE = 128


class Preprocess(ABC):
    """A transform between uint8 pixels and float32 model space.

    Attributes:
        kind: "standard" or "zca".
        mean: in [0, 1] units; (c,) for standard, (c·h·w,) for zca.
        costly: applying it costs so much that the transformed images are better kept than recomputed.
    """

    kind: ClassVar[str]
    costly: ClassVar[bool]
    mean: Tensor

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, c, h, w) -> float32 (n, c, h, w) in model space, on the same device; never clamped."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Pixels where 0 is black and 1 white (n, c, h, w) -> model space; differentiable, the inverse of `invert`."""

    @abstractmethod
    def invert(self, images: Tensor) -> Tensor:
        """Model space (n, c, h, w) -> pixels where 0 is black and 1 white, not clamped; differentiable."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-able identity: equal specs are equal transforms, on any machine."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All its tensors, by name; `from_state` takes them back."""

    def to(self, device: torch.device | str) -> "Preprocess":
        """The same transform with its tensors on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.state().items()})  # pyright: ignore


@dataclass(frozen=True, eq=False)
class Standard(Preprocess):
    """(x - mean) / std per channel, x in [0, 1]; both (c,) float32."""

    kind: ClassVar[str] = "standard"
    costly: ClassVar[bool] = False
    mean: Tensor
    std: Tensor

    @cached_property
    def _scale(self) -> Tensor:
        return (1 / (255 * self.std)).view(-1, 1, 1)

    @cached_property
    def _shift(self) -> Tensor:
        return (self.mean / self.std).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        _require_bytes(images)
        return images.to(torch.float32).mul_(self._scale).sub_(self._shift)

    def encode(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        return (images - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def invert(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        return images * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)

    def spec(self) -> dict[str, Any]:
        """See `Preprocess`."""
        return {"kind": self.kind, "mean": _numbers(self.mean), "std": _numbers(self.std)}

    def state(self) -> dict[str, Tensor]:
        """See `Preprocess`."""
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True, eq=False)
class Zca(Preprocess):
    """ZCA whitening, z = (x - m) T with x in [0, 1], flattened to D = c·h·w.

    Attributes:
        mean: m, (D,) float32.
        matrix: T, (D, D) float32, symmetric.
        inverse: T⁻¹, (D, D) float32.
        eps: added to the eigenvalues of the covariance.
        fitted_on: hash of the images it was fitted on.
    """

    kind: ClassVar[str] = "zca"
    costly: ClassVar[bool] = True
    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    eps: float
    fitted_on: str

    def __call__(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        _require_bytes(images)
        rows = images.flatten(1).to(torch.float32).mul_(1 / 255).sub_(self.mean)
        return (rows @ self.matrix).view(images.shape)

    def encode(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        return ((images.flatten(1) - self.mean) @ self.matrix).view(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        return (images.flatten(1) @ self.inverse + self.mean).view(images.shape)

    def spec(self) -> dict[str, Any]:
        """See `Preprocess`.  The matrix is named by what it was fitted on: its last bits differ between machines."""
        return {"kind": self.kind, "eps": self.eps, "fitted_on": self.fitted_on}

    def state(self) -> dict[str, Tensor]:
        """See `Preprocess`."""
        return {"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}


def standard(images: Tensor, constants: Constants | None = None) -> Standard:
    """Normalisation with published constants, or with the mean and deviation of uint8 images (n, c, h, w)."""
    mean, std = constants or channel_statistics(images)
    return Standard(torch.tensor(mean), torch.tensor(std))


def plain(channels: int) -> Standard:
    """Pixels from 0 to 1 as they are: nothing is subtracted, and the deviation is 1."""
    return Standard(torch.zeros(channels), torch.ones(channels))


def zca(images: Tensor, eps: float, what: str = "") -> Zca:
    """ZCA fitted on uint8 images (n, c, h, w), kept in the cache: O(n D² + D³), half a minute for CIFAR-10 on a CPU.

    Args:
        images: the training part.
        eps: added to the eigenvalues; 0.1 in the published work.
        what: name of the data, for the log.

    Raises:
        UsageError: fewer than two images.
    """
    if len(images) < 2:
        raise UsageError(f"ZCA needs at least 2 training images, not {len(images)}; use data.preprocess=standard")
    fitted_on = sha256_tensors({"images": images})[:16]

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        mean, covariance = moments(images)
        matrix, inverse = whitening(covariance, eps)
        return {"mean": mean.float(), "matrix": matrix.float(), "inverse": inverse.float()}, {}

    spec = {"format": 1, "eps": eps, "fitted_on": fitted_on}
    kept = Store().tensors("zca", spec, make, what=f"the ZCA of {what}" if what else "a ZCA")
    return Zca(**(kept.tensors or {}), eps=eps, fitted_on=fitted_on)


def from_state(spec: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Preprocess:
    """The transform that `spec()` and `state()` describe.

    A spec alone is enough for "standard".  For "zca" it is not: a distilled set keeps the spec, which names the data,
    and the matrix (38 MB for CIFAR) is fitted again or found in the cache when these data are opened.

    Raises:
        UsageError: the spec is of another kind, or needs tensors that are not given.
    """
    kind = spec.get("kind")
    if kind == Standard.kind:
        return Standard(torch.tensor(spec["mean"], dtype=torch.float32), torch.tensor(spec["std"], dtype=torch.float32))
    if kind != Zca.kind:
        raise UsageError(f"unknown kind of preprocessing {kind!r}; known: standard, zca")
    if not tensors:
        raise UsageError("ZCA cannot be inverted without the data it was fitted on; open them first")
    return Zca(tensors["mean"], tensors["matrix"], tensors["inverse"], float(spec["eps"]), str(spec["fitted_on"]))


def channel_statistics(images: Tensor) -> Constants:
    """Mean and standard deviation (population) per channel of uint8 images (n, c, h, w), in [0, 1] units."""
    return statistics_of(channel_counts(images))


def channel_counts(images: Tensor) -> Tensor:
    """How often each value occurs in each channel of uint8 images (n, c, h, w): int64 (c, 256); parts add up."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def statistics_of(counts: Tensor) -> Constants:
    """Mean and standard deviation (population) per channel, in [0, 1] units, of values counted (c, 256)."""
    means, deviations = [], []
    for channel in counts.tolist():
        # Python's integers make this exact
        n = sum(channel)
        first = sum(value * count for value, count in enumerate(channel))
        second = sum(value * value * count for value, count in enumerate(channel))
        means.append(first / n / 255)
        deviations.append(math.sqrt(n * second - first * first) / n / 255 or 1.0)  # a constant channel stays as it is
    return tuple(means), tuple(deviations)


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean m (D,) and covariance Σ = (X - m)ᵀ(X - m)/(n - 1) (D, D) of uint8 images, in [0, 1] units, float64."""
    rows = images.flatten(1)
    count, size = rows.shape
    products = torch.zeros(size, size, dtype=torch.float64)
    sums = torch.zeros(size, dtype=torch.float64)
    for chunk in rows.split(_FIT_ROWS):
        centred = chunk.to(torch.float32).sub_(_CENTRE)
        products += centred.T @ centred
        sums += centred.sum(0)
    covariance = (count * products - torch.outer(sums, sums)) / (count * (count - 1) * 255.0**2)
    return (sums / count + _CENTRE) / 255, covariance


def whitening(covariance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """T = U diag((λ + ε)^-½) Uᵀ and T⁻¹ = U diag((λ + ε)^½) Uᵀ of Σ = U diag(λ) Uᵀ (D, D), in its precision."""
    values, vectors = torch.linalg.eigh(covariance)
    roots = (values.clamp_min(0) + eps).sqrt()
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def _require_bytes(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"pixels are uint8, not {images.dtype}")


def _numbers(tensor: Tensor) -> list[float]:
    # the shortest decimal that gives the float32 back
    return [float(f"{value:.9g}") for value in tensor.tolist()]
