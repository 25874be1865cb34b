"""Single settings: parsing a value, validating it against its annotation, and describing it in words."""

import ast
import json
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from dd.settings import entries, key_of

_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)
_HELP = ConfigDict(use_attribute_docstrings=True, arbitrary_types_allowed=True)
_WORDS = {"null": None, "None": None, "True": True, "False": False}
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_SIGNS = {at.Ge: (">=", "ge"), at.Gt: (">", "gt"), at.Le: ("<=", "le"), at.Lt: ("<", "lt")}
_RANGE_ERRORS = ("greater_than", "less_than", "multiple_of", "finite_number", "too_short", "too_long", "string_pattern")
_OUT_OF_RANGE = "is out of range"


def parse_value(text: str) -> Any:
    """Parse a string as TOML, else as Python, else as JSON; if all fail, return the string itself.

    Dates stay strings, and so does text that merely contains a comment.
    """
    text = text.strip()
    if text in _WORDS:
        return _WORDS[text]
    if not text or ("#" in text and text[0] not in "\"'[{"):
        return text
    for read in (_toml, ast.literal_eval, json.loads):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(value, tuple) and text[0] != "(":
            return text  # 0,1,2 without brackets
        if _plain(value):
            return list(value) if isinstance(value, tuple) else value
    return text


@dataclass(frozen=True)
class Leaf:
    """One setting: its dotted key, the annotation that restricts it, and its default."""

    key: str
    annotation: Any
    default: Any

    def check(self, value: Any) -> Any:
        """Return the value converted to the annotated type.

        Integers are accepted as floats, and integral floats (`1e3`) as ints.  Strings are parsed unless a string is
        expected. Only true and false are accepted as booleans.

        Raises:
            ValueError: one line with the value and what was expected.
        """
        adapter = TypeAdapter(self.annotation, config=_CONFIG)
        first: ValidationError | None = None
        for candidate in _candidates(value, self.annotation):
            try:
                checked = adapter.validate_python(candidate)
            except ValidationError as error:
                # if a string parses as a number, the error about the number is more helpful
                first = error if first is None or _trouble(error) == _OUT_OF_RANGE or _own_words(error) else first
                continue
            if isinstance(checked, float) and not math.isfinite(checked):
                raise ValueError(f"{self.key}={value!r} is out of range; expected a finite number")
            return checked
        if first is not None and (words := _own_words(first)):
            raise ValueError(f"{self.key}={_shown(value)}: {words}")
        raise ValueError(f"{self.key}={_shown(value)} {_trouble(first)}; expected {describe(self.annotation)}")


def leaves(settings: Any, prefix: str = "") -> dict[str, Leaf]:
    """Return all settings of a dataclass by dotted key, in field order, including nested ones."""
    return {key: Leaf(key, *entry) for key, entry in entries(settings, prefix).items()}


def groups(keys: Mapping[str, Any]) -> set[str]:
    """Return every dotted prefix of the keys: `{"experts", "data", ...}`."""
    return {key[:i] for key in keys for i, letter in enumerate(key) if letter == "."}


