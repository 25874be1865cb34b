"""Streaming of real images that do not fit on the device: threads decode them for every use, ahead of time.

The generator alone decides which images a batch holds, and the file alone decides an image's pixels.  So nothing
depends on the number of threads, and results equal those with the same images held on the device.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from dd.data import preprocess as pre
from dd.data.originals import Originals
from dd.data.positions import by_class, pass_order, stratified
from dd.data.preprocess import Preprocess
from dd.data.settings import DataSettings
from dd.data.sources.content import Arrays, EncodedSet, EncodedSplit, Items
from dd.data.sources.decoding import Decoding, ImageReader, ahead, headers
from dd.data.sources.jpeg import RESIZED
from dd.data.sources.locate import Located
from dd.data.sources.pixels import Header, Target, pixels_of
from dd.data.sources.raw import Facts, facts_of
from dd.data.sources.survey import Survey, choose_target, jpegs, require_clear, survey
from dd.data.split import Opened, require_usable
from dd.errors import UsageError
from dd.io import Json, digest
from dd.rng import generator
from dd.runs.allocator import keep_large_buffers
from dd.runs.cost import total_memory
from dd.runs.store import NotMade, Store

DEVICE_SHARE = 0.25  # of the device's memory that decoded pixels may take
FIT_IMAGES = 10_000  # at most this many images are sampled for constants and sizes
_PROBED = 64  # images sampled to estimate whether all of them fit
_AT_ONCE = 256  # images decoded at a time when constants are fitted


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """A `Split` that decodes images on request; only the labels are in memory.

    Attributes:
        items: the encoded images.
        labels: int64 (n,), on the device.
        preprocess: with its tensors on the same device.
        classes: number of classes of the data set.
        target: channels and size of the decoded images.
        name: of the data set, for messages.
        workers: number of threads; None: one per core, at most 16.
        sized: whether images are resized, so that the files may hold more than the images show.
    """

    items: Items
    labels: Tensor
    preprocess: Preprocess
    classes: int
    target: Target
    name: str
    workers: int | None = None
    sized: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def originals(self) -> Originals | None:
        """See `Split`."""
        if not self.sized:
            return None
        return Originals(self._reader, self.labels, self.preprocess, self.target.channels, self.target.depth16)

    def images(self, index: Tensor) -> Tensor:
        """See `Split`."""
        return self.preprocess(self.raw(index))

    def raw(self, index: Tensor) -> Tensor:
        """See `Split`.

        Raises:
            UsageError: images are broken; the message names them.
        """
        return self._decoding(index.cpu()).pixels()

    def of_class(self, c: int) -> Tensor:
        """See `Split`."""
        return self._by_class[c]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split`; the next batches are decoded in the background.  Raises as `raw` does."""
        if self.labels.device.type == "cpu":
            keep_large_buffers()  # else every batch is paged in anew: a quarter of the time at 224 pixels
        order = pass_order(len(self), generator)
        # on a CPU the threads also transform, because they keep every core busy and the caller's thread would wait
        here = self.preprocess if self.labels.device.type == "cpu" else None
        begins = (partial(self._decoding, index, here) for index in (order.split(size) if len(order) else ()))
        for batch in ahead(begins, size, self.workers):
            labels = self.labels.index_select(0, batch.index.to(self.labels.device, non_blocking=True))
            yield batch.pixels() if here else self.preprocess(batch.pixels()), labels

    def _decoding(self, index: Tensor, transform: Preprocess | None = None) -> Decoding:
        target = self.target
        shape = (target.channels, target.side, target.side)
        return Decoding(self._reader, index, shape, lambda _, item: pixels_of(item, target), transform)

    @property
    def _reader(self) -> ImageReader:
        return ImageReader(self.items, self.labels.device, self.name, self.workers)

    @cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        return by_class(self.labels.cpu(), self.classes)


def wanted(located: Located, content: Arrays | EncodedSet, settings: DataSettings, device: torch.device) -> bool:
    """Whether to stream a data set: as the settings say, or if its pixels would take too much device memory.

    Raises:
        UsageError: streaming is requested for data that are not encoded image files.
    """
    if not isinstance(content, EncodedSet):
        if settings.stream is True:
            raise UsageError(
                f"data.stream=true: {located.name} comes as arrays, which are small, and not as files of images; "
                "leave data.stream=auto"
            )
        return False
    if settings.stream != "auto":
        return settings.stream
    listing = content.listing()
    target = _known(located, settings)
    if target is None and (known := _probed(listing.train)):
        target = choose_target(known, located.channels, settings.size, settings.resize, settings.depth16)
    if target is None:
        return False  # no image is readable; decoding reports it
    pixels = (len(listing.train) + len(listing.test)) * target.channels * target.side**2
    return pixels > DEVICE_SHARE * total_memory(device)


