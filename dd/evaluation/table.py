"""A report as a table, for terminals and notebooks."""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from dd.errors import printable
from dd.evaluation.report import RegimeReport, Report, Score
from dd.evaluation.scores import paired_gap
from dd.evaluation.time_to_accuracy import TimeToAccuracy
from dd.evaluation.verdict import in_between, verdict
from dd.sets.origin import StatedScore, imported
from dd.sizes import readable_size

if TYPE_CHECKING:
    from dd.evaluation.downstream import DownstreamReport

ARMS = {
    "accuracy": "the distilled set",
    "control": "random real images, same ipc",
    "decoded": "random mosaics, decoded",
    "start": "the set at iteration 0",
    "full": "all real images",
}

LABELS = {"hard": "hard labels", "soft": "one soft label each", "views": "a teacher on every view"}
REGIME_ARMS = {
    "accuracy": "the distilled set",
    "control": "random real images",
    "coreset": "the coreset",
    "decoded": "random mosaics, decoded",
    "start": "the set at iteration 0",
    "mixed": "the set, labels half hard and half soft",
    "bytes": "random real images, as many bytes",
    "noise": "noise",
    "full": "all real images, as many shown",
}

BEST = "best on test, not an estimate"
STATED = "stated by its authors"
_WHOLE = 10  # seconds from which tenths are left out
_SEEN = 0.01  # difference in points below which two accuracies count as equal


def kind_in_words(kind: str) -> str:
    """Name a kind of labels, one of `report.KINDS`."""
    return LABELS.get(kind, "own labels")


def headings(report: Report) -> list[str]:
    """Return the column headings of `rows`."""
    return ["trained on", "test accuracy %", *_more(report), "students", "lr", "the set is ahead by"]


def rows(report: Report) -> list[list[str]]:
    """Return one row per arm; if an arm is missing, the last column says why."""
    more = _more(report)
    found: list[list[str]] = []
    for arm, words in ARMS.items():
        score: Score | None = getattr(report, arm)
        if score is None and arm == "decoded":  # only tiled sets have this arm
            continue
        if score is None:
            found.append([words, "-", *[""] * len(more), "", "", report.missing.get(arm, "")])
            continue
        cells = [cell(score) for cell in more.values()]
        found.append([words, score_in_words(score), *cells, str(score.n), f"{score.lr:.3g}", _ahead(report, arm)])
        if arm == "accuracy":
            found += [_stated(one, len(more)) for one in stated_by(report)]
    return found


def _more(report: Report) -> dict[str, Callable[[Score], str]]:
    """Return the further columns of accuracies that a report has: heading, and the cell of a score."""
    found: dict[str, Callable[[Score], str]] = {}
    if _uneven(report.accuracy):
        found["balanced %"] = lambda score: f"{statistics.fmean(score.balanced):.2f}" if score.balanced else "-"
    if report.accuracy.curves:
        found[f"{BEST} %"] = best_in_words
    return found


def best_in_words(score: Score) -> str:
    """Format the best test accuracy on the curves of a score: `72.10 ± 1.10`."""
    return "-" if score.best is None else score_in_words(score.best)


def time_in_words(time: TimeToAccuracy) -> str:
    """`120 steps, 1,200 images, 3.2 s (5 of 5 students); 45 s with the making of the set`."""
    who = f"({time.reached} of {time.students} students)"
    if time.steps is None or time.images is None or time.seconds is None:
        return f"never {who}"
    making = time.with_making
    words = f"{time.steps:,.0f} steps, {time.images:,.0f} images, {_seconds(time.seconds)} {who}"
    return words if making in (None, time.seconds) else f"{words}; {_seconds(making)} with the making of the set"


def times_in_words(report: Report) -> list[str]:
    """Return when the students of the set and of each reference first reach the target, one line each."""
    return [f"{ARMS[arm]} at {time.target:g} %: {time_in_words(time)}" for arm, time in report.times_to_target.items()]


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= _WHOLE else f"{seconds:.2g} s"


