"""What installed packages add: methods, data sets, networks, protocols and trackers, by entry points.

A package declares an entry point, `NAME = "module:object"`, in one of `GROUPS`.  It is imported when its name is asked
for.  A plug-in that is broken takes nothing else down: it is listed with its error and left out otherwise.
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
    """A name that installed packages declare.

    Attributes:
        what: a key of `GROUPS`.
        name: the entry point's name.
        points: its entry points; more than one if several packages declare the name.
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
        except (Exception, SystemExit) as error:  # a package that exits at import must not end everyone's session
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
    """Things by name: our own, and those of plug-ins, which are imported when they are asked for.

    `name in named` and a lookup of one of ours import nothing.  Iteration imports every plug-in and leaves out those
    that are broken; `broken` says why.  A plug-in cannot replace one of ours.
    """

    def __init__(
        self,
        what: str,
        ours: Mapping[str, T],
        accept: Callable[[str, object], T],
        reserved: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Our own things, and how to get one from a plug-in.

        Args:
            what: a key of `GROUPS`.
            ours: by name.
            accept: turns name and object of an entry point into a thing; raises `ValueError` if it cannot be one.
            reserved: whether a further name is our own, without being in `ours`.
        """
        super().__init__(ours)
        self._reserved = reserved
        self._what = what
        self._accept = accept
        self._loaded: dict[str, T] = {}  # networks are asked for thousands of times; a look at all packages takes 25 ms

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
        broken = self.broken()
        yield from (name for name in plug_ins(self._what) if name not in broken)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def broken(self) -> dict[str, str]:
        """Why plug-ins cannot be used, by name."""
        found = {}
        for name, plug_in in plug_ins(self._what).items():
            if name in self.data or self._reserved(name):
                found[name] = f"the package {plug_in.package} declares a {self._what} {name!r}, a name of dd's own"
                continue
            try:
                self[name]
            except (UsageError, RunError) as error:
                found[name] = str(error)
        return found

    def package(self, name: str) -> str:
        """The package that a name comes from; "dd" for our own."""
        return "dd" if name in self.data else plug_ins(self._what)[name].package
