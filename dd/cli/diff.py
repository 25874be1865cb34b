"""`dd diff`: what differs between two runs."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import STRICT, console, emit, examples, json_option, plain_table, print_table
from dd.errors import shortened
from dd.sizes import readable_size, readable_time

if TYPE_CHECKING:
    from rich.console import Console

    from dd.evaluation.difference import Change, Difference, ScorePair

_SHOWN = 60  # longest value of a setting
_HEADINGS = ("first", "second")


@click.command(
    "diff",
    context_settings=STRICT,
    epilog=examples(
        "dd diff runs/dm/fashion-mini/ipc1/1a2b3c4d-seed0 runs/dm/fashion-mini/ipc1/5e6f7a8b-seed0",
        "dd diff runs/dm/fashion-mini/ipc1/* --json",
    ),
    short_help="Show what differs between two runs.",
)
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@json_option
def command(first: str, second: str, as_json: bool) -> None:
    """Show the settings, versions, device and data that differ between two finished runs, and both results.

    RUN is the folder of a run.  The gap of the accuracies has its 95 % interval, with students paired if both runs have
    the same seed and the same number of students.  If the numbers hold under different conditions, those are named and
    no run is called better.  `dd compare` ranks more than two sets.
    """
    from dd.pipeline.diff import diff

    found = diff(first, second)
    if as_json:
        emit(found.to_dict())
        return
    out, reports = console(), found.reports
    out.print(f"first   {reports.names[0]}  {first}", soft_wrap=True)
    out.print(f"second  {reports.names[1]}  {second}", soft_wrap=True)
    _show_changes(out, "settings", found.settings)
    _show_changes(out, "versions, device and data", reports.facts)
    for pair in reports.scores:
        _show_scores(out, pair)
    _show_cost(out, reports)


def _show_changes(out: "Console", heading: str, changed: Mapping[str, "Change"]) -> None:
    if not changed:
        out.print(f"\n{heading}: the same")
        return
    rows = [(key, shortened(one, _SHOWN), shortened(other, _SHOWN)) for key, (one, other) in changed.items()]
    _show_table(out, heading, ("", *_HEADINGS), rows)


def _show_scores(out: "Console", pair: "ScorePair") -> None:
    from dd.evaluation.table import kind_in_words, score_in_words
    from dd.evaluation.verdict import in_between

    rows = [("test accuracy %", *map(score_in_words, pair.scores))]
    if any(pair.controls):
        rows.append(("random real images", *("-" if one is None else score_in_words(one) for one in pair.controls)))
    rows.append(("students", *(str(score.n) for score in pair.scores)))
    rows.append(("bytes", *map(readable_size, pair.bytes)))
    rows += [(key, shortened(one, _SHOWN), shortened(other, _SHOWN)) for key, (one, other) in pair.conditions.items()]
    _show_table(out, kind_in_words(pair.kind), ("", *_HEADINGS), rows)
    if pair.gap is not None:
        how = f"students not paired: {pair.unpaired}" if pair.unpaired else "students paired"
        out.print(f"second - first  {in_between(pair.gap)} points (95 %, {how}): {pair.in_words()}", soft_wrap=True)
    else:
        out.print(pair.in_words(), soft_wrap=True)


def _show_cost(out: "Console", found: "Difference") -> None:
    words: dict[str, Callable[[Any], str]] = {"seconds": readable_time, "peak_memory": readable_size}
    rows = [
        (f"{stage}, {'time' if key == 'seconds' else 'peak memory'}", *("-" if v is None else say(v) for v in values))
        for stage, measured in found.cost.items()
        for key, say in words.items()
        if any(values := measured[key])
    ]
    _show_table(out, "cost", ("", *_HEADINGS), rows)


def _show_table(out: "Console", heading: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    out.print(f"\n{heading}", style="bold")
    table = plain_table(*headings)
    for row in rows:
        table.add_row(*row)
    print_table(out, table)
