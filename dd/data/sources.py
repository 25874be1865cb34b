"""Real images by name: where they come from, and what they are before any preprocessing.

fashion-mini                       embedded, needs nothing
fashion-mnist mnist svhn cifar10 cifar100 tiny-imagenet
                                   found where users have them, else downloaded
imagenet-1k imagenet-21k imagenette imagewoof imagefruit imagemeow imagesquawk imageyellow imagenet-10 imagenet-100
                                   found where users have them, never downloaded
folder:PATH  parquet:PATH  npz:PATH
                                   a user's own
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd.data import _embedded, _find, _folder, _idx, _imagenet, _images, _native, _npz, _parquet
from dd.data._catalogue import CATALOGUE
from dd.data._content import Arrays, Encoded
from dd.data._entry import ALL_AUGMENTATIONS, Constants, Entry
from dd.data._walk import some
from dd.data.settings import Depth16, Resize
from dd.errors import UsageError, unknown
from dd.io import user_path
from dd.networks.spec import USUAL_SIDE
from dd.runs.store import Store

_CACHE_FORMAT = 2  # a change of how images are decoded makes the cached ones stale
_NOT_STATED = "not stated"
_WAYS = "dataset=folder:PATH with PATH/train/CLASS/… or PATH/CLASS/…, dataset=parquet:PATH, or dataset=npz:PATH"
_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")
_WANTED: dict[str, tuple[Callable[[Path], bool], str]] = {
    "folder": (os.path.isdir, "folder"),
    "parquet": (os.path.exists, "file or folder"),
    "npz": (os.path.isfile, "file"),
}
_OWN: dict[str, Callable[[Path], Arrays | Encoded]] = {
    "folder": _folder.read,
    "parquet": lambda path: _parquet.read(_parquet.at(path)),
    "npz": _npz.read,
}


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it came, on the CPU.

    Attributes:
        name: what it was asked for by.
        train_images: uint8 (n, c, h, w).
        train_labels: int64 (n,).
        test_images: uint8 (m, c, h, w).
        test_labels: int64 (m,).
        classes: names in label order.
        where: what it was read from.
        licence: "not stated" is a value.
        constants: published mean and standard deviation per channel in [0, 1] units; None: fit them.
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
class About:
    """What is known of a data set beside its images; see `Raw`."""

    licence: str
    constants: Constants | None
    augment: str
    notes: str


@dataclass(frozen=True)
class SourceInfo:
    """One line of `dd data`.

    Attributes:
        name: what to ask for.
        description: one line.
        where: where it was found, or None.
        bytes: its size on disk, or of the download; None when not known.
        licence: "not stated" is a value.
        page: where a user gets it, when we may not download it; else "".
        classes: how many classes it has; None when not known.
        lacks: how many of them are not where it was found, as far as that shows without opening images.
        usable: whether it can be asked for as it is: a subset can not without all of its classes.
    """

    name: str
    description: str
    where: str | None
    bytes: int | None
    licence: str
    page: str = ""
    classes: int | None = None
    lacks: int = 0
    usable: bool = True


@dataclass(frozen=True)
class Kind:
    """What the images of a data set are like.

    Attributes:
        side: height and width in pixels, None where they differ in size.
        channels: 1 or 3.
        classes: of the whole data set; None where there are several editions.
    """

    side: int | None
    channels: int
    classes: int | None


@dataclass(frozen=True)
class Located:
    """A data set that was found but not read.

    Attributes:
        name: what it was asked for by.
        where: what it will be read from.
        entry: what is known about it, when it goes by a name.
        read: reads it, or lists its encoded images.
    """

    name: str
    where: str
    entry: Entry | None
    read: Callable[[], Arrays | Encoded]

    @property
    def channels(self) -> int | None:
        """Channels that are known beforehand."""
        return self.entry.channels if self.entry else None


def load_raw(name: str, *, download: bool = True) -> Raw:
    """Find and read a data set; decoded images are kept in the cache.

    Args:
        name: see the top of this file.
        download: whether a named one may be downloaded when it is nowhere.

    Raises:
        UsageError: the name is unknown; it is nowhere and cannot be downloaded; images are broken.
    """
    located = locate(name, download=download)
    return whole(located, located.read())


def whole(
    located: Located,
    content: Arrays | Encoded,
    size: int | None = None,
    resize: Resize = "fit",
    depth16: Depth16 | None = None,
) -> Raw:
    """All of what was found, decoded, with what is known about it.

    Args:
        located: where it was found.
        content: what was read there.
        size: height and width in pixels to which images are brought; None for their own.
        resize: how, see `DataSettings`.
        depth16: how images of more than 8 bits become 8.

    Raises:
        UsageError: images are broken, or something has to be said about them first.
    """
    if isinstance(content, Encoded):
        arrays = _decoded(located, content, size, resize, depth16)
    else:
        arrays = sized(content, size, resize)
    known = about(located, arrays.classes, arrays.notes, arrays.jpeg, arrays.test_labels)
    tensors = {key: getattr(arrays, key) for key in _TENSORS}
    return Raw(name=located.name, classes=arrays.classes, where=located.where, **tensors, **vars(known))


def kind_of(name: str) -> Kind | None:
    """What images of a data set are like, by its name; nothing is looked for, and of a user's own nothing is known."""
    entry = CATALOGUE.get(name)
    return Kind(entry.side, entry.channels, entry.classes_expected or None) if entry else None


