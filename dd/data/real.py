"""Real images as methods see them: three splits in one value space on the device, with one fingerprint."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from dd.data import preprocess as pre
from dd.data import streamed
from dd.data.originals import Originals
from dd.data.positions import by_class, pass_order, stratified
from dd.data.preprocess import Preprocess
from dd.data.settings import DataSettings, Resize
from dd.data.sources.content import Arrays, EncodedSet, only_classes
from dd.data.sources.decoding import ImageReader
from dd.data.sources.locate import Located, locate_data
from dd.data.sources.pixels import Target
from dd.data.sources.raw import Facts, Raw, size_question, test_images, whole
from dd.data.split import Opened, Split, require_usable
from dd.errors import UsageError
from dd.io import digest, sha256_tensors
from dd.runs.store import NotMade, nothing_made
from dd.views.dsa import operations

_TRANSFORM_ROWS = 4096  # images transformed at a time when a whole split is transformed
_COUNT_BYTES = 16 << 20  # size of the images whose values are counted at a time
_KEEP_BYTES = 8 << 30  # keep transformed images up to this size; a constant, so that the choice depends on shapes alone


@dataclass(frozen=True, eq=False)
class DeviceSplit:
    """A `Split` held as one uint8 tensor on the device, or as some rows of a tensor shared with another split.

    Attributes:
        pixels: uint8 (m, c, h, w).
        labels: int64 (n,), on the same device.
        preprocess: with its tensors on the same device.
        classes: number of classes of the data set.
        rows: int64 (n,), on the same device: the rows of `pixels` that belong to this split; None: all, in order.
        originals: see `Split`.
    """

    pixels: Tensor
    labels: Tensor
    preprocess: Preprocess
    classes: int
    rows: Tensor | None = None
    originals: Originals | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """See `Split`."""
        if self._transformed is not None:
            return self._transformed.index_select(0, index.to(self.labels.device))
        return self.preprocess(self.raw(index))

    def raw(self, index: Tensor) -> Tensor:
        """See `Split`."""
        index = index.to(self.labels.device)
        # twenty times faster than `pixels[index]` on a CPU
        return self.pixels.index_select(0, index if self.rows is None else self.rows.index_select(0, index))

    def of_class(self, c: int) -> Tensor:
        """See `Split`."""
        return self._by_class[c]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split`."""
        order = pass_order(len(self), generator)
        for index in order.to(self.labels.device).split(size):
            if len(index):  # an empty tensor splits into one empty part
                yield self.images(index), self.labels.index_select(0, index)

    @cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        return by_class(self.labels.cpu(), self.classes)

    @cached_property
    def _transformed(self) -> Tensor | None:
        shape = (len(self), *self.pixels.shape[1:])
        if not self.preprocess.costly or not len(self) or math.prod(shape) * 4 > _KEEP_BYTES:
            return None
        whole = torch.empty(shape, dtype=torch.float32, device=self.pixels.device)
        for rows, index in zip(
            whole.split(_TRANSFORM_ROWS), torch.arange(len(self)).split(_TRANSFORM_ROWS), strict=True
        ):
            rows.copy_(self.preprocess(self.raw(index)))
        return whole


@dataclass(frozen=True, eq=False)
class RealData:
    """A data set, split and transformed, on one device or streamed to it.

    Attributes:
        name: the name that was requested.
        classes: names in label order.
        channels: 1 or 3.
        size: height and width in pixels.
        train: the images that experts, teachers and statistics may see.
        holdout: training images set aside for probes; empty if the `holdout` setting is 0.
        test: for final numbers only.
        preprocess: fitted on `train`.
        augment: the resolved DSA strategy; "none" if it is off.
        fingerprint: hash of the pixels (for streamed images: of file names, sizes and modification times), labels,
            class names, split and preprocessing.
        where: where it was read from.
        licence: may be "not stated".
        notes: what a user should know about it, or "".
        test_as: returns the test images resized in another way; None if they cannot be.
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
    test_as: Callable[[Resize], Split] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image."""
        return self.channels, self.size, self.size

    @property
    def black(self) -> tuple[float, ...] | None:
        """A black pixel in model space, per channel; None for whitened data, where it depends on the position."""
        if self.preprocess.kind != "standard":
            return None
        zeros = torch.zeros(1, self.channels, 1, 1, device=self.preprocess.device)
        return tuple(self.preprocess.encode(zeros).flatten().tolist())

    def tested(self, resize: Resize | None) -> Split:
        """The test images, resized as a protocol asks; None resizes them like all other images.

        Raises:
            UsageError: these images cannot be resized in another way.
        """
        if resize is None:
            return self.test
        if self.test_as is None:
            raise UsageError(f"the test images of {self.name} are at hand in one size only: eval.test_resize=null")
        return self.test_as(resize)


