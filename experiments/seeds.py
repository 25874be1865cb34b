"""Run commands with several seeds and record the spread between sets apart from that between students.

    python experiments/seeds.py coresets.csv 0,1,2 "method=random ipc=10" "method=herding ipc=10" …

Every seed is another `dd run`: another selection or distillation, other students.  What is finished is read, not run
again, so the command goes on where it was stopped.  Rows of other commands in the file are kept.
"""

import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dd
from dd.evaluation.report import Report
from dd.evaluation.scores import nested_std
from dd.io import write_text
from dd.recipes import parse_overrides

SEED = "SEED"
RESULTS = Path(__file__).parent / "results"
FIELDS = (
    *("command", "seeds", "students", "accuracy", "std_sets", "std_students", "control", "control_std"),
    *("holdout", "bytes", "prepare_s", "synthesise_s", "protocol", "fingerprint", "device", "torch"),
)


def row(words: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Run one command with every seed and return its row.

    Args:
        words: the settings, as on the command line, without `seed`; `SEED` in them stands for it.
        seeds: the seeds.
    """
    reports = []
    for seed in seeds:
        settings = dict(parse_overrides(words.replace(SEED, str(seed)).split()))
        reports.append(dd.run(settings.pop("method"), seed=seed, **settings).report)
    means = [report.accuracy.mean for report in reports]
    controls = [value for report in reports if report.control for value in report.control.values]
    held = [value for report in reports for value in report.accuracy.holdout]
    first = reports[0]
    return {
        "command": f"dd run {words}",
        "seeds": " ".join(map(str, seeds)),
        "students": first.accuracy.n,
        "accuracy": _two(statistics.fmean(means)),
        "std_sets": _two(statistics.stdev(means)) if len(means) > 1 else "",
        "std_students": _two(nested_std([report.accuracy.values for report in reports])[1]),
        "control": _two(statistics.fmean(controls)) if controls else "",
        "control_std": _two(statistics.stdev(controls)) if len(controls) > 1 else "",
        "holdout": _two(statistics.fmean(held)) if held else "",
        "bytes": first.bytes["total"],
        "prepare_s": _seconds(reports, "prepare", "artefact_seconds"),
        "synthesise_s": _seconds(reports, "synthesise", "seconds"),
        "protocol": first.protocol["protocol"],
        "fingerprint": first.fingerprint,
        "device": first.device,
        "torch": first.versions["torch"],
    }


def _seconds(reports: Sequence[Report], stage: str, of: str) -> int:
    return round(statistics.fmean(report.cost.get(stage, {}).get(of, 0.0) for report in reports))


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(file: str, seeds: str, *commands: str) -> None:
    """Run the commands and write their rows, each as soon as it is complete."""
    path = RESULTS / file
    rows: dict[str, dict[str, Any]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as lines:
            rows = {one["command"]: dict(one) for one in csv.DictReader(lines)}
    for words in commands:
        made = row(words, [int(seed) for seed in seeds.split(",")])
        rows[made["command"]] = made
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[command] for command in sorted(rows))
        write_text(path, text.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
