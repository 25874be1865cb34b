"""A cache of what the listing verbs print, so that they need not import torch.

Answers are stored in `$DD_HOME/index` with the timestamps of everything they were read from: our own files, the folders
of installed packages, and any files that the verb names.  If any of these has changed, the answer is computed again.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypedDict, TypeVar

import dd
from dd import plugins
from dd.errors import RunError
from dd.io import digest, holds, home, sealed, write_json

T = TypeVar("T")
_FORMAT = 1
_ELSEWHERE = ("HOME", "HF_HOME", "HF_HUB_CACHE", "DD_DATA")  # variables that affect where things are found


class _Kept(TypedDict, Generic[T]):
    stamps: dict[str, list[int] | None]
    value: T


def indexed(name: str, make: Callable[[], T], witnesses: Callable[[], Iterable[Path] | None] = lambda: ()) -> T:
    """Return the result of `make`, from the cache if nothing has changed since.

    Args:
        name: name of the verb.
        make: computes an answer that survives a JSON round trip: lists, no tuples.
        witnesses: called after `make`; returns the files and folders that the answer was read from, besides our code
            and the installed packages.  None means: do not cache the answer.
    """
    file = home() / "index" / f"{name}-{_surroundings()}.json"
    kept: _Kept[T] | None = _read(file)
    if kept is not None and all(_stamp(path) == stamp for path, stamp in kept["stamps"].items()):
        return kept["value"]
    value: T = json.loads(json.dumps(make()))
    if (found := witnesses()) is None:
        return value
    stamps = {str(path.absolute()): _stamp(path) for path in found}
    with contextlib.suppress(OSError, RunError):  # no cache if its folder is read-only or the disk is full
        write_json(file, sealed({"stamps": stamps, "value": value}))
    return value


def plug_ins() -> list[Path] | None:
    """Return the files of external methods and their recipes; None if one is broken or has no file."""
    from dd.engine import registry

    if any(entry.error is not None for entry in registry.list_methods()):
        return None
    return registry.files()


def plug_in_files(what: str) -> list[Path] | None:
    """The files of the imported plug-ins of a kind (a key of `dd.plugins.GROUPS`); None if one has no file."""
    modules = [point.module for plug_in in plugins.plug_ins(what).values() for point in plug_in.points]
    files = [getattr(sys.modules.get(module), "__file__", None) for module in modules]
    return None if None in files else [Path(file) for file in files if file]


def _read(file: Path) -> _Kept | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if holds(kept) else None


def _surroundings() -> str:
    """Return a hash of everything that any verb's answer may depend on."""
    variables = {name: os.environ.get(name) for name in _ELSEWHERE}
    packages = {path: _packages(path or os.curdir) for path in sys.path}
    code = {str(path): _stamp(path) for path in sorted(_code())}
    return digest([_FORMAT, dd.__version__, sys.version, os.getcwd(), str(home()), variables, packages, code])


def _code() -> Iterator[Path]:
    """Yield our own files: library, methods and recipes."""
    for name in ("dd", "dd.methods", "dd.experiments"):
        spec = find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for folder, _, files in os.walk(place):
                yield from (Path(folder) / file for file in files if file.endswith((".py", ".toml")))


def _packages(folder: str) -> list[tuple[str, list[int] | None]]:
    """Return the packages installed in a folder: every install, upgrade or removal changes a `.dist-info`."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e.name, _stamp(e.path)) for e in entries if e.name.endswith((".dist-info", ".egg-info")))
    except OSError:
        return []


def _stamp(path: str | Path) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]
