"""What `dd data check` says about a data set: counts, sizes, statistics, broken files."""

from typing import Any

import torch
from torch import Tensor

from dd.data import _images
from dd.data._content import Encoded
from dd.data.preprocess import channel_statistics
from dd.data.sources import finish, locate


def check(name: str, *, download: bool = True) -> dict[str, Any]:
    """Read every image of a data set, past its cache, and describe what is there.

    Args:
        name: see `dd.data.sources`.
        download: whether it may be downloaded when it is nowhere.

    Returns:
        JSON-able: name, where, licence, notes, channels, size (pixels), classes (count), train and test (each total and
        per_class), mean and std (per channel of the training images, in [0, 1] units), constants (the published ones or
        None), augment (the DSA strategy that suits it), broken (a list of file and reason; empty is good).

    Raises:
        UsageError: it is unknown or nowhere, or not a single image can be read.
    """
    located = locate(name, download=download)
    content = located.read()
    broken: list[_images.Broken] = []
    if isinstance(content, Encoded):
        arrays, broken = _images.decode(content.listing(), located.channels)
    else:
        arrays = content
    raw = finish(located, arrays)
    mean, std = channel_statistics(raw.train_images)
    return {
        "name": raw.name,
        "where": raw.where,
        "licence": raw.licence,
        "notes": raw.notes,
        "channels": raw.train_images.shape[1],
        "size": raw.train_images.shape[-1],
        "classes": len(raw.classes),
        "train": _counts(raw.train_labels, raw.classes),
        "test": _counts(raw.test_labels, raw.classes),
        "mean": [round(value, 4) for value in mean],
        "std": [round(value, 4) for value in std],
        "constants": [list(row) for row in raw.constants] if raw.constants else None,
        "augment": raw.augment,
        "broken": [{"file": item.file, "reason": item.reason} for item in broken],
    }


def _counts(labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    return {"total": len(labels), "per_class": dict(zip(classes, counts, strict=True))}