def open_streamed(
    located: Located, content: EncodedSet, settings: DataSettings, device: torch.device, *, exact: bool = True
) -> tuple[Opened, Facts]:
    """Split and transform a data set without decoding it, and collect what is known about it.

    If no constants are published, they are fitted on a sample of at most 10,000 training images, decoded once.  Smaller
    data sets use all images, so their constants equal those of the same data held on the device.

    Args:
        located: where it was found.
        content: what was read there.
        settings: how it is split, resized and transformed.
        device: device of the pixels.
        exact: whether any difference in size raises a question; see `dd.data.sources.survey.questions`.

    Raises:
        UsageError: ZCA is requested; images differ in size and `data.size` is not given; images are broken.
    """
    if settings.preprocess == "zca":
        raise UsageError(
            f"data.preprocess=zca needs all images at once, and those of {located.name} are streamed; "
            "use data.preprocess=standard, or data.stream=false with a data.size at which they fit"
        )
    listing = content.listing()
    require_usable(located.name, listing.classes, listing.train.labels, listing.test.labels)
    target, found = _settled(located, content, settings, exact)
    kept, held = stratified(listing.train.labels, settings.holdout, settings.holdout_seed, "holdout")
    train = listing.train.take(kept) if len(held) else listing.train
    key: dict[str, Json] = {"files": content.key, **target.key()}
    if found and found.turned:
        key["upright"] = True  # older versions did not apply EXIF rotation and gave other pixels for the same files
    if _scales_jpegs(located, listing.train, target, found):
        key["jpeg"] = RESIZED  # older versions resized them with Pillow
    there = _constants(located, train, target, settings, key).to(device)

    def split(part: EncodedSplit) -> StreamedSplit:
        labels, sized = part.labels.to(device), settings.size is not None
        known = (len(listing.classes), target, located.name, settings.workers, sized)
        return StreamedSplit(part.items, labels, there, *known)

    opened = Opened(
        train=split(train),
        holdout=split(listing.train.take(held)),
        test=split(listing.test),
        preprocess=there,
        shape=(target.channels, target.side, target.side),
        content=digest(key, length=64),
        test_as=lambda resize: replace(split(listing.test), target=replace(target, resize=resize)),
    )
    notes = [*listing.notes, f"decoded to {target.side} x {target.side} pixels whenever they are used"]
    if found and found.turned:
        notes.append("images are turned upright, as their EXIF says")
    lossless = located.entry is not None and located.entry.lossless
    jpeg = jpegs(_probed(listing.train)) if lossless else 0
    return opened, facts_of(located, listing.classes, notes, jpeg, listing.test.labels)


def sample(count: int, limit: int, run: int, rng: torch.Generator) -> Tensor:
    """At most `limit` of `count` positions, ascending, drawn without replacement in runs of `run` neighbours."""
    if count <= limit:
        return torch.arange(count)
    starts = torch.randperm(-(-count // run), generator=rng)[: limit // run] * run
    chosen = (starts[:, None] + torch.arange(run)).flatten()
    return chosen[chosen < count].sort().values


def _settled(
    located: Located, content: EncodedSet, settings: DataSettings, exact: bool
) -> tuple[Target, Survey | None]:
    """The target of the images and, unless it is known in advance, a survey of at most 10,000 headers per part."""
    if known := _known(located, settings):
        return known, None

    def look() -> dict[str, Json]:
        good: list[Header] = []
        for part in (content.listing().train, content.listing().test):
            index = sample(len(part), FIT_IMAGES, part.items.run, generator(0, "survey"))
            good += [h for h in headers(part.items, index.tolist()) if isinstance(h, Header)]
        if not good:
            raise UsageError(f"none of the images of {located.name} that were tried can be decoded")
        return asdict(survey(good))

    spec = {"format": 3, "name": located.name, "files": content.key}
    kept = Store().value("surveys", spec, look, what=f"the sizes of {located.name}").value
    found = Survey(**kept)
    require_clear(found, located.name, settings.size, settings.depth16, exact=exact)
    channels = located.channels or (1 if found.grey else 3)
    return Target(channels, settings.size or found.side, settings.resize, settings.depth16), found


def _scales_jpegs(located: Located, part: EncodedSplit, target: Target, found: Survey | None) -> bool:
    """Whether JPEG files are scaled, so that their pixels depend on what scales them."""
    if found:
        return bool(found.jpeg) and not (found.one and found.side == target.scaled_to)
    entry = located.entry
    assert entry is not None, "the target is known without it"
    # the images of an entry without a side differ in size
    return entry.side != target.scaled_to and (not entry.lossless or jpegs(_probed(part)) > 0)


def _constants(
    located: Located, part: EncodedSplit, target: Target, settings: DataSettings, key: dict[str, Json]
) -> Preprocess:
    """The normalisation: none, with published constants, or with fitted ones, which are cached."""
    if settings.preprocess == "none":
        return pre.unscaled(target.channels)
    if located.entry:
        return pre.standard(torch.empty(0), located.entry.constants)

    def fit() -> dict[str, Json]:
        index = sample(len(part), FIT_IMAGES, part.items.run, generator(0, "constants"))
        split = StreamedSplit(part.items, part.labels, _UNSCALED, 0, target, located.name, settings.workers)
        counts = sum(pre.channel_counts(split.raw(some)) for some in index.split(_AT_ONCE))
        assert isinstance(counts, Tensor), "there is at least one image"
        mean, std = pre.statistics_of(counts)
        return {"mean": mean, "std": std}

    spec = {"format": 1, **key, "holdout": [settings.holdout, settings.holdout_seed]}
    try:
        found = Store().value("constants", spec, fit, what=f"mean and deviation of {located.name}").value
    except NotMade:
        return _UNSCALED  # a plan needs no pixels
    return pre.standard(torch.empty(0), (tuple(found["mean"]), tuple(found["std"])))


def _probed(part: EncodedSplit) -> list[Header]:
    runs = torch.linspace(0, max(len(part) - 1, 0), 8).long()  # neighbours share a parquet row group
    index = (runs[:, None] + torch.arange(_PROBED // 8)).flatten().unique()
    found = headers(part.items, [i for i in index.tolist() if i < len(part)])
    return [header for header in found if isinstance(header, Header)]


def _known(located: Located, settings: DataSettings) -> Target | None:
    if not (located.channels and settings.size):
        return None
    return Target(located.channels, settings.size, settings.resize, settings.depth16)


_UNSCALED = pre.standard(torch.empty(0), ((0.5,), (0.5,)))
