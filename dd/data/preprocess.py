"""Transforms between uint8 pixels and the space that networks see: per-channel normalisation, or ZCA whitening.

Everything is fitted on the training part only.  Sums over uint8 pixels are exact, so means and covariances are
bit-identical on every machine, whatever the order of summation or the number of threads.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dd.data.sources.entry import Constants
from dd.errors import UsageError
from dd.io import Json, sha256_tensors
from dd.runs.store import NotMade, Store, Wanted
from dd.sizes import readable_size, readable_time

log = logging.getLogger(__name__)

_FIT_ROWS = 1024  # (2^7)^2 * 1024 = 2^24: sums of that many products of centred bytes are exact in float32
_CENTRE = 128
_ZERO = 1e-12  # relative to the largest eigenvalue; anything below is rounding error
# seconds per least³ and per product of pixels on one core; peak memory in float64 least², of `_dense` and `factored`
_CUBED, _PAIRS, _SQUARES = 2.2e-10, 5e-11, (6, 4.5)


class Preprocess(ABC):
    """A transform between uint8 pixels and float32 model space.

    Attributes:
        kind: "standard" or "zca".
        costly: whether it is so slow that transformed images should be kept rather than recomputed.
    """

    kind: ClassVar[str]
    costly: ClassVar[bool]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of its tensors, and of the images it takes."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (n, c, h, w) -> float32 (n, c, h, w) in model space, on the same device; never clamped."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Pixels (n, c, h, w), 0 black and 1 white -> model space; differentiable; the inverse of `invert`."""

    @abstractmethod
    def invert(self, images: Tensor) -> Tensor:
        """Model space (n, c, h, w) -> pixels, 0 black and 1 white, not clamped; differentiable."""

    @abstractmethod
    def spec(self) -> dict[str, Json]:
        """JSON-serialisable identity: equal specs mean equal transforms, on any machine."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All its tensors, by name; `from_state` restores them."""

    def needs(self) -> tuple[Wanted, ...]:
        """The artefacts that its tensors come from; their descriptions state what they cost to make."""
        return ()

    @abstractmethod
    def to(self, device: torch.device | str) -> "Preprocess":
        """The same transform with its tensors on `device`."""


@dataclass(frozen=True, eq=False)
class Standard(Preprocess):
    """Per-channel normalisation, (x - mean) / std with x in [0, 1]; `mean` and `std` are float32 (c,)."""

    kind: ClassVar[str] = "standard"
    costly: ClassVar[bool] = False
    mean: Tensor
    std: Tensor

    @property
    def device(self) -> torch.device:
        """See `Preprocess`."""
        return self.mean.device

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

    def spec(self) -> dict[str, Json]:
        """See `Preprocess`."""
        return {"kind": self.kind, "mean": _numbers(self.mean), "std": _numbers(self.std)}

    def state(self) -> dict[str, Tensor]:
        """See `Preprocess`."""
        return {"mean": self.mean, "std": self.std}

    def to(self, device: torch.device | str) -> "Standard":
        """See `Preprocess`."""
        return Standard(self.mean.to(device), self.std.to(device))