def flatten(table: Mapping[str, Any], known_groups: set[str], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys, descending only into known groups of settings."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key in known_groups:
            flat |= flatten(value, known_groups, f"{key}.")
        else:
            flat[key] = value
    return flat


def describe(annotation: Any) -> str:
    """Describe the values that an annotation allows: `"a whole number >= 1 or null"`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        return _bounded(describe(base), metadata)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(part) for part in get_args(annotation)))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(annotation))
    if origin in (tuple, list):
        inner = describe(get_args(annotation)[0])
        noun, bound, rest = inner.removeprefix("a ").partition(" >")
        return f"a list of {noun}{'s' * (noun != inner)}{bound}{rest}"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounded(words: str, metadata: list[Any]) -> str:
    flat = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [
        f"{sign} {getattr(m, name)}" for m in flat for kind, (sign, name) in _SIGNS.items() if isinstance(m, kind)
    ]
    if not bounds:
        return words
    # "a number or null, > 0": the bound applies to the number
    return f"{words}, {' and '.join(bounds)}" if " or " in words else f"{words} {' and '.join(bounds)}"


def explained(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return the docstrings below the fields of a settings dataclass, including nested ones, by dotted key.

    A subclass may override the docstring of a field.  Fields without a docstring are omitted.
    """
    found: dict[str, str] = {}
    for cls in reversed(type(settings).__mro__):
        if is_dataclass(cls):
            found |= {f"{prefix}{key_of(name)}": words for name, words in _docstrings(cls).items()}
    known = entries(settings, prefix)
    found = {key: words for key, words in found.items() if key in known}  # groups are described by their settings
    for field in fields(settings):
        if is_dataclass(value := getattr(settings, field.name)):
            found |= explained(value, f"{prefix}{key_of(field.name)}.")
    return found


class _Schema(GenerateJsonSchema):
    """JSON schema generator of which only the descriptions are used."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        pass

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def _docstrings(cls: type) -> dict[str, str]:
    """Return the docstrings of the fields that a dataclass itself declares."""
    inside: Any = types.GenericAlias(list, (cls,))  # a dataclass inherits the configuration of its container
    adapter = TypeAdapter(inside, config=_HELP)
    schema = adapter.json_schema(by_alias=False, schema_generator=_Schema)
    own = schema["$defs"][schema["items"]["$ref"].rpartition("/")[2]].get("properties", {})
    return {name: " ".join(about["description"].split()) for name, about in own.items() if "description" in about}


def _candidates(value: Any, annotation: Any) -> list[Any]:
    """Return the interpretations of a value, in the order to try them."""
    if isinstance(value, str) and value in ("null", "None") and _optional(annotation):
        return [None]  # written by resolved recipes, because TOML has no null
    tried = [value]
    if isinstance(value, str):
        tried.append(None if value.lower() == "none" else parse_value(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        tried.append(str(value))
    for reading in list(tried):
        if isinstance(reading, float) and reading.is_integer():
            tried.append(int(reading))
        elif isinstance(reading, list):
            tried.append(tuple(reading))
    if isinstance(value, str) and _texts(annotation):
        tried += _unquoted(value)
    elif isinstance(value, str) and "," in value and isinstance(listed := parse_value(f"[{value}]"), list):
        tried.append(tuple(listed))  # 5,10,20: brackets need quoting in a shell
    if _member(annotation) is not None:  # a single number is a list of one, as a single string is
        tried += [(one,) for one in tried if isinstance(one, int | float) and not isinstance(one, bool)]
    return tried


def _unquoted(text: str) -> list[tuple[str, ...]]:
    """Parse a list of unquoted strings, `a,b` or `[a, b]`; a single string is a list of one."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if text.startswith("[") and set(inner) & set("[]'\""):
        return []
    return [tuple(item.strip() for item in inner.split(",") if item.strip())]


def _texts(annotation: Any) -> bool:
    """Return whether an annotation is a tuple of any number of strings, or of certain words."""
    kind = _member(annotation)
    return kind is str or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))


def _member(annotation: Any) -> Any:
    """Return what an annotation allows in a tuple of any length; None if it is no such tuple."""
    if get_origin(annotation) is Annotated:
        return _member(get_args(annotation)[0])
    is_tuple = get_origin(annotation) is tuple and get_args(annotation)[1:] == (...,)
    return get_args(annotation)[0] if is_tuple else None


def _optional(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _optional(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_optional(part) for part in get_args(annotation))
    return annotation in (None, type(None))


def _trouble(error: ValidationError | None) -> str:
    kinds = [] if error is None else [e["type"] for e in error.errors(include_url=False, include_context=False)]
    if any(kind.startswith(_RANGE_ERRORS) for kind in kinds):
        return _OUT_OF_RANGE
    return "is not a choice" if "literal_error" in kinds else "has the wrong type"


def _own_words(error: ValidationError) -> str:
    """Return the message of the field's own validator, or an empty string if none rejected the value."""
    said = [e["msg"] for e in error.errors(include_url=False) if e["type"] == "value_error"]
    return said[0].removeprefix("Value error, ") if said else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _toml(text: str) -> Any:
    table = tomllib.loads(f"v = {text}")
    if list(table) != ["v"]:
        raise ValueError("more than one value")
    return table["v"]


def _plain(value: Any) -> bool:
    """Return whether a value consists only of numbers, strings, booleans, None, lists and mappings."""
    if isinstance(value, list | tuple):
        return all(_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)
