"""Fetch the files of a released set from the places in its record, and verify them."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast
from urllib.parse import quote

from dd.errors import UsageError, in_one_line
from dd.io import atomic_path, existing, sha256_file
from dd.io.download import BLOCK, LARGEST, download, offline, without_secrets
from dd.released.hub import PREFIX, HubFile, HubListing, fetch_from_hub, hub_place, listing
from dd.released.index import package_folder
from dd.released.record import Released, ReleasedFile
from dd.runs.store import require_making

_WEB = ("http://", "https://")


class Measured(NamedTuple):
    """A fetched file, with its measured size and hash."""

    path: Path
    size: int
    sha256: str


def require_available(record: Released) -> None:
    """Raise `UsageError` if a record's files cannot be fetched by a program; the message gives the alternative."""
    if record.status == "gone":
        raise UsageError(f"{record.name} is gone: {record.note or 'its authors took it away'}")
    if not record.where:
        raise UsageError(
            f"{record.name} cannot be fetched by a program: get it from {record.page or 'its authors'}, then type "
            f"dd pull {record.name} from=FILE"
        )


def fetch(record: Released, folder: Path, *, trust: bool) -> list[Measured]:
    """Fetch a record's files into a folder; correct files that exist already are kept.

    Args:
        record: record of the set.
        folder: the target folder, to which the paths of the files are relative.
        trust: whether to accept files without a published checksum.

    Raises:
        UsageError: a checksum is missing and `trust` is False, or a place is invalid.
        ConnectionError: no place has the right files; the message names the last place and the reason.
        RunError: the disk is full.
    """
    require_available(record)
    require_trust(record, trust)
    for file in record.files:
        if not _is_right(_target(file, folder), file):
            _target(file, folder).unlink(missing_ok=True)  # damaged in the meantime, or from an earlier record
    problem = ""
    for where in _together(record.where):
        try:
            return _from(where, record, folder)
        except (ConnectionError, FileNotFoundError) as error:
            problem = in_one_line(error)
    raise ConnectionError(problem)


def take(record: Released, files: Sequence[Path], folder: Path) -> list[Measured]:
    """Use files that the user fetched, given in the order of the record, instead of fetching them.

    Raises:
        UsageError: they are not the files of the record.
    """
    try:
        expected = record.files or tuple(ReleasedFile(path.name) for path in files)
    except ValueError as error:
        raise UsageError(f"from=: {error}") from error
    if len({file.path for file in expected}) < len(expected):
        raise UsageError(f"from={','.join(map(str, files))}: two files have the same name; rename one")
    shutil.rmtree(folder, ignore_errors=True)  # an earlier call may have been given other files
    if len(files) != len(expected):
        names = ", ".join(file.path for file in expected)
        raise UsageError(f"{record.name} has {len(expected)} files: give all, from={names}")
    found = []
    for file, path in zip(expected, files, strict=True):
        try:
            found.append(_copied(existing(path, f"from={path}"), file, folder))
        except ConnectionError as error:
            raise UsageError(f"from={path} is not what {record.name} is: {in_one_line(error)}") from error
    return found


def require_trust(record: Released, trust: bool) -> None:
    """Raise `UsageError` if a record lacks checksums and the user does not accept files without them."""
    if not record.is_sealed and not trust:
        raise UsageError(
            f"nobody states a checksum of {record.name}, so nothing tells whether what comes is what its authors "
            f"released (licence: {record.licence}): to take what comes, dd pull {record.name} trust=true"
        )


