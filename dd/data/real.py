"""Real images as methods see them: three splits on the device, one value space, one fingerprint."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Protocol

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from dd.data import preprocess as pre
from dd.data._content import stratified
from dd.data.augment import parse
from dd.data.preprocess import Preprocess
from dd.data.sources import Raw, load_raw
from dd.errors import UsageError
from dd.io import digest, sha256_tensors

_TRANSFORM_ROWS = 4096  # images transformed at a time, when all are
_KEEP_BYTES = 8 << 30  # transformed images are kept up to this size, which follows from shapes alone


def _known_strategy(value: str | None) -> str | None:
    try:
        parse(value or "none")
    except UsageError as error:
        raise ValueError(str(error)) from error
    return value


@dataclass(frozen=True)
class DataSettings:
    """How real images are split and transformed.

    Attributes:
        holdout: share of every class of the training images that is set aside for probes; 0 reproduces the papers.
        holdout_seed: the only source of chance of that split.
        preprocess: "standard" (per channel) or "zca".
        zca_eps: added to the eigenvalues of the covariance; 0.1 in the published work.
        augment: DSA strategy; None takes the data set's own, "none" switches it off.
    """

    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    holdout_seed: Annotated[int, Field(ge=0)] = 0
    preprocess: Literal["standard", "zca"] = "standard"
    zca_eps: Annotated[float, Field(gt=0)] = 0.1
    augment: Annotated[str | None, AfterValidator(_known_strategy)] = None


class Split(Protocol):
    """Images and labels of one part of a data set, wherever they are kept."""

    @property
    def labels(self) -> Tensor:
        """int64 (n,), on the device."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def images(self, index: Tensor) -> Tensor:
        """float32 (k, c, h, w) in model space, on the device, for int64 positions (k,) on any device; fresh memory."""
        ...

    def raw(self, index: Tensor) -> Tensor:
        """uint8 (k, c, h, w), on the device; fresh memory."""
        ...

    def of_class(self, c: int) -> Tensor:
        """Positions of the images of class `c`: int64, ascending, on the CPU."""
        ...

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass of (images, labels); shuffled when a CPU generator is given; the last batch may be shorter."""
        ...


@dataclass(frozen=True, eq=False)
class DeviceSplit:
    """A `Split` that is one uint8 tensor on the device.

    Attributes:
        pixels: uint8 (n, c, h, w).
        labels: int64 (n,), on the same device.
        preprocess: with its tensors on the same device.
        classes: number of classes of the data set.
    """

    pixels: Tensor
    labels: Tensor
    preprocess: Preprocess
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """See `Split`."""
        if self._transformed is not None:
            return self._transformed.index_select(0, index.to(self.labels.device))
        return self.preprocess(self.raw(index))

    def raw(self, index: Tensor) -> Tensor:
        """See `Split`."""
        # twenty times as fast as `pixels[index]` on a CPU
        return self.pixels.index_select(0, index.to(self.labels.device))

    def of_class(self, c: int) -> Tensor:
        """See `Split`."""
        return self._by_class[c]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split`."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for index in order.to(self.labels.device).split(size):
            if len(index):  # an empty tensor splits into one empty part
                yield self.images(index), self.labels.index_select(0, index)

    @cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        labels = self.labels.cpu()
        counts = torch.bincount(labels, minlength=self.classes)
        return torch.argsort(labels, stable=True).split(counts.tolist())

    @cached_property
    def _transformed(self) -> Tensor | None:
        if not self.preprocess.costly or not len(self) or self.pixels.numel() * 4 > _KEEP_BYTES:
            return None
        whole = torch.empty(self.pixels.shape, dtype=torch.float32, device=self.pixels.device)
        for rows, pixels in zip(whole.split(_TRANSFORM_ROWS), self.pixels.split(_TRANSFORM_ROWS), strict=True):
            rows.copy_(self.preprocess(pixels))
        return whole


@dataclass(frozen=True, eq=False)
class RealData:
    """A data set, split and transformed, on one device.

    Attributes:
        name: what it was asked for by.
        classes: names in label order.
        channels: 1 or 3.
        size: height and width in pixels.
        train: what experts, teachers and statistics may see.
        holdout: set aside from the training images for probes; empty when `holdout` is 0.
        test: for final numbers only.
        preprocess: fitted on `train`.
        augment: the DSA strategy, resolved; "none" when it is off.
        fingerprint: hash of pixels, labels, class names, split and preprocessing.
        where: what it was read from.
        licence: "not stated" is a value.
        notes: what a user should know about it, or "".
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    train: Split
    holdout: Split
    test: Split
    preprocess: Preprocess
    augment: str
    fingerprint: str
    where: str
    licence: str
    notes: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image."""
        return self.channels, self.size, self.size


def open_data(name: str, settings: DataSettings, device: torch.device | str, *, download: bool = True) -> RealData:
    """Find, read, split and transform a data set.

    Args:
        name: see `dd.data.sources`.
        settings: how it is split and transformed.
        device: where pixels and labels go.
        download: whether it may be downloaded when it is nowhere.

    Raises:
        UsageError: it is unknown, nowhere, damaged, or of no use for classification; the line says what helps.
    """
    raw = load_raw(name, download=download)
    _require_usable(raw)
    kept, held = stratified(raw.train_labels, settings.holdout, settings.holdout_seed, "holdout")
    images, labels = raw.train_images, raw.train_labels
    if len(held):
        images, labels = images.index_select(0, kept), labels[kept]
    transform = _fitted(raw, images, settings)
    there = transform.to(device)

    def split(images: Tensor, labels: Tensor) -> DeviceSplit:
        return DeviceSplit(images.to(device), labels.to(device), there, len(raw.classes))

    strategy = raw.augment if settings.augment is None else settings.augment or "none"
    parse(strategy)
    return RealData(
        name=name,
        classes=raw.classes,
        channels=images.shape[1],
        size=images.shape[-1],
        train=split(images, labels),
        holdout=split(raw.train_images.index_select(0, held), raw.train_labels[held]),
        test=split(raw.test_images, raw.test_labels),
        preprocess=there,
        augment=strategy,
        fingerprint=_fingerprint(raw, settings, transform),
        where=raw.where,
        licence=raw.licence,
        notes=raw.notes,
    )


def _fitted(raw: Raw, images: Tensor, settings: DataSettings) -> Preprocess:
    if settings.preprocess == "zca":
        return pre.zca(images, settings.zca_eps, raw.name)
    return pre.standard(images, raw.constants)


def _fingerprint(raw: Raw, settings: DataSettings, transform: Preprocess) -> str:
    tensors = {
        "train_images": raw.train_images,
        "train_labels": raw.train_labels,
        "test_images": raw.test_images,
        "test_labels": raw.test_labels,
    }
    split = [settings.holdout, settings.holdout_seed if settings.holdout else 0]
    whole = {"content": sha256_tensors(tensors), "classes": raw.classes, "holdout": split, "space": transform.spec()}
    return digest(whole, length=64)


def _require_usable(raw: Raw) -> None:
    height, width = raw.train_images.shape[-2:]
    if height != width:
        raise UsageError(f"{raw.name} has images of {width} x {height} pixels; only square ones are supported")
    if len(raw.classes) < 2:
        raise UsageError(f"{raw.name} has a single class ({', '.join(raw.classes)}); distillation needs at least two")
    for part, labels in (("training", raw.train_labels), ("test", raw.test_labels)):
        counts = torch.bincount(labels, minlength=len(raw.classes))
        empty = [raw.classes[c] for c in torch.nonzero(counts == 0).flatten().tolist()]
        if (part == "training" and empty) or not len(labels):
            named = f" of {', '.join(empty[:5])}" if len(labels) else ""
            raise UsageError(f"{raw.name} has no {part} images{named}; `dd data check {raw.name}` counts them")
