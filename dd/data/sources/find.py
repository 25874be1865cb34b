"""Search for named data sets on disk, and download those that are not found."""

import os
from dataclasses import dataclass
from pathlib import Path

from dd.data.sources.catalogue import CATALOGUE, EMBEDDED
from dd.data.sources.entry import CatalogueEntry
from dd.data.sources.parquet import ParquetFiles, find_parquet
from dd.data.sources.tables import class_names
from dd.errors import UsageError
from dd.io import home, user_path, writable
from dd.io.download import download, unpack
from dd.runs.store import require_making

_HERE = Path("data")


@dataclass(frozen=True)
class Found:
    """The files of a named data set: the published ones in `path`, or parquet files."""

    path: Path
    parquet: ParquetFiles | None = None

    def bytes(self) -> int | None:
        """Size on disk; None if counting would mean walking through thousands of files."""
        if self.parquet:
            files = [*self.parquet.train, *self.parquet.test]
        else:
            files = list(self.path.iterdir())
            if any(file.is_dir() for file in files):
                return None
        return sum(file.stat().st_size for file in files if file.exists())  # a link may dangle


def downloads() -> Path:
    """The folder that downloads go to."""
    return home() / "data"


def find_named(entry: CatalogueEntry) -> Found | None:
    """The first place that has the data set, in the order of `roots`; None if it is not found."""
    for root in roots():
        if found := _below(root, entry):
            return found
    return None


def lacks(entry: CatalogueEntry, found: Found) -> int:
    """Number of classes missing from where a data set was found, judged by folders and metadata."""
    if entry.native not in ("imagenet", "tiny"):
        return 0
    if found.parquet:
        there = set(class_names(found.parquet.train[0]) or ())
        if entry.classes is None or not there & set(entry.classes):  # the classes have other names there
            return max(0, entry.classes_expected - len(there)) if there and not entry.within else 0
    else:
        there = {path.name for path in (found.path / "train").iterdir() if path.is_dir()}
    if entry.classes is None:
        return max(0, entry.classes_expected - len(there))
    return len(set(entry.classes) - there)


def roots() -> list[Path]:
    """Folders to search: `$DD_DATA`, the Hugging Face cache, users' usual folders, Debian's, and our downloads."""
    places = [*_named(), _hub(), _HERE.absolute(), _user() / "data", Path("/usr/share/datasets"), downloads()]
    return list(dict.fromkeys(places))  # two may coincide, as when run from the home folder


def fetch(entry: CatalogueEntry) -> Found:
    """Download a data set.

    Raises:
        UsageError: no network, or a wrong checksum; the message says where we looked and what to do.
        RunError: the disk is full.
    """
    if entry.page:
        raise missing(entry, "may not be downloaded")
    require_making(f"{entry.name}, {sum(remote.megabytes for remote in entry.remotes):.0f} MB to download")
    folder = writable(downloads(), "set DD_HOME to a folder that can be written to")
    try:
        for remote in entry.remotes:
            path = folder / remote.path
            if remote.unpacks_to and (folder / remote.unpacks_to).exists():
                continue
            download(remote.urls, path, checksum=f"md5:{remote.md5}", what=entry.name)
            if remote.unpacks_to:
                unpack(path, folder, remote.unpacks_to)
    except OSError as error:
        raise missing(entry, f"could not be downloaded ({error})") from error
    found = _below(folder, entry)
    if found is None:
        raise missing(entry, f"is not what {entry.remotes[0].urls[0]} gave")
    return found


def places() -> list[Path]:
    """Every folder that `find_named` and `lacks` look at, existing or not, and the parquet files that they find."""
    names = {name for entry in CATALOGUE.values() for name in (*entry.folders, *entry.parquet) if name}
    hubs = {f"datasets--{name.replace('/', '--')}" for entry in CATALOGUE.values() for name in entry.hub}
    folders: list[Path] = []
    for root in roots():
        folders += _folders(root, 2 if root.name in names else 0)
        for name in sorted(names):
            folders += _folders(root / name, 2)
        for name in sorted(hubs):
            folders += _folders(root / name / "snapshots", 3)
    found = [found.parquet for entry in CATALOGUE.values() if (found := find_named(entry)) and found.parquet]
    return [*folders, *(file for files in found for file in (*files.train, *files.test))]


