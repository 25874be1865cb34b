"""Settings given as objects, in words: from there on they go the way of the command line.

An object states every field it has, words state what they name.  So `DM(iterations=200)` also states the 256 real
images of its `batch_real`, over a recipe table that says 64, and words beside it say otherwise.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError
from dd.recipes.merge import Layer, Problems, unknown_key
from dd.recipes.schema import leaves

if TYPE_CHECKING:
    from dd.engine.method import Method
    from dd.recipes.parts import Parts

_NAMED = {"student": "student.arch", "eval": "eval.protocol"}  # a text in place of the group is its name


def plain(value: Any) -> Any:
    """Paths and devices as texts, in lists and mappings too; everything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(inner) for inner in value)
    return str(value) if type(value).__module__ == "torch" and type(value).__name__ == "device" else value


def method_in_words(overrides: Mapping[str, Any]) -> tuple["Method | None", dict[str, Any]]:
    """The `method` that is given as an object, and the settings with its reference in its place.

    Raises:
        UsageError: it is neither a text nor a method, or a class that was never registered.
    """
    given, words = overrides.get("method"), plain(overrides)
    if given is None or isinstance(words["method"], str):
        return None, words
    from dd.engine import registry
    from dd.engine.method import Method

    if isinstance(given, type) and issubclass(given, Method):
        raise UsageError(f"method={given.__name__} is a class: give an object, {given.__name__}(...), or its name")
    if not isinstance(given, Method):
        raise UsageError(f"method={given!r} is no method: give a name, a file or an object of a registered class")
    return given, {**words, "method": registry.reference(type(given))}


def shown(value: Any) -> str:
    """A setting as it may be written in Python; of an object, the fields that are not at their class's defaults."""
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    told = [f"{f.name}={shown(getattr(value, f.name))}" for f in fields(value) if getattr(value, f.name) != _default(f)]
    return f"{type(value).__name__}({', '.join(told)})"


def in_words(layer: Layer, parts: "Parts", problems: Problems, *, partial: bool = False) -> list[Layer]:
    """A layer by dotted keys, what its objects say below its words; the weaker first where it becomes two.

    A whole student or protocol stands in a layer of its own: words that name another one start from that.

    Args:
        layer: settings by dotted or nested keys, objects among them.
        parts: what is settled; says which groups there are, and of which class.
        problems: where everything wrong is noted.
        partial: the method is not known, so that unknown groups may be its own.
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
    """The fields of an object by dotted key."""
    if key not in kinds:
        raise UsageError(unknown_key(key, {}, [f"{group}." for group in kinds]))
    if not isinstance(value, kinds[key]):
        raise UsageError(f"{key}={type(value).__name__}(...) has the wrong type; expected {_expected(key, kinds)}")
    return {inner: leaf.default for inner, leaf in leaves(value, f"{key}.").items()}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _expected(key: str, kinds: Mapping[str, type]) -> str:
    name = f"a name, {key}=NAME, " if key in _NAMED else ""
    return f"{name}its settings, {key}.KEY=VALUE, or in Python a mapping or a {kinds[key].__name__}"


def _kinds(parts: "Parts") -> dict[str, type]:
    """The class of every group of settings, by its dotted key."""
    found: dict[str, type] = {}

    def look(instance: Any, prefix: str) -> None:
        for field in fields(instance):
            value, key = getattr(instance, field.name), f"{prefix}{field.name}"
            if is_dataclass(value):
                found[key] = type(value)
                look(value, f"{key}.")

    look(parts, "")
    return {key.removeprefix("method."): kind for key, kind in found.items() if key != "method"}
