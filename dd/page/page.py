"""Putting a page together and writing it.

The page refers to nothing outside itself and holds no script, and its Content-Security-Policy forbids both.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.errors import UsageError, printable
from dd.evaluation import compare as comparing
from dd.evaluation.conditions import COST_HEADINGS, conditions, cost_rows, expected_in_words
from dd.evaluation.report import Report
from dd.evaluation.table import (
    LABELS,
    facts_in_words,
    heading,
    headings,
    html_table,
    regime_headings,
    regime_rows,
    rows,
    score_in_words,
    times_in_words,
)
from dd.evaluation.verdict import verdict
from dd.io import user_path, writable, write_text
from dd.page import charts
from dd.page.pictures import SIDE, Room, galleries
from dd.page.subject import ReportedSet, subjects
from dd.runs import RunFolder
from dd.sizes import readable_size

if TYPE_CHECKING:
    from jinja2 import Environment

SUFFIX = ".html"
_MARK = '<meta name="generator" content="dd report">'
_PROVENANCE = 20_000  # characters of a set's provenance, or of a recipe, that are shown
_OWN = "the sets' own labels"
_FINGERPRINT = 8  # characters of a fingerprint in a column heading


@dataclass(frozen=True)
class Written:
    """A page that was written.

    Attributes:
        path: its file.
        bytes: its size.
        remarks: what was left out, and why.
    """

    path: Path
    bytes: int
    remarks: tuple[str, ...]


def write_page(places: Sequence[str], out: str | Path | None = None, *, dataset: str = "") -> Written:
    """Write one page about runs: their images, curves, accuracies with controls, cost and origin.

    Args:
        places: folders of finished runs, sets with a report beside them, or reports; see `dd.page.subject.subjects`.
        out: the file; None for `report.html` in the folder of a single place, or in the current folder for several.
        dataset: where the real images of all the sets are; "" for where each set says they are.

    Raises:
        UsageError: a place is unsuitable or damaged, or the file exists and is not such a page.
        RunError: the disk is full.
    """
    if not places:
        raise UsageError("name the runs: dd report RUN…")
    target = _target(places, out)
    found = subjects(places)
    text, remarks = page(found, dataset)
    writable(target.parent, "choose another file with out=FILE.html")
    write_text(target, text)
    return Written(target, target.stat().st_size, remarks)


def page(found: Sequence[ReportedSet], dataset: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the text of a page, and what was left out and why."""
    room, names = Room(dataset=dataset), _names(found)
    parts = [_part(one, name, room, number) for number, (one, name) in enumerate(zip(found, names, strict=True), 1)]
    style = files("dd.page").joinpath("templates", "page.css").read_text(encoding="utf-8")
    text = (
        _environment()
        .get_template("page.html")
        .render(
            title=f"{names[0]}: dd report" if len(found) == 1 else f"{len(found)} runs: dd report",
            version=version("dd-workbench"),
            style=style,
            style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            parts=parts,
            side_by_side=_side_by_side(found, names) if len(found) > 1 else None,
            width=charts.WIDTH,
            height=charts.HEIGHT,
            side=SIDE,
        )
    )
    remarks = tuple(f"{part['name']}: {line}" for part in parts for line in part["remarks"])
    return text, remarks


def _target(places: Sequence[str], out: str | Path | None) -> Path:
    if out is None:
        place = user_path(places[0])
        folder = place if place.is_dir() else place.parent
        path = RunFolder(folder if len(places) == 1 else Path.cwd()).page
    else:
        path = user_path(out, "out")
    if path.is_dir() or path.suffix.lower() not in (SUFFIX, ".htm"):
        raise UsageError(f"out={path} is not the name of a page: out=FILE{SUFFIX}")
    if path.exists():
        with path.open("rb") as file:
            if _MARK.encode() not in file.read(4000):
                raise UsageError(f"{path} exists and is not a page of dd report; choose another file with out=")
    return path


def _names(found: Sequence[ReportedSet]) -> list[str]:
    """Return a name for each subject, with its seed or, if that does not suffice, its place where names repeat."""
    plain = [heading(one.report) or one.place for one in found]
    seeded = [f"{name}, seed {one.report.provenance.get('seed', 0)}" for name, one in zip(plain, found, strict=True)]
    placed = [f"{name} ({one.place})" for name, one in zip(seeded, found, strict=True)]
    names = zip(plain, seeded, placed, strict=True)
    return [a if plain.count(a) == 1 else b if seeded.count(b) == 1 else c for a, b, c in names]


