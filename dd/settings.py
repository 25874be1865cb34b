"""Settings seen as flat dotted keys, and which of them count in which identity, as their fields say.

Settings are frozen dataclasses, nested at will.  An identity is what a hash is taken of:

    run      the hash of a run
    images   how the images of a set are made
    member   how images are recovered from one teacher alone
    expert   the key of one expert
    label    how a label of given views is made
    number   the fingerprint that numbers share which may be compared

A field counts in all of them, unless its annotation says otherwise:

    workers: Annotated[int | None, Outside("run", "no result depends on it")] = None
    rho: Annotated[float, OnlyWith("kind", ("ftd",))] = 0.01

A field that a class redeclares, for another default, keeps the marks of its bases.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_type_hints

Identity = Literal["run", "images", "member", "expert", "label", "number"]
_WITHIN: dict[Identity, tuple[Identity, ...]] = {"images": ("run",), "member": ("images", "run")}


@dataclass(frozen=True)
class Outside:
    """A field, or a whole group, that does not count in one identity, nor in what is a part of it.

    What does not count for the images does not count for those of a member; what does not count for the run counts
    nowhere.

    Attributes:
        identity: which.
        why: for the reader.
    """

    identity: Identity
    why: str


@dataclass(frozen=True)
class OnlyWith:
    """A field that counts only beside certain values of another field of its class, which counts itself.

    Attributes:
        field: name of the other field.
        values: those values; none for any that is true.
    """

    field: str
    values: tuple[Any, ...] = ()


class Entry(NamedTuple):
    """One setting: its annotation, marks included, and its value."""

    annotation: Any
    value: Any


def key_of(name: str) -> str:
    """The key of a field: `from` for `from_`, as Python's own words get an underscore to be names."""
    return name.removesuffix("_")


def entries(settings: Any, prefix: str = "", of: Identity | None = None) -> dict[str, Entry]:
    """The settings of a settings dataclass by dotted key, in the order of its fields; nested ones included.

    Args:
        settings: the dataclass.
        prefix: of all keys, with its dot.
        of: those that count in this identity alone; None for all.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    found: dict[str, Entry] = {}
    for name in _names(settings):
        if of is not None and not _counts(settings, name, of):
            continue
        value, key = getattr(settings, name), f"{prefix}{key_of(name)}"
        if dataclasses.is_dataclass(value):
            found |= entries(value, f"{key}.", of)
        else:
            found[key] = Entry(hints[name], value)
    return found


def identity(settings: Any, of: Identity, prefix: str = "") -> dict[str, Any]:
    """The values that count in an identity, by dotted key; see `entries`."""
    return {key: entry.value for key, entry in entries(settings, prefix, of).items()}


def build(settings: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of a settings dataclass with the values of the given dotted keys in place; keys elsewhere are ignored."""
    changes: dict[str, Any] = {}
    for name in _names(settings):
        value, key = getattr(settings, name), f"{prefix}{key_of(name)}"
        if dataclasses.is_dataclass(value):
            changes[name] = build(value, values, f"{key}.")
        elif key in values:
            changes[name] = values[key]
    return dataclasses.replace(settings, **changes)


def _names(settings: Any) -> Iterator[str]:
    return (field.name for field in dataclasses.fields(settings) if field.init)


@cache
def _marks(cls: type) -> dict[str, list[Any]]:
    """What annotations say beside types, by name of field."""
    found: dict[str, list[Any]] = {}
    for base in filter(dataclasses.is_dataclass, cls.__mro__):
        for name, hint in get_type_hints(base, include_extras=True).items():
            found.setdefault(name, []).extend(getattr(hint, "__metadata__", ()))
    return found


def _counts(settings: Any, name: str, of: Identity) -> bool:
    for mark in _marks(type(settings))[name]:
        if isinstance(mark, Outside) and mark.identity in (of, *_WITHIN.get(of, ("run",))):
            return False
        if isinstance(mark, OnlyWith):
            other = getattr(settings, mark.field)
            met = other in mark.values if mark.values else bool(other)
            if not (met and _counts(settings, mark.field, of)):
                return False
    return True
