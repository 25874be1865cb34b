"""Run commands with several seeds and record the spread between sets apart from that between students.

    python experiments/seeds.py coresets.csv 0,1,2 "method=random ipc=10" "method=herding ipc=10" …

Every seed is another `dd run`: another selection or distillation, other students.  What is finished is read, not run
again, so the command goes on where it was stopped.  Rows of other commands in the file are kept.  A command with
`eval.labels` has further rows, one for each regime; one with `eval.curve` and `eval.target` has the time to the target.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from recorded import record

import dd
from dd.evaluation.report import RegimeReport, Report, Score
from dd.evaluation.scores import nested_std
from dd.recipes import parse_overrides

SEED = "SEED"
FIELDS = (
    *("command", "labels", "seeds", "students", "accuracy", "std_sets", "std_students", "control", "control_std"),
    *("holdout", "bytes", "prepare_s", "synthesise_s", "protocol", "fingerprint", "device", "torch"),
    *("target", "reached", "steps_to", "seconds_to", "control_reached", "control_steps_to", "control_seconds_to"),
)


def rows_of(words: str, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Run one command with every seed and yield its row, then that of each label regime.

    Args:
        words: the settings, as on the command line, without `seed`; `SEED` in them stands for it.
        seeds: the seeds.
    """
    reports = []
    for seed in seeds:
        settings = dict(parse_overrides(words.replace(SEED, str(seed)).split()))
        reports.append(dd.run(settings.pop("method"), seed=seed, **settings).report)
    first = reports[0]
    cost = {
        "prepare_s": _seconds(reports, "prepare", "artefact_seconds"),
        "synthesise_s": _seconds(reports, "synthesise", "seconds"),
        "device": first.device,
        "torch": first.versions["torch"],
    }
    head = {"command": f"dd run {words}", "seeds": " ".join(map(str, seeds))}
    scores = [(report.accuracy, report.control) for report in reports]
    yield head | {"labels": "own"} | _cells(scores) | _conditions(first) | cost | _times(reports)
    for each in zip(*(report.regimes for report in reports), strict=True):
        scores = [(one.rows["accuracy"], one.rows.get("control")) for one in each]
        yield head | {"labels": each[0].regime} | _cells(scores) | _conditions(each[0]) | cost | _times(each)


def _cells(scores: Sequence[tuple[Score, Score | None]]) -> dict[str, Any]:
    """Return the accuracies of a row, from the scores of the set and its control for each seed."""
    own = [score for score, _ in scores]
    means = [score.mean for score in own]
    controls = [value for _, control in scores if control is not None for value in control.values]
    held = [value for score in own for value in score.holdout]
    return {
        "students": own[0].n,
        "accuracy": _two(statistics.fmean(means)),
        "std_sets": _two(statistics.stdev(means)) if len(means) > 1 else "",
        "std_students": _two(nested_std([score.values for score in own])[1]),
        "control": _two(statistics.fmean(controls)) if controls else "",
        "control_std": _two(statistics.stdev(controls)) if len(controls) > 1 else "",
        "holdout": _two(statistics.fmean(held)) if held else "",
    }


def _times(reports: Sequence[Report | RegimeReport]) -> dict[str, Any]:
    """Return when students of all seeds first reach `eval.target`: the means over those that do."""
    found: dict[str, Any] = {}
    for name, prefix in (("accuracy", ""), ("control", "control_")):
        times = [one.times_to_target[name] for one in reports if name in one.times_to_target]
        if not times:
            continue
        reached = sum(time.reached for time in times)
        found |= {"target": f"{times[0].target:g}"}
        found |= {f"{prefix}reached": f"{reached} of {sum(time.students for time in times)}"}
        steps = _pooled([(time.steps, time.reached) for time in times])
        seconds = _pooled([(time.seconds, time.reached) for time in times])
        found |= {f"{prefix}steps_to": "" if steps is None else f"{steps:.0f}", f"{prefix}seconds_to": _two(seconds)}
    return found


def _pooled(means: Sequence[tuple[float | None, int]]) -> float | None:
    """Return the mean over all students, from the mean of each set and its number of students; None without any."""
    known = [(mean, n) for mean, n in means if mean is not None]
    return sum(mean * n for mean, n in known) / sum(n for _, n in known) if known else None


def _conditions(report: Report | RegimeReport) -> dict[str, Any]:
    bytes_, protocol = report.bytes["total"], report.protocol["protocol"]
    return {"bytes": bytes_, "protocol": protocol, "fingerprint": report.fingerprint}


def _seconds(reports: Sequence[Report], stage: str, of: str) -> int:
    return round(statistics.fmean(report.cost.get(stage, {}).get(of, 0.0) for report in reports))


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(file: str, seeds: str, *commands: str) -> None:
    """Run the commands and write their rows, each as soon as it is complete."""
    for words in commands:
        record(file, FIELDS, list(rows_of(words, [int(seed) for seed in seeds.split(",")])))


if __name__ == "__main__":
    main(*sys.argv[1:])
