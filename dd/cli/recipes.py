"""`dd recipes`: the settings that are known, and what they are expected to reach."""

from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table

if TYPE_CHECKING:
    from dd.recipes import RecipeFile


@click.command(
    "recipes",
    context_settings=STRICT,
    epilog=examples("dd recipes", "dd recipes datm --json"),
    short_help="List the recipes and what they should reach.",
)
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@json_option
def command(methods: tuple[str, ...], as_json: bool) -> None:
    """List the settings that are known for each method, dataset and size, with the accuracy they should reach.

    Other datasets and sizes run on a method's defaults, or on those of a cell named by like=CELL.
    """
    from dd.engine.registry import entries
    from dd.recipes import recipe_file

    rows: list[dict[str, Any]] = []
    for method in methods or [entry.name for entry in entries() if entry.error is None]:
        rows += _rows(method, recipe_file(method))
    if as_json:
        emit({"recipes": rows})
    else:
        _show(rows)


def _rows(method: str, file: "RecipeFile") -> list[dict[str, Any]]:
    cells = list(file.cells.values())
    rows = []
    for cell in cells:
        if cell.preset is None:
            own = {c.preset for c in cells if c.preset and (c.dataset, c.size) == (cell.dataset, cell.size)}
            presets = sorted(own | set(file.presets))
            rows.append(
                {"method": method, "cell": cell.name, "presets": presets, "note": cell.note, "expect": cell.expect}
            )
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    table = plain_table("method", "cell", "expected %", "verified", "presets", "cost")
    for row in rows:
        expect = row["expect"] or {}
        low, high = expect.get("accuracy") or (None, None)
        band = "" if low is None else f"{low:g} to {high:g}"
        verified = "yes" if expect.get("verified") else "no"
        table.add_row(row["method"], row["cell"], band, verified, " ".join(row["presets"]), expect.get("cost", ""))
    print_table(console(), table)
