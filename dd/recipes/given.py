"""User input: words of a command line, `lr_img=1e-05 --ipc 10 students=[1,2]`, or Python objects.

Both become settings by key.  Words set only what they name.  An object sets every field it has: `DM(iterations=200)`
also sets `batch_real` to its default of 256, even if the recipe table says 64.  Words next to an object override both.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError
from dd.recipes.layers import Layer, Problems, unknown_key
from dd.recipes.schema import parse_value
from dd.settings import entries

if TYPE_CHECKING:
    from dd.engine.method import Method
    from dd.recipes.layers import Parts

log = logging.getLogger(__name__)

_PAIR = re.compile(r"(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
_FLAG = re.compile(r"--[A-Za-z_][\w.-]*")
_HIDDEN = "_wandb"  # W&B may pass this key to a preempted or resumed sweep run; it is not for this program
_NAMED = {"student": "student.arch", "eval": "eval.protocol"}  # a plain string for the group is its name


def parse_overrides(args: Sequence[str]) -> dict[str, Any]:
    """Parse `key=value` words into a flat mapping of dotted keys to values; later words override earlier ones.

    Also accepts the forms that the argument macros of a W&B sweep produce: `--key=value`, `--key value`, `--flag`
    (true), `+key=value`, `++key=value`, and one JSON object `{"key": value, ...}`.

    Raises:
        UsageError: one line for every word in none of these forms.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in _pairs(list(args), problems):
        if key == _HIDDEN:
            log.debug("ignored %s, which W&B adds for itself", key)
        else:
            values[key.replace("-", "_")] = value
    if problems:
        raise UsageError("\n".join(problems))
    return values


def without(args: Sequence[str], keys: Callable[[str], bool]) -> list[str]:
    """Return the words of a command line, in any of the forms of `parse_overrides`, without the keys that `keys` holds.

    Args:
        args: the words, which `parse_overrides` accepts.
        keys: whether a key is left out.
    """
    kept: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        if word.startswith("{"):
            left = {key: value for key, value in json.loads(word).items() if not keys(key.replace("-", "_"))}
            kept.append(json.dumps(left))
            continue
        own = [word]
        if "=" not in word and words and _is_value(words[0]):
            own.append(words.pop(0))
        if not keys(word.lstrip("+-").partition("=")[0].replace("-", "_")):
            kept += own
    return kept


def _pairs(words: list[str], problems: list[str]) -> Iterator[tuple[str, Any]]:
    while words:
        word = words.pop(0)
        if word.startswith("{"):
            yield from _json_object(word, problems)
        elif word.startswith("~"):
            problems.append(f"{word!r}: a setting cannot be deleted; give it the value you want, for example key=null")
        elif match := _PAIR.fullmatch(word.removeprefix("--") if word.startswith("--") else word.lstrip("+")):
            yield match["key"], parse_value(match["value"])
        elif _FLAG.fullmatch(word):
            yield word[2:], parse_value(words.pop(0)) if words and _is_value(words[0]) else True
        else:
            problems.append(f"{word!r}: settings are written key=value, for example method=datm")


def _is_value(word: str) -> bool:
    """Return whether the word after `--key` is its value rather than the next setting."""
    return not (word.startswith("--") or _PAIR.fullmatch(word.lstrip("+")))


def _json_object(word: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    try:
        value = json.loads(word)
    except (ValueError, RecursionError) as error:
        problems.append(f"{word!r}: not a JSON object ({error})")
        return
    yield from value.items()


def plain(value: Any) -> Any:
    """Convert paths and devices to strings, also inside lists and mappings; leave other values unchanged."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(inner) for inner in value)
    return str(value) if type(value).__module__ == "torch" and type(value).__name__ == "device" else value


def method_in_words(overrides: Mapping[str, Any]) -> tuple["Method | None", dict[str, Any]]:
    """Split off a `method` given as an object; the settings get a reference to it instead.

    Raises:
        UsageError: the method is neither a string nor a method object, or its class was never registered.
    """
    given, words = overrides.get("method"), plain(overrides)
    if given is None or isinstance(words["method"], str):
        return None, words
    from dd.engine import registry
    from dd.engine.method import Method

    if isinstance(given, type) and issubclass(given, Method):
        raise UsageError(f"method={given.__name__} is a class: give an instance, {given.__name__}(...), or its name")
    if not isinstance(given, Method):
        raise UsageError(f"method={given!r} is not a method: give a name, a file or an instance of a registered class")
    return given, {**words, "method": registry.reference(type(given))}


def shown(value: Any) -> str:
    """Format a setting as Python source; for an object, only the fields that differ from its class's defaults."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    told = [f"{f.name}={shown(getattr(value, f.name))}" for f in fields(value) if getattr(value, f.name) != _default(f)]
    return f"{type(value).__name__}({', '.join(told)})"


def in_words(layer: Layer, parts: "Parts", problems: Problems, *, partial: bool = False) -> list[Layer]:
    """Convert a layer to dotted keys; words override the fields of objects.

    A student or protocol object becomes a weaker layer of its own, so that a name given next to it replaces it.

    Args:
        layer: settings by dotted or nested keys, possibly with objects.
        parts: the parts of the run, which define the groups and their classes.
        problems: collects errors.
        partial: the method is unknown, so unknown groups may belong to it.
    """
    kinds = _kinds(parts)
    whole: dict[str, Any] = {}
    stated: dict[str, Any] = {}
    words: dict[str, Any] = {}

    def sort(table: Mapping[str, Any], prefix: str) -> None:
        for name, value in table.items():
            key = f"{prefix}{name}"
            if key in _NAMED and isinstance(value, str):
                words[_NAMED[key]] = value
            elif is_dataclass(value) and not isinstance(value, type):
                if not (partial and key not in kinds):
                    with problems.caught(layer.where):
                        (whole if key in _NAMED else stated).update(_stated(key, value, kinds))
            elif isinstance(value, Mapping) and key in kinds:
                sort(value, f"{key}.")
            elif key in kinds:
                problems.add(f"{key}={value!r} has the wrong type; expected {_expected(key, kinds)}", layer.where)
            else:
                words[key] = value

    sort(layer.settings, "")
    layers = [Layer(layer.where, whole), Layer(layer.where, stated | words)]
    return layers if whole else layers[1:]


def _stated(key: str, value: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the fields of an object by dotted key."""
    if key not in kinds:
        raise UsageError(unknown_key(key, {}, [f"{group}." for group in kinds]))
    if not isinstance(value, kinds[key]):
        raise UsageError(f"{key}={type(value).__name__}(...) has the wrong type; expected {_expected(key, kinds)}")
    return {inner: entry.value for inner, entry in entries(value, f"{key}.").items()}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _expected(key: str, kinds: Mapping[str, type]) -> str:
    name = f"a name, {key}=NAME, " if key in _NAMED else ""
    return f"{name}its settings, {key}.KEY=VALUE, or in Python a mapping or a {kinds[key].__name__}"


def _kinds(parts: "Parts") -> dict[str, type]:
    """Return the class of every group of settings, by dotted key."""
    found: dict[str, type] = {}

    def look(instance: Any, prefix: str) -> None:
        for field in fields(instance):
            value, key = getattr(instance, field.name), f"{prefix}{field.name}"
            if is_dataclass(value):
                found[key] = type(value)
                look(value, f"{key}.")

    look(parts, "")
    return {key.removeprefix("method."): kind for key, kind in found.items() if key != "method"}
