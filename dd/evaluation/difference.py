"""Two reports: what differs between them, and by how much one accuracy is above the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dd.evaluation.compare import Compared, compared, unequal_conditions
from dd.evaluation.report import Report, Score, shared_kinds
from dd.evaluation.scores import Interval, paired_gap, unpaired_gap
from dd.io import digest

Change = tuple[Any, Any]
"""The first and the second value; None where there is none."""


@dataclass(frozen=True)
class ScorePair:
    """The accuracies of two sets under one kind of labels.

    Attributes:
        kind: "own", "hard", "soft" or "views".
        scores: the students of both sets.
        controls: the students on as many random real images, of both; None where there are none.
        conditions: the conditions of the two numbers that differ, with both values, see `compare.conditions_of`.
        gap: points by which the second is ahead, with its 95 % interval; None if conditions differ.
        unpaired: why the students are not paired; "" if they are.
        bytes: size of both sets, as in `Compared`.
    """

    kind: str
    scores: tuple[Score, Score]
    controls: tuple[Score | None, Score | None]
    conditions: Mapping[str, Change]
    gap: Interval | None
    unpaired: str
    bytes: tuple[int, int]

    def in_words(self) -> str:
        """Whether one of the sets is better: never more than the interval shows, and nothing if conditions differ."""
        if self.gap is None:
            return f"not comparable, because these differ: {', '.join(self.conditions)}"
        if self.gap.above or self.gap.below:
            return f"the {'second' if self.gap.above else 'first'} is better"
        if self.gap.low is None:
            return "one student says nothing about significance"
        return "no significant difference"


@dataclass(frozen=True)
class Difference:
    """What differs between two reports.

    Attributes:
        names: of both sets.
        facts: versions, device, data and command that differ, by dotted key.
        scores: one entry for each kind of labels that both reports have.
        cost: of each stage, "seconds" and "peak_memory" in bytes of both, by stage and key.
        bytes: images, labels and the whole set, in bytes.
    """

    names: tuple[str, str]
    facts: Mapping[str, Change]
    scores: tuple[ScorePair, ...]
    cost: Mapping[str, Mapping[str, Change]]
    bytes: Mapping[str, Change]


def difference(one: Report, other: Report) -> Difference:
    """Return what differs between two reports of runs."""
    stages = dict.fromkeys([*one.cost, *other.cost])
    costs = [dict(report.cost) for report in (one, other)]
    measured = ("seconds", "peak_memory")
    return Difference(
        names=(one.name, other.name),
        facts=changes(_facts(one), _facts(other)),
        scores=tuple(_pair(one, other, kind) for kind in shared_kinds((one, other))),
        cost={
            stage: {key: (costs[0].get(stage, {}).get(key), costs[1].get(stage, {}).get(key)) for key in measured}
            for stage in stages
        },
        bytes={key: (one.bytes.get(key), other.bytes.get(key)) for key in dict.fromkeys([*one.bytes, *other.bytes])},
    )


def changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Change]:
    """Return both values of every key whose values differ, in the order of the keys."""
    found: dict[str, Change] = {}
    for key in dict.fromkeys([*one, *other]):
        before, after = one.get(key), other.get(key)
        if digest(before) != digest(after) or (key in one) != (key in other):
            found[key] = before, after
    return found


def _facts(report: Report) -> dict[str, Any]:
    """Return versions, device and data by dotted key."""
    found = {f"version of {name}": value for name, value in report.versions.items()}
    data = {f"data.{key}": report.dataset.get(key) for key in ("name", "where", "fingerprint")}
    return found | {"device": report.device} | data


def _pair(one: Report, other: Report, kind: str) -> ScorePair:
    entries = [compared(which, which, report, kind) for which, report in (("first", one), ("second", other))]
    unequal = {key: (values["first"], values["second"]) for key, values in unequal_conditions(entries).items()}
    first, second = (entry.score for entry in entries)
    why, gap = _unpaired(*entries), None
    if not unequal:
        gap = unpaired_gap(second.values, first.values) if why else paired_gap(second.values, first.values)
    controls = entries[0].control, entries[1].control
    return ScorePair(kind, (first, second), controls, unequal, gap, why, (entries[0].bytes, entries[1].bytes))


def _unpaired(one: Compared, other: Compared) -> str:
    """Return why the students of two sets share no initial weights; "" if they do."""
    if one.seed != other.seed:
        return f"the seeds are {one.seed} and {other.seed}"
    if one.score.n != other.score.n:
        return f"{one.score.n} and {other.score.n} students"
    return ""
