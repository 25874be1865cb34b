"""The reports of sets to compare: read where a run left one, made where settings differ or there is none."""

from collections.abc import Mapping, Sequence
from typing import Any

from dd.errors import UsageError
from dd.evaluation.read import read_report
from dd.evaluation.report import Report
from dd.io import user_path
from dd.pipeline.evaluation import evaluate_distilled, existing_set, load
from dd.pipeline.outcome import finished
from dd.released.pull import is_released
from dd.runs import RunFolder
from dd.sets import hashed_once
from dd.sets.formats import set_file


def reports_of(places: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Report]:
    """Return the report of each place, in order.

    Args:
        places: folders of finished runs, set files, names of released sets, or reports (`dd eval … --json`).
        overrides: settings of the evaluation; if there are any, every set is scored under them.

    Raises:
        UsageError: a place is named twice, or has neither a set nor a report; settings are given for a report alone.
    """
    where = [_where(place, overrides) for place in places]
    if twice := [place for at, place in enumerate(places) if where[at] in where[:at]]:
        raise UsageError(f"{twice[0]} is named twice")
    with hashed_once():
        return {place: _report_of(place, overrides) for place in places}


def _where(place: str, overrides: Mapping[str, Any]) -> str:
    """Return the file of a place, however it is spelled, or the name of a released set.

    Raises:
        UsageError: there is no such place; no set is scored before all are found.
    """
    if is_released(place):
        return place
    if not place.endswith(".json"):
        return str(existing_set(place).resolve())
    file = user_path(place)
    if overrides:
        raise UsageError(f"{place} is a report: name its set to score it with {next(iter(overrides))}=…")
    if not file.exists():
        raise UsageError(f"no report at {file}")
    return str(file.resolve())


def _report_of(place: str, overrides: Mapping[str, Any]) -> Report:
    if place.endswith(".json"):
        return read_report(user_path(place))
    if not overrides and (folder := _finished_run(place)) is not None:
        return finished(folder).report
    report = evaluate_distilled(load(place), overrides)
    if not isinstance(report, Report):
        raise UsageError(f"task={overrides['task']} measures something else than test accuracy: leave it out")
    return report


def _finished_run(place: str) -> RunFolder | None:
    """Return the folder of the finished run that a folder or a set file belongs to, if any."""
    file = set_file(place)
    folder = RunFolder(file.parent)
    return folder if file == folder.set and folder.report.exists() and folder.is_finished() else None
