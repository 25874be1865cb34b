"""Settings as flat dotted keys, and the rules for which of them count towards which identity.

Settings are frozen dataclasses, nested to any depth.  An identity is the subset of settings that a hash covers:

    run      the hash of a run
    images   how the images of a set are made
    member   how images are recovered from a single teacher
    expert   the key of one expert
    record   the key of one recorded training run
    label    how a given view is labelled
    number   the fingerprint shared by numbers that may be compared

A field counts towards every identity unless its annotation says otherwise:

    workers: Annotated[int | None, Outside("run", "no result depends on it")] = None
    rho: Annotated[float, OnlyWith("kind", ("ftd",))] = 0.01

A field that a subclass redeclares, to change its default, keeps the marks of its base classes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_type_hints

Identity = Literal["run", "images", "member", "expert", "record", "label", "number"]
_WITHIN: dict[Identity, tuple[Identity, ...]] = {"images": ("run",), "member": ("images", "run")}


@dataclass(frozen=True)
class Outside:
    """Marks a field, or a whole group, that does not count towards an identity or anything nested in that identity.

    `member` is nested in `images`, and every identity is nested in `run`.

    Attributes:
        identity: the identity that excludes the field.
        why: the reason, for readers.
    """

    identity: Identity
    why: str


@dataclass(frozen=True)
class OnlyWith:
    """Marks a field that counts only if another field of its class counts and has one of the given values.

    A field that names itself counts only with such a value of its own, so that a field that is added later does not
    change the identity of what was made before.

    Attributes:
        field: name of the other field.
        values: those values; empty means any truthy value.
        unless: if given, any other value than this one instead.
    """

    field: str
    values: tuple[Any, ...] = ()
    unless: Any = None


class Entry(NamedTuple):
    """One setting: its annotation, including marks, and its value."""

    annotation: Any
    value: Any


def key_of(name: str) -> str:
    """Return the key of a field: `from` for `from_`, because a field cannot be named after a Python keyword."""
    return name.removesuffix("_")


def entries(settings: Any, prefix: str = "", of: Identity | None = None) -> dict[str, Entry]:
    """Return the settings of a dataclass by dotted key, in field order, including nested ones.

    Args:
        settings: the dataclass instance.
        prefix: prepended to every key, including its dot.
        of: return only the settings that count towards this identity; None for all.
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
    """Return the values that count towards an identity, by dotted key; see `entries`."""
    return {key: entry.value for key, entry in entries(settings, prefix, of).items()}


def build(settings: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a copy of a settings dataclass with the given dotted keys replaced; keys of other groups are ignored."""
    changes: dict[str, Any] = {}
    for name in _names(settings):
        value, key = getattr(settings, name), f"{prefix}{key_of(name)}"
        if dataclasses.is_dataclass(value):
            changes[name] = build(value, values, f"{key}.")
        elif key in values:
            changes[name] = values[key]
    return dataclasses.replace(settings, **changes)


def conditions(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return the condition of every setting that has one, by dotted key: `{"experts.rho": "experts.kind=ftd"}`."""
    found: dict[str, str] = {}
    for name in _names(settings):
        value, key = getattr(settings, name), f"{prefix}{key_of(name)}"
        inner = conditions(value, f"{key}.") if dataclasses.is_dataclass(value) else {}
        marks = [mark for mark in _marks(type(settings))[name] if isinstance(mark, OnlyWith) and mark.field != name]
        if marks:
            other, values = f"{prefix}{key_of(marks[0].field)}", " or ".join(map(str, marks[0].values))
            keys = entries(value, f"{key}.") if dataclasses.is_dataclass(value) else (key,)
            inner = dict.fromkeys(keys, f"{other}={values}" if values else other) | inner
        found |= inner
    return found


def _names(settings: Any) -> Iterator[str]:
    return (field.name for field in dataclasses.fields(settings) if field.init)


@cache
def _marks(cls: type) -> dict[str, list[Any]]:
    """Return the annotation metadata of every field, including that of base classes, by field name."""
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
            met = met if mark.unless is None else other != mark.unless
            if not (met and (mark.field == name or _counts(settings, mark.field, of))):
                return False
    return True
