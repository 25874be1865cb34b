"""What `dd data check` says about a data set: counts, sizes, statistics, broken files."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dd.data.preprocess import channel_counts, statistics_of
from dd.data.settings import DataSettings
from dd.data.sources.content import Arrays, EncodedSet, EncodedSplit, Listing, only_classes
from dd.data.sources.decoding import all_headers, decode_split
from dd.data.sources.locate import Located, locate
from dd.data.sources.pixels import Header, Target
from dd.data.sources.raw import facts_of, size_question, sized
from dd.data.sources.survey import Broken, choose_target, image_notes, jpegs, questions, refuse, suggested, survey
from dd.data.split import require_usable
from dd.errors import UsageError

_AT_ONCE = 256  # images in memory


def check_data(name: str, settings: DataSettings | None = None, *, download: bool = True) -> dict[str, Any]:
    """Read every image of a data set, past its cache, and describe what is there; only a few are in memory at a time.

    Args:
        name: see `dd.data.sources`.
        settings: `size`, `depth16` and `classes` are heeded.
        download: whether it may be downloaded when it is nowhere.

    Returns:
        JSON-able: name, where, licence, notes, channels, size (pixels), classes (count), train and test (each total and
        per_class), mean and std (per channel of the training images, in [0, 1] units), constants (the published ones or
        None), augment (the DSA strategy that suits it), broken (a list of file and reason; empty is good), problems
        (lines in which a run would ask or refuse; empty is good).

    Raises:
        UsageError: it is unknown or nowhere, or not a single image can be read.
    """
    settings = settings or DataSettings()
    located = locate(name, download=download)
    content = only_classes(located.read(), settings.classes)
    if isinstance(content, EncodedSet):
        found = _of_files(located, content.listing(), settings)
    else:
        found = _of_arrays(located, sized(content, settings.size, settings.resize), settings)
    classes, jpeg, counts = (found.pop(key) for key in ("names", "jpeg", "counts"))
    train, test = (found.pop(f"{part}_labels") for part in ("train", "test"))
    known = facts_of(located, classes, found["notes"], jpeg, test)
    mean, std = statistics_of(counts) if counts.any() else ((), ())  # where no training image can be read
    return found | {
        "name": name,
        "where": located.where,
        "licence": known.licence,
        "notes": known.notes,
        "classes": len(classes),
        "mean": [round(value, 4) for value in mean],
        "std": [round(value, 4) for value in std],
        "constants": [list(row) for row in known.constants] if known.constants else None,
        "augment": known.augment,
        "problems": _problems(name, classes, train, test, found),
    }


def _problems(name: str, classes: tuple[str, ...], train: Tensor, test: Tensor, found: Mapping[str, Any]) -> list[str]:
    """What a run asks or refuses, in its words."""
    problems = list(found["problems"])
    looks = [lambda: refuse([Broken(item["file"], item["reason"]) for item in found["broken"]], name)]
    if not problems:  # images that wait for an answer are missing from the counts
        looks.append(lambda: require_usable(name, classes, train, test))
    for look in looks:
        try:
            look()
        except UsageError as error:
            problems.append(str(error))
    return problems


def _of_arrays(located: Located, arrays: Arrays, settings: DataSettings) -> dict[str, Any]:
    asked = "" if settings.size else size_question(located.name, arrays.train_images)
    return {
        "problems": [asked] if asked else [],
        "notes": arrays.notes,
        "channels": arrays.train_images.shape[1],
        "size": arrays.train_images.shape[-1],
        "names": arrays.classes,
        "train": _per_class(arrays.train_labels, arrays.classes),
        "test": _per_class(arrays.test_labels, arrays.classes),
        "train_labels": arrays.train_labels,
        "test_labels": arrays.test_labels,
        "counts": channel_counts(arrays.train_images),
        "broken": [],
        "jpeg": arrays.jpeg,
    }


def _of_files(located: Located, listing: Listing, settings: DataSettings) -> dict[str, Any]:
    (train, test), good = all_headers(listing)
    found = survey(good)
    asked = questions(found, located.name, settings.size, settings.depth16)
    if found.deep == found.images and settings.depth16 is None:
        raise UsageError("\n".join(asked))
    unclear = questions(found, located.name, settings.size, settings.depth16 or "full")  # but for its depth
    side = suggested(found.median) if unclear else settings.size
    target = choose_target(good, located.channels, side, settings.resize, settings.depth16)
    train_labels, counts, broken = _read(listing.train, train, target)
    test_labels, _, more = _read(listing.test, test, target)
    return {
        "problems": asked,
        "notes": (*listing.notes, *image_notes(good, target)),
        "channels": target.channels,
        "size": target.side,
        "names": listing.classes,
        "train": _per_class(train_labels, listing.classes),
        "test": _per_class(test_labels, listing.classes),
        "train_labels": train_labels,
        "test_labels": test_labels,
        "counts": counts,
        "broken": [{"file": item.file, "reason": item.reason} for item in broken + more if not item.deep],
        "jpeg": jpegs(good),
    }


def _read(
    part: EncodedSplit, headers: Sequence[Header | Broken], target: Target
) -> tuple[Tensor, Tensor, list[Broken]]:
    """Labels of the images that can be read, how often their values occur (c, 256), and those that cannot."""
    labels, counts, broken = [], torch.zeros(target.channels, 256, dtype=torch.int64), []
    for span in torch.arange(len(part)).split(_AT_ONCE):
        some = part.take(span)
        images, kept, bad = decode_split(some, [headers[i] for i in span.tolist()], target)
        labels.append(kept)
        counts += channel_counts(images)
        broken += bad
    return torch.cat(labels) if labels else part.labels, counts, broken


def _per_class(labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return {"total": len(labels), "per_class": dict(zip(classes, counts, strict=True))}
