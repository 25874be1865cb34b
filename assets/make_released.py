"""Ship finished runs: copy their sets to folders in `released/`, and write their records to `released/shipped.toml`.

    dd run method=dm ipc=10 out=RUNS && python assets/make_released.py RUNS
    python assets/make_released.py --check         # compare the shipped files with their records

Shipped sets without a run in RUNS are kept. The score in a record is that of the run's report.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from dd.evaluation.report import Report, Score
from dd.io import sha256_file
from dd.io.typed import typed
from dd.released.record import Released, ReleasedFile, ReleasedScore
from dd.runs import RunFolder
from dd.sets import load, save

HERE = Path(__file__).resolve().parent / "released"
RECORDS = HERE / "shipped.toml"
LIMIT = 8_000_000  # bytes of all sets together
_HEAD = "# Written by make_released.py: the sets that ship with the package.\nformat = 1\n"
# `dd methods NAME` has the authors and the paper of a method
_NOTE = "made by dd; a small set to try things with"


def bring(folder: RunFolder) -> Released:
    """Copy one run's set to `released/`, and return its record."""
    report = Report.from_dict(json.loads(folder.report.read_text(encoding="utf-8")))
    made = load(folder.set)
    method, source = str(made.provenance["method"]), made.source
    ipc = folder.settings()["ipc"]  # as requested: learned labels may favour other classes, so the set does not know
    name = f"{source}-ipc{ipc}"
    command = _without_out(str(made.provenance["command"]))
    target = HERE / f"{method}-{name}"
    with tempfile.TemporaryDirectory(dir=HERE) as temporary:
        place = Path(temporary)
        if made.views is not None:
            made.label_store().pack(place)
        # a set is saved without the location of its run
        save(replace(made, provenance={**made.provenance, "command": command}, path=None), RunFolder(place).set)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for file in place.glob("[!.]*"):
            shutil.copy(file, target)
    files = sorted(target.iterdir())
    return Released(
        name=f"{method}/{name}",
        method=method,
        dataset=source,
        ipc=ipc,
        where=(f"package:{target.name}",),
        files=tuple(ReleasedFile(file.name, file.stat().st_size, sha256_file(file)) for file in files),
        status="ok",
        licence="MIT",
        data_licence="MIT",
        labels="labels of a teacher" if made.label_kind == "views" else str(made.label_kind),
        value_space=str(made.space["kind"]),
        class_order="data",
        augment=made.augment,
        protocol=report.protocol["protocol"],
        by="the dd authors",
        command=command,
        version=str(made.provenance["version"]),
        scores=(_score(report),),
        note=_NOTE,
    )


def _score(report: Report) -> ReleasedScore:
    accuracy, control = report.accuracy, report.control
    threads = re.search(r"(\d+) threads", report.device)
    return ReleasedScore(
        protocol=_in_words(report.protocol),
        mean=_rounded(accuracy.mean),
        std=_std(accuracy),
        students=accuracy.n,
        student=_student(report.student),
        control=None if control is None else _rounded(control.mean),
        control_std=None if control is None else _std(control),
        by=f"dd {report.versions['dd-workbench']}, torch {report.versions['torch']}",
        device=report.device.partition(" ")[0],
        threads=int(threads[1]) if threads else None,
        seeds=f"seed={report.provenance['seed']} of the run and of its students",
        fingerprint=report.fingerprint,
    )


def _in_words(protocol: Mapping[str, Any]) -> str:
    from dd.evaluation.protocols import Protocol

    return typed(Protocol, dict(protocol), "protocol").in_words()


def _student(student: Mapping[str, Any]) -> str:
    return f"{student['arch']}, depth {student['depth']}, width {student['width']}, {student['norm']} norm"


def _std(score: Score) -> float | None:
    return None if score.std is None else _rounded(score.std)


def _rounded(value: float) -> float:
    return round(value, 2)


def _without_out(command: str) -> str:
    return re.sub(r" out=\S+", "", command)


def _toml(record: Released) -> str:
    lines = ["", "[[set]]"]
    for field in fields(record):
        value = getattr(record, field.name)
        if value != field.default:
            lines.append(f"{field.name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, ReleasedFile | ReleasedScore):
        given = {key: one for key, one in asdict(value).items() if one not in (None, "")}
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in given.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def here() -> dict[str, Released]:
    """Return the records of shipped sets by name."""
    if not RECORDS.is_file():
        return {}
    rows = tomllib.loads(RECORDS.read_text(encoding="utf-8")).get("set", [])
    return {row["name"]: typed(Released, row, row["name"]) for row in rows}


def wrong(records: Mapping[str, Released]) -> list[str]:
    """Return the problems: files that are missing, changed, or without a record."""
    named = {HERE / one.where[0].removeprefix("package:") / f.path: f for one in records.values() for f in one.files}
    there = {file for file in HERE.rglob("*") if file.is_file() and file != RECORDS}
    changed = {path for path, file in named.items() if path in there and sha256_file(path) != file.sha256}
    return sorted(str(path.relative_to(HERE)) for path in (set(named) ^ there) | changed)


def main() -> None:
    """Parse the command line, then write or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder that the runs are below")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file differs")
    options = parser.parse_args()
    records = here()
    if options.check:
        sys.exit(f"differs from its record: {', '.join(found)}" if (found := wrong(records)) else 0)
    if options.runs is None:
        parser.error("name the folder of the runs, or --check")
    HERE.mkdir(exist_ok=True)
    for path in sorted(options.runs.glob("*/*/*/*/report.json")):
        folder = RunFolder(path.parent)
        if not folder.is_finished():
            print(f"{folder.path}: not finished, or damaged; left out", file=sys.stderr)
            continue
        record = bring(folder)
        records[record.name] = record
        print(f"{record.name}: {record.size:,} bytes, {record.scores[0].mean} %")
    RECORDS.write_text(_HEAD + "".join(_toml(records[name]) for name in sorted(records)), encoding="utf-8")
    total = sum(record.size or 0 for record in records.values())
    print(f"{len(records)} sets, {total:,} bytes")
    if total > LIMIT:
        largest = sorted(records.values(), key=lambda record: -(record.size or 0))[:3]
        sys.exit(f"more than {LIMIT:,} bytes; the largest are {', '.join(one.name for one in largest)}")


if __name__ == "__main__":
    main()
