"""Printing a report: accuracies, references, and the conditions they hold under."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dd.cli.common import plain_table, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from dd.evaluation.downstream import DownstreamReport
    from dd.evaluation.report import Report

_FILES = {
    "set": "set.safetensors",
    "images": "images.png",
    "report": "report.json",
    "recipe": "recipe.toml",
    "log": "log.csv",
    "progress": "progress.png",
    "start": "start.safetensors",
    "labels": "labels",
}


def files_of(folder: Path) -> dict[str, str]:
    """Return the existing files of a run, by description."""
    return {what: str(folder / name) for what, name in _FILES.items() if (folder / name).exists()}


def show_report(report: "Report | DownstreamReport", out: "Console", files: Mapping[str, str]) -> None:
    """Print the table, then the facts needed to interpret it, then the files."""
    from dd.evaluation.report import Report
    from dd.evaluation.table import heading, headings, rows

    plain = isinstance(report, Report)
    out.print(f"\n{heading(report)}", style="bold")
    table = plain_table(*(headings(report) if plain else report.headings()))
    for row in rows(report) if plain else report.rows():
        table.add_row(*row)
    print_table(out, table)
    for line in _lines(report) if plain else [*_task(report), *_conditions(report)]:
        out.print(line, soft_wrap=True)
    if plain and report.regimes:
        _show_regimes(report, out)
    if files:
        out.print()
    for what, path in files.items():
        out.print(f"{what:<9}{path}", soft_wrap=True)


def _show_regimes(report: "Report", out: "Console") -> None:
    from dd.evaluation.table import regime_headings, regime_rows
    from dd.evaluation.verdict import verdict

    out.print()
    table = plain_table(*regime_headings(report))
    for row in regime_rows(report):
        table.add_row(*row)
    print_table(out, table)
    out.print(f"verdict    {verdict(report.regimes)}", soft_wrap=True)
    if (scores := report.ranking) is not None:
        out.print(f"DD-Ranking {scores.in_words()}", soft_wrap=True)


def _lines(report: "Report") -> list[str]:
    from dd.evaluation.conditions import classes_in_words, expected_in_words
    from dd.evaluation.table import facts_in_words, times_in_words

    lines = [("note", note) for note in report.notes]
    if words := facts_in_words(report):
        lines.append(("scores", words))
    lines += [("target", words) for words in times_in_words(report)]
    if report.accuracy.classes:
        lines.append(("classes", classes_in_words(report)))
    return [*_listed([*lines, ("expected", expected_in_words(report))]), *_conditions(report)]


def _task(report: "DownstreamReport") -> list[str]:
    """Return the notes on a downstream task, and its settings."""
    values = {key: "null" if value is None else value for key, value in report.settings.items()}
    settings = ", ".join(f"{report.task}.{key}={value}" for key, value in values.items())
    return _listed([*(("note", note) for note in report.notes), ("task", f"{report.task}: {settings}")])


def _conditions(report: "Report | DownstreamReport") -> list[str]:
    from dd.evaluation.conditions import conditions

    return _listed(conditions(report))


def _listed(facts: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{subject:<10} {words}" for subject, words in facts]
