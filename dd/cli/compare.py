"""`dd compare`: sets side by side."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import (
    LENIENT,
    console,
    emit,
    examples,
    flag,
    json_option,
    log_to_stderr,
    paths_and_settings,
    plain_table,
    print_table,
    remark,
    settings,
)
from dd.errors import UsageError, close_matches

if TYPE_CHECKING:
    from rich.console import Console

    from dd.evaluation.compare import Comparison

_OWN = ("allow_mismatch", "labels")  # keys of this verb


@click.command(
    "compare",
    context_settings=LENIENT,
    epilog=examples(
        "dd compare runs/*/fashion-mini/ipc10/*",
        "dd compare runs/dm/fashion-mini/ipc10/* runs/datm/fashion-mini/ipc10/* eval.protocol=quick",
        "dd compare A B labels=hard,soft",
    ),
    short_help="Put sets side by side, if their numbers are comparable.",
)
@settings
@json_option
def command(settings: tuple[str, ...], as_json: bool) -> int:
    """Rank sets (files, folders of runs, released names, or reports from `dd eval --json`).

    Finished runs are read, other sets are scored; with settings such as eval.protocol=NAME all are scored under these.
    Sets of one recipe with different seeds are one row.  labels=own,hard,soft,views chooses what is compared.

    Numbers that hold under different conditions are not ranked: they are shown apart, with the conditions that differ,
    and the exit code is 2.  allow_mismatch=true ranks them and marks those that differ from the first.
    """
    from dd.evaluation.compare import TOO_FEW, compare, require_kinds
    from dd.pipeline.compare import reports_of
    from dd.recipes import parse_overrides

    places, words = paths_and_settings(settings)
    overrides = dict(parse_overrides(words))
    _require_known(overrides)
    allowed = flag("allow_mismatch", overrides.pop("allow_mismatch", False))
    kinds = [kind for kind in str(overrides.pop("labels", "")).split(",") if kind]
    require_kinds(kinds)
    if len(places) < 2:
        raise UsageError(TOO_FEW)
    log_to_stderr()
    found = compare(reports_of(places, overrides), kinds, allow_mismatch=allowed)
    if as_json:
        emit(asdict(found) | {"comparable": found.comparable})
    else:
        show_comparison(found, console())
    if found.comparable or allowed:
        return 0
    keys = ", ".join(sorted({key for differing in found.differs.values() for key in differing}))
    remark(f"dd: these numbers are not comparable, {keys} differ; allow_mismatch=true ranks them nevertheless")
    return 2


def _require_known(overrides: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a key that resembles one of this verb's; `resolve_evaluation` knows all others."""
    for key in overrides:
        if key not in _OWN and "." not in key and (meant := close_matches(key, _OWN, n=1, cutoff=0.8)):
            raise UsageError(f"unknown key {key!r}; did you mean {meant[0]!r}?")


def show_comparison(found: "Comparison", out: "Console") -> None:
    """Print the rows of every block, and the conditions that differ."""
    from dd.evaluation.compare import HEADINGS, cells, differing_rows
    from dd.evaluation.table import kind_in_words

    for block in found.blocks:
        out.print(f"\n{kind_in_words(block.kind)}", style="bold")
        table = plain_table(*HEADINGS)
        for row in block.rows:
            table.add_row(*cells(row))
        print_table(out, table)
    for kind, differing in found.differs.items():
        out.print(f"\ndifferent conditions of {kind_in_words(kind)}", style="bold")
        head, *body = differing_rows(differing)
        table = plain_table(*head)
        for row in body:
            table.add_row(*row)
        print_table(out, table)
