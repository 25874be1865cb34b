"""Single settings: how a value is read from a text, checked against its annotation, and what is said of it in words."""

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
    """The value a text spells in TOML, else in Python, else in JSON; else the text itself.

    Dates stay texts, and so does whatever merely contains a comment.
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
    """One setting: its dotted key, the annotation that says what it may be, and its default."""

    key: str
    annotation: Any
    default: Any

    def check(self, value: Any) -> Any:
        """The value as the annotation wants it.

        Whole numbers serve as floats and whole floats (`1e3`) as ints; texts are read as values where a text is not
        wanted; nothing but a truth value is one.

        Raises:
            ValueError: one line with the value and what was expected.
        """
        adapter = TypeAdapter(self.annotation, config=_CONFIG)
        first: ValidationError | None = None
        for candidate in _candidates(value, self.annotation):
            try:
                checked = adapter.validate_python(candidate)
            except ValidationError as error:
                # a text that reads as a number says more about what is wrong as that number
                first = error if first is None or _trouble(error) == _OUT_OF_RANGE or _own_words(error) else first
                continue
            if isinstance(checked, float) and not math.isfinite(checked):
                raise ValueError(f"{self.key}={value!r} is out of range; expected a finite number")
            return checked
        if first is not None and (words := _own_words(first)):
            raise ValueError(f"{self.key}={_shown(value)}: {words}")
        raise ValueError(f"{self.key}={_shown(value)} {_trouble(first)}; expected {describe(self.annotation)}")


def leaves(settings: Any, prefix: str = "") -> dict[str, Leaf]:
    """All settings of a settings dataclass by dotted key, in the order of its fields; nested ones included."""
    return {key: Leaf(key, *entry) for key, entry in entries(settings, prefix).items()}


def groups(keys: Mapping[str, Any]) -> set[str]:
    """Every dotted prefix under which keys stand: `{"experts", "data", ...}`."""
    return {key[:i] for key in keys for i, letter in enumerate(key) if letter == "."}


def flatten(table: Mapping[str, Any], known_groups: set[str], prefix: str = "") -> dict[str, Any]:
    """Nested tables to dotted keys, going down only where a group of settings is known by that name."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key in known_groups:
            flat |= flatten(value, known_groups, f"{key}.")
        else:
            flat[key] = value
    return flat


def describe(annotation: Any) -> str:
    """What an annotation allows, in words: `"a whole number >= 1 or null"`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        return _bounded(describe(base), metadata)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(part) for part in get_args(annotation)))
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(annotation))
    if origin in (tuple, list):
        noun, bound, rest = describe(get_args(annotation)[0]).removeprefix("a ").partition(" >")
        return f"a list of {noun}s{bound}{rest}"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounded(words: str, metadata: list[Any]) -> str:
    flat = [m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [
        f"{sign} {getattr(m, name)}" for m in flat for kind, (sign, name) in _SIGNS.items() if isinstance(m, kind)
    ]
    if not bounds:
        return words
    # "a number or null, > 0": the bound stands for the number
    return f"{words}, {' and '.join(bounds)}" if " or " in words else f"{words} {' and '.join(bounds)}"


def explained(settings: Any, prefix: str = "") -> dict[str, str]:
    """What the docstrings below the fields of a settings dataclass, and of those in its fields, say, by dotted key.

    A class speaks for the fields that it redeclares, its bases for the others; a field without a docstring is left
    out.
    """
    found: dict[str, str] = {}
    for cls in reversed(type(settings).__mro__):
        if is_dataclass(cls):
            found |= {f"{prefix}{key_of(name)}": words for name, words in _docstrings(cls).items()}
    known = entries(settings, prefix)
    found = {key: words for key, words in found.items() if key in known}  # groups are explained by their own settings
    for field in fields(settings):
        if is_dataclass(value := getattr(settings, field.name)):
            found |= explained(value, f"{prefix}{key_of(field.name)}.")
    return found


class _Schema(GenerateJsonSchema):
    """A JSON schema of which only the descriptions are read."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        pass

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def _docstrings(cls: type) -> dict[str, str]:
    """Of the fields that a dataclass itself declares."""
    inside: Any = types.GenericAlias(list, (cls,))  # a dataclass takes the configuration of what it stands in
    adapter = TypeAdapter(inside, config=_HELP)
    schema = adapter.json_schema(by_alias=False, schema_generator=_Schema)
    own = schema["$defs"][schema["items"]["$ref"].rpartition("/")[2]].get("properties", {})
    return {name: " ".join(about["description"].split()) for name, about in own.items() if "description" in about}


def _candidates(value: Any, annotation: Any) -> list[Any]:
    """The readings of a value that are tried one after another."""
    if isinstance(value, str) and value in ("null", "None") and _optional(annotation):
        return [None]  # how a resolved recipe spells "nothing", which TOML cannot
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
        tried.append(tuple(listed))  # 5,10,20: brackets mean something to a shell
    return tried


def _unquoted(text: str) -> list[tuple[str, ...]]:
    """A list of texts without quotation marks, `a,b` or `[a, b]`; one text is a list of one."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if text.startswith("[") and set(inner) & set("[]'\""):
        return []
    return [tuple(item.strip() for item in inner.split(",") if item.strip())]


def _texts(annotation: Any) -> bool:
    """Whether an annotation is a tuple of any number of texts."""
    if get_origin(annotation) is Annotated:
        return _texts(get_args(annotation)[0])
    return get_origin(annotation) is tuple and get_args(annotation) == (str, ...)


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
    """What a validator on the field itself says; nothing where none refuses."""
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
    """Whether a value is made of numbers, texts, truth values, nothing, lists and mappings only."""
    if isinstance(value, list | tuple):
        return all(_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)
