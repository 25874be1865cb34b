"""`dd methods`: what can be run."""

from dataclasses import asdict

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table


@click.command(
    "methods",
    context_settings=STRICT,
    epilog=examples("dd methods", "dd methods --json"),
    short_help="List the methods, plug-ins included.",
)
@json_option
def command(as_json: bool) -> None:
    """List every method that can be run: ours, and those of installed packages; broken ones with their error."""
    from dd.engine.registry import entries

    found = entries()
    if as_json:
        emit({"methods": [asdict(entry) for entry in found]})
        return
    table = plain_table("method", "family", "package", "")
    for entry in found:
        words = entry.summary if entry.error is None else f"broken: {entry.error}"
        table.add_row(entry.name, entry.family, entry.package, words)
    print_table(console(), table)
