"""Plug-ins of installed packages: methods, data sets, networks, protocols and trackers, as entry points.

A package declares an entry point, `NAME = "module:object"`, in one of `GROUPS`.  It is imported when its name is used.
A broken plug-in does not affect anything else: it is listed with its error and skipped.
"""

import json
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from dd.errors import RunError, UsageError, in_one_line

GROUPS = {
    "method": "dd.methods",
    "dataset": "dd.data",
    "network": "dd.networks",
    "protocol": "dd.protocols",
    "tracker": "dd.trackers",
}
T = TypeVar("T")


@dataclass(frozen=True)
class PlugIn:
    """A name declared by installed packages.

    Attributes:
        what: a key of `GROUPS`.
        name: the entry point's name.
        points: the entry points of that name; more than one if several packages declare it.
    """

    what: str
    name: str
    points: tuple[EntryPoint, ...]

    @property
    def package(self) -> str:
        """The distribution that declares it, or all of them."""
        return " and ".join(sorted(point.dist.name if point.dist else point.module for point in self.points))

    @property
    def editable(self) -> bool:
        """Whether it is an editable install (PEP 610), so that its code may change while its version does not."""
        facts = [point.dist.read_text("direct_url.json") for point in self.points if point.dist]
        return any(json.loads(text).get("dir_info", {}).get("editable", False) for text in facts if text)

    def load(self) -> object:
        """Import it.

        Raises:
            UsageError: several packages declare the name.
            RunError: it fails to import.
        """
        first, *others = self.points
        if others:
            raise UsageError(f"the {self.what} name {self.name!r} is taken by {self.package}: uninstall one of them")
        try:
            return first.load()
        except (Exception, SystemExit) as error:  # a package that exits at import must not end the process
            raise self.broken(f"fails to import: {type(error).__name__}: {in_one_line(error)}") from error

    def broken(self, why: str) -> RunError:
        """A ready-made error that names the plug-in and its package."""
        return RunError(f"the {self.what} {self.name!r} of the package {self.package} ({self.points[0].value}) {why}")


def plug_ins(what: str) -> dict[str, PlugIn]:
    """The plug-ins of a kind, by name; `what` is a key of `GROUPS`.  None of them is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUPS[what]):
        found.setdefault(point.name, []).append(point)
    return {name: PlugIn(what, name, tuple(points)) for name, points in sorted(found.items())}


class Named(UserDict[str, T]):
    """Entries by name: our own, and those of plug-ins, which are imported on first use.

    `name in named` and a lookup of one of ours import nothing.  Iteration imports every plug-in and skips broken ones;
    `broken` has the reasons.  A plug-in cannot replace one of ours.
    """

    def __init__(
        self,
        what: str,
        ours: Mapping[str, T],
        accept: Callable[[str, object], T],
        reserved: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Combine our own entries with those of plug-ins.

        Args:
            what: a key of `GROUPS`.
            ours: our own entries by name.
            accept: converts name and object of an entry point to an entry; raises `ValueError` if that is not possible.
            reserved: whether a name that is not in `ours` is our own.
        """
        super().__init__(ours)
        self._reserved = reserved
        self._what = what
        self._accept = accept
        self._loaded: dict[str, T] = {}  # networks are looked up thousands of times; scanning all packages takes 25 ms

    def __missing__(self, name: str) -> T:
        if name not in self._loaded:
            plug_in = None if self._reserved(name) else plug_ins(self._what).get(name)
            if plug_in is None:
                raise KeyError(name)
            given = plug_in.load()
            try:
                self._loaded[name] = self._accept(name, given)
            except (ValueError, UsageError) as error:
                raise plug_in.broken(f"cannot be used: {in_one_line(error)}") from error
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        if name in self.data or name in self._loaded:
            return True
        return isinstance(name, str) and not self._reserved(name) and name in plug_ins(self._what)

    def __iter__(self) -> Iterator[str]:
        yield from list(self.data)
        yield from (name for name, why in self._tried().items() if not why)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def broken(self) -> dict[str, str]:
        """Return the errors of broken plug-ins by name."""
        return {name: why for name, why in self._tried().items() if why}

    def _tried(self) -> dict[str, str]:
        """Import every plug-in; return what is wrong with it, "" for nothing, by name."""
        found = {}
        for name, plug_in in plug_ins(self._what).items():
            if name in self.data or self._reserved(name):
                found[name] = f"the package {plug_in.package} declares a {self._what} {name!r}, a name of dd's own"
                continue
            try:
                self[name]
                found[name] = ""
            except (UsageError, RunError) as error:
                found[name] = str(error)
        return found

    def package(self, name: str) -> str:
        """Return the package that provides a name; "dd" for our own."""
        return "dd" if name in self.data else plug_ins(self._what)[name].package
