"""Printing a report: accuracies, references, and the conditions they hold under."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.cli.common import plain_table, print_table
from dd.sizes import readable_size

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
_ALL = 10  # show all classes up to this number
_WORST = 5  # otherwise, show this many of the worst


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
        ends = "" if scores.lrs.low is None else f" [{scores.lrs.low:.4f}, {scores.lrs.high:.4f}]"
        words = f"HLR {scores.hlr:.4f}, IOR {scores.ior:+.4f}, LRS {scores.lrs.mean:.4f}{ends}"
        out.print(f"DD-Ranking {words} (fractions; 1 is best for LRS)", soft_wrap=True)


def _lines(report: "Report") -> list[str]:
    from dd.evaluation.table import facts_in_words, times_in_words

    lines = [f"note       {note}" for note in report.notes]
    if words := facts_in_words(report):
        lines.append(f"scores     {words}")
    lines += [f"target     {words}" for words in times_in_words(report)]
    if report.accuracy.classes:
        lines.append(f"classes    {_classes(report)}")
    note = f": {report.verdict_note}" if report.verdict_note else ""
    lines.append(f"expected   {report.verdict}{note}")
    return lines + _conditions(report)


def _task(report: "DownstreamReport") -> list[str]:
    """Return the notes on a downstream task, and its settings."""
    values = {key: "null" if value is None else value for key, value in report.settings.items()}
    settings = ", ".join(f"{report.task}.{key}={value}" for key, value in values.items())
    return [*(f"note       {note}" for note in report.notes), f"task       {report.task}: {settings}"]


def _conditions(report: "Report | DownstreamReport") -> list[str]:
    """Return what the numbers hold for: protocol, labels, size, cost, machine, data, command."""
    lines = [
        f"protocol   {report.protocol.get('protocol')}, fingerprint {report.fingerprint}: {_protocol(report)}",
    ]
    if report.labels:
        lines.append(f"labels     {_labels(report.labels)}")
    lines.append("size       " + ", ".join(f"{what} {readable_size(number)}" for what, number in report.bytes.items()))
    if report.cost:
        lines.append("cost       " + "; ".join(f"{stage} {_cost(cost)}" for stage, cost in report.cost.items()))
    lines.append(f"device     {report.device}")
    if report.dataset.get("notes"):
        lines.append(f"data       {report.dataset['notes']}")
    if report.command:
        lines.append(f"command    {report.command}")
    return lines


def _classes(report: "Report") -> str:
    """Return accuracies per class, worst first, beside the control's; only the worst few if there are many classes."""
    control = report.control.classes if report.control and report.control.classes else ()
    known = [(share, c) for c, share in enumerate(report.accuracy.classes) if share is not None]
    shown = sorted(known)[: len(known) if len(known) <= _ALL else _WORST]
    words = [
        f"{report.classes[c]} {share:.1f}" + (f" ({control[c]:.1f})" if control and control[c] is not None else "")
        for share, c in shown
    ]
    which = "worst first" if len(known) <= _ALL else f"the worst of {len(known)}, all in report.json"
    return f"{', '.join(words)}; {which}" + (", the control's in brackets" if control else "")


def _labels(labels: Mapping[str, Any]) -> str:
    """Return who labelled the views of every arm, and how."""
    names, accuracies = labels.get("names") or (), labels.get("accuracies") or ()
    known = [
        f"{name} ({held:.1f} % of held-out images)"
        for name, held in zip(names, accuracies, strict=False)
        if held is not None
    ]
    who = " and ".join(known or names)
    several = f", {labels['ensemble']}" if len(names) > 1 else ""
    how = f"{labels['form']}, {labels['teacher_mode']} statistics{several}"
    kept = f"{labels['stored_epochs']} epochs stored" if labels.get("stored_epochs") else "labelled during training"
    if not who:
        return f"labels of the set by teachers that are missing here ({how}); {kept}"
    return f"in every row by {who} ({how}); of the set {kept}"


def _protocol(report: "Report | DownstreamReport") -> str:
    from dd.networks.spec import NORMED

    protocol, student = report.protocol, report.student
    length = f"{protocol['steps']} steps" if protocol.get("steps") else f"{protocol.get('epochs')} epochs"
    keys = ("depth", "width", "norm") if student.get("arch") in NORMED else ("depth", "width")
    sizes = " ".join(f"{key} {student[key]}" for key in keys if student.get(key) is not None)
    network = f"{student.get('arch')} ({sizes})" if sizes else student.get("arch")
    return f"{length} of batch {protocol.get('batch')}, {network}"


def _cost(cost: Mapping[str, float | None]) -> str:
    words = f"{cost.get('seconds') or 0:.0f} s"
    earlier = cost.get("artefact_seconds") or 0
    if earlier > (cost.get("seconds") or 0) + 1:
        words += f" (artefacts {earlier:.0f} s when they were made)"
    peak = cost.get("peak_memory")
    return f"{words}, peak {readable_size(peak)}" if peak else words