def _part(subject: ReportedSet, name: str, room: Room, number: int) -> dict[str, Any]:
    """Return what the template shows of one subject."""
    report = subject.report
    shown, remarks = galleries(subject, room)
    lines, left = charts.curves(subject)
    classes, others = charts.class_rows(report)
    ranking = report.ranking
    return {
        "id": f"run-{number}",
        "name": name,
        "place": subject.place,
        "table": (headings(report), rows(report)),
        "bars": charts.arms(report),
        "facts": facts_in_words(report),
        "times": times_in_words(report),
        "expected": expected_in_words(report),
        "notes": report.notes,
        "regimes": (regime_headings(report), regime_rows(report)) if report.regimes else None,
        "regime_bars": charts.regime_bars(report),
        "verdict": verdict(report.regimes),
        "ranking": "" if ranking is None else ranking.in_words(),
        "galleries": shown,
        "charts": lines,
        "charts_left": left,
        "learning": charts.learning(report),
        "classes": classes,
        "classes_left": others,
        "cost": (COST_HEADINGS, cost_rows(report)),
        "bytes": (("part", "size", "bytes"), [(w, readable_size(n), f"{n:,}") for w, n in report.bytes.items()]),
        "origin": _origin(subject),
        "provenance": _shortened(json.dumps(report.provenance, indent=1, ensure_ascii=False, default=str)),
        "recipe": _shortened(subject.recipe),
        "remarks": (*subject.remarks, *remarks),
    }


def _origin(subject: ReportedSet) -> list[tuple[str, str]]:
    """Return what produced the numbers, as (subject, words)."""
    report, made = subject.report, subject.report.provenance
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    own = [
        ("recipe hash", report.recipe_hash),
        ("method", str(made.get("method", ""))),
        ("seed", str(made.get("seed", ""))),
        ("iterations", str(made.get("iterations", ""))),
        ("data set", report.dataset.get("name", "")),
        ("data fingerprint", report.dataset.get("fingerprint", "")),
        ("licence of the data", report.dataset.get("licence", "")),
        ("versions", versions),
        ("set made by", "" if made.get("command") == report.command else str(made.get("command", ""))),
        ("found in", subject.place),
    ]
    shown = [(what, words) for what, words in conditions(report) if what not in ("size", "cost")]
    return [*shown, *(one for one in own if one[1])]


def _side_by_side(found: Sequence[ReportedSet], names: Sequence[str]) -> dict[str, Any]:
    """Return the comparison of several subjects: ranked where the conditions are equal, else with what differs."""
    compared = comparing.compare({one.place: one.report for one in found})
    blocks = [
        (LABELS.get(one.kind, _OWN), (comparing.HEADINGS, [comparing.cells(row) for row in one.rows]))
        for one in compared.blocks
    ]
    differs = []
    for kind, differing in compared.differs.items():
        head, *body = comparing.differing_rows(differing)
        differs.append((LABELS.get(kind, _OWN), (head, body)))
    return {
        "blocks": blocks,
        "differs": differs,
        "matrix": _matrix([one.report for one in found], names),
        "architectures": charts.architectures(found),
    }


def _matrix(reports: Sequence[Report], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return sets by protocols: column headings, and one row for each set."""
    cells: list[dict[str, str]] = []
    for report in reports:
        own = [("own labels", report.protocol, report.fingerprint, report.accuracy)]
        own += [(LABELS[one.regime], one.protocol, one.fingerprint, one.rows["accuracy"]) for one in report.regimes]
        cells.append({f"{protocol.get('protocol')}, {labels} ({fingerprint[:_FINGERPRINT]})": score_in_words(score)
                      for labels, protocol, fingerprint, score in own})  # fmt: skip
    columns = list(dict.fromkeys(column for row in cells for column in row))
    body = [[name, *(row.get(column, "-") for column in columns)] for name, row in zip(names, cells, strict=True)]
    return ["test accuracy % by protocol", *columns], body


def _shortened(text: str) -> str:
    if len(text) <= _PROVENANCE:
        return text
    return f"{text[:_PROVENANCE]}\n… {len(text) - _PROVENANCE:,} characters more are in the file"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def table(of: tuple[Sequence[str], Sequence[Sequence[str]]]) -> Markup:
        return Markup(html_table(*of))

    environment = Environment(
        loader=PackageLoader("dd.page"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = table
    return environment