def _together(where: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Group places in the order of trial; web addresses form one group, since they are tried per file."""
    web = tuple(place for place in where if place.startswith(_WEB))
    told = False
    for place in where:
        if place not in web:
            yield (place,)
        elif not told:
            told = True
            yield web


def _from(where: tuple[str, ...], record: Released, folder: Path) -> list[Measured]:
    first, what = where[0], record.name
    if first.startswith(PREFIX):
        return _from_hub(record, first, folder)
    if not record.files:
        raise UsageError(f"the record of {what} names no files below {first}")
    if first.startswith("package:"):
        below = package_folder() / first.removeprefix("package:")
        return [_copied(below / file.path, file, folder) for file in record.files]
    if first.startswith(_WEB):
        return [_downloaded(where, file, folder, what) for file in record.files]
    if "://" in first:
        return [_opened(first, file, folder) for file in record.files]
    return [_copied(Path(first) / file.path, file, folder) for file in record.files]


def _downloaded(where: Sequence[str], file: ReleasedFile, folder: Path, what: str) -> Measured:
    target = _target(file, folder)
    if not target.exists():
        require_making(f"{what}, to be downloaded from {without_secrets(where[0])}")
    urls = [f"{place.rstrip('/')}/{quote(file.path)}" for place in where]
    checksum = f"sha256:{file.sha256}" if file.sha256 else ""
    return _measured(download(urls, target, checksum=checksum, what=what, size=file.size), file)


def _copied(source: Path, file: ReleasedFile, folder: Path) -> Measured:
    target = _target(file, folder)
    if not target.exists():
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
            _measured(temporary, file, source)
    return _measured(target, file)


def _opened(where: str, file: ReleasedFile, folder: Path) -> Measured:
    """Copy a file that fsspec opens."""
    import fsspec

    target, url = _target(file, folder), f"{where.rstrip('/')}/{file.path}"
    if target.exists():
        return _measured(target, file)
    if offline():
        raise ConnectionError(f"{without_secrets(url)}: DD_OFFLINE is set")
    require_making(f"{without_secrets(url)}, to be fetched")
    if "::" in url:
        raise UsageError(f"{url}: addresses that open one file inside of another are not followed")
    with atomic_path(target) as temporary, _spoken(url):
        with fsspec.open(url, "rb") as opened, temporary.open("wb") as written:
            source, left = cast(BinaryIO, opened), LARGEST if file.size is None else file.size
            while block := source.read(BLOCK):
                left -= len(block)
                if left < 0:
                    raise ConnectionError(f"the file has more than the published {file.size:,} bytes")
                written.write(block)
        _measured(temporary, file)
    return _measured(target, file)


@contextlib.contextmanager
def _spoken(url: str) -> Iterator[None]:
    """Convert errors of fsspec and its backends to ours, with one line each."""
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{without_secrets(url)}: {in_one_line(error)}") from error
    except ValueError as error:  # a protocol unknown to fsspec
        raise UsageError(f"{without_secrets(url)}: {in_one_line(error)}") from error
    except OSError as error:
        from dd.io.atomic import no_room

        if no_room(error):
            raise
        raise ConnectionError(f"{without_secrets(url)}: {in_one_line(error)}") from error


def _from_hub(record: Released, where: str, folder: Path) -> list[Measured]:
    found = listing(hub_place(where))
    wanted = [_on_hub(found, file) for file in record.files] or found.data
    here = fetch_from_hub(found, wanted)
    expected = record.files or tuple(ReleasedFile(_below(found, file), file.size, file.sha256) for file in wanted)
    return [_copied(here[one.path], file, folder) for one, file in zip(wanted, expected, strict=True)]


def _on_hub(found: HubListing, file: ReleasedFile) -> HubFile:
    there = found.named(file.path)
    if there is None:
        raise FileNotFoundError(f"{found.place} has no file {file.path}")
    return there


def _below(found: HubListing, file: HubFile) -> str:
    return file.path.removeprefix(f"{found.place.path}/") if found.place.path else file.path


def _target(file: ReleasedFile, folder: Path) -> Path:
    target = folder / file.path
    if not os.path.normpath(target).startswith(os.path.normpath(folder) + os.sep):
        raise UsageError(f"{file.path} is not below its folder")
    return target


def _is_right(path: Path, file: ReleasedFile) -> bool:
    try:
        _measured(path, file)
    except (ConnectionError, OSError):
        return False
    return True


def _measured(path: Path, file: ReleasedFile, named: Path | None = None) -> Measured:
    """Measure size and hash of a file.

    Raises:
        ConnectionError: they differ from those in the record.
    """
    size, sha256 = path.stat().st_size, sha256_file(path)
    if file.size not in (None, size):
        raise ConnectionError(f"{named or path} has {size:,} bytes, not the published {file.size:,}")
    if file.sha256 and sha256 != file.sha256:
        raise ConnectionError(f"the sha256 of {named or path} is {sha256}, not the published {file.sha256}")
    return Measured(path, size, sha256)