def stated_by(report: Report) -> tuple[StatedScore, ...]:
    """Return what the authors of an imported set say that it reaches."""
    origin = imported(report.provenance)
    return () if origin is None else origin.stated


def stated_in_words(score: StatedScore) -> str:
    """Format a stated score: `26.50 ± 0.60`, with their deviation or that of their numbers."""
    many = len(score.values) > 1
    std = statistics.stdev(score.values) if many and score.std is None else score.std
    return f"{statistics.fmean(score.values):.2f}" + ("" if std is None else f" ± {std:.2f}")


def _stated(score: StatedScore, more: int) -> list[str]:
    students = str(len(score.values)) if len(score.values) > 1 else ""
    words = printable(score.where, keep="") or "their own protocol"
    return [STATED, stated_in_words(score), *[""] * more, students, "", words]


def score_in_words(score: Score) -> str:
    """Format a score: `71.70 ± 1.20`."""
    return f"{score.mean:.2f}" if score.std is None else f"{score.mean:.2f} ± {score.std:.2f}"


def facts_in_words(report: Report) -> str:
    """Return the set's gap with its interval, its top-5 accuracy and its calibration error, as far as known."""
    score, interval = report.accuracy, report.gap_interval
    words: list[str] = []
    if interval is not None and interval.n > 1:
        words.append(f"{in_between(interval)} points to random real images (95 %, students paired)")
    if score.top5:
        words.append(f"top-5 {statistics.fmean(score.top5):.2f} %")
    if score.calibration:
        words.append(f"calibration error {statistics.fmean(score.calibration):.1f} %")
    return "; ".join(words)


def heading(report: "Report | DownstreamReport") -> str:
    """Return the title of a report."""
    return report.name or str(report.provenance.get("name", "")) or str(report.dataset.get("name", ""))


def html(report: Report) -> str:
    """Return title and tables as HTML."""
    found = html_of(heading(report), headings(report), rows(report))
    if not report.regimes:
        return found
    return found + html_of(verdict(report.regimes), regime_headings(report), regime_rows(report))


def html_of(title: str, head: Iterable[str], body: Iterable[Sequence[str]]) -> str:
    """Return a title, column headings and rows as HTML, for a notebook."""
    return f"<b>{_shown(title)}</b>{html_table(head, body)}"


def html_table(head: Iterable[str], body: Iterable[Sequence[str]]) -> str:
    """Return column headings and rows as an HTML table, whatever the cells hold; the first column heads its rows."""
    top = "".join(f'<th scope="col">{_shown(words)}</th>' for words in head)
    below = "".join(f"<tr>{_row(row)}</tr>" for row in body)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{below}</tbody></table>"


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return f'<th scope="row">{_shown(first)}</th>' + "".join(f"<td>{_shown(cell)}</td>" for cell in others)


def _shown(text: str) -> str:
    return escape(printable(text, keep=""))


def regime_headings(report: Report) -> list[str]:
    """Return the column headings of `regime_rows`."""
    return ["test accuracy % of students with", *(LABELS[one.regime] for one in report.regimes)]


