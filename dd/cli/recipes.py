"""`dd recipes`: known settings, and the accuracy they should reach."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.cli.index import indexed, plug_in_files, plug_ins

if TYPE_CHECKING:
    from dd.evaluation.protocols import Protocol
    from dd.recipes import Listed

_WIDE = 400  # columns if not on a terminal: one line per cell


@click.command(
    "recipes",
    context_settings=STRICT,
    epilog=examples("dd recipes", "dd recipes datm --json", "dd recipes --protocols"),
    short_help="List the recipes and their expected accuracy.",
)
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@click.option("--protocols", is_flag=True, help="List the evaluation protocols (eval.protocol=NAME) instead.")
@json_option
def command(methods: tuple[str, ...], protocols: bool, as_json: bool) -> None:
    """List the known settings for each method, dataset and size, with the accuracy they should reach.

    Other datasets and sizes use a method's defaults, or those of a cell named by like=CELL.
    """
    if protocols:
        _protocols(as_json)
        return
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


def _protocols(as_json: bool) -> None:
    found = indexed("protocols", _all_protocols, lambda: plug_in_files("protocol"))
    if as_json:
        emit({"protocols": [protocol["facts"] | {"error": protocol["error"]} for protocol in found]})
        return
    table = plain_table("protocol", "of", "length", "batch", "optimiser", "lr", "students see")
    for protocol in found:
        facts = protocol["facts"]
        if protocol["error"] is not None:
            table.add_row(facts["protocol"], f"broken: {protocol['error']}", "", "", "", "", "")
            continue
        length = f"{facts['epochs']} epochs" if facts["steps"] is None else f"{facts['steps']} steps"
        words = (facts["protocol"], facts["of"], length, str(facts["batch"]), facts["optimiser"], f"{facts['lr']:g}")
        table.add_row(*words, protocol["views"])
    print_table(console(), table)


def _all_protocols() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from dd.evaluation.origins import ORIGINS
    from dd.evaluation.protocols import PROTOCOLS

    rows: list[dict[str, Any]] = []
    for name, protocol in PROTOCOLS.items():
        of = ORIGINS.get(name) or f"the package {PROTOCOLS.package(name)}"
        rows.append({"facts": {"of": of, **asdict(protocol)}, "views": _views(protocol), "error": None})
    broken = PROTOCOLS.broken().items()
    return rows + [{"facts": {"protocol": name}, "views": "", "error": why} for name, why in broken]


def _views(protocol: "Protocol") -> str:
    if protocol.augment:
        return "DSA, one operation per batch"
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
