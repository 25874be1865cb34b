"""What there is, as data: methods, recipes, protocols."""

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from dd.recipes.listing import cells
from dd.recipes.tables import Cell

if TYPE_CHECKING:
    from dd.engine.registry import Entry
    from dd.evaluation.protocols import Protocol


def list_methods(pattern: str = "*") -> "list[Entry]":
    """The methods that can be run, plug-ins included; a broken one with its error.

    Args:
        pattern: of names, with `*` and `?`, as "sre2l*".
    """
    from dd.engine import registry

    return [entry for entry in registry.entries() if fnmatch(entry.name, pattern)]


def list_recipes(method: str | Path) -> list[Cell]:
    """The cells of a method's recipe file: settings that are known for a data set and size, and what they should reach.

    Args:
        method: a name, or the path of a method's file.

    Raises:
        UsageError: no such method, or a file with misplaced tables.
    """
    return cells(str(method))


def list_protocols(pattern: str = "*") -> "list[Protocol]":
    """The evaluation protocols; each one's name is its field `protocol`.

    Args:
        pattern: of names, with `*` and `?`, as "sre2l*".
    """
    from dd.evaluation.protocols import PROTOCOLS

    return [protocol for name, protocol in PROTOCOLS.items() if fnmatch(name, pattern)]
