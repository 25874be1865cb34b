"""What the verbs share: how settings are taken, where results and remarks go."""

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])
_WIDE = 200  # columns of a table where nobody's terminal sets a width

# settings are no options, but `--key=value` and `--key value` are accepted for them too
LENIENT: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
STRICT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


def examples(*commands: str) -> str:
    """The end of a help text, its lines left as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def settings(function: F) -> F:
    """`key=value` words, unread, as the argument `settings`."""
    return click.argument("settings", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")(function)


def json_option(function: F) -> F:
    """`--json` as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(function)


def emit(value: Any) -> None:
    """A result for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def remark(text: str) -> None:
    """A line for the user that is no result."""
    click.echo(text, err=True)


def console(wide: int = _WIDE) -> "Console":
    """Results for people, `wide` columns where no terminal sets them, and plain there, or with `NO_COLOR`."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else wide
    return Console(width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)


def plain_table(*headings: str, show_header: bool = True) -> "Table":
    """A table without lines, three blanks between its columns."""
    from rich.table import Table

    return Table(*headings, box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=show_header)


def print_table(out: "Console", table: "Table") -> None:
    """Print a table without the blanks that would fill its last column."""
    with out.capture() as captured:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show the library's own log, message by message, on stderr."""
    log = logging.getLogger("dd")
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())
    log.setLevel(level)


class _Stderr(logging.Handler):
    """Looks `sys.stderr` up at every message: a progress bar may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
