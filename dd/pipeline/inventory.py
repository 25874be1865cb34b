"""The files of a data set as they were when it was read, so that a file that changed later can be named."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from dd.data import RealData
from dd.engine import parallel
from dd.errors import RunError, UsageError
from dd.io import sha256_file
from dd.runs import Store

_KIND = "inventories"
_MOST = 100_000  # files; more are not listed
_HASHED = 64e6  # bytes of files up to which their content is hashed; of larger ones size and date are kept

Inventory = Mapping[str, list[int | str]]
"""Of each file, by its path below the place of the data: size, modification time in ns and, of small sets, SHA-256."""


def remember_files(store: Store, data: RealData) -> None:
    """List the files of a data set in the store, once for each fingerprint; nothing happens if that is not possible."""
    spec = {"data": data.fingerprint}
    if not parallel.is_first() or store.manifest(_KIND, spec) is not None:
        return
    if files := inventory(data.where):
        try:
            store.note(_KIND, spec, {"files": dict(files)})
        except (OSError, RunError, UsageError):  # it only serves `dd doctor`
            return


def changed_files(store: Store, fingerprint: str, data: RealData) -> list[str] | None:
    """Return the files that were changed, added or removed since data of that fingerprint were read.

    None if their files were not listed, or cannot be.
    """
    noted, now = store.manifest(_KIND, {"data": fingerprint}), inventory(data.where)
    if noted is None or not now:
        return None
    before: Inventory = noted["files"]
    found = [f"{name} (changed)" for name in before if name in now and _differ(before[name], now[name])]
    found += [f"{name} (removed)" for name in before if name not in now]
    return found + [f"{name} (added)" for name in now if name not in before]


def inventory(where: str) -> dict[str, list[int | str]]:
    """Return the files of a data set at a file or folder; empty if there are none or too many."""
    place = Path(where)
    root = place.parent if place.is_file() else place
    found: dict[Path, list[int | str]] = {}
    for path in _files(place):
        if len(found) == _MOST:
            return {}
        try:
            status = path.stat()
        except OSError:  # a link that leads nowhere
            continue
        if stat.S_ISREG(status.st_mode):  # reading a pipe would wait forever
            found[path] = [status.st_size, status.st_mtime_ns]
    if sum(int(facts[0]) for facts in found.values()) <= _HASHED:
        for path, facts in found.items():
            with contextlib.suppress(OSError):  # the data may do without a file that cannot be read
                facts.append(sha256_file(path))
    return {_text(path.relative_to(root)): facts for path, facts in found.items()}


def _text(path: Path) -> str:
    """Return a path as text that any encoding of JSON holds."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _differ(before: list[int | str], now: list[int | str]) -> bool:
    """Compare contents where both are known, else sizes and dates."""
    return before[2] != now[2] if len(before) == len(now) == 3 else before[:2] != now[:2]