def regime_rows(report: Report) -> list[list[str]]:
    """Return one row per arm and one column per label regime, then what each column rests on."""
    regimes = report.regimes
    found: list[list[str]] = []
    for name, words in REGIME_ARMS.items():
        if not any(name in one.rows for one in regimes):
            continue
        coreset = f" ({regimes[0].coreset})" if name == "coreset" else ""
        cells = [score_in_words(one.rows[name]) if name in one.rows else "-" for one in regimes]
        found.append([words + coreset, *cells])
        if name in ("accuracy", "control") and any(one.rows["accuracy"].curves for one in regimes):
            found.append([f"  {BEST}", *(best_in_words(one.rows[name]) for one in regimes)])
            times = [one.times_to_target.get(name) for one in regimes]
            if any(times):
                found.append(
                    [
                        f"  at {regimes[0].protocol['target']:g} %",
                        *("-" if t is None else time_in_words(t) for t in times),
                    ]
                )
    best = "the better of random and coreset" if "coreset" in regimes[0].rows else "random"
    found.append([f"the set is ahead of {best} by", *(in_between(one.gap) for one in regimes)])
    for factor in regimes[0].lengths:
        for name in regimes[0].lengths[factor]:
            cells = (score_in_words(one.lengths[factor][name]) for one in regimes)
            found.append([f"{REGIME_ARMS[name]}, trained {factor} times as long", *cells])
        found.append([f"the set is ahead of {best} by", *(in_between(one.gap_at(factor)) for one in regimes)])
    found.append(["protocol", *(str(one.protocol.get("protocol")) for one in regimes)])
    found.append(["fingerprint", *(one.fingerprint for one in regimes)])
    found.append(["teacher", *(_teacher(one) for one in regimes)])
    found.append(["bytes of images, labels, teacher", *(_sizes(one) for one in regimes)])
    found.append(["steps, images a teacher labels", *(_spent(one) for one in regimes)])
    return found


NETWORK_HEADINGS = ("student", "the distilled set %", "random real images %", "the set is ahead by (95 %)")


def network_rows(reports: Mapping[str, Report], kind: str) -> list[list[str]]:
    """Return one row per network, and their mean: the set, its control and the gap with labels of one kind.

    Args:
        reports: of one set, by the name of the network.
        kind: "own" or a regime.
    """
    pairs = {network: _pair(report, kind) for network, report in reports.items()}
    found: list[list[str]] = []
    for network, (own, control) in pairs.items():
        gap = "-" if control is None or control.n != own.n else in_between(paired_gap(own.values, control.values))
        found.append([network, score_in_words(own), "-" if control is None else score_in_words(control), gap])
    mean = statistics.fmean(own.mean for own, _ in pairs.values())
    controls = [control.mean for _, control in pairs.values() if control is not None]
    if len(controls) < len(pairs):
        return [*found, ["mean", f"{mean:.2f}", "-", "-"]]
    random = statistics.fmean(controls)
    return [*found, ["mean", f"{mean:.2f}", f"{random:.2f}", f"{mean - random:+.2f}"]]


def _pair(report: Report, kind: str) -> tuple[Score, Score | None]:
    """Return the scores of the set and of its control with labels of a kind."""
    regime = report.regime(kind)
    if regime is None:
        return report.accuracy, report.control
    return regime.rows["accuracy"], regime.rows.get("control")


def _teacher(one: RegimeReport) -> str:
    if one.labels is None:
        return "none"
    pairs = zip(one.labels["names"], one.labels["accuracies"], strict=True)
    known = [(re.sub(r":\w+=.*", "", name), held) for name, held in pairs]  # `convnet:depth=3:…`: the table is narrow
    return " and ".join(name if held is None else f"{name} ({held:.1f} %)" for name, held in known)


def _sizes(one: RegimeReport) -> str:
    return ", ".join(readable_size(one.bytes[what]) for what in ("images", "labels", "teacher"))


def _spent(one: RegimeReport) -> str:
    return f"{one.spent['steps']:,}, {one.spent['queries']:,}"


def _uneven(score: Score) -> bool:
    """Return whether balanced and plain accuracy differ visibly, because test classes differ in size."""
    pairs = zip(score.balanced, score.values, strict=False)
    return any(abs(balanced - value) >= _SEEN for balanced, value in pairs)


def _ahead(report: Report, arm: str) -> str:
    if arm == "full":
        assert report.full is not None
        return f"{100 * report.accuracy.mean / report.full.mean:.1f} % of it reached" if report.full.mean else ""
    points = {"control": report.gap, "start": report.gain, "decoded": report.decoded_gap}.get(arm)
    if points is None:
        return ""
    words = f"{points:+.2f} points"
    if arm == "control" and report.pooled_std:
        words += f" ({points / report.pooled_std:+.1f} pooled std)"
    return words
