"""`dd protocols`: how students can be trained and scored."""

import json
from typing import Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.cli.index import indexed, plug_in_files
from dd.errors import unknown


@click.command(
    "protocols",
    context_settings=STRICT,
    epilog=examples("dd protocols", "dd protocols rethinkdc-hard", "dd protocols --json"),
    short_help="List the evaluation protocols, or describe one.",
)
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the evaluation protocols (eval.protocol=NAME) with family and source.

    With a NAME, say it in words: optimiser, schedule, length, augmentation, labels, what is reported, where the values
    are from and where the source does otherwise, and its fingerprint.  Two accuracies are comparable only under the
    same protocol.
    """
    found = indexed("protocols", _entries, lambda: plug_in_files("protocol"))
    if name is None:
        _list(found, as_json)
        return
    named = {entry["protocol"]: entry for entry in found if entry["error"] is None}
    if name not in named:
        raise unknown("protocol", name, named)
    emit(named[name]) if as_json else _show(named[name])


def _list(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        emit({"protocols": found})
        return
    table = plain_table("protocol", "family", "of", "length", "images", "source")
    for entry in found:
        if entry["error"] is not None:
            table.add_row(entry["protocol"], "", f"broken: {entry['error']}", "", "", "")
            continue
        words = entry["words"]
        table.add_row(entry["protocol"], *(words[key] for key in ("family", "of", "length", "images", "source")))
    print_table(console(), table)


def _show(entry: dict[str, Any]) -> None:
    out = console()
    out.print(entry["protocol"], style="bold")
    for subject, words in entry["words"].items():
        if words:
            out.print(f"{subject:<13}{words}", soft_wrap=True)
    out.print()
    table = plain_table("setting", "value")
    for key, value in entry["settings"].items():
        table.add_row(f"eval.{key}", value if isinstance(value, str) else json.dumps(value))
    print_table(out, table)


def _entries() -> list[dict[str, Any]]:
    from dd.evaluation.describe import described
    from dd.evaluation.protocols import PROTOCOLS

    found: list[dict[str, Any]] = [
        {"protocol": name, "words": described(protocol), "settings": protocol.training(), "error": None}
        for name, protocol in PROTOCOLS.items()
    ]
    broken = PROTOCOLS.broken().items()
    return found + [{"protocol": name, "words": {}, "settings": {}, "error": why} for name, why in broken]
