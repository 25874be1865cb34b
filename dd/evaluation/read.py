"""Reading a report file: whatever is in it, what comes out can be shown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dd.errors import RunError, UsageError, in_one_line
from dd.evaluation.report import SCORES, RegimeReport, Report, Score
from dd.evaluation.table import LABELS, REGIME_ARMS
from dd.io import existing
from dd.io.typed import typed
from dd.sets.origin import Percentage, imported

_Number = Annotated[float, Field(ge=0)]
_LARGEST = 64 << 20  # bytes of a report; one of 1000 classes under three regimes has one
_IN_REGIMES = {"bytes": ("images", "labels", "teacher", "total"), "spent": ("steps", "images", "queries")}


@dataclass(frozen=True)
class _Score:
    """The parts of a score that are shown."""

    values: Annotated[tuple[Percentage, ...], Field(min_length=1)]
    holdout: tuple[Percentage, ...] = ()
    balanced: tuple[Percentage, ...] = ()
    classes: tuple[Percentage | None, ...] = ()
    top5: tuple[Percentage, ...] = ()
    calibration: tuple[Percentage, ...] = ()


@dataclass(frozen=True)
class _Labels:
    """The parts of a report's record of its labels that are shown."""

    form: str
    teacher_mode: str
    ensemble: str = ""
    names: tuple[str, ...] = ()
    accuracies: tuple[Percentage | None, ...] = ()
    stored_epochs: int | None = None


@dataclass(frozen=True)
class _Cost:
    """The parts of the cost of a stage that are shown."""

    seconds: _Number | None = None
    artefact_seconds: _Number | None = None
    peak_memory: _Number | None = None


@dataclass(frozen=True)
class _Target:
    """The part of a protocol that decides what is shown of its learning curves."""

    protocol: str = ""
    target: Percentage | None = None


@dataclass(frozen=True)
class _Asked:
    """What a run was asked for, see `Report.recipe`."""

    settings: Mapping[str, Any]
    method_version: int
    decided: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = False


@dataclass(frozen=True)
class _Facts:
    """The parts of a report's open mappings that are shown, or by which sets are told apart."""

    bytes: Mapping[str, Annotated[int, Field(ge=0)]]
    student: Mapping[str, str | int | float | None]
    encoder: Mapping[str, Any]
    labels: _Labels | None
    dataset: Mapping[str, str]
    seed: int
    texts: tuple[str, ...]


def read_report(file: Path) -> Report:
    """Read a report that a run or `dd eval … --json` wrote; its values have the types and ranges that tables expect.

    Keys of other versions are ignored.

    Raises:
        RunError: it cannot be read, or it is not one report of test accuracies; one line names file and field.
    """
    found = read_reports(file)
    if list(found) != [""]:
        raise RunError(f"{file} cannot be read as a report: it has {len(found)}, of {', '.join(found)}")
    return found[""]


def read_reports(file: Path) -> dict[str, Report]:
    """Read one or several reports, see `read_report`.

    Returns:
        A single report under the name "", several of them under the names of their sets and networks.

    Raises:
        RunError: as `read_report`.
    """
    try:
        existing(file, str(file))
        if file.stat().st_size > _LARGEST:
            raise UsageError(f"it is larger than {_LARGEST >> 20} MiB")
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, Mapping) or "sets" not in value:
            return {"": report_from(value)}
        return dict(_several(value["sets"]))
    except (OSError, ValueError, RecursionError, UsageError) as error:
        raise RunError(f"{file} cannot be read as a report: {in_one_line(error)}") from error


def _several(entries: object) -> Iterator[tuple[str, Report]]:
    """Yield the reports of sets and networks, without those that failed."""
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        raise UsageError("sets is no list of reports")
    found: list[Mapping[str, Any]] = [one for one in entries if "report" in one]
    if not found:
        raise UsageError("it has no report")
    for one in found:
        yield " ".join(str(one[key]) for key in ("set", "network") if key in one), report_from(one["report"])


def report_from(value: object) -> Report:
    """Build a report from parsed JSON, see `read_report`.

    Raises:
        UsageError: something is missing, of a wrong type or out of range; one line.
    """
    if not isinstance(value, Mapping):
        raise UsageError("it is no JSON object")
    if "task" in value:
        raise UsageError(f"it measures task={str(value['task'])[:20]}, not test accuracy")
    if "accuracy" not in value:
        raise UsageError("it has no accuracy")
    known = _known(Report, value)
    for name in SCORES:
        known[name] = None if value.get(name) is None else _score(value[name], name)
    regimes = value.get("regimes", [])
    if not isinstance(regimes, list):
        raise UsageError("regimes is no list")
    known["regimes"] = [_regime(one) for one in regimes]
    report = typed(Report, known, "")
    _check(report)
    return report