def list_sources() -> list[SourceInfo]:
    """All sources and where they are; nothing is read or decoded."""
    rows = [_info(entry) for entry in CATALOGUE.values()]
    own = "your own images: PATH/train/CLASS/… and PATH/test/CLASS/…, or PATH/CLASS/…"
    rows.append(SourceInfo("folder:PATH", own, None, None, _NOT_STATED))
    rows.append(
        SourceInfo("parquet:PATH", "your own images: a parquet file, or a folder of them", None, None, _NOT_STATED)
    )
    arrays = "your own images: arrays train_images, train_labels (and test_…), as MedMNIST has them"
    rows.append(SourceInfo("npz:PATH", arrays, None, None, _NOT_STATED))
    return rows


def locate(name: str, *, download: bool = True) -> Located:
    """Find a data set, downloading it if need be; arguments and errors as for `load_raw`."""
    if own := require_known(name):
        kind, path = own
        return Located(name, str(path), None, lambda: _OWN[kind](path))
    entry = CATALOGUE[name]
    if entry.native == "embedded":
        return Located(name, str(_embedded.FOLDER), entry, _embedded.read)
    found = _find.find(entry)
    if found is None and not download:
        raise _find.missing(entry, "may not be downloaded here")
    found = found or _find.fetch(entry)
    return Located(name, str(found.path), entry, lambda: _read(entry, found))


def require_known(name: str) -> tuple[str, Path] | None:
    """Kind and path of a user's own data; None for a data set that goes by a name, which may be nowhere.

    Raises:
        UsageError: there is no such data set, or nothing at the path.
    """
    kind, colon, rest = name.partition(":")
    if not colon or kind not in _OWN:
        if name not in CATALOGUE:
            raise UsageError(f"{unknown('dataset', name, CATALOGUE)} (your own images: {_WAYS})")
        return None
    if not rest:
        raise UsageError(f"dataset={name} names no path; write dataset={kind}:PATH")
    path = user_path(rest, f"dataset={kind}:")
    there, what = _WANTED[kind]
    if not there(path):
        kept = " (it is a folder)" if os.path.isdir(path) else " (it is a file)" if os.path.exists(path) else ""
        raise UsageError(f"dataset={name}: no such {what}: {str(path)!r}{kept}; your own images are {_WAYS}")
    return kind, path


