"""List all sources and what is known about them without reading: the rows of `dd data`."""

from dataclasses import dataclass

from dd.data.sources.catalogue import CATALOGUE
from dd.data.sources.embedded import EMBEDDED_FOLDER, embedded_size
from dd.data.sources.entry import CatalogueEntry
from dd.data.sources.find import find_named, lacks
from dd.licences import NOT_STATED


@dataclass(frozen=True)
class SourceInfo:
    """One row of `dd data`.

    Attributes:
        name: the name to request it by.
        description: one line.
        where: where it was found, or None.
        bytes: size on disk, or of the download; None if unknown.
        licence: may be "not stated".
        page: where a user can get it, if we may not download it; else "".
        classes: number of classes; None if unknown.
        lacks: number of classes missing on disk, as far as that shows without opening images.
        usable: whether it can be used as it is; a subset needs all of its classes.
        package: the package that provides it.
        error: why a plug-in's data set cannot be used; None if it can.
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
    package: str = "dd"
    error: str | None = None


@dataclass(frozen=True)
class Kind:
    """The shape of a data set: image size, channels and number of classes.

    Attributes:
        side: height and width in pixels; None if images differ in size.
        channels: 1 or 3.
        classes: number of classes of the whole data set; None if there are several editions.
    """

    side: int | None
    channels: int
    classes: int | None


def kind_of(name: str) -> Kind | None:
    """The `Kind` of a named data set, without searching for it; None for a user's own data."""
    entry = CATALOGUE.get(name)
    return Kind(entry.side, entry.channels, entry.classes_expected or None) if entry else None


def list_sources() -> list[SourceInfo]:
    """List all sources and where they were found; reads and decodes nothing."""
    rows = [_info(entry) for entry in CATALOGUE.values()]
    broken = CATALOGUE.broken().items()
    rows += [SourceInfo(name, "", None, None, NOT_STATED, usable=False, package="?", error=why) for name, why in broken]
    own = "your own images: PATH/train/CLASS/… and PATH/test/CLASS/…, or PATH/CLASS/…"
    rows.append(SourceInfo("folder:PATH", own, None, None, NOT_STATED))
    rows.append(
        SourceInfo("parquet:PATH", "your own images: a parquet file, or a folder of them", None, None, NOT_STATED)
    )
    arrays = "your own images: arrays train_images, train_labels (and test_…), as MedMNIST has them"
    rows.append(SourceInfo("npz:PATH", arrays, None, None, NOT_STATED))
    return rows


def _info(entry: CatalogueEntry) -> SourceInfo:
    if entry.native == "embedded":
        return SourceInfo(entry.name, entry.description, str(EMBEDDED_FOLDER), embedded_size(), entry.licence)
    if entry.native == "own":
        package = CATALOGUE.package(entry.name)
        classes = entry.classes_expected or None
        where = f"the package {package}"
        return SourceInfo(entry.name, entry.description, where, None, entry.licence, classes=classes, package=package)
    found = find_named(entry)
    size = round(sum(remote.megabytes for remote in entry.remotes) * 1e6) or None
    if found:
        size = None if entry.within else found.bytes()
    where = str(found.path) if found else None
    absent = lacks(entry, found) if found else 0
    return SourceInfo(
        name=entry.name,
        description=entry.description,
        where=where,
        bytes=size,
        licence=entry.licence,
        page=entry.page,
        classes=entry.classes_expected or None,
        lacks=absent,
        usable=not (absent and entry.within),
    )
