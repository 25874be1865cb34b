"""What `dd data check` says about a data set: counts, sizes, statistics, broken files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from dd.data.preprocess import channel_counts, statistics_of
from dd.data.settings import DataSettings
from dd.data.sources.content import Arrays, EncodedSet, EncodedSplit, Listing, only_classes
from dd.data.sources.decoding import all_headers, decode_split
from dd.data.sources.locate import Located, locate_data
from dd.data.sources.pixels import Header, Target
from dd.data.sources.raw import facts_of, size_question, sized
from dd.data.sources.survey import Broken, choose_target, image_notes, jpegs, questions, refuse, suggested, survey
from dd.data.split import require_usable
from dd.errors import UsageError

_AT_ONCE = 256  # images in memory


class PartCounts(TypedDict):
    """How many images one part of a data set has, in total and per class name."""

    total: int
    per_class: dict[str, int]


class BrokenFile(TypedDict):
    """A file that cannot be used, and why."""

    file: str
    reason: str


class DataCheck(TypedDict):
    """The result of checking a data set; JSON-serialisable.

    Attributes:
        name: the name that was requested.
        where: where it was read from.
        licence: may be "not stated".
        notes: what a user should know about it, or "".
        channels: 1 or 3.
        size: height and width of the resized images, in pixels.
        classes: number of classes.
        train: counts of the training images.
        test: counts of the test images.
        mean: per-channel mean of the training images, in [0, 1] units.
        std: per-channel standard deviation of the training images, in [0, 1] units.
        constants: the published mean and standard deviation, or None.
        augment: the DSA strategy that suits the data.
        broken: the unusable files; ideally empty.
        problems: the questions and errors that a run would raise, one line each; ideally empty.
    """

    name: str
    where: str
    licence: str
    notes: str
    channels: int
    size: int
    classes: int
    train: PartCounts
    test: PartCounts
    mean: list[float]
    std: list[float]
    constants: list[list[float]] | None
    augment: str
    broken: list[BrokenFile]
    problems: list[str]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What reading the images revealed.

    Attributes:
        classes: names in label order.
        channels: 1 or 3.
        size: height and width in pixels.
        train: int64 labels (n,) of the readable training images.
        test: int64 labels (m,) of the readable test images.
        counts: int64 (c, 256), how often each value occurs in the training images.
        asked: the questions a user has to answer before a run, one line each.
        notes: what a user should know.
        broken: the unreadable images.
        jpeg: number of JPEG files.
    """

    classes: tuple[str, ...]
    channels: int
    size: int
    train: Tensor
    test: Tensor
    counts: Tensor
    asked: Sequence[str]
    notes: Sequence[str]
    broken: Sequence[Broken]
    jpeg: int


def check_data(name: str, settings: DataSettings | None = None, *, download: bool = True) -> DataCheck:
    """Read every image of a data set, bypassing the cache, and summarise it; memory holds only a few images at a time.

    Args:
        name: see `dd.data.sources`.
        settings: only `size`, `depth16` and `classes` matter.
        download: whether to download the data set if it is not found locally.

    Raises:
        UsageError: the data set is unknown or cannot be found, or no image can be read.
    """
    settings = settings or DataSettings()
    located = locate_data(name, download=download)
    content = only_classes(located.read(), settings.classes)
    if isinstance(content, EncodedSet):
        seen = _of_files(located, content.listing(), settings)
    else:
        seen = _of_arrays(located, sized(content, settings.size, settings.resize), settings)
    known = facts_of(located, seen.classes, seen.notes, seen.jpeg, seen.test)
    mean, std = statistics_of(seen.counts) if seen.counts.any() else ((), ())  # no training image is readable
    return {
        "name": name,
        "where": located.where,
        "licence": known.licence,
        "notes": known.notes,
        "channels": seen.channels,
        "size": seen.size,
        "classes": len(seen.classes),
        "train": _per_class(seen.train, seen.classes),
        "test": _per_class(seen.test, seen.classes),
        "mean": [round(value, 4) for value in mean],
        "std": [round(value, 4) for value in std],
        "constants": [list(row) for row in known.constants] if known.constants else None,
        "augment": known.augment,
        "broken": [{"file": item.file, "reason": item.reason} for item in seen.broken],
        "problems": _problems(name, seen),
    }


def _problems(name: str, seen: _Seen) -> list[str]:
    """The questions and errors that a run would raise, worded as the run words them."""
    problems = list(seen.asked)
    looks = [lambda: refuse(seen.broken, name)]
    if not problems:  # images that await an answer are missing from the counts
        looks.append(lambda: require_usable(name, seen.classes, seen.train, seen.test))
    for look in looks:
        try:
            look()
        except UsageError as error:
            problems.append(str(error))
    return problems


def _of_arrays(located: Located, arrays: Arrays, settings: DataSettings) -> _Seen:
    asked = "" if settings.size else size_question(located.name, arrays.train_images)
    return _Seen(
        classes=arrays.classes,
        channels=arrays.train_images.shape[1],
        size=arrays.train_images.shape[-1],
        train=arrays.train_labels,
        test=arrays.test_labels,
        counts=channel_counts(arrays.train_images),
        asked=[asked] if asked else [],
        notes=arrays.notes,
        broken=[],
        jpeg=arrays.jpeg,
    )


def _of_files(located: Located, listing: Listing, settings: DataSettings) -> _Seen:
    (train, test), good = all_headers(listing)
    found = survey(good)
    asked = questions(found, located.name, settings.size, settings.depth16)
    if found.deep == found.images and settings.depth16 is None:
        raise UsageError("\n".join(asked))
    unclear = questions(found, located.name, settings.size, settings.depth16 or "full")  # ignoring the bit depth
    side = suggested(found.median) if unclear else settings.size
    target = choose_target(good, located.channels, side, settings.resize, settings.depth16)
    train_labels, counts, broken = _read(listing.train, train, target)
    test_labels, _, more = _read(listing.test, test, target)
    return _Seen(
        classes=listing.classes,
        channels=target.channels,
        size=target.side,
        train=train_labels,
        test=test_labels,
        counts=counts,
        asked=asked,
        notes=(*listing.notes, *image_notes(good, target)),
        broken=[item for item in broken + more if not item.deep],
        jpeg=jpegs(good),
    )


def _read(
    part: EncodedSplit, headers: Sequence[Header | Broken], target: Target
) -> tuple[Tensor, Tensor, list[Broken]]:
    """Labels of the readable images, the counts of their pixel values (c, 256), and the broken images."""
    labels, counts, broken = [], torch.zeros(target.channels, 256, dtype=torch.int64), []
    for span in torch.arange(len(part)).split(_AT_ONCE):
        some = part.take(span)
        images, kept, bad = decode_split(some, [headers[i] for i in span.tolist()], target)
        labels.append(kept)
        counts += channel_counts(images)
        broken += bad
    return torch.cat(labels) if labels else part.labels, counts, broken


def _per_class(labels: Tensor, classes: tuple[str, ...]) -> PartCounts:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return {"total": len(labels), "per_class": dict(zip(classes, counts, strict=True))}
