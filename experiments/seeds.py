"""Run commands with several seeds and record the spread between sets apart from that between students.

    python experiments/seeds.py coresets.csv 0,1,2 "method=random ipc=10" "method=herding ipc=10" …

Every seed is another `dd run`: another selection or distillation, other students.  What is finished is read, not run
again, so the command goes on where it was stopped.  Rows of other commands in the file are kept.  A command with
`eval.labels` has further rows, one for each regime; one with `eval.curve` and `eval.target` has the time to the target.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recorded import record

import dd
from dd.evaluation.report import OWN, SCORES, RegimeReport, Report, Score
from dd.evaluation.scores import gap_to_best, nested_std
from dd.recipes import parse_overrides

SEED = "SEED"
REFERENCES = ("control", "coreset", "decoded", "start", "noise", "equal_bytes", "full")
FIELDS = (
    *("command", "labels", "seeds", "students", "accuracy", "std_sets", "std_students", "control", "control_std"),
    *("holdout", "bytes", "prepare_s", "synthesise_s", "protocol", "fingerprint", "device", "torch"),
    *("gap", "gap_low", "gap_high", "coreset_method"),
    *(f"{name}{of}" for name in REFERENCES[1:] for of in ("", "_std")),
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
    for kind, each in _by_labels(reports).items():
        facts = {"labels": kind} | _cells([_scores(one) for one in each]) | _gap(each)
        yield head | facts | _conditions(each[0]) | cost | _times(each)


def _by_labels(reports: Sequence[Report]) -> Mapping[str, Sequence[Report | RegimeReport]]:
    """Return the scores of every seed by kind of labels, the sets' own first."""
    regimes = zip(*(report.regimes for report in reports), strict=True)
    return {OWN: reports} | {each[0].regime: each for each in regimes}


def _scores(one: Report | RegimeReport) -> Mapping[str, Score]:
    """Return the scores by row, "accuracy" that of the set."""
    if isinstance(one, RegimeReport):
        return {"equal_bytes" if name == "bytes" else name: score for name, score in one.rows.items()}
    return {name: score for name in SCORES if (score := getattr(one, name)) is not None}


def _cells(each: Sequence[Mapping[str, Score]]) -> dict[str, Any]:
    """Return the accuracies of a row, from the scores of the set and its references for each seed."""
    own = [scores["accuracy"] for scores in each]
    means = [score.mean for score in own]
    held = [value for score in own for value in score.holdout]
    found = {
        "students": own[0].n,
        "accuracy": _two(statistics.fmean(means)),
        "std_sets": _two(_std(means)),
        "std_students": _two(nested_std([score.values for score in own])[1]),
        "holdout": _two(statistics.fmean(held)) if held else "",
    }
    for name in REFERENCES:
        values = [value for scores in each if name in scores for value in scores[name].values]
        found |= {name: _two(statistics.fmean(values)) if values else "", f"{name}_std": _two(_std(values))}
    return found


def _gap(each: Sequence[Report | RegimeReport]) -> dict[str, str]:
    """Return by how much the sets beat the better of random images and the coreset; sets, not students, vary."""
    rows = [_scores(one) for one in each]
    if not all("control" in row for row in rows):
        return {}
    names = [name for name in ("control", "coreset") if all(name in row for row in rows)]
    own, *others = ([row[name].mean for row in rows] for name in ("accuracy", *names))
    gap = gap_to_best(own, others)
    methods = dict.fromkeys(one.coreset for one in each if isinstance(one, RegimeReport) and one.coreset)
    found = {"gap": _two(gap.mean), "gap_low": _two(gap.low), "gap_high": _two(gap.high)}
    return found | {"coreset_method": " ".join(methods)}


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


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(file: str, seeds: str, *commands: str) -> None:
    """Run the commands and write their rows, each as soon as it is complete."""
    for words in commands:
        record(file, FIELDS, list(rows_of(words, [int(seed) for seed in seeds.split(",")])))


if __name__ == "__main__":
    main(*sys.argv[1:])
