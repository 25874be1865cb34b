"""A report as a person reads it: what was reached, against what, and under which conditions."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.cli.common import plain_table, print_table
from dd.sizes import readable_size

if TYPE_CHECKING:
    from rich.console import Console

    from dd.evaluation.report import Report, Score

_ARMS = {
    "accuracy": "the distilled set",
    "control": "random real images, as many",
    "decoded": "random mosaics, decoded",
    "start": "the set at iteration 0",
    "full": "all real images",
}
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
    """The files of a run that exist, by what they are."""
    return {what: str(folder / name) for what, name in _FILES.items() if (folder / name).exists()}


def show_report(report: "Report", out: "Console", files: Mapping[str, str]) -> None:
    """Print accuracy, control, start and full, then what they must be read with, then the files."""
    heading = report.name or str(report.provenance.get("name", "")) or str(report.dataset.get("name", ""))
    out.print(f"\n{heading}", style="bold")
    table = plain_table("trained on", "test accuracy %", "students", "lr", "the set is ahead by")
    for arm, words in _ARMS.items():
        score: Score | None = getattr(report, arm)
        if score is None and arm == "decoded":
            continue
        if score is None:
            table.add_row(words, "-", "", "", report.missing.get(arm, ""))
        else:
            table.add_row(words, _accuracy(score), str(score.n), f"{score.lr:.3g}", _ahead(report, arm))
    print_table(out, table)
    for line in _lines(report):
        out.print(line, soft_wrap=True)
    if files:
        out.print()
    for what, path in files.items():
        out.print(f"{what:<9}{path}", soft_wrap=True)


def _accuracy(score: "Score") -> str:
    return f"{score.mean:.2f}" if score.std is None else f"{score.mean:.2f} ± {score.std:.2f}"


def _ahead(report: "Report", arm: str) -> str:
    if arm == "full":
        assert report.full is not None
        return f"{100 * report.accuracy.mean / report.full.mean:.1f} % of it reached"
    points = {"control": report.gap, "start": report.gain, "decoded": report.decoded_gap}.get(arm)
    if points is None:
        return ""
    words = f"{points:+.2f} points"
    if arm == "control" and report.pooled_std:
        words += f" ({points / report.pooled_std:+.1f} pooled std)"
    return words


def _lines(report: "Report") -> list[str]:
    lines = []
    note = f": {report.verdict_note}" if report.verdict_note else ""
    lines.append(f"expected   {report.verdict}{note}")
    lines.append(f"protocol   {report.protocol.get('protocol')}, fingerprint {report.fingerprint}: {_protocol(report)}")
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


def _labels(labels: Mapping[str, Any]) -> str:
    """Who labelled the views of every row, and as what."""
    names, accuracies = labels.get("names") or (), labels.get("accuracies") or ()
    known = [
        f"{name} ({held:.1f} % of held-out images)"
        for name, held in zip(names, accuracies, strict=False)
        if held is not None
    ]
    who = " and ".join(known or names)
    several = f", {labels['ensemble']}" if len(names) > 1 else ""
    how = f"{labels['form']}, {labels['teacher_mode']} statistics{several}"
    kept = f"{labels['stored_epochs']} epochs stored" if labels.get("stored_epochs") else "asked while students train"
    if not who:
        return f"of the set by teachers that are not at hand ({how}); {kept}"
    return f"in every row by {who} ({how}); of the set {kept}"


def _protocol(report: "Report") -> str:
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
