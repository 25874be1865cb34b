"""Resolve the name of a data set to its files and the reader for them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dd.data.sources.catalogue import CATALOGUE
from dd.data.sources.content import Arrays, EncodedSet
from dd.data.sources.embedded import EMBEDDED_FOLDER, read_embedded
from dd.data.sources.entry import CatalogueEntry
from dd.data.sources.find import Found, fetch, find_named, missing
from dd.data.sources.folder import read_folder
from dd.data.sources.idx import read_idx
from dd.data.sources.imagenet import read_imagenet
from dd.data.sources.npz import read_npz
from dd.data.sources.parquet import parquet_at, read_parquet
from dd.data.sources.published import read_cifar, read_svhn, read_tiny_imagenet
from dd.errors import RunError, UsageError, in_one_line, unknown
from dd.io import user_path

_WAYS = "dataset=folder:PATH with PATH/train/CLASS/… or PATH/CLASS/…, dataset=parquet:PATH, or dataset=npz:PATH"
_WANTED: dict[str, tuple[Callable[[Path], bool], str]] = {
    "folder": (os.path.isdir, "folder"),
    "parquet": (os.path.exists, "file or folder"),
    "npz": (os.path.isfile, "file"),
}
_OWN: dict[str, Callable[[Path], Arrays | EncodedSet]] = {
    "folder": read_folder,
    "parquet": lambda path: read_parquet(parquet_at(path)),
    "npz": read_npz,
}


@dataclass(frozen=True)
class Located:
    """A data set that was found but not yet read.

    Attributes:
        name: the name that was requested.
        where: where it will be read from.
        entry: its catalogue entry; None for a user's own data.
        read: reads it, or lists its encoded images.
    """

    name: str
    where: str
    entry: CatalogueEntry | None
    read: Callable[[], Arrays | EncodedSet]

    @property
    def channels(self) -> int | None:
        """Number of channels, if it is known in advance."""
        return self.entry.channels if self.entry else None


def locate_data(name: str, *, download: bool = True) -> Located:
    """Find a data set, downloading it if necessary; arguments and errors as for `load_raw`."""
    if own := require_known(name):
        kind, path = own
        return Located(name, str(path), None, lambda: _OWN[kind](path))
    entry = CATALOGUE[name]
    if entry.native == "embedded":
        return Located(name, str(EMBEDDED_FOLDER), entry, read_embedded)
    if entry.read is not None:
        return Located(name, f"the package {CATALOGUE.package(name)}", entry, lambda: _read_own(entry))
    found = find_named(entry)
    if found is None and not download:
        raise missing(entry, "may not be downloaded here")
    found = found or fetch(entry)
    return Located(name, str(found.path), entry, lambda: _read(entry, found))


def is_local(name: str) -> bool:
    """Whether the name is a path to a user's own data, such as `folder:PATH`."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in _OWN


def require_known(name: str) -> tuple[str, Path] | None:
    """Check the name of a data set; returns kind and path of a user's own data, None for a catalogued name.

    A catalogued data set need not be present on disk.

    Raises:
        UsageError: the name is unknown, or nothing exists at the path.
    """
    if not is_local(name):
        if name not in CATALOGUE:
            raise UsageError(f"{unknown('dataset', name, CATALOGUE)} (your own images: {_WAYS})")
        return None
    kind, _, rest = name.partition(":")
    if not rest:
        raise UsageError(f"dataset={name} names no path; write dataset={kind}:PATH")
    path = user_path(rest, f"dataset={kind}:")
    there, what = _WANTED[kind]
    if not there(path):
        kept = " (it is a folder)" if os.path.isdir(path) else " (it is a file)" if os.path.exists(path) else ""
        raise UsageError(f"dataset={name}: no such {what}: {str(path)!r}{kept}; your own images are {_WAYS}")
    return kind, path


def _read_own(entry: CatalogueEntry) -> Arrays | EncodedSet:
    """Read a plug-in's data set, and validate the result."""
    assert entry.read is not None
    try:
        content = entry.read()
        if isinstance(content, Arrays):
            content.check(entry.channels)
        elif not isinstance(content, EncodedSet):
            raise ValueError(f"it gives {type(content).__name__}, not Arrays or an EncodedSet")
    except (UsageError, RunError):
        raise
    except Exception as error:
        whose = f"the dataset {entry.name!r} of the package {CATALOGUE.package(entry.name)}"
        raise RunError(f"{whose} cannot be read: {type(error).__name__}: {in_one_line(error)}") from error
    return content


def _read(entry: CatalogueEntry, found: Found) -> Arrays | EncodedSet:
    if entry.native == "imagenet":
        return read_imagenet(entry, found.path, found.parquet)
    if found.parquet:
        return read_parquet(found.parquet, entry.classes)
    if entry.native == "tiny":
        return read_tiny_imagenet(found.path)
    if entry.native == "svhn":
        return read_svhn(found.path, entry.classes or ())
    if entry.native == "idx":
        return read_idx(found.path, entry.classes or ())
    return read_cifar(found.path, hundred=entry.native == "cifar100")
