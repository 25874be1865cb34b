"""`dd recipes`: the settings that are known, and what they are expected to reach."""

from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table

if TYPE_CHECKING:
    from dd.evaluation.protocols import Protocol
    from dd.recipes import Listed

_WIDE = 400  # columns where nobody's terminal sets a width: a cell is a line


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
    from dd.recipes import listed

    names = methods or [entry.name for entry in entries() if entry.error is None]
    rows = [_row(method, row) for method in names for row in listed(method)]
    if as_json:
        emit({"recipes": rows})
    else:
        _show(rows)


def _row(method: str, row: "Listed") -> dict[str, Any]:
    """A cell, and each of its numbers with the protocol that it is of."""
    from dd.recipes import expect

    return {
        "method": method,
        "cell": row.cell.name,
        "side": row.side,
        "protocol": expect.in_words(row.parts.eval),
        "presets": row.presets,
        "note": row.cell.note,
        "expect": [{**entry, "protocol": expect.in_words(protocol)} for protocol, entry in row.numbers],
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from dd.recipes import expect

    table = plain_table("method", "cell", "px", "expected %", "verified", "protocol", "presets", "cost", "source")
    for row in rows:
        nothing = {"verified": False, "protocol": row["protocol"]}
        for entry in row["expect"] or [nothing]:
            verified, presets = "yes" if entry["verified"] else "no", " ".join(row["presets"])
            facts = (str(row["side"] or ""), expect.band(entry), verified, entry["protocol"], presets)
            table.add_row(row["method"], row["cell"], *facts, entry.get("cost", ""), entry.get("source", ""))
    print_table(console(wide=_WIDE), table)


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
        f"crops of images padded by {views.pad}" if views.pad else "",
        "flips" if views.flip else "",
        {"none": "", "data": "IDC's augmentation"}.get(views.strategy, views.strategy),
        views.mix if views.mix != "none" else "",
        f"labels at temperature {protocol.temperature:g}" if protocol.temperature != 1 else "",
    ]
    return ", ".join(filter(None, parts)) or "the images as they are"
