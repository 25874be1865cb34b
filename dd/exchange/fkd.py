"""Label files of the FKD family (SRe2L, CDA, CV-DD, EDC), converted to a store of labels of views.

`epoch_0/batch_0.tar` is not a tar file, but a list saved by torch: crops as fractions of an image's height and width
(top, left, height, width), flips, the partner with which each image is mixed, the mixing weight, CutMix's box (top,
left, bottom, right), and the teacher's logits for the batch. EDC adds the position of each image, and an order of tiles
that its code never applies: it joins them in the original order.

The other files do not record the images of a batch. These follow from torch's sampler with seed 42, whose draws have
changed: an epoch draws two permutations in current versions, and one in older versions. Both are tried, and the labels
decide: they name the classes of the right images only.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from dd.errors import UsageError
from dd.evaluation.protocols import PROTOCOLS, Protocol
from dd.exchange import pickles
from dd.exchange.tree import Tree
from dd.io import digest, sha256_file
from dd.labels import LabelSettings, LabelStore
from dd.labels.spec import LabelSpec
from dd.rng import generator
from dd.runs import bar
from dd.sets import DistilledSet
from dd.sizes import readable_size
from dd.views import View, ViewPolicy
from dd.views.view import Mix

_SEED = 42  # of the sampler, in all published code
_DRAWS = {2: "two permutations an epoch, as torch draws today", 1: "one permutation an epoch, as older torch drew"}
_TRIED = 4  # epochs from which the order is chosen
_SHUFFLES = 8  # from which the chance level is estimated
_CLEAR = 5  # deviations above chance
_WHOLE = 0.02  # pixels: tolerance for crops at whole pixels
_EPOCHS = 100_000


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """One file: boxes (b, 4) in fractions of the image, flips (b,), partner (b,) or None, weight, patch, logits (b, k).

    `index` (b,) holds the positions of the images, if the file has them.
    """

    boxes: Tensor
    flips: Tensor
    partner: Tensor | None
    weight: float
    patch: tuple[int, int, int, int] | None
    logits: Tensor
    index: Tensor | None

    @cached_property
    def named(self) -> Tensor:
        """The most probable class of each label, (b,)."""
        return self.logits.argmax(1)


@dataclass(frozen=True, eq=False)
class ViewFiles:
    """A folder of label files.

    Attributes:
        path: the folder.
        epochs: number of epochs.
        batches: number of files per epoch.
    """

    path: Path
    epochs: int
    batches: int

    def __repr__(self) -> str:
        return f"<ViewFiles {self.path}: {self.epochs} epochs of {self.batches} batches>"

    @cached_property
    def first(self) -> LabelledBatch:
        """The first batch of the first epoch."""
        return self.read(0, 0)

    @cached_property
    def n(self) -> int:
        """Number of labelled images."""
        rest = 0 if self.batches == 1 else len(self.read(0, self.batches - 1).flips)
        return len(self.first.flips) * max(1, self.batches - 1) + rest

    @property
    def mix(self) -> Mix:
        """The mixing of batches."""
        if self.first.partner is None:
            return "none"
        return "mixup" if self.first.patch is None else "cutmix"

    def read(self, epoch: int, number: int) -> LabelledBatch:
        """Read one batch.

        Raises:
            UsageError: the file is missing, damaged, of another kind, or would run code; the message names it.
        """
        path = self.path / f"epoch_{epoch}" / f"batch_{number}.tar"
        if not path.is_file():
            raise UsageError(f"{path}: no such file, and epoch 0 has {self.batches:,} of them")
        return _batch(pickles.read(path), path)

    def identity(self) -> str:
        """Hash the names and sizes of all files, and the contents of the first and the last."""
        names = [f"epoch_{e}/batch_{b}.tar" for e in range(self.epochs) for b in range(self.batches)]
        sizes = [os.stat(self.path / name).st_size if (self.path / name).is_file() else -1 for name in names]
        ends = [sha256_file(self.path / name) for name in (names[0], names[-1]) if (self.path / name).is_file()]
        return digest([sizes, ends], length=64)


@dataclass(frozen=True, eq=False)
class ImageOrder:
    """The order of the images in the label files.

    Attributes:
        files: the label files.
        labels: int64 (n,), the class of every image by its column of the logits, in the order of `ImageFolder`.
        draws: permutations per epoch; 0 if the files record their images.
        agreement: fraction of labels that name the class of their image, or of its partner.
        chance: the same fraction for shuffled images.
    """

    files: ViewFiles
    labels: Tensor
    draws: int
    agreement: float
    chance: float

    def __str__(self) -> str:
        how = _DRAWS.get(self.draws, "the files say which images they are of")
        agreement = f"{self.agreement:.0%} of the labels agree with the classes of their images"
        return f"{agreement} (chance {self.chance:.0%}): {how}"

    def labelled(self, epoch: int, size: tuple[int, int]) -> Iterator[tuple[Tensor, View, Tensor]]:
        """Yield the batches of an epoch: image positions, view, logits.

        Args:
            epoch: from 0.
            size: height and width of the images in pixels.

        Raises:
            UsageError: the labels of this epoch belong to other images, or to images of another size.
        """
        hits, n = 0.0, 0
        for batch, images in _paired(self.files, self._sampler, self.draws, epoch):
            hits += float(_hits(batch, self.labels[images]).sum())
            n += len(images)
            yield images, _view(batch, size, self.files.path), batch.logits
        if hits / n < (self.agreement + self.chance) / 2:
            raise UsageError(
                f"{self.files.path}: the labels of epoch {epoch} agree with {hits / n:.0%} of the classes, those of "
                f"others with {self.agreement:.0%}: the epoch is of another run; leave it out, and those after it"
            )

    @cached_property
    def _sampler(self) -> "_Permutations":
        return _Permutations(len(self.labels))


def view_files(path: Path) -> ViewFiles | None:
    """Find the label files in a folder; None if there are none.

    Raises:
        UsageError: one between others is missing.
    """
    if not (path / "epoch_0").is_dir():
        return None
    epochs = _count(path, r"epoch_(\d+)")
    batches = _count(path / "epoch_0", r"batch_(\d+)\.tar")
    return ViewFiles(path, epochs, batches) if batches else None


def image_order(files: ViewFiles, labels: Tensor) -> ImageOrder:
    """Determine which images the batches belong to.

    Args:
        files: the label files.
        labels: int64 (n,), the class of every image by its column of the logits, in the order of `ImageFolder`.

    Raises:
        UsageError: the number of images differs, or the labels agree with the classes in no order.
    """
    if files.n != len(labels):
        raise UsageError(
            f"{files.path}: its labels are of {files.n:,} images, and there are {len(labels):,}; name the folder of "
            "the images that were labelled"
        )
    ways = (0,) if files.first.index is not None else tuple(_DRAWS)
    tried = [_tried(files, labels, draws) for draws in ways]
    best = max(tried, key=lambda one: one.agreement)
    deviation = (best.chance * (1 - best.chance) / (min(files.epochs, _TRIED) * len(labels))) ** 0.5
    if best.agreement < best.chance + max(_CLEAR * deviation, (1 - best.chance) / 10):
        found = "; ".join(str(one) for one in tried)
        raise UsageError(f"{files.path}: these labels are of other images, or in another order of the classes: {found}")
    return best


def with_labels(made: DistilledSet, order: ImageOrder, classes: Tensor, beside: Path) -> DistilledSet:
    """Return a set with a label store next to it, converted from label files.

    Args:
        made: the set, with hard labels.
        order: the images of the files, as positions in the set.
        classes: int64 (k,), the class of the set for each column of the logits.
        beside: the folder of the set's file.

    Raises:
        UsageError: the files are damaged, or belong to other images.
        RunError: the disk is full; finished epochs stay.
    """
    files, own = order.files, made.own_classes()
    if files.first.logits.shape[1] != len(made.classes):
        raise UsageError(
            f"{files.path}: its logits are of {files.first.logits.shape[1]:,} classes, and {made.source} has "
            f"{len(made.classes):,}"
        )
    protocol = _protocol(made, files)
    channels, height, width = made.images.shape[1:]
    spec = LabelSpec(
        n=made.n,
        classes=len(made.classes),
        epochs=files.epochs,
        batch=min(protocol.batch, made.n),
        shape=(channels, height, width),
        policy=protocol.views,
        settings=LabelSettings(replay="records"),
        images=made.labelled_sha256(),
        teachers=({"files": files.identity()},),
    )
    store = LabelStore(beside, spec, own)
    _fill(store, order, classes.argsort())
    return replace(
        made,
        label_kind="views",
        labels=own,
        views=store.stated(),
        protocol=asdict(protocol),
        path=beside / "set.safetensors",
    )


def _fill(store: LabelStore, order: ImageOrder, columns: Tensor) -> None:
    """Convert the missing epochs; if the files turn out to be wrong, remove all of them."""
    missing, is_new = store.missing(), not store.path.parent.exists()
    size, free = store.spec.bytes() * len(missing) // store.spec.epochs, _free(store.path)
    if size > free:
        raise UsageError(f"the labels take {readable_size(size)} in {store.path}, and {readable_size(free)} are free")

    def batches(epoch: int) -> Iterator[tuple[Tensor, View, Tensor]]:
        height, width = store.spec.shape[1:]
        for images, view, logits in order.labelled(epoch, (height, width)):
            yield images, view, logits[:, columns]

    done = store.spec.epochs - len(missing)
    try:
        with bar("import", store.spec.epochs, done) as progress:
            for number, epoch in enumerate(missing, done + 1):
                store.keep(epoch, partial(batches, epoch))
                progress.update(number)
    except UsageError:
        store.remove(missing)
        if is_new:
            with contextlib.suppress(OSError):
                store.path.parent.rmdir()
        raise


def _free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def _protocol(made: DistilledSet, files: ViewFiles) -> Protocol:
    """Return the protocol for training on the labels: the labelled batches, for as many epochs as there are labels."""
    name = str((made.protocol or {}).get("protocol", ""))
    known = PROTOCOLS[name if name in PROTOCOLS and PROTOCOLS[name].temperature > 1 else "sre2l"]
    views = ViewPolicy(crop=0.08, flip=True, mix=files.mix)
    return replace(known, steps=None, epochs=files.epochs, batch=len(files.first.flips), views=views, micro=None)


def _count(folder: Path, pattern: str) -> int:
    """Count the entries whose names match, numbered from 0.

    Raises:
        UsageError: one between others is missing.
    """
    found = {int(match[1]) for name in os.listdir(folder) if (match := re.fullmatch(pattern, name)) and len(name) < 20}
    count = next(number for number in range(len(found) + 1) if number not in found)
    if count < len(found):
        name = re.sub(r"\(.*\)", str(count), pattern).replace("\\", "")
        raise UsageError(f"{folder}: {name} is missing, and there are {len(found) - count:,} after it")
    return min(count, _EPOCHS)


def _batch(found: Tree, path: Path) -> LabelledBatch:
    if not isinstance(found, Sequence) or isinstance(found, str | bytes) or len(found) not in (6, 8):
        count = f"{len(found)} fields" if isinstance(found, Sequence) else "no list"
        raise UsageError(f"{path}: it holds {count}, and label files hold 6, or 8 (EDC)")
    boxes, flips, partner, weight, patch, logits = found[:6]
    if not (isinstance(boxes, Tensor) and isinstance(flips, Tensor) and isinstance(logits, Tensor)):
        raise UsageError(f"{path}: crops, flips and logits are not tensors")
    b = flips.numel()
    fits = boxes.shape == (b, 4) and logits.dim() == 2 and len(logits) == b and b > 0
    if not fits or not logits.is_floating_point() or not boxes.is_floating_point():
        shapes = ", ".join(str(tuple(one.shape)) for one in (boxes, flips, logits))
        raise UsageError(f"{path}: crops, flips and logits have the shapes {shapes}, which do not fit one another")
    if not bool(logits.isfinite().all()) or not bool(boxes.isfinite().all()):
        raise UsageError(f"{path}: some logits or crops are NaN or infinite")
    index = found[6] if len(found) == 8 else None
    return LabelledBatch(
        boxes.double(),
        flips.flatten().bool(),
        _places(partner, b, path),
        float(weight) if isinstance(weight, int | float) else 1.0,
        _patch(patch, path),
        logits,
        None if index is None else _positions(index, b, path),
    )


def _places(partner: Tree, b: int, path: Path) -> Tensor | None:
    if partner is None:
        return None
    if not isinstance(partner, Tensor) or not torch.equal(partner.flatten().long().sort().values, torch.arange(b)):
        raise UsageError(f"{path}: which image each is mixed with is not a permutation of its {b} images")
    return partner.flatten().long()


def _positions(index: Tree, b: int, path: Path) -> Tensor:
    if not isinstance(index, Tensor) or index.is_floating_point() or index.numel() != b or int(index.min()) < 0:
        raise UsageError(f"{path}: its seventh field does not say which {b} images they are")
    return index.flatten().long()


def _patch(patch: Tree, path: Path) -> tuple[int, int, int, int] | None:
    """Return CutMix's box as top, left, height, width; the file stores top, left, bottom, right."""
    if patch is None:
        return None
    values = patch.flatten().tolist() if isinstance(patch, Tensor) else patch
    if not isinstance(values, Sequence) or len(values) != 4 or not all(isinstance(one, int) for one in values):
        raise UsageError(f"{path}: the box of CutMix is not four whole numbers")
    top, left, bottom, right = (int(one) for one in values if isinstance(one, int))
    return top, left, bottom - top, right - left