@dataclass(frozen=True, eq=False)
class Zca(Preprocess):
    """ZCA whitening, z = (x - m) T with x in [0, 1], flattened to D = c·h·w.

    Fitting is lazy: it runs when a tensor is first used.  The identity and the cost of fitting are known without it.

    Attributes:
        eps: ε, added to the eigenvalues of the covariance.
        fitted_on: hash of the images it is fitted on.
        fit: returns its tensors, on the CPU: `mean` m (D,), and either the symmetric `matrix` T and `inverse` T⁻¹,
            both float32 (D, D), or the eigenvectors with non-zero eigenvalues; see `factored`.
        at: device of the tensors.
        making: its artefact, as `needs` returns it.
    """

    kind: ClassVar[str] = "zca"
    costly: ClassVar[bool] = True
    eps: float
    fitted_on: str
    fit: Callable[[], Mapping[str, Tensor]]
    at: torch.device | str = "cpu"
    making: tuple[Wanted, ...] = ()

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.to(self.at) for name, tensor in self.fit().items()}

    @property
    def device(self) -> torch.device:
        """See `Preprocess`."""
        return torch.device(self.at)

    @property
    def mean(self) -> Tensor:
        """The mean m (D,), in [0, 1] units."""
        return self._tensors["mean"]

    @property
    def matrix(self) -> Tensor:
        """T (D, D), computed from the factors if that is how it is stored."""
        return self._times(torch.eye(len(self.mean), device=self.at), "matrix")

    def _times(self, rows: Tensor, which: Literal["matrix", "inverse"]) -> Tensor:
        """(n, D) rows times T or its inverse."""
        tensors = self._tensors
        if which in tensors:
            return rows @ tensors[which]
        vectors, scale = tensors["vectors"], self.eps ** (-0.5 if which == "matrix" else 0.5)
        return (rows @ vectors * tensors[f"{which}.values"]) @ vectors.T + scale * rows

    def __call__(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        _require_bytes(images)
        rows = images.flatten(1).to(torch.float32).mul_(1 / 255).sub_(self.mean)
        return self._times(rows, "matrix").view(images.shape)

    def encode(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        return self._times(images.flatten(1) - self.mean, "matrix").view(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        """See `Preprocess`."""
        return (self._times(images.flatten(1), "inverse") + self.mean).view(images.shape)

    def spec(self) -> dict[str, Json]:
        """See `Preprocess`.  It names the data, not the matrix, whose last bits differ between machines."""
        return {"kind": self.kind, "eps": self.eps, "fitted_on": self.fitted_on}

    def state(self) -> dict[str, Tensor]:
        """See `Preprocess`."""
        return dict(self._tensors)

    def needs(self) -> tuple[Wanted, ...]:
        """See `Preprocess`."""
        return self.making

    def to(self, device: torch.device | str) -> "Zca":
        """See `Preprocess`."""
        return replace(self, at=device)


def standard(images: Tensor, constants: Constants | None = None) -> Standard:
    """Normalisation with published constants, or with the mean and std of uint8 images (n, c, h, w)."""
    mean, std = constants or pixel_statistics(images)
    return Standard(torch.tensor(mean), torch.tensor(std))


def unscaled(channels: int) -> Standard:
    """The transform that leaves pixels in [0, 1]: mean 0, std 1."""
    return Standard(torch.zeros(channels), torch.ones(channels))


def zca(images: Tensor, eps: float, what: str = "") -> Zca:
    """ZCA whitening, fitted on uint8 images (n, c, h, w) at its first use and cached.

    Fitting solves an eigenproblem of size min(n, D): see `whitening` and `factored`, and `zca_price` for the cost.

    Args:
        images: the training part.
        eps: ε, added to the eigenvalues; 0.1 in the published work.
        what: name of the data, for the log.

    Raises:
        UsageError: fewer than two images.
    """
    if len(images) < 2:
        raise UsageError(f"ZCA needs at least 2 training images, not {len(images)}; use data.preprocess=standard")
    fitted_on = sha256_tensors({"images": images})[:16]
    need = _zca_need(len(images), images[0].numel(), eps, fitted_on)
    _, spec, words = need

    def make() -> tuple[Mapping[str, Tensor], dict[str, Json]]:
        log.info("making the %s", words)
        return fit_zca(images, eps), {}

    @cache
    def fit() -> Mapping[str, Tensor]:
        name = f"the ZCA of {what}" if what else "a ZCA"
        return Store().tensors("zca", spec, make, what=name).tensors or {}

    return Zca(eps, fitted_on, fit, making=(need,))


def fit_zca(images: Tensor, eps: float) -> dict[str, Tensor]:
    """Fit the tensors of a `Zca` on uint8 images (n, c, h, w), in the smaller of the two dimensions n and D."""
    return (factored if len(images) < images[0].numel() else _dense)(images, eps)


def unfitted_zca(count: int, size: int, eps: float) -> Zca:
    """A ZCA without tensors, for plans: `count` images of `size` values that are not decoded yet."""

    def fit() -> Mapping[str, Tensor]:
        raise NotMade("the decoded images")

    return Zca(eps, "", fit, making=(_zca_need(count, size, eps, ""),))


def _zca_need(count: int, size: int, eps: float, fitted_on: str) -> Wanted:
    spec: dict[str, Json] = {"format": 2 if count < size else 1, "eps": eps, "fitted_on": fitted_on}
    seconds, memory = zca_price(count, size)
    words = f"ZCA of {size:,} dimensions (about {readable_time(seconds)}, {readable_size(memory)})"
    return Wanted("zca", spec, words)


def zca_price(count: int, size: int) -> tuple[float, int]:
    """Estimate the seconds (with PyTorch's threads) and peak bytes of fitting on `count` images of `size` values.

    The rates were measured on one core with torch 2.14, on 1,500 to 9,000 images of 768 to 6,144 values (2,500 of 3,072
    in 4.2 s, 4,000 of 2,500 in 5.0 s).  The estimate scales with the operation count and assumes perfect speed-up with
    threads.
    """
    least, few = min(count, size), count < size
    seconds = _CUBED * least**3 + _PAIRS * count * size * least
    held = _SQUARES[few] * 8 * least**2 + (4 * count * size if few else 0)
    return seconds / torch.get_num_threads(), round(held)


def from_state(spec: Mapping[str, Json], tensors: Mapping[str, Tensor] | None = None) -> Preprocess:
    """Rebuild the transform that `spec()` and `state()` describe.

    For "standard" the spec alone is enough.  For "zca" it is not: a distilled set keeps only the spec, which names the
    data, and the matrix (38 MB for CIFAR) is refitted or read from the cache when the data are opened.

    Raises:
        UsageError: the spec is of an unknown kind, lacks a number, or needs tensors that are not given.
    """
    kind = spec.get("kind")
    if kind == Standard.kind:
        mean, std = (torch.tensor(_floats(spec, key), dtype=torch.float32) for key in ("mean", "std"))
        return Standard(mean, std)
    if kind != Zca.kind:
        raise UsageError(f"unknown kind of preprocessing {kind!r}; known: standard, zca")
    if not tensors:
        raise UsageError("ZCA cannot be inverted without the data it was fitted on; open them first")
    there = dict(tensors)
    (eps,) = _floats({"eps": [spec.get("eps")]}, "eps")
    return Zca(eps, str(spec.get("fitted_on")), lambda: there)


def _floats(spec: Mapping[str, Json], key: str) -> list[float]:
    found = spec.get(key)
    values = found if isinstance(found, list | tuple) else [None]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        raise UsageError(f"the preprocessing of {spec.get('kind')!r} has {key}={found!r}; it must be numbers")
    return numbers


def pixel_statistics(images: Tensor) -> Constants:
    """Per-channel mean and population standard deviation of uint8 images (n, c, h, w), in [0, 1] units."""
    return statistics_of(channel_counts(images))


def channel_counts(images: Tensor) -> Tensor:
    """Histogram of the values per channel of uint8 images (n, c, h, w): int64 (c, 256); histograms of parts add up."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def statistics_of(counts: Tensor) -> Constants:
    """Per-channel mean and population standard deviation, in [0, 1] units, from a histogram (c, 256)."""
    means, deviations = [], []
    for channel in counts.tolist():
        # Python's integers make this exact
        n = sum(channel)
        first = sum(value * count for value, count in enumerate(channel))
        second = sum(value * value * count for value, count in enumerate(channel))
        means.append(first / n / 255)
        deviations.append(math.sqrt(n * second - first * first) / n / 255 or 1.0)  # a constant channel is not scaled
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
    products.mul_(count)
    for some, own in zip(products.split(_FIT_ROWS), sums.split(_FIT_ROWS), strict=True):  # in place: D² may be large
        some.sub_(torch.outer(own, sums))
    return (sums / count + _CENTRE) / 255, products.div_(count * (count - 1) * 255.0**2)


def factored(images: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """ZCA of fewer images than dimensions, from the eigenvectors of the Gram matrix: O(n³) time, not O(D³).

    Σ = U diag(λ) Uᵀ has at most n - 1 non-zero eigenvalues, those of G = (X - m)(X - m)ᵀ/(n - 1) = V diag(λ) Vᵀ, with
    U = (X - m)ᵀ V diag((n - 1) λ)^-½.  On the orthogonal complement of U, T is ε^-½ I:

        T = ε^-½ I + U diag((λ + ε)^-½ - ε^-½) Uᵀ,  T⁻¹ = ε^½ I + U diag((λ + ε)^½ - ε^½) Uᵀ.

    Args:
        images: uint8 (n, c, h, w).
        eps: ε.
        dtype: of the result; the computation is in float64.

    Returns:
        `mean` (D,), `vectors` U (D, r), and the two diagonals `matrix.values` and `inverse.values`, each (r,).
    """
    rows = images.flatten(1)
    count, size = rows.shape
    gram, mean = torch.zeros(count, count, dtype=torch.float64), torch.empty(size, dtype=torch.float64)
    for start in range(0, size, _FIT_ROWS):
        part = rows[:, start : start + _FIT_ROWS].to(torch.float32).sub_(_CENTRE)
        gram += part @ part.T
        mean[start : start + _FIT_ROWS] = part.sum(0, dtype=torch.float64) / count
    gram -= gram.mean(0)
    gram -= gram.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(gram.div_((count - 1) * 255.0**2))
    del gram
    kept = values > _ZERO * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    vectors /= ((count - 1) * values).sqrt() * 255
    found = torch.empty(size, len(values), dtype=dtype)
    for start in range(0, size, _FIT_ROWS):
        here = slice(start, start + _FIT_ROWS)
        found[here] = (rows[:, here].to(torch.float64).sub_(_CENTRE) - mean[here]).T @ vectors
    roots = (values + eps).sqrt()
    tensors = {"mean": (mean + _CENTRE) / 255, "vectors": found, "matrix.values": 1 / roots - eps**-0.5}
    return {name: tensor.to(dtype) for name, tensor in (tensors | {"inverse.values": roots - eps**0.5}).items()}


def _dense(images: Tensor, eps: float) -> dict[str, Tensor]:
    mean, covariance = moments(images)
    matrix, inverse = whitening(covariance, eps)
    return {"mean": mean.float(), "matrix": matrix.float(), "inverse": inverse.float()}


def whitening(covariance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """T = U diag((λ + ε)^-½) Uᵀ and T⁻¹ = U diag((λ + ε)^½) Uᵀ of Σ = U diag(λ) Uᵀ (D, D), in the dtype of Σ."""
    values, vectors = torch.linalg.eigh(covariance)
    roots = (values.clamp_min(0) + eps).sqrt()
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def _require_bytes(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"pixels are uint8, not {images.dtype}")


def _numbers(tensor: Tensor) -> list[float]:
    # nine digits round-trip a float32
    return [float(f"{value:.9g}") for value in tensor.tolist()]
