"""What a method and its settings are, in the words of their docstrings."""

import inspect
import re
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from dd.recipes.checks import instance
from dd.recipes.schema import describe, key_of, leaves

_HEADING = re.compile(r"Attributes\b.*:")  # "Attributes:", "Attributes beyond those of SRe2L:"
_ENTRY = re.compile(r" {4}(\w+): (.*)")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: dotted.
        default: where nothing is said about it.
        type: what it may be, in words.
        about: what it is; empty where no docstring says.
    """

    key: str
    default: Any
    type: str
    about: str


@dataclass(frozen=True)
class About:
    """A method.

    Attributes:
        name: as it is run.
        paper: where it is from, empty where it is from nowhere.
        text: its docstring without the settings.
        settings: its own, those of its groups included.
    """

    name: str
    paper: str
    text: str
    settings: tuple[Setting, ...]


def about(name: str) -> About:
    """What a method is and what can be set.

    Raises:
        UsageError: no such method, or one with a field that has no default.
        RunError: a plug-in that fails to import.
    """
    from dd.engine import registry

    cls = registry.get(name)
    method = instance(cls, name)
    words = settings_in_words(method)
    settings = (
        Setting(leaf.key, leaf.default, describe(leaf.annotation), words.get(leaf.key, ""))
        for leaf in leaves(method).values()
    )
    return About(cls.name, cls.paper, _parts(cls)[0], tuple(settings))


def settings_in_words(instance: Any, prefix: str = "") -> dict[str, str]:
    """What the docstrings of a settings dataclass and of those in its fields say of each setting, by dotted key.

    A base class speaks for what it has; a class itself has the last word.
    """
    found: dict[str, str] = {}
    for cls in reversed(type(instance).__mro__):
        found |= {f"{prefix}{name}": words for name, words in _parts(cls)[1].items()}
    for field in fields(instance):
        if is_dataclass(value := getattr(instance, field.name)):
            found |= settings_in_words(value, f"{prefix}{field.name}.")
    return found


def _parts(cls: type) -> tuple[str, dict[str, str]]:
    """A class's own docstring: what stands before its attributes, and what it says of each."""
    lines = inspect.cleandoc(vars(cls).get("__doc__") or "").splitlines()
    start = next((at for at, line in enumerate(lines) if _HEADING.fullmatch(line)), len(lines))
    entries: dict[str, list[str]] = {}
    last: list[str] = []
    for line in lines[start + 1 :]:
        if line and not line.startswith(" "):
            break
        if match := _ENTRY.fullmatch(line):
            entries[match[1]] = last = [match[2]]
        else:
            last.append(line.strip())
    return "\n".join(lines[:start]).strip(), {key_of(name): " ".join(words).strip() for name, words in entries.items()}
