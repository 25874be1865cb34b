"""Real images that do not fit on the device: decoded by threads each time they are used, ahead of their use.

Which images a batch holds follows from the generator alone, and an image's pixels from its file alone, so nothing
depends on the number of threads, and results equal those of the same images kept on the device.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd.data import _images
from dd.data import preprocess as pre
from dd.data._content import Arrays, Encoded, Items, Part, by_class, stratified
from dd.data._images import CHUNK, Broken, Header, Survey, Target
from dd.data.preprocess import Preprocess
from dd.data.settings import DataSettings
from dd.data.sources import About, Located, about
from dd.data.split import Opened, require_usable
from dd.errors import UsageError
from dd.io import digest
from dd.rng import generator
from dd.runs.cost import total_memory
from dd.runs.store import NotMade, Store

DEVICE_SHARE = 0.25  # of the device's memory that decoded pixels may take
FIT_IMAGES = 10_000  # what constants and sizes are taken from, at most
_PROBED = 64  # images whose size stands for all when it is asked whether they fit
_AT_ONCE = 256  # images decoded at a time where constants are fitted


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """A `Split` whose images are decoded when they are asked for; labels alone are in memory.

    Attributes:
        items: where the encoded images are.
        labels: int64 (n,), on the device.
        preprocess: with its tensors on the same device.
        classes: number of classes of the data set.
        target: what images are brought to.
        name: of the data set, for messages.
        workers: threads; None: one per core, at most 16.
    """

    items: Items
    labels: Tensor
    preprocess: Preprocess
    classes: int
    target: Target
    name: str
    workers: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """See `Split`."""
        return self.preprocess(self.raw(index))

    def raw(self, index: Tensor) -> Tensor:
        """See `Split`.

        Raises:
            UsageError: images are broken; names them.
        """
        return _Decoding(self, index.cpu()).pixels()

    def of_class(self, c: int) -> Tensor:
        """See `Split`."""
        return self._by_class[c]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split`; the next batches are decoded meanwhile.  Errors as for `raw`."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        # on a CPU the threads also transform: the caller's thread would have to wait for a core they are busy on
        here = self.preprocess if self.labels.device.type == "cpu" else None
        waiting = iter(order.split(size) if len(order) else ())
        ahead: deque[_Decoding] = deque()
        try:
            while True:
                for index in waiting:
                    ahead.append(_Decoding(self, index, here))
                    if len(ahead) > self._ahead(size):
                        break
                if not ahead:
                    return
                batch = ahead.popleft()
                labels = self.labels.index_select(0, batch.index.to(self.labels.device, non_blocking=True))
                yield batch.pixels() if here else self.preprocess(batch.pixels()), labels
        finally:
            for batch in ahead:
                batch.cancel()

    def _ahead(self, size: int) -> int:
        """Batches to be decoded while one is used: at least one, and enough to give every thread two chunks."""
        return max(1, -(-2 * CHUNK * _images.threads(self.workers) // size))

    @cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        return by_class(self.labels.cpu(), self.classes)


class _Decoding:
    """Images on their way: threads write them into one tensor, pinned where the device is a GPU.

    Args:
        split: whose images they are.
        index: int64 (k,), which.
        preprocess: what the threads apply; None: the images stay bytes.
    """

    def __init__(self, split: StreamedSplit, index: Tensor, preprocess: Preprocess | None = None) -> None:
        self.index, self._split, self._preprocess = index, split, preprocess
        channels, side = split.target.channels, split.target.side
        self._device = split.labels.device
        shape = (len(index), channels, side, side)
        dtype = torch.float32 if preprocess else torch.uint8
        self._pixels = torch.empty(shape, dtype=dtype, pin_memory=self._device.type == "cuda")
        # in the order of storage, so that rows of one file are read together
        slots = torch.argsort(index, stable=True).tolist()
        chunks = [slots[start : start + CHUNK] for start in range(0, len(slots), CHUNK)]
        self._futures: list[Future[list[Broken]]] = [
            _images.pool(split.workers).submit(self._decode, chunk) for chunk in chunks
        ]

    def pixels(self) -> Tensor:
        """(k, c, h, w) on the device, once all are there: uint8, or float32 in the space of `preprocess`."""
        _images.refuse([broken for future in self._futures for broken in future.result()], self._split.name)
        return self._pixels.to(self._device, non_blocking=True)

    def cancel(self) -> None:
        """Nobody wants them any more."""
        for future in self._futures:
            future.cancel()

    def _decode(self, slots: list[int]) -> list[Broken]:
        items, target = self._split.items, self._split.target
        rows = np.empty((len(slots), *self._pixels.shape[1:]), dtype=np.uint8)
        broken: list[Broken] = []
        for row, place in zip(rows, self.index[slots].tolist(), strict=True):
            found = _images.attempt(items, place, lambda i: _images.fit(items.load(i), target))
            if isinstance(found, Broken):
                broken.append(found)
            else:
                row[...] = found
        pixels = torch.from_numpy(rows)
        self._pixels[slots] = pixels if self._preprocess is None else self._preprocess(pixels)
        return broken


def wanted(located: Located, content: Arrays | Encoded, settings: DataSettings, device: torch.device) -> bool:
    """Whether a data set is streamed: as its settings say, else by the size of its pixels and of the device's memory.

    Raises:
        UsageError: streaming is asked for of data that do not come as files of images.
    """
    if not isinstance(content, Encoded):
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
    if target is None and (headers := _probed(listing.train)):
        target = _images.choose(headers, located.channels, settings.size, settings.depth16)
    if target is None:
        return False  # nothing can be read, which is said where images are decoded
    pixels = (len(listing.train) + len(listing.test)) * target.channels * target.side**2
    return pixels > DEVICE_SHARE * total_memory(device)


def open_streamed(
    located: Located, content: Encoded, settings: DataSettings, device: torch.device, *, exact: bool = True
) -> tuple[Opened, About]:
    """Split and transform a data set without decoding it, and say what is known of it.

    Where there are no published constants, they are fitted on the training images, of which a sample of at most 10,000
    is decoded once (all of fewer, so that small data have the constants they have on the device).

    Args:
        located: where it was found.
        content: what was read there.
        settings: how it is split, sized and transformed.
        device: where pixels go.
        exact: whether any difference in size has to be settled, see `questions` of `dd.data._images`.

    Raises:
        UsageError: ZCA is asked for; images differ in size and `data.size` is not given; images are broken.
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
    key = {"files": content.key, "channels": target.channels, "side": target.side}
    if target.depth16 is not None:
        key["depth16"] = target.depth16
    if found and found.turned:
        key["upright"] = True  # the same files gave other pixels before images were turned
    there = _constants(located, train, target, settings, key).to(device)

    def split(part: Part) -> StreamedSplit:
        labels = part.labels.to(device)
        return StreamedSplit(part.items, labels, there, len(listing.classes), target, located.name, settings.workers)

    opened = Opened(
        train=split(train),
        holdout=split(listing.train.take(held)),
        test=split(listing.test),
        preprocess=there,
        shape=(target.channels, target.side, target.side),
        content=digest(key, length=64),
    )
    notes = [*listing.notes, f"decoded to {target.side} x {target.side} pixels whenever they are used"]
    if found and found.turned:
        notes.append("images are turned upright, as their EXIF says")
    lossless = located.entry is not None and located.entry.lossless
    jpeg = _images.jpegs(_probed(listing.train)) if lossless else 0
    return opened, about(located, listing.classes, notes, jpeg)