def _view(batch: LabelledBatch, size: tuple[int, int], path: Path) -> View:
    height, width = size
    exact = batch.boxes * torch.tensor([height, width, height, width], dtype=torch.float64)
    boxes = exact.round().long()
    if float((exact - boxes).abs().max()) > _WHOLE:
        raise UsageError(
            f"{path}: its crops are not whole pixels of images of {height} x {width}; the images that were labelled "
            "had another size"
        )
    fits = (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    if not fits or not (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all():
        raise UsageError(f"{path}: a crop is not inside its image of {height} x {width}")
    if batch.partner is None:
        return View(boxes=boxes, flips=batch.flips)
    if batch.patch is None:
        if not 0 <= batch.weight <= 1:
            raise UsageError(f"{path}: images are mixed with the weight {batch.weight:g}, which is not from 0 to 1")
        return View(boxes=boxes, flips=batch.flips, partner=batch.partner, weight=batch.weight)
    top, left, high, wide = batch.patch
    if min(batch.patch) < 0 or top + high > height or left + wide > width:
        raise UsageError(f"{path}: the box of CutMix is not inside images of {height} x {width}")
    share = 1 - high * wide / (height * width)
    return View(boxes=boxes, flips=batch.flips, partner=batch.partner, weight=share, patch=batch.patch)


def _paired(
    files: ViewFiles, sampler: "_Permutations", draws: int, epoch: int
) -> Iterator[tuple[LabelledBatch, Tensor]]:
    """Yield the batches of an epoch and the positions of their images."""
    whole, n = len(files.first.flips), files.n
    sampled = sampler.at(epoch * draws) if draws else None
    seen = torch.zeros(n, dtype=torch.bool)
    for number in range(files.batches):
        batch = files.read(epoch, number)
        expected = min(whole, n - number * whole)
        if len(batch.flips) != expected or batch.logits.shape[1] != files.first.logits.shape[1]:
            raise UsageError(
                f"{files.path}: batch {number} of epoch {epoch} has {len(batch.flips)} images of "
                f"{batch.logits.shape[1]} classes, and {expected} of {files.first.logits.shape[1]} are expected"
            )
        if (batch.partner is not None and (batch.patch is None) != (files.mix == "mixup")) or (
            (batch.index is None) != (draws != 0)
        ):
            raise UsageError(f"{files.path}: batch {number} of epoch {epoch} is of another kind than the first")
        start = number * whole
        images = batch.index if sampled is None else sampled[start : start + expected]
        assert images is not None, "one of them is there"
        if int(images.max()) >= n or bool(seen[images].any()) or len(images.unique()) < len(images):
            raise UsageError(f"{files.path}: in epoch {epoch} its images are not each of {n:,} once")
        seen[images] = True
        yield batch, images


class _Permutations:
    """Consecutive permutations of n images, from a generator with FKD's seed."""

    def __init__(self, n: int) -> None:
        self._n, self._next, self._rng = n, 0, torch.Generator().manual_seed(_SEED)

    def at(self, number: int) -> Tensor:
        """Return permutation `number`, from 0."""
        if number < self._next:
            self._next, self._rng = 0, torch.Generator().manual_seed(_SEED)
        while self._next < number:
            torch.randperm(self._n, generator=self._rng)
            self._next += 1
        self._next += 1
        return torch.randperm(self._n, generator=self._rng)


def _tried(files: ViewFiles, labels: Tensor, draws: int) -> ImageOrder:
    # the first epoch is the same for any number of draws
    epochs = range(min(1, files.epochs - 1), min(files.epochs, _TRIED + 1))
    rng, sampler = generator(0, "exchange", "fkd"), _Permutations(len(labels))
    hits, chance = list[Tensor](), list[Tensor]()
    for epoch in epochs:
        for batch, images in _paired(files, sampler, draws, epoch):
            hits.append(_hits(batch, labels[images]))
            for _ in range(_SHUFFLES):
                chance.append(_hits(batch, labels[torch.randint(len(labels), images.shape, generator=rng)]))
    return ImageOrder(files, labels, draws, float(torch.cat(hits).mean()), float(torch.cat(chance).mean()))


def _hits(batch: LabelledBatch, labels: Tensor) -> Tensor:
    """Return (b,), 1 if a label's most probable class is that of its image or of its partner, else 0."""
    right = batch.named == labels
    if batch.partner is not None:
        right |= batch.named == labels[batch.partner]
    return right.double()
