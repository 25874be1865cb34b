"""Reports side by side: ranked if their numbers are comparable, with the conditions that differ if not."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dd.errors import UsageError, shortened
from dd.evaluation.protocols import Protocol
from dd.evaluation.report import KINDS, OWN, RegimeReport, Report, Score, shared_kinds
from dd.evaluation.scores import Interval, nested_std, paired_gap
from dd.evaluation.table import heading
from dd.evaluation.verdict import in_between
from dd.io import digest
from dd.io.typed import typed
from dd.sizes import readable_size

TOO_FEW = "name two or more sets to compare"
_SHOWN = 40  # longest value of a condition


@dataclass(frozen=True)
class Compared:
    """One accuracy of one set, under one kind of labels, with what it holds for.

    Attributes:
        name: the set; sets of one recipe with different seeds share it.
        place: where its report was found.
        seed: seed of the distillation.
        score: the set's students.
        control: students on as many random real images, if any.
        conditions: everything that comparable numbers share, by dotted key.
        bytes: size of images, labels and of a teacher that students ask.
        seconds: time that making the set took; None if unknown.
    """

    name: str
    place: str
    seed: int
    score: Score
    control: Score | None
    conditions: Mapping[str, Any]
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Standing:
    """The sets of one name.

    Attributes:
        name: the name.
        mean: mean accuracy in percent over sets and students.
        between: standard deviation between sets, see `nested_std`; None for a single set.
        within: standard deviation between students of one set; None for a single student.
        sets: number of sets, made with different seeds.
        students: number of students of each set.
        gap: points ahead of random real images, with its paired interval; None without them.
        behind: points behind the best row, with its paired interval; None for the best, or if nothing pairs the two.
        bytes: see `Compared`; the mean over sets.
        seconds: see `Compared`; the mean over sets.
        other: whether its conditions differ from those of the first row that was named.
    """

    name: str
    mean: float
    between: float | None
    within: float | None
    sets: int
    students: int
    gap: Interval | None
    behind: Interval | None
    bytes: int
    seconds: float | None
    other: bool = False


@dataclass(frozen=True)
class Block:
    """Rows of one kind of labels under the same conditions, the best first.

    Attributes:
        kind: "own", "hard", "soft" or "views".
        rows: at least one.
    """

    kind: str
    rows: tuple[Standing, ...]


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Attributes:
        blocks: for each kind of labels one block if all are comparable or a mismatch is allowed, else one for each set
            of equal conditions.
        differs: for each kind with unequal conditions, the value of each of the conditions that differ, by name of set.
    """

    blocks: tuple[Block, ...]
    differs: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def comparable(self) -> bool:
        """Whether the numbers of each kind hold under the same conditions."""
        return not self.differs


def compare(reports: Mapping[str, Report], kinds: Sequence[str] = (), *, allow_mismatch: bool = False) -> Comparison:
    """Compare reports; sets of the same recipe with different seeds become one row.

    Args:
        reports: by the place of each set, which names it if two recipes have the same name.
        kinds: the kinds of labels to compare; empty for the sets' own and every regime that all reports have.
        allow_mismatch: rank numbers that hold under different conditions too, and mark them.

    Raises:
        UsageError: fewer than two reports, an unknown kind, or a kind that a report lacks.
    """
    if len(reports) < 2:
        raise UsageError(TOO_FEW)
    names = _names(reports)
    blocks: list[Block] = []
    differs: dict[str, dict[str, dict[str, Any]]] = {}
    require_kinds(kinds)
    for kind in dict.fromkeys(kinds) or shared_kinds(reports.values()):
        entries = [compared(names[place], place, report, kind) for place, report in reports.items()]
        if unequal := unequal_conditions(entries):
            differs[kind] = unequal
        parts = [entries] if allow_mismatch else _alike(entries)
        blocks += [Block(kind, _rows(part)) for part in parts]
    return Comparison(tuple(blocks), differs)


def require_kinds(kinds: Sequence[str]) -> None:
    """Raise `UsageError` if one of them is no kind of labels."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"labels={kind} is not one of {', '.join(KINDS)}")


def conditions_of(report: Report | RegimeReport, data: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that comparable numbers share, by dotted key.

    Args:
        report: the protocol and the making of the labels.
        data: the facts of the data set, see `Report.dataset`.
        student: the fields of the network.
    """
    found = {"data": data.get("name"), "data.fingerprint": data.get("fingerprint")}
    found |= {f"student.{key}": value for key, value in student.items()}
    try:
        found |= {
            f"eval.{key}": value for key, value in typed(Protocol, report.protocol, "protocol").training().items()
        }
    except UsageError:  # of another version: the fingerprint still tells protocols apart
        found["eval.protocol"] = report.protocol.get("protocol")
    labels = report.labels or {}
    how = ("form", "teacher_mode", "ensemble", "low", "high", "smooth", "top", "weights")
    found |= {f"labels.{key}": labels[key] for key in how if key in labels}
    found["labels.teachers"] = digest(labels["teachers"]) if labels.get("teachers") else None
    return found | {"fingerprint": report.fingerprint}


def _names(reports: Mapping[str, Report]) -> dict[str, str]:
    """Return the name of each place: that of its report, or the place itself if other recipes have that name too."""
    recipes: dict[str, set[str]] = {}
    for place, report in reports.items():
        recipes.setdefault(heading(report), set()).add(str(report.provenance.get("series") or place))
    return {
        place: heading(report) if len(recipes[heading(report)]) == 1 and heading(report) else place
        for place, report in reports.items()
    }