def about(located: Located, classes: tuple[str, ...], notes: Sequence[str], jpeg: int, test_labels: Tensor) -> About:
    """What is known of a data set beside its images.

    Args:
        located: where it was found.
        classes: what it holds.
        notes: what reading it showed.
        jpeg: how many images were JPEG files.
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
    return About(
        licence=entry.licence if entry else _NOT_STATED,
        constants=entry.constants if entry else None,
        augment=entry.augment if entry else ALL_AUGMENTATIONS,
        notes="; ".join(notes),
    )


def _info(entry: Entry) -> SourceInfo:
    if entry.native == "embedded":
        return SourceInfo(entry.name, entry.description, str(_embedded.FOLDER), _embedded.size(), entry.licence)
    found = _find.find(entry)
    size = round(sum(remote.megabytes for remote in entry.remotes) * 1e6) or None
    if found:
        size = None if entry.within else found.bytes()
    where = str(found.path) if found else None
    lacks = _find.lacks(entry, found) if found else 0
    return SourceInfo(
        name=entry.name,
        description=entry.description,
        where=where,
        bytes=size,
        licence=entry.licence,
        page=entry.page,
        classes=entry.classes_expected or None,
        lacks=lacks,
        usable=not (lacks and entry.within),
    )


def _read(entry: Entry, found: _find.Found) -> Arrays | Encoded:
    if entry.native == "imagenet":
        return _imagenet.read(entry, found.path, found.parquet)
    if found.parquet:
        return _parquet.read(found.parquet, entry.classes)
    if entry.native == "tiny":
        return _native.tiny(found.path)
    if entry.native == "svhn":
        return _native.svhn(found.path, entry.classes or ())
    if entry.native == "idx":
        return _idx.read(found.path, entry.classes or ())
    return _native.cifar(found.path, hundred=entry.native == "cifar100")


def test_images(located: Located, content: Tensor | Encoded, target: _images.Target) -> Tensor:
    """The test images alone, uint8 (m, c, h, w), brought to size in a way of their own.

    Args:
        located: where they were found.
        content: what was read there: of arrays the test images.
        target: what they are brought to.

    Raises:
        UsageError: images are broken.
    """
    if isinstance(content, Tensor):
        return _images.resized(content, target.side, target.resize)

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        part = content.listing().test
        headers = _images.headers(part.items, range(len(part)))
        images, _, broken = _images.pixels(part, headers, target)
        _images.refuse(broken, located.name)
        return {"test_images": images}, {}

    spec = {"format": _CACHE_FORMAT, "name": located.name, "files": content.key, "test": target.key()}
    kept = Store().tensors("images", spec, make, what=f"the decoded test images of {located.name}")
    assert kept.tensors is not None, "made of tensors"
    return kept.tensors["test_images"]


def sized(arrays: Arrays, size: int | None, resize: Resize = "fit") -> Arrays:
    """Arrays brought to squares of `size` pixels; None: as they are, but for what "shorter" cuts away."""
    size = arrays.train_images.shape[-1] if size is None and resize == "shorter" else size
    if size is None:
        return arrays
    train, test = (_images.resized(images, size, resize) for images in (arrays.train_images, arrays.test_images))
    return replace(arrays, train_images=train, test_images=test)


def size_question(name: str, images: Tensor) -> str:
    """What has to be said about the size of decoded images (n, c, h, w), in one line; "" where nothing has."""
    height, width = images.shape[-2:]
    if height != width:
        return (
            f"{name} has images of {width} x {height} pixels; only square ones are supported: say what they are "
            f"brought to, such as data.size={min(height, width)}"
        )
    return _images.large_words(name, height) if height > USUAL_SIDE else ""


def _decoded(located: Located, content: Encoded, size: int | None, resize: Resize, depth16: Depth16 | None) -> Arrays:
    """Encoded images as arrays, from the cache where they are there."""

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, broken = _images.decode(content.listing(), located.name, located.channels, size, resize, depth16)
        _images.refuse(broken, located.name)
        tensors = {key: getattr(arrays, key) for key in _TENSORS}
        return tensors, {"classes": arrays.classes, "notes": arrays.notes, "jpeg": arrays.jpeg}

    spec: dict[str, Any] = {"format": _CACHE_FORMAT, "name": located.name, "files": content.key}
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
    tensors = {key: kept.tensors[key] for key in _TENSORS}
    info = kept.info
    return Arrays(**tensors, classes=tuple(info["classes"]), notes=tuple(info["notes"]), jpeg=info["jpeg"])
