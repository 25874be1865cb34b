"""A whole data set, decoded but not preprocessed, and the facts about it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dd.data.settings import Depth16, Resize
from dd.data.sources.content import Arrays, EncodedSet
from dd.data.sources.decoding import decode_listing, decode_split, headers, resized
from dd.data.sources.entry import ALL_AUGMENTATIONS, Constants
from dd.data.sources.locate import Located, locate_data
from dd.data.sources.pixels import Target
from dd.data.sources.survey import large_words, refuse
from dd.data.sources.walk import some
from dd.io import Json
from dd.licences import NOT_STATED
from dd.networks.spec import USUAL_SIDE
from dd.runs.store import Store

_CACHE_FORMAT = 3  # raise it when decoding changes, so that cached images become stale


@dataclass(frozen=True, eq=False)
class Raw:
    """A decoded data set before preprocessing, on the CPU.

    Attributes:
        name: the name that was requested.
        train_images: uint8 (n, c, h, w).
        train_labels: int64 (n,).
        test_images: uint8 (m, c, h, w).
        test_labels: int64 (m,).
        classes: names in label order.
        where: where it was read from.
        licence: may be "not stated".
        constants: published per-channel mean and standard deviation, in [0, 1] units; None if they must be fitted.
        augment: DSA strategy that suits it.
        notes: what a user should know about it, or "".
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    where: str
    licence: str
    constants: Constants | None
    augment: str
    notes: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts about a data set other than its images; see `Raw`."""

    licence: str
    constants: Constants | None
    augment: str
    notes: str


def load_raw(name: str, *, download: bool = True) -> Raw:
    """Find and read a data set; decoded images are cached.

    Args:
        name: see `dd.data.sources`.
        download: whether to download a named data set that is not found locally.

    Raises:
        UsageError: the name is unknown; the data set is not found and cannot be downloaded; images are broken.
    """
    located = locate_data(name, download=download)
    return whole(located, located.read())


def whole(
    located: Located,
    content: Arrays | EncodedSet,
    size: int | None = None,
    resize: Resize = "fit",
    depth16: Depth16 | None = None,
) -> Raw:
    """Decode a whole data set and collect the facts about it.

    Args:
        located: where it was found.
        content: what was read there.
        size: height and width in pixels to which images are resized; None keeps their own.
        resize: how images are resized; see `DataSettings`.
        depth16: how images of more than 8 bits are converted to 8.

    Raises:
        UsageError: images are broken, or a setting is missing.
    """
    if isinstance(content, EncodedSet):
        arrays = _decoded(located, content, size, resize, depth16)
    else:
        arrays = sized(content, size, resize)
    known = facts_of(located, arrays.classes, arrays.notes, arrays.jpeg, arrays.test_labels)
    return Raw(
        name=located.name,
        train_images=arrays.train_images,
        train_labels=arrays.train_labels,
        test_images=arrays.test_images,
        test_labels=arrays.test_labels,
        classes=arrays.classes,
        where=located.where,
        licence=known.licence,
        constants=known.constants,
        augment=known.augment,
        notes=known.notes,
    )


def facts_of(located: Located, classes: tuple[str, ...], notes: Sequence[str], jpeg: int, test_labels: Tensor) -> Facts:
    """Collect the facts about a data set.

    Args:
        located: where it was found.
        classes: names of the classes that it holds.
        notes: notes of the reader.
        jpeg: number of images that were JPEG files.
        test_labels: int64 (m,), on the CPU.
    """
    entry, notes = located.entry, list(notes)
    counts = torch.bincount(test_labels, minlength=len(classes))
    if untested := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        notes.append(f"no test images of {some(untested)}")
    if entry and entry.note:
        notes.append(entry.note)
    if entry and jpeg and entry.lossless:
        notes.append("decoded from a JPEG copy, so pixels differ slightly from the published ones")
    if entry and len(classes) != (entry.classes_expected or len(classes)):
        notes.append(f"a part of {entry.name}: {len(classes)} of its {entry.classes_expected} classes")
    return Facts(
        licence=entry.licence if entry else NOT_STATED,
        constants=entry.constants if entry else None,
        augment=entry.augment if entry else ALL_AUGMENTATIONS,
        notes="; ".join(notes),
    )


def test_images(located: Located, content: Tensor | EncodedSet, target: Target) -> Tensor:
    """The test images alone, uint8 (m, c, h, w), resized differently from the training images.

    Args:
        located: where they were found.
        content: the decoded test images, or the encoded data set.
        target: size, channels and way of resizing.

    Raises:
        UsageError: images are broken.
    """
    if isinstance(content, Tensor):
        return resized(content, target.side, target.resize)

    def make() -> tuple[dict[str, Tensor], dict[str, Json]]:
        part = content.listing().test
        found = headers(part.items, range(len(part)))
        images, _, broken = decode_split(part, found, target)
        refuse(broken, located.name)
        return {"test_images": images}, {}

    spec = {"format": _CACHE_FORMAT, "name": located.name, "files": content.key, "test": target.key()}
    kept = Store().tensors("images", spec, make, what=f"the decoded test images of {located.name}")
    assert kept.tensors is not None, "made of tensors"
    return kept.tensors["test_images"]


def sized(arrays: Arrays, size: int | None, resize: Resize = "fit") -> Arrays:
    """Resize arrays to squares of `size` pixels; None keeps the size (but "shorter" still crops)."""
    size = arrays.train_images.shape[-1] if size is None and resize == "shorter" else size
    if size is None:
        return arrays
    train, test = (resized(images, size, resize) for images in (arrays.train_images, arrays.test_images))
    return replace(arrays, train_images=train, test_images=test)


def size_question(name: str, images: Tensor) -> str:
    """The question to the user about the size of decoded images (n, c, h, w), one line; "" if there is none."""
    height, width = images.shape[-2:]
    if height != width:
        return (
            f"{name} has images of {width} x {height} pixels; only square ones are supported: say what they are "
            f"brought to, such as data.size={min(height, width)}"
        )
    return large_words(name, height) if height > USUAL_SIDE else ""


def _decoded(
    located: Located, content: EncodedSet, size: int | None, resize: Resize, depth16: Depth16 | None
) -> Arrays:
    """Decode images into arrays, or read them from the cache."""

    def make() -> tuple[dict[str, Tensor], dict[str, Json]]:
        arrays, broken = decode_listing(content.listing(), located.name, located.channels, size, resize, depth16)
        refuse(broken, located.name)
        return arrays.tensors(), {"classes": arrays.classes, "notes": arrays.notes, "jpeg": arrays.jpeg}

    spec: dict[str, Json] = {"format": _CACHE_FORMAT, "name": located.name, "files": content.key}
    if size is not None:
        spec["size"] = size
    if resize != "fit":
        spec["resize"] = resize
    if content.notes:
        spec["notes"] = content.notes  # kept with the images
    if depth16 is not None:
        spec["depth16"] = depth16
    kept = Store().tensors("images", spec, make, what=f"the decoded images of {located.name}")
    assert kept.tensors is not None, "made of tensors"
    tensors, info = kept.tensors, kept.info
    return Arrays(
        train_images=tensors["train_images"],
        train_labels=tensors["train_labels"],
        test_images=tensors["test_images"],
        test_labels=tensors["test_labels"],
        classes=tuple(info["classes"]),
        notes=tuple(info["notes"]),
        jpeg=info["jpeg"],
    )