def _folders(folder: Path, deep: int) -> list[Path]:
    """A folder, existing or not, and its subfolders, `deep` levels down."""
    try:
        inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()] if deep else []
    except OSError:
        inside = []
    return [folder, *(path for one in inside for path in _folders(one, deep - 1))]


def missing(entry: CatalogueEntry, why: str) -> UsageError:
    """The error for a missing data set: one line that says where we looked and what to do."""
    places = ", ".join(_shown(root) for root in roots())
    if entry.page:
        return _not_ours(entry, places)
    how = f"get it elsewhere and put it into $DD_DATA as {entry.parquet[0]}/…/train-*.parquet or {_first(entry)}"
    return UsageError(
        f"{entry.name} was not found (looked in {places}) and {why}: {how}; dataset={EMBEDDED} needs no download"
    )


def _not_ours(entry: CatalogueEntry, places: str) -> UsageError:
    whole, first = entry.within or entry.name, entry.folders[0]
    here = f"{entry.name} is a part of {whole}, which" if entry.within else whole
    own = f"; a copy of these classes alone: dataset=folder:PATH like={entry.name}.ipc10" if entry.within else ""
    return UsageError(
        f"{here} was not found (looked in {places}) and is never downloaded, as its licence asks for an account: get "
        f"it from {entry.page} and put it into $DD_DATA as {first}/train/WNID/… and {first}/val/WNID/…, or as "
        f"{first}/…/train-*.parquet{own}; dataset={EMBEDDED} needs no download"
    )


def _complete(entry: CatalogueEntry) -> bool:
    return all((downloads() / (remote.unpacks_to or remote.path)).exists() for remote in entry.remotes)


def _first(entry: CatalogueEntry) -> str:
    return f"{entry.folders[0]}/…" if entry.folders[0] else entry.marker


def _named() -> list[Path]:
    value = os.environ.get("DD_DATA", "")
    return [user_path(part, "DD_DATA") for part in value.split(os.pathsep) if part]


def _hub() -> Path:
    base = os.environ.get("HF_HOME") or _user() / ".cache" / "huggingface"
    return user_path(os.environ.get("HF_HUB_CACHE") or user_path(base, "HF_HOME") / "hub", "HF_HUB_CACHE")


def _user() -> Path:
    return Path(os.path.expanduser("~"))  # stays "~" if there is no home folder


def _shown(root: Path) -> str:
    if root in _named():
        return f"$DD_DATA={root}" + ("" if root.is_dir() else " (no such folder)")
    if root == _HERE.absolute():
        return f"./{_HERE}"
    return f"~/{root.relative_to(_user())}" if root.is_relative_to(_user()) else str(root)


def _below(root: Path, entry: CatalogueEntry) -> Found | None:
    if not os.path.isdir(root):
        return None
    # an incomplete download does not count as found: `fetch` then gets the missing files
    folders = [root / name for name in entry.folders] if root != downloads() or _complete(entry) else []
    if entry.page and root.name in entry.folders:
        folders.insert(0, root)  # $DD_DATA names the data set itself
    for folder in folders:
        if next(folder.glob(entry.marker), None):
            return Found(folder)
    for folder in _parquet_folders(root, entry):
        if files := find_parquet(folder, entry.test):
            return Found(folder, files)
    return None


def _parquet_folders(root: Path, entry: CatalogueEntry) -> list[Path]:
    named = [root / name for name in entry.parquet if (root / name).is_dir()]
    if root.name in entry.parquet:
        named.append(root)  # $DD_DATA names the data set itself
    snapshots = [path for name in entry.hub for path in root.glob(f"datasets--{name.replace('/', '--')}/snapshots/*")]
    return named + sorted(snapshots, key=lambda path: path.stat().st_mtime, reverse=True)
