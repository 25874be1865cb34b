"""Shared by all verbs: parsing settings, and printing results and remarks."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dd.errors import UsageError, printable, unknown
from dd.runs.progress import colours

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T", bound="DataclassInstance")
F = TypeVar("F", bound=Callable[..., object])
_APART = 3  # blanks between two columns of a table
_NARROW = 8  # narrower table columns are useless
_WIDE = 200  # width of a table if the output is not a terminal

# `--key=value` and `--key value` are accepted as settings too, so click must pass unknown options through
LENIENT: dict[str, bool | list[str]] = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
STRICT: dict[str, bool | list[str]] = {"help_option_names": ["-h", "--help"]}


def examples(*commands: str) -> str:
    """Return the examples that end a help text, without rewrapping."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def settings(function: F) -> F:
    """Decorator: collect raw `key=value` words in the argument `settings`."""
    return click.argument("settings", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")(function)


def paths_and_settings(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Separate paths from settings: `key=value`, `--key value`, `--key=value`, JSON; a path may contain `=`."""
    paths, found, every = list[str](), list[str](), list(words)
    for before, word in zip(("", *every), every, strict=False):
        is_value = before.startswith("--") and "=" not in before
        setting = is_value or word.startswith(("-", "+", "{")) or ("=" in word and not os.path.exists(word))
        (found if setting else paths).append(word)
    return paths, found


def flag(key: str, value: object) -> bool:
    """Return a setting, which must be true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{key}={value}: say true or false")
    return value


def keys_of(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return the keys of a verb as a dataclass whose fields are texts and flags.

    Raises:
        UsageError: unknown key, or a flag that is neither true nor false.
    """
    types = {one.name: one.type for one in fields(cls)}
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            raise unknown("key", key, types)
        given[key] = flag(key, value) if types[key] is bool else str(value)
    return cls(**given)


def json_option(function: F) -> F:
    """Decorator: add `--json` as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(function)


def emit(value: object) -> None:
    """Print a JSON-serialisable result for programs."""
    click.echo(as_json_text(value, indent=2))


def as_json_text(value: object, indent: int | None = None) -> str:
    """Return JSON with all control characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(c if c == "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in text)


def remark(text: str) -> None:
    """Print a line on stderr that is not part of the result."""
    click.echo(printable(text), err=True)


def console(wide: int = _WIDE) -> "Console":
    """Return a console for results, `wide` columns and unstyled if not on a terminal; unstyled also with `NO_COLOR`."""
    from rich.console import Console

    class Printable(Console):
        def print(self, *objects: object, **how: Any) -> None:
            """Print, escaping control characters in strings; for tables see `plain_table`."""
            super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **how)

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else wide
    return Printable(width=width, color_system=colours(), highlight=False, soft_wrap=False, emoji=False, markup=False)


def plain_table(*headings: str, show_header: bool = True, keys: int = 1) -> "Table":
    """Return a table without borders and three blanks between columns; the first `keys` columns are never truncated."""
    from rich.table import Table

    class Printable(Table):
        def add_row(self, *cells: Any, **how: Any) -> None:
            """Add a row, escaping control characters in strings."""
            super().add_row(*(printable(c, keep="") if isinstance(c, str) else c for c in cells), **how)

    table = Printable(*headings, box=None, pad_edge=False, padding=(0, _APART, 0, 0), show_header=show_header)
    for number, column in enumerate(table.columns):
        column.overflow, column.no_wrap = "fold", number < keys
    return table


def print_table(out: "Console", table: "Table") -> None:
    """Print a table without trailing blanks.

    If the table is too wide, columns other than the keys are wrapped; if that is not enough, the last columns are
    dropped.
    """
    _fit(out, table)
    with out.capture() as captured:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _fit(out: "Console", table: "Table") -> None:
    from rich.cells import cell_len

    for column in table.columns:
        heading = [column.header] if table.show_header else []
        longest = max((cell_len(str(cell)) for cell in (*heading, *column.cells)), default=0)
        column.min_width = longest if column.no_wrap else min(longest, _NARROW)
    keys = sum(bool(column.no_wrap) for column in table.columns)

    def needed() -> int:
        return sum((column.min_width or 0) + _APART for column in table.columns) - _APART

    while needed() > out.width and len(table.columns) > keys:
        table.columns.pop()
    out.width = max(out.width, needed())  # a narrow terminal may wrap the keys, but shows all of them


def several(key: str, value: Any) -> list[Any] | None:
    """Return the values of a key that takes one or several, `a,b` or `[a,b]`; None for a single one.

    Raises:
        UsageError: a value appears twice or is empty, or a list has fewer than two.
    """
    from dd.recipes import parse_value

    values = [parse_value(word) for word in value.split(",")] if isinstance(value, str) and "," in value else value
    if not isinstance(values, list):
        return None
    found: list[Any] = values
    if len(found) < 2:
        raise UsageError(f"{key}={found}: give one value, or several: {key}=A,B")
    if "" in found:
        raise UsageError(f"{key}={value}: a value is empty")
    if twice := [one for at, one in enumerate(found) if one in found[:at]]:
        raise UsageError(f"{key}={value}: {twice[0]} is named twice")
    return found


def log_to_stderr(level: int = logging.INFO) -> None:
    """Print the library's log messages on stderr."""
    log = logging.getLogger("dd")
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())
    log.setLevel(level)


class _Stderr(logging.Handler):
    """Looks up `sys.stderr` for every message, because a progress bar may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(printable(self.format(record)) + "\n")
