"""Strict validation of untrusted JSON values against dataclasses: known keys, exact types, valid ranges."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from dd.errors import UsageError, nearest

T = TypeVar("T")

_WHOLE = 2**63  # no integer setting reaches this
_SHOWN = 60  # maximum length of a value or a key in a message
_PROBLEMS = 5


def typed(kind: type[T], values: object, named: str) -> T:
    """Build a dataclass from JSON values read from a file.

    Missing fields take their defaults.  Numbers and strings are not converted into each other.

    Args:
        kind: the dataclass; its fields may be dataclasses.
        values: the parsed JSON.
        named: its name in the file, for example "protocol"; "" for the top level.

    Raises:
        UsageError: an unknown key (close matches are suggested), a value of the wrong type or out of range; one line.
    """
    from pydantic import ValidationError

    problems = [*_strange(kind, values, named), *unusual(values, named)]
    if not problems:
        try:
            return _adapter(kind).validate_json(json.dumps(values, default=dict), strict=True)
        except ValidationError as error:
            problems = [_words(one, values, named) for one in error.errors(include_url=False)]
        except (UsageError, ValueError, TypeError, RecursionError) as error:
            problems = [f"{named}: {error}" if named else str(error)]
    raise UsageError(one_line(problems))


def unusual(value: object, named: str) -> Iterator[str]:
    """Yield one problem per number, at any depth, that is not finite or does not fit in 64 bits."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from unusual(inner, _below(named, key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from unusual(inner, named)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{named} is {value}, not a finite number"
    elif isinstance(value, int) and not -_WHOLE <= value < _WHOLE:
        yield f"{named} is a whole number of {value.bit_length()} bits, larger than any that is meant"


def one_line(problems: list[str]) -> str:
    """Join the first few problems into one line and count the rest."""
    found = list(dict.fromkeys(problems))
    more = f"; and {len(found) - _PROBLEMS} more" if len(found) > _PROBLEMS else ""
    return "; ".join(" ".join(one.split()) for one in found[:_PROBLEMS]) + more


def unknown_keys(values: Mapping[str, object], known: list[str], named: str) -> Iterator[str]:
    """Yield one problem for each unknown key."""
    for key in values:
        if key not in known:
            yield f"unknown key {_below(named, key)!r}{nearest(_short(str(key)), known)}"


def _strange(kind: type[Any], values: object, named: str) -> Iterator[str]:
    """Yield one problem for each key, at any depth, that is not a field."""
    if not isinstance(values, Mapping):
        return  # the type check reports it
    hints = get_type_hints(kind)
    yield from unknown_keys(values, list(hints), named)
    for name, hint in hints.items():
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner) and name in values:
                yield from _strange(inner, values[name], _below(named, name))


@cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _words(error: Any, values: object, named: str) -> str:
    """Format one pydantic error, named by its keys only."""
    place, found, missing = named, values, error["type"] == "missing"
    for part in error["loc"]:
        if missing and isinstance(found, Mapping) and part not in found:
            place = _below(place, part)
        if not isinstance(found, Mapping) or part not in found:
            break  # the remaining parts name types, not keys
        place, found = _below(place, part), found[part]
    text = error["msg"].removeprefix("Value error, ")
    is_seen = "" if missing or found is values else f" (it is {_shown(found)})"
    return f"{place}: {text}{is_seen}" if place else text


def _below(named: str, key: object) -> str:
    return f"{named}.{_short(str(key))}" if named else _short(str(key))


def _shown(value: object) -> str:
    return _short(json.dumps(value, default=dict, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