def _known(kind: type[Any], value: object) -> dict[str, Any]:
    """Return the values of the fields of a dataclass; anything that is no mapping stays for `typed` to refuse."""
    if not isinstance(value, Mapping):
        return {"": value}
    names = {field.name for field in fields(kind)}
    return {key: one for key, one in value.items() if key in names}


def _score(value: object, named: str) -> dict[str, Any]:
    typed(_Score, _known(_Score, value), named)
    return _known(Score, value)


def _regime(value: object) -> dict[str, Any]:
    known = _known(RegimeReport, value)
    known["rows"] = _rows(known.get("rows"))
    lengths = known.get("lengths", {})
    if not isinstance(lengths, Mapping) or not all(isinstance(one, Mapping) for one in lengths.values()):
        raise UsageError("regimes: lengths is no mapping of lengths")
    known["lengths"] = {factor: _rows(one.get("rows")) for factor, one in lengths.items()}
    return known


def _rows(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError("regimes: rows is no mapping of scores")
    return {name: _score(score, name) for name, score in value.items()}


def _scores(report: Report) -> Iterator[Score]:
    """Yield every score of a report."""
    yield from (score for name in SCORES if (score := getattr(report, name)) is not None)
    for one in report.regimes:
        for rows in (one.rows, *one.lengths.values()):
            yield from rows.values()


def _check(report: Report) -> None:
    """Check what types alone do not say."""
    for score in _scores(report):
        _check_score(score, report.classes)
    if "total" not in report.bytes:
        raise UsageError("bytes: the total is missing")
    for stage, cost in report.cost.items():
        typed(_Cost, _known(_Cost, cost), f"cost.{stage}")
    for one in (report, *report.regimes):
        _facts(one)
        typed(_Target, _known(_Target, one.protocol), "protocol")
    if report.recipe:
        typed(_Asked, _known(_Asked, report.recipe), "recipe")
    _check_regimes(report.regimes)
    imported(report.provenance)


def _check_score(score: Score, classes: tuple[str, ...]) -> None:
    if len(score.classes) not in (0, len(classes)):
        raise UsageError(f"it has accuracies of {len(score.classes)} classes and names of {len(classes)}")
    for curve in score.curves:
        if not 0 < len(curve.steps) == len(curve.images) == len(curve.seconds) == len(curve.test):
            raise UsageError("a learning curve lacks values")


def _check_regimes(regimes: Sequence[RegimeReport]) -> None:
    kinds = [one.regime for one in regimes]
    for one in regimes:
        if one.regime not in LABELS or kinds.count(one.regime) > 1:
            raise UsageError(f"regimes: {one.regime[:20]!r} is unknown, or there twice")
        _check_regime(one)
    if len({tuple((factor, *rows) for factor, rows in one.lengths.items()) for one in regimes}) > 1:
        raise UsageError("regimes: they have different lengths of training")
    if len({one.protocol.get("target") for one in regimes}) > 1:
        raise UsageError("regimes: their protocols have different targets")


def _check_regime(one: RegimeReport) -> None:
    named = f"regimes, {one.regime}"
    for rows in (one.rows, *one.lengths.values()):
        if not {"accuracy", "control"} <= rows.keys():
            raise UsageError(f"{named}: the rows of the set and of random real images are needed")
        counts = {name: rows[name].n for name in ("accuracy", "control", "coreset") if name in rows}
        if len(set(counts.values())) > 1:
            raise UsageError(f"{named}: {counts} students cannot be paired")
    if unknown := [name for rows in (one.rows, *one.lengths.values()) for name in rows if name not in REGIME_ARMS]:
        raise UsageError(f"{named}: unknown row {unknown[0][:20]!r}")
    for name, keys in _IN_REGIMES.items():
        found = getattr(one, name)
        if not all(isinstance(found.get(key), int) and found[key] >= 0 for key in keys):
            raise UsageError(f"{named}: {name} lacks one of {', '.join(keys)}")
    labels = one.labels
    if labels is not None and len(labels.get("names") or ()) != len(labels.get("accuracies") or ()):
        raise UsageError(f"{named}: each teacher needs an accuracy")


def _facts(report: Report | RegimeReport) -> None:
    """Check the shown parts of the open mappings."""
    whole = isinstance(report, Report)
    made, labels = (report.provenance if whole else {}), report.labels
    texts = [made[key] for key in ("name", "series", "method", "recipe", "version", "command", "note") if key in made]
    texts += [one for one in (report.protocol.get("protocol"),) if one is not None]
    student = dict(report.student) if whole else {}
    encoder = student.pop("encoder", {})  # a mapping, of a linear head
    typed(
        _Facts,
        {
            "bytes": report.bytes,
            "student": student,
            "encoder": encoder,
            "labels": None if labels is None else _known(_Labels, labels),
            "dataset": dict(_said(report.dataset)) if whole else {},
            "seed": made.get("seed", 0),
            "texts": texts,
        },
        "",
    )


def _said(dataset: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("name", "where", "licence", "notes", "fingerprint"):
        if key in dataset:
            yield key, dataset[key]
