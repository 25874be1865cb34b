"""What the verbs share: how settings are taken, where results and remarks go."""

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dd.errors import printable
from dd.runs.progress import colours

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., object])
_APART = 3  # blanks between two columns of a table
_NARROW = 8  # columns of a terminal, below which one of a table says nothing
_WIDE = 200  # columns of a table where no terminal sets a width

# settings are not options, but `--key=value` and `--key value` are accepted for them too
LENIENT: dict[str, bool | list[str]] = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
STRICT: dict[str, bool | list[str]] = {"help_option_names": ["-h", "--help"]}


def examples(*commands: str) -> str:
    """The end of a help text, its lines left as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def settings(function: F) -> F:
    """`key=value` words, unread, as the argument `settings`."""
    return click.argument("settings", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")(function)


def json_option(function: F) -> F:
    """`--json` as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(function)


def emit(value: object) -> None:
    """A JSON-able result for programs."""
    click.echo(as_json_text(value, indent=2))


def as_json_text(value: object, indent: int | None = None) -> str:
    """JSON without a control character, as a text of JSON may write every one."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(c if c == "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in text)


def remark(text: str) -> None:
    """A line for the user that is not part of the result."""
    click.echo(printable(text), err=True)


def console(wide: int = _WIDE) -> "Console":
    """Results for people, `wide` columns where no terminal sets them, and plain there, or with `NO_COLOR`."""
    from rich.console import Console

    class Printable(Console):
        def print(self, *objects: object, **how: Any) -> None:
            """Texts without what a terminal would act on; tables are made so, see `plain_table`."""
            super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **how)

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else wide
    return Printable(width=width, color_system=colours(), highlight=False, soft_wrap=False, emoji=False, markup=False)


def plain_table(*headings: str, show_header: bool = True, keys: int = 1) -> "Table":
    """A table without lines, three blanks between its columns; the first `keys` are never cut nor broken."""
    from rich.table import Table

    class Printable(Table):
        def add_row(self, *cells: Any, **how: Any) -> None:
            """Texts without what a terminal would act on."""
            super().add_row(*(printable(c, keep="") if isinstance(c, str) else c for c in cells), **how)

    table = Printable(*headings, box=None, pad_edge=False, padding=(0, _APART, 0, 0), show_header=show_header)
    for number, column in enumerate(table.columns):
        column.overflow, column.no_wrap = "fold", number < keys
    return table


def print_table(out: "Console", table: "Table") -> None:
    """Print a table without the blanks that would fill its last column.

    Where it is too wide, other columns are broken; the last ones go where there is no room even for that.
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
    out.width = max(out.width, needed())  # the terminal breaks keys, if it must; they are all there


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show the library's own log, message by message, on stderr."""
    log = logging.getLogger("dd")
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())
    log.setLevel(level)


class _Stderr(logging.Handler):
    """Looks `sys.stderr` up at every message: a progress bar may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(printable(self.format(record)) + "\n")
