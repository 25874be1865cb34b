"""What the numbers of a report hold for, in words: protocol, labels, size, cost, machine, data, command."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dd.evaluation.report import Report
from dd.networks.spec import NORMED
from dd.sizes import readable_size

if TYPE_CHECKING:
    from dd.evaluation.downstream import DownstreamReport

_ALL = 10  # name all classes up to this number
_WORST = 5  # otherwise, name this many of the worst


def conditions(report: "Report | DownstreamReport") -> list[tuple[str, str]]:
    """Return what the numbers hold for, as (subject, words) in reading order."""
    fingerprint = f"{report.protocol.get('protocol')}, fingerprint {report.fingerprint}"
    found = [("protocol", f"{fingerprint}: {_protocol(report)}")]
    if report.labels:
        found.append(("labels", labels_in_words(report.labels)))
    found.append(("size", ", ".join(f"{what} {readable_size(number)}" for what, number in report.bytes.items())))
    if report.cost:
        found.append(("cost", "; ".join(f"{stage} {_cost(cost)}" for stage, cost in report.cost.items())))
    found.append(("device", report.device))
    if report.dataset.get("notes"):
        found.append(("data", report.dataset["notes"]))
    if report.command:
        found.append(("command", report.command))
    return found


def expected_in_words(report: Report) -> str:
    """Return how the accuracy compares with the one that the recipe expects."""
    return report.verdict + (f": {report.verdict_note}" if report.verdict_note else "")


def classes_in_words(report: Report) -> str:
    """Return accuracies per class, worst first, beside the control's; only the worst few if there are many classes."""
    control = report.control.classes if report.control and report.control.classes else ()
    ranked = ranked_classes(report)
    words = [
        f"{report.classes[c]} {share:.1f}" + (f" ({control[c]:.1f})" if control and control[c] is not None else "")
        for c, share in ranked[: len(ranked) if len(ranked) <= _ALL else _WORST]
    ]
    which = "worst first" if len(ranked) <= _ALL else f"the worst of {len(ranked)}, all in report.json"
    return f"{', '.join(words)}; {which}" + (", the control's in brackets" if control else "")


def ranked_classes(report: Report) -> list[tuple[int, float]]:
    """Return (label, accuracy in percent) of each class that has test images, worst first."""
    known = sorted((share, c) for c, share in enumerate(report.accuracy.classes) if share is not None)
    return [(c, share) for share, c in known]


def labels_in_words(labels: Mapping[str, Any]) -> str:
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
    protocol = report.protocol
    length = f"{protocol['steps']} steps" if protocol.get("steps") else f"{protocol.get('epochs')} epochs"
    return f"{length} of batch {protocol.get('batch')}, {network_in_words(report.student)}"


def network_in_words(student: Mapping[str, Any]) -> str:
    """Format a student's fields: `convnet (depth 3 width 32 norm instance)`."""
    keys = ("depth", "width", "norm") if student.get("arch") in NORMED else ("depth", "width")
    sizes = " ".join(f"{key} {student[key]}" for key in keys if student.get(key) is not None)
    return f"{student.get('arch')} ({sizes})" if sizes else str(student.get("arch"))


def cost_rows(report: "Report | DownstreamReport") -> list[list[str]]:
    """Return one row per stage: its name, its time, that of its artefacts when they were made, and its peak memory."""
    return [[stage, *_spent(cost)] for stage, cost in report.cost.items()]


COST_HEADINGS = ("stage", "time", "artefacts, when they were made", "peak memory")


def _spent(cost: Mapping[str, float | None]) -> tuple[str, str, str]:
    seconds, earlier = cost.get("seconds") or 0, cost.get("artefact_seconds") or 0
    kept = f"{earlier:.0f} s" if earlier > seconds + 1 else ""
    return f"{seconds:.0f} s", kept, readable_size(cost.get("peak_memory"))


def _cost(cost: Mapping[str, float | None]) -> str:
    words, kept, peak = _spent(cost)
    words += f" (artefacts {kept} when they were made)" if kept else ""
    return f"{words}, peak {peak}" if peak else words
