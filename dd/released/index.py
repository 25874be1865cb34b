"""Records of released sets: from this package, and from the indexes listed in `$DD_INDEX`.

An index is a TOML file with `format = 1` and one table `[[set]]` per record (`dd.released.record.Released`).
"""

import contextlib
import logging
import os
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from dd.errors import RunError, UsageError, close_matches, in_one_line, unknown
from dd.io import digest, existing, home, user_path, write_text
from dd.io.download import fetch_text, without_secrets
from dd.io.typed import typed, unknown_keys
from dd.released.record import Released

log = logging.getLogger(__name__)

VARIABLE = "DD_INDEX"
_ASSETS = Path(str(files("dd.assets")))
PACKAGE = (str(_ASSETS / "released" / "shipped.toml"), str(_ASSETS / "released.toml"))
"""Indexes of the sets that ship with the package, and of sets by other authors."""
_FORMAT = 1
_LARGEST = 16 << 20  # maximum bytes of an index
_FRESH = 24 * 3600.0  # seconds after which an index on the web is fetched again
_WEB = ("http://", "https://")


@dataclass(frozen=True)
class Index:
    """Records from one index.

    Attributes:
        place: file or web address.
        records: the valid records.
        problems: one line for each invalid record.
    """

    place: str
    records: tuple[Released, ...]
    problems: tuple[str, ...] = ()


def places() -> list[str]:
    """Return all indexes: those of the package, then those in `$DD_INDEX`, which are separated by commas."""
    return [*PACKAGE, *filter(None, (place.strip() for place in os.environ.get(VARIABLE, "").split(",")))]


def known_sets() -> dict[str, Released]:
    """Return all records by name, in the order of the indexes.

    Broken indexes, broken records and names that occur in an earlier index are skipped with a warning.
    """
    found: dict[str, Released] = {}
    first: dict[str, str] = {}
    for place in places():
        index = _read(place)
        for problem in index.problems:
            log.warning("%s: %s; left out", index.place, problem)
        for record in index.records:
            if record.name in found:
                log.warning("%s: %s is left out: %s has the name", index.place, record.name, first[record.name])
                continue
            found[record.name], first[record.name] = record, index.place
    return found


def known_set(name: str) -> Released:
    """Return the record of a name.

    Raises:
        UsageError: there is none; the message suggests similar names.
    """
    known = known_sets()
    if name not in known:
        raise unknown_set("released set", name, known)
    return known[name]


def unknown_set(kind: str, name: str, known: Mapping[str, Released]) -> UsageError:
    """Return the error for a name or a word that no record has, with similar names, or else similar words of names."""
    words = {word for one in known for word in re.split("[/-]", one)}
    near = close_matches(name, known) or close_matches(name, words)
    return (
        unknown(kind, name, near) if near else UsageError(f"unknown {kind} {name!r}; `dd sets` lists all {len(known)}")
    )


def search(words: Sequence[str], known: Mapping[str, Released]) -> list[Released]:
    """Return the records that contain every word, ignoring case."""
    return [record for record in known.values() if all(word.lower() in record.words() for word in words)]


def _read(place: str) -> Index:
    try:
        text, local = _text(place)
        return _parsed(place, text, local)
    except (UsageError, ConnectionError) as error:
        return Index(without_secrets(place), (), (in_one_line(error),))


def _text(place: str) -> tuple[str, Path | None]:
    """Return the text of an index, and the folder to which its local paths are relative; None for one from the web."""
    if place.startswith(_WEB):
        return _from_web(place), None
    path = existing(user_path(place, VARIABLE), f"{VARIABLE}={place}")
    try:
        if path.stat().st_size > _LARGEST:
            raise UsageError(f"it has more than {_LARGEST:,} bytes")
        return path.read_text(encoding="utf-8"), path.parent
    except (OSError, ValueError) as error:
        raise UsageError(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _from_web(url: str) -> str:
    kept = home() / "released" / "indexes" / f"{digest(url)}.toml"
    with contextlib.suppress(OSError, ValueError):
        if time.time() - kept.stat().st_mtime < _FRESH:
            return kept.read_text(encoding="utf-8")
    try:
        text = fetch_text(url, _LARGEST)
        tomllib.loads(text)  # only valid TOML is cached
    except (ConnectionError, ValueError, RecursionError) as error:
        with contextlib.suppress(OSError, ValueError):
            old = kept.read_text(encoding="utf-8")
            log.warning("%s; an earlier copy is used", in_one_line(error))
            return old
        raise ConnectionError(in_one_line(error)) from error
    with contextlib.suppress(OSError, RunError):  # without a writable cache it is fetched every time
        write_text(kept, text)
    return text


def _parsed(place: str, text: str, local: Path | None) -> Index:
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not TOML ({in_one_line(error)})") from error
    problems = list(unknown_keys(tables, ["format", "set"], ""))
    if tables.get("format") != _FORMAT:
        raise UsageError(f"its format is {tables.get('format')!r}; this dd reads format {_FORMAT}")
    rows = tables.get("set", [])
    if not isinstance(rows, list):
        raise UsageError("records are tables [[set]]")
    records = []
    for number, row in enumerate(rows, 1):
        try:
            records.append(_usable(typed(Released, row, _named(row, number)), place, local))
        except UsageError as error:
            problems.append(str(error))
    return Index(without_secrets(place), tuple(records), tuple(problems))


def _usable(record: Released, place: str, local: Path | None) -> Released:
    """Return the record with absolute local places, if it may have local places.

    Raises:
        UsageError: a record from the web names local files, or a record from elsewhere names files of the package.
    """
    found = []
    for where in record.where:
        scheme = where.partition("://")[0] if "://" in where else where.partition(":")[0] if ":" in where else ""
        if scheme == "package" and place not in PACKAGE:
            raise UsageError(f"{record.name}: {where} is for the package's own records")
        if scheme in ("", "file", "local"):
            if local is None:
                raise UsageError(f"{record.name}: an index from the web names {where}, which is on this machine")
            found.append(str(local / user_path(where.removeprefix("file://"), "where", absolute=False)))
        else:
            found.append(where)
    return replace(record, where=tuple(found))


def _named(row: object, number: int) -> str:
    name = row.get("name") if isinstance(row, dict) else None
    return f"set {number} ({name})" if isinstance(name, str) else f"set {number}"


def package_folder() -> Path:
    """Return the folder of the sets that ship with this package."""
    return _ASSETS / "released"