def sample(count: int, limit: int, run: int, rng: torch.Generator) -> Tensor:
    """At most `limit` of `count` positions, ascending: runs of `run` neighbours, drawn without replacement."""
    if count <= limit:
        return torch.arange(count)
    starts = torch.randperm(-(-count // run), generator=rng)[: limit // run] * run
    chosen = (starts[:, None] + torch.arange(run)).flatten()
    return chosen[chosen < count].sort().values


def _settled(located: Located, content: Encoded, settings: DataSettings, exact: bool) -> tuple[Target, Survey | None]:
    """What images are brought to, and what the headers of at most 10,000 of each part say where it is not known."""
    if known := _known(located, settings):
        return known, None

    def look() -> dict[str, Any]:
        good: list[Header] = []
        for part in (content.listing().train, content.listing().test):
            index = sample(len(part), FIT_IMAGES, part.items.run, generator(0, "survey"))
            good += [h for h in _images.headers(part.items, index.tolist()) if isinstance(h, Header)]
        if not good:
            raise UsageError(f"none of the images of {located.name} that were tried can be decoded")
        return asdict(_images.survey(good))

    spec = {"format": 2, "name": located.name, "files": content.key}
    kept = Store().value("surveys", spec, look, what=f"the sizes of {located.name}").value
    found = Survey(**kept)
    _images.require_clear(found, located.name, settings.size, settings.depth16, exact=exact)
    channels = located.channels or (1 if found.grey else 3)
    return Target(channels, settings.size or found.side, settings.depth16), found


def _constants(located: Located, part: Part, target: Target, settings: DataSettings, key: dict[str, Any]) -> Preprocess:
    """Published constants, or fitted ones, which are kept."""
    if located.entry:
        return pre.standard(torch.empty(0), located.entry.constants)

    def fit() -> dict[str, Any]:
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
        return _UNSCALED  # in a plan, which asks for no pixels
    return pre.standard(torch.empty(0), (tuple(found["mean"]), tuple(found["std"])))


def _probed(part: Part) -> list[Header]:
    runs = torch.linspace(0, max(len(part) - 1, 0), 8).long()  # neighbours share a row group
    index = (runs[:, None] + torch.arange(_PROBED // 8)).flatten().unique()
    found = _images.headers(part.items, [i for i in index.tolist() if i < len(part)])
    return [header for header in found if isinstance(header, Header)]


def _known(located: Located, settings: DataSettings) -> Target | None:
    if not (located.channels and settings.size):
        return None
    return Target(located.channels, settings.size, settings.depth16)


_UNSCALED = pre.standard(torch.empty(0), ((0.5,), (0.5,)))
