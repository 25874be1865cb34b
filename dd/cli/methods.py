"""`dd methods`: available methods and their settings."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.cli.index import indexed, plug_ins

if TYPE_CHECKING:
    from dd.recipes.listing import About

_DEFAULTS = 40  # maximum width of the column of defaults
_ELSEWHERE = """Every run also has settings of data, student and eval; with the values of a recipe: dd show method=NAME
Evaluation protocols, eval.protocol=NAME: dd protocols
Architectures, student.arch=NAME: {architectures}, timm:NAME, torchvision:NAME"""


@click.command(
    "methods",
    context_settings=STRICT,
    epilog=examples("dd methods", "dd methods cvdd", "dd methods --json"),
    short_help="List the methods, plug-ins included, or the settings of one.",
)
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List all available methods, built in or from installed packages; broken ones with their error.

    With a NAME (or a method's file), show that method: its paper, what it does, and its settings with their defaults.
    """
    if name is not None:
        from dd.recipes import about

        found = about(name)
        emit(asdict(found)) if as_json else _show(found)
        return
    _list(as_json)


def _list(as_json: bool) -> None:
    found = indexed("methods", _entries, plug_ins)
    if as_json:
        emit({"methods": found})
        return
    table = plain_table("method", "family", "package", "")
    for entry in found:
        words = entry["summary"] if entry["error"] is None else f"broken: {entry['error']}"
        table.add_row(entry["name"], entry["family"], entry["package"], words)
    print_table(console(), table)


def _entries() -> list[dict[str, Any]]:
    from dd.engine.registry import list_methods

    return [asdict(entry) for entry in list_methods()]


def _show(method: "About") -> None:
    click.echo(f"{method.name}  {method.paper}".rstrip())
    click.echo(f"\n{method.text}\n")
    table = plain_table("setting", "default", "" if method.settings else "(no settings of its own)")
    table.columns[1].max_width = _DEFAULTS
    for setting in method.settings:
        table.add_row(setting.key, _value(setting.default), setting.words)
    print_table(console(), table)
    from dd.networks.names import ARCHITECTURES, NETWORKS

    click.echo(f"\n{_ELSEWHERE.format(architectures=', '.join((*ARCHITECTURES, *NETWORKS)))}")


def _value(value: Any) -> str:
    """Format a value as typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
