"""What a page is about: a report, and the set, the start and the log that are beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dd.errors import RunError, UsageError, in_one_line
from dd.evaluation.read import read_reports
from dd.evaluation.report import Report
from dd.io import user_path
from dd.pipeline.evaluation import existing_set
from dd.pipeline.meant import meant_for
from dd.released.pull import is_released
from dd.runs import RunFolder, read_log
from dd.sets import DistilledSet, hashed_once
from dd.sets import load as load_set

_LONGEST = 32 << 20  # bytes of a log that is read


@dataclass(frozen=True, eq=False)
class ReportedSet:
    """A report with what is beside it.

    Attributes:
        place: the folder or file, as the user named it.
        report: the report.
        distilled: its set; None if only the report is there.
        start: the set at iteration 0, of the same images and kinds; None if there is none.
        columns: columns of the log.
        log: rows of the log, see `dd.runs.read_log`.
        recipe: text of the resolved recipe; may be empty.
        remarks: what is missing, and why.
    """

    place: str
    report: Report
    distilled: DistilledSet | None = None
    start: DistilledSet | None = None
    columns: Sequence[str] = ()
    log: Sequence[dict[str, str]] = ()
    recipe: str = ""
    remarks: tuple[str, ...] = ()


def subjects(places: Sequence[str]) -> list[ReportedSet]:
    """Return the subject of each place: the folder of a finished run, a set with its report beside it, or a report.

    The report of `NAME.safetensors` is `NAME.json`; that of `set.safetensors` is the run's `report.json`.

    Raises:
        UsageError: a place is named twice, has no set or no report, or its set and its report do not fit together, or
            one of them is damaged.
    """
    files = [_file(place) for place in places]
    if twice := [place for at, place in enumerate(places) if files[at] in files[:at]]:
        raise UsageError(f"{twice[0]} is named twice")
    found: list[ReportedSet] = []
    with hashed_once():
        for place, file in zip(places, files, strict=True):
            found += _reports_alone(place, file) if file.suffix == ".json" else [_subject(place, file)]
    return found


def _file(place: str) -> Path:
    """Return the file of a place: its set or, if the place is a report, that report."""
    if not place.endswith(".json"):
        if is_released(place):
            raise UsageError(f"{place} has no report: dd eval {place} --json > FILE.json, then dd report FILE.json")
        return existing_set(place).resolve()
    file = user_path(place).resolve()
    if not file.exists():
        raise UsageError(f"no report at {place}")
    folder = RunFolder(file.parent)
    return folder.set if file == folder.report and folder.set.is_file() else file


def _reports_alone(place: str, file: Path) -> list[ReportedSet]:
    remarks = ("only the report was named: no images, no curves",)
    return [
        ReportedSet(f"{place}: {name}" if name else place, report, remarks=remarks)
        for name, report in _reports(file).items()
    ]


def _subject(place: str, file: Path) -> ReportedSet:
    folder = RunFolder(file.parent)
    is_run = file == folder.set
    if is_run and file.exists():
        _require_finished(place, folder)
    report_file = folder.report if is_run else file.with_suffix(".json")
    distilled = load_set(file)
    meant_for(distilled)
    if not report_file.exists():
        way = f"dd eval {place} --json > {report_file.name}"
        raise UsageError(f"{place} has no report ({report_file.name}) beside it: {way} writes one")
    report = _reports(report_file).get("")
    if report is None:
        raise UsageError(f"{report_file} has several reports: name it alone")
    _require_fit(place, report, distilled)
    if not is_run:
        return ReportedSet(place, report, distilled)
    start, remarks = _start(folder, distilled)
    columns, rows = read_log(folder.log_csv) if _size(folder.log_csv) <= _LONGEST else ([], [])
    recipe = folder.recipe_toml
    text = recipe.read_text(encoding="utf-8", errors="replace") if 0 < _size(recipe) <= _LONGEST else ""
    return ReportedSet(place, report, distilled, start, columns, rows, text, remarks)


def _reports(file: Path) -> dict[str, Report]:
    try:
        return read_reports(file)
    except RunError as error:  # named by the user, not made by this call
        raise UsageError(str(error)) from error


def _require_finished(place: str, folder: RunFolder) -> None:
    damage = folder.damage()
    if damage is None:
        raise UsageError(f"{place} is not finished: `dd run` with its settings ends it (dd run recipe={place})")
    for name, why in damage.items():
        raise UsageError(f"{place} is damaged: {name}: {why}")


def _require_fit(place: str, report: Report, distilled: DistilledSet) -> None:
    if report.classes and report.classes != distilled.classes:
        raise UsageError(f"{place}: the report is not one of this set: its classes differ")
    for key in ("recipe", "seed"):
        said, own = report.provenance.get(key), distilled.provenance.get(key)
        if said != own:
            raise UsageError(f"{place}: the report is not one of this set: its {key} is {said}, the set's {own}")


def _start(folder: RunFolder, distilled: DistilledSet) -> tuple[DistilledSet | None, tuple[str, ...]]:
    """Return the set at iteration 0, or None with a remark."""
    if not folder.start.is_file():
        return None, ("the images at iteration 0 are left out: start.safetensors is missing",)
    try:
        start = load_set(folder.start)
    except UsageError as error:
        return None, (f"the images at iteration 0 are left out: {in_one_line(error)}",)
    alike = ("classes", "image_kind", "decode_factor", "source")
    same = all(getattr(start, name) == getattr(distilled, name) for name in alike)
    if not same or start.images.shape != distilled.images.shape:
        return None, ("the images at iteration 0 are left out: they are of another shape or kind",)
    return start, ()


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