def open_data(name: str, settings: DataSettings, device: torch.device | str, *, download: bool = True) -> RealData:
    """Find, read, split and transform a data set; stream it if its pixels would not fit on the device.

    Args:
        name: see `dd.data.sources`.
        settings: how it is split, resized, stored and transformed.
        device: device of the pixels and labels.
        download: whether to download the data set if it is not found locally.

    Raises:
        UsageError: the data set is unknown, not found or damaged, or a class has no images; the message says what to
            do.
    """
    located = locate_data(name, download=download)
    if located.entry and located.entry.varied and settings.size is None:
        raise UsageError(f"the images of {name} differ in size; say what they are resized to, such as data.size=224")
    content, device = only_classes(located.read(), settings.classes), torch.device(device)
    if streamed.wanted(located, content, settings, device):
        assert isinstance(content, EncodedSet), "nothing else is wanted"
        opened, known = streamed.open_streamed(located, content, settings, device)
        classes = content.listing().classes
    else:
        try:
            known = whole(located, content, settings.size, settings.resize, settings.depth16)
            opened, classes = _on_device(known, located, content, settings, device), known.classes
        except NotMade:
            assert isinstance(content, EncodedSet), "arrays are there once they are read"
            opened, known = _undecoded(located, content, settings, device)
            classes = content.listing().classes
    strategy = known.augment if settings.augment is None else settings.augment or "none"
    operations(strategy)
    channels, size, _ = opened.shape
    return RealData(
        name=name,
        classes=classes,
        channels=channels,
        size=size,
        train=opened.train,
        holdout=opened.holdout,
        test=opened.test,
        preprocess=opened.preprocess,
        augment=strategy,
        fingerprint=_fingerprint(opened, classes, settings),
        where=located.where,
        licence=known.licence,
        notes=known.notes,
        test_as=cache(lambda resize: opened.test if resize == settings.resize else opened.test_as(resize)),
    )


def _on_device(
    raw: Raw, located: Located, content: Arrays | EncodedSet, settings: DataSettings, device: torch.device
) -> Opened:
    if settings.size is None and (asked := size_question(raw.name, raw.train_images)):
        raise UsageError(asked)
    require_usable(raw.name, raw.classes, raw.train_labels, raw.test_labels)
    kept, held = stratified(raw.train_labels, settings.holdout, settings.holdout_seed, "holdout")
    there = _fitted(raw, kept, settings).to(device)
    classes = len(raw.classes)
    pixels = raw.train_images.to(device)  # shared by training and held-out part: a second copy might not fit

    def part(rows: Tensor) -> DeviceSplit:
        labels = raw.train_labels[rows].to(device)
        some = None if len(rows) == len(pixels) else rows.to(device)
        return DeviceSplit(pixels, labels, there, classes, some)

    def test(images: Tensor) -> DeviceSplit:
        return DeviceSplit(images.to(device), test_labels.to(device), there, classes)

    # `test_as` lives long; it must not keep the training images alive
    given = content if isinstance(content, EncodedSet) else content.test_images
    channels, side, test_labels = raw.test_images.shape[1], raw.test_images.shape[-1], raw.test_labels

    def test_as(resize: Resize) -> Split:
        return test(test_images(located, given, Target(channels, side, resize, settings.depth16)))

    train = part(kept)
    if isinstance(content, EncodedSet) and settings.size is not None:
        items = content.listing().train.items.take(kept.tolist())
        reader = ImageReader(items, device, raw.name, settings.workers)
        train = replace(train, originals=Originals(reader, train.labels, there, channels, settings.depth16))
    return Opened(
        train=train,
        holdout=part(held),
        test=test(raw.test_images),
        preprocess=there,
        shape=(pixels.shape[1], pixels.shape[2], pixels.shape[3]),
        content=_content(raw),
        test_as=test_as,
    )


def _undecoded(
    located: Located, content: EncodedSet, settings: DataSettings, device: torch.device
) -> tuple[Opened, Facts]:
    """Data for a plan: labels and shapes are known, pixels are not.  Raises the same questions as a run."""
    space = "none" if settings.preprocess == "none" else "standard"
    plain = replace(settings, preprocess=space)
    with nothing_made():  # constants are fitted while decoding, so the plan does not list them separately
        opened, known = streamed.open_streamed(located, content, plain, device, exact=False)
    if settings.preprocess == "zca":
        size = math.prod(opened.shape)
        opened = replace(opened, preprocess=pre.unfitted_zca(len(opened.train), size, settings.zca_eps))
    return opened, known


def _fitted(raw: Raw, kept: Tensor, settings: DataSettings) -> Preprocess:
    """The transform; if it has to be fitted, on the training images at the positions `kept`."""
    if settings.preprocess == "none":
        return pre.unscaled(raw.train_images.shape[1])
    if settings.preprocess == "zca":
        images = raw.train_images if len(kept) == len(raw.train_images) else raw.train_images.index_select(0, kept)
        return pre.zca(images, settings.zca_eps, raw.name)
    if raw.constants:
        return pre.standard(torch.empty(0), raw.constants)
    some = kept.split(max(1, _COUNT_BYTES // raw.train_images[0].numel()))
    counts = sum(pre.channel_counts(raw.train_images.index_select(0, rows)) for rows in some)
    assert isinstance(counts, Tensor), "there is at least one image"
    return pre.standard(torch.empty(0), pre.statistics_of(counts))


def _content(raw: Raw) -> str:
    tensors = {
        "train_images": raw.train_images,
        "train_labels": raw.train_labels,
        "test_images": raw.test_images,
        "test_labels": raw.test_labels,
    }
    return sha256_tensors(tensors)


def _fingerprint(opened: Opened, classes: tuple[str, ...], settings: DataSettings) -> str:
    split = [settings.holdout, settings.holdout_seed if settings.holdout else 0]
    whole = {"content": opened.content, "classes": classes, "holdout": split, "space": opened.preprocess.spec()}
    return digest(whole, length=64)
