"""`dd recipes`: the settings that are known, and what they are expected to reach."""

from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table

if TYPE_CHECKING:
    from dd.evaluation.protocols import Protocol
    from dd.recipes import RecipeFile


@click.command(
    "recipes",
    context_settings=STRICT,
    epilog=examples("dd recipes", "dd recipes datm --json", "dd recipes --protocols"),
    short_help="List the recipes and what they should reach.",
)
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@click.option("--protocols", is_flag=True, help="List the evaluation protocols instead: eval.protocol=NAME.")
@json_option
def command(methods: tuple[str, ...], protocols: bool, as_json: bool) -> None:
    """List the settings that are known for each method, dataset and size, with the accuracy they should reach.

    Other datasets and sizes run on a method's defaults, or on those of a cell named by like=CELL.
    """
    if protocols:
        _protocols(as_json)
        return
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
        alone = (cell.dataset, cell.size, None) not in file.cells  # a preset of a cell that there is not
        if cell.preset is None or alone:
            own = {c.preset for c in cells if c.preset and (c.dataset, c.size) == (cell.dataset, cell.size)}
            presets = [] if alone else sorted(own | set(file.presets))
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


def _protocols(as_json: bool) -> None:
    from dataclasses import asdict

    from dd.evaluation.origins import ORIGINS
    from dd.evaluation.protocols import PROTOCOLS

    if as_json:
        emit({"protocols": [{"of": ORIGINS[name], **asdict(protocol)} for name, protocol in PROTOCOLS.items()]})
        return
    table = plain_table("protocol", "of", "length", "batch", "optimiser", "lr", "students see")
    for name, protocol in PROTOCOLS.items():
        length = f"{protocol.epochs} epochs" if protocol.steps is None else f"{protocol.steps} steps"
        lr, batch = f"{protocol.lr:g}", str(protocol.batch)
        table.add_row(name, ORIGINS[name], length, batch, protocol.optimiser, lr, _views(protocol))
    print_table(console(), table)


def _views(protocol: "Protocol") -> str:
    if protocol.augment:
        return "DSA, an operation a batch"
    views = protocol.views
    parts = [
        f"{views.tiles} x {views.tiles} tiles" if views.tiles > 1 else "",
        f"crops of at least {100 * views.crop:g} %" if views.crop else "",
        "flips" if views.flip else "",
        {"none": "", "data": "IDC's augmentation"}.get(views.strategy, views.strategy),
        views.mix if views.mix != "none" else "",
        f"labels at temperature {protocol.temperature:g}" if protocol.temperature != 1 else "",
    ]
    return ", ".join(filter(None, parts)) or "the images as they are"
