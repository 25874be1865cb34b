"""`dd recipes`: known settings, and the accuracy they should reach."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.cli.index import indexed, plug_ins

if TYPE_CHECKING:
    from dd.recipes import Listed

_WIDE = 400  # columns if not on a terminal: one line per cell


@click.command(
    "recipes",
    context_settings=STRICT,
    epilog=examples("dd recipes", "dd recipes datm --json"),
    short_help="List the recipes and their expected accuracy.",
)
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@json_option
def command(methods: tuple[str, ...], as_json: bool) -> None:
    """List the known settings for each method, dataset and size, with the accuracy they should reach.

    Other datasets and sizes use a method's defaults, or those of a cell named by like=CELL.
    """
    from dd.engine import registry

    rows: list[dict[str, Any]] = []
    if set(methods) <= set(registry.names()):
        rows = indexed("recipes", partial(_of, ()), plug_ins)
    if methods:
        have = {row["method"] for row in rows}
        of_known = [row for method in methods for row in rows if row["method"] == method]
        rows = of_known if set(methods) <= have else _of(methods)  # reports what is wrong with a name
    if as_json:
        emit({"recipes": rows})
    else:
        _show(rows)


def _of(methods: tuple[str, ...]) -> list[dict[str, Any]]:
    from dd.engine.registry import list_methods
    from dd.recipes import listed

    names = methods or [entry.name for entry in list_methods() if entry.error is None]
    return [_row(method, row) for method in names for row in listed(method)]


def _row(method: str, row: "Listed") -> dict[str, Any]:
    """Return a cell with each of its numbers and the protocol of that number."""
    return {
        "method": method,
        "cell": row.cell.name,
        "side": row.side,
        "protocol": row.parts.eval.in_words(),
        "presets": row.presets,
        "note": row.cell.note,
        "expect": [{**entry, "protocol": protocol.in_words()} for protocol, entry in row.numbers],
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from dd.recipes.listing import band

    headings = ("method", "cell", "px", "expected %", "verified", "protocol", "presets", "cost", "source")
    table = plain_table(*headings, keys=2)
    for row in rows:
        nothing = {"verified": False, "protocol": row["protocol"]}
        for entry in row["expect"] or [nothing]:
            verified, presets = "yes" if entry["verified"] else "no", " ".join(row["presets"])
            facts = (str(row["side"] or ""), band(entry), verified, entry["protocol"], presets)
            table.add_row(row["method"], row["cell"], *facts, entry.get("cost", ""), entry.get("source", ""))
    print_table(console(wide=_WIDE), table)