def compared(name: str, place: str, report: Report, kind: str) -> Compared:
    """Return the accuracy of a report with labels of one kind, with what it holds for.

    Raises:
        UsageError: the report at `place` has no such score.
    """
    if not report.has(kind):
        raise UsageError(f"{place} has no score with labels={kind}; add eval.labels={kind} to score it so")
    facts = {
        "name": name,
        "place": place,
        "seed": int(report.provenance.get("seed", 0)),
        "seconds": report.making_seconds,
    }
    if kind == OWN:
        conditions = conditions_of(report, report.dataset, report.student)
        return Compared(score=report.accuracy, control=report.control, conditions=conditions,
                     bytes=report.bytes["total"], **facts)  # fmt: skip
    one = report.regime(kind)
    assert one is not None, "it has this kind"
    conditions = conditions_of(one, report.dataset, report.student)
    return Compared(score=one.rows["accuracy"], control=one.rows.get("control"), conditions=conditions,
                 bytes=one.bytes["total"], **facts)  # fmt: skip


def _alike(entries: Sequence[Compared]) -> list[list[Compared]]:
    """Return the entries grouped by equal conditions, in the order of the first of each."""
    groups: dict[str, list[Compared]] = {}
    for entry in entries:
        groups.setdefault(digest(entry.conditions), []).append(entry)
    return list(groups.values())


def unequal_conditions(entries: Sequence[Compared]) -> dict[str, dict[str, Any]]:
    """Return the conditions that differ, each with its value by name; the fingerprint only if nothing else does.

    Sets of one name whose own conditions differ are told apart by their places.
    """
    keys = dict.fromkeys(itertools.chain.from_iterable(entry.conditions for entry in entries))
    held = {name: [one for one in entries if one.name == name] for name in {entry.name for entry in entries}}
    alike = {name: len(_alike(group)) == 1 for name, group in held.items()}
    found = {
        key: {entry.name if alike[entry.name] else entry.place: entry.conditions.get(key) for entry in entries}
        for key in keys
        if len({digest(entry.conditions.get(key)) for entry in entries}) > 1
    }
    return found if set(found) == {"fingerprint"} else {k: v for k, v in found.items() if k != "fingerprint"}


def _rows(entries: Sequence[Compared]) -> tuple[Standing, ...]:
    named: dict[str, list[Compared]] = {}
    for entry in sorted(entries, key=lambda entry: entry.seed):
        named.setdefault(entry.name, []).append(entry)
    first = digest(entries[0].conditions)
    best = max(named.values(), key=_mean)
    rows = [_row(group, best, first) for group in named.values()]
    return tuple(sorted(rows, key=lambda row: -row.mean))


def _row(group: Sequence[Compared], best: Sequence[Compared], first: str) -> Standing:
    even = len({entry.score.n for entry in group}) == 1
    between, within = nested_std([entry.score.values for entry in group]) if even else (None, None)
    seconds = [entry.seconds for entry in group if entry.seconds is not None]
    controls = [entry.control for entry in group if entry.control is not None]
    return Standing(
        name=group[0].name,
        mean=_mean(group),
        between=between,
        within=within,
        sets=len(group),
        students=group[0].score.n,
        gap=_gap([e.score for e in group], controls) if len(controls) == len(group) else None,
        behind=None if group is best else _behind(best, group),
        bytes=round(statistics.fmean(entry.bytes for entry in group)),
        seconds=statistics.fmean(seconds) if seconds else None,
        other=any(digest(entry.conditions) != first for entry in group),
    )


def _mean(group: Sequence[Compared]) -> float:
    return statistics.fmean(entry.score.mean for entry in group)


def _behind(best: Sequence[Compared], group: Sequence[Compared]) -> Interval | None:
    """Return by how much the best leads, over the seeds that both have."""
    theirs = {entry.seed: entry.score for entry in group}
    pairs = [(entry.score, theirs[entry.seed]) for entry in best if entry.seed in theirs]
    return _gap([one for one, _ in pairs], [other for _, other in pairs]) if pairs else None


def _gap(ones: Sequence[Score], others: Sequence[Score]) -> Interval | None:
    """Return the mean gap: paired by students for one pair of scores, by the seeds of the sets for several.

    Students of one set share its images, so that several sets, not their students, are what varies.
    """
    if len(ones) > 1:
        return paired_gap([one.mean for one in ones], [other.mean for other in others])
    one, other = ones[0], others[0]
    return paired_gap(one.values, other.values) if one.n == other.n else None


HEADINGS = ("set", "test accuracy %", "between sets", "sets x students", "ahead of random by", "behind the best by",
            "bytes", "made in")  # fmt: skip


def cells(row: Standing) -> list[str]:
    """Return a row of a table under `HEADINGS`."""
    behind = "-" if row.behind is None else in_between(row.behind)
    if row.behind is not None and row.behind.low is not None and not row.behind.above:
        behind += ", not significant"
    return [
        f"≠ {row.name}" if row.other else row.name,
        f"{row.mean:.2f}" + ("" if row.within is None else f" ± {row.within:.2f}"),
        "" if row.between is None else f"± {row.between:.2f}",
        f"{row.sets} x {row.students}",
        "-" if row.gap is None else in_between(row.gap),
        behind,
        readable_size(row.bytes),
        "-" if row.seconds is None else f"{row.seconds:.0f} s",
    ]


def differing_rows(differing: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return column headings, then one row for each condition that differs, see `Comparison.differs`."""
    names = list(dict.fromkeys(name for values in differing.values() for name in values))
    rows = [[key, *(shortened(values.get(name), _SHOWN) for name in names)] for key, values in differing.items()]
    return [["setting", *names], *rows]
