"""Evaluation results: `Score` and `Report`."""

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dd.evaluation.curve import Curve
from dd.evaluation.scores import Interval, Ranking, gap_to_best, paired_gap, ranking, recovery_ratio
from dd.evaluation.time_to_accuracy import TimeToAccuracy, mean_time

FORMAT = 1
OWN = "own"  # the set's own labels
KINDS = (OWN, "hard", "soft", "views")
SCORES = ("accuracy", "control", "start", "full", "decoded")
_LATER = ("balanced", "classes", "top5", "calibration")  # fields of a score that older reports lack


@dataclass(frozen=True)
class Score:
    """Accuracies of several students, in percent.

    Attributes:
        values: test accuracy of every student.
        holdout: held-out accuracy of every student, empty without a hold-out.
        lr: the learning rate they were trained with.
        note: how that rate was chosen.
        balanced: class-balanced test accuracy of every student; empty if unknown, as in older reports.
        classes: test accuracy of each class, averaged over students; None for a class without test images.
        top5: top-5 test accuracy of every student; empty if unknown, or with five classes or fewer.
        calibration: expected calibration error in percent of every student, see `scores.calibration_error`.
        curves: learning curve of every student, if `eval.curve` asked for it.
    """

    values: tuple[float, ...]
    holdout: tuple[float, ...] = ()
    lr: float = 0.0
    note: str = ""
    balanced: tuple[float, ...] = ()
    classes: tuple[float | None, ...] = ()
    top5: tuple[float, ...] = ()
    calibration: tuple[float, ...] = ()
    curves: tuple[Curve, ...] = ()

    @property
    def n(self) -> int:
        """The number of students."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean accuracy in percent."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation with n - 1 in the denominator; None for a single student."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def best(self) -> "Score | None":
        """The best test accuracy on every student's curve: chosen on test images, no estimate; None without curves."""
        return Score(tuple(curve.best for curve in self.curves)) if self.curves else None

    def time_to(self, target: float, before: float | None = None) -> TimeToAccuracy | None:
        """Return when its students first reach a test accuracy in percent; None without curves.

        Args:
            target: the accuracy.
            before: seconds that making the set took; None if unknown.
        """
        return mean_time(self.curves, target, before) if self.curves else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, with `mean`, `std`, `n` and `values` first."""
        head = {"mean": self.mean, "std": self.std, "n": self.n, "values": list(self.values)}
        tail: dict[str, Any] = {name: list(getattr(self, name)) for name in _LATER}
        if self.best is not None:
            best = {"mean": self.best.mean, "std": self.best.std, "values": list(self.best.values)}
            tail |= {"curves": [curve.to_dict() for curve in self.curves], "best_on_test": best}
        return head | {"holdout": list(self.holdout), "lr": self.lr, "note": self.note} | tail

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Score":
        """Rebuild a score from the result of `to_dict`."""
        later = {name: tuple(value.get(name, ())) for name in _LATER}
        curves = tuple(map(Curve.from_dict, value.get("curves", ())))
        return cls(tuple(value["values"]), tuple(value["holdout"]), value["lr"], value["note"], **later, curves=curves)


@dataclass(frozen=True)
class RegimeReport:
    """The accuracies of a set and its references under one kind of labels and one protocol.

    Attributes:
        regime: "hard", the images' classes; "soft", one label of a teacher for each image; "views", a teacher asked on
            every view.
        rows: scores by row: "accuracy" (the set), "control", "coreset", "decoded", "start", "noise" (of as many
            images), "full" (all real images, as many presentations); under hard labels "bytes" (real images of as many
            bytes), with one soft label for each image "mixed" (the set, half hard labels).  All have the labels of the
            regime.
        missing: for rows that do not exist, the reason.
        protocol: the fields of the protocol.
        fingerprint: see `Report.protocol`.
        coreset: the selection method of the row "coreset".
        labels: the teacher, and how it labels; None for hard labels.
        bytes: what the set needs in this regime: images, labels, and the teacher if students ask it.
        spent: per student on the set: steps, images shown, images that the teacher has to label, each once for "soft".
        lengths: "accuracy", "control" and "coreset" at other lengths of training, by the factor (`eval.lengths`).
    """

    regime: str
    rows: Mapping[str, Score]
    missing: Mapping[str, str]
    protocol: Mapping[str, Any]
    fingerprint: str
    coreset: str = ""
    labels: Mapping[str, Any] | None = None
    bytes: Mapping[str, int] = field(default_factory=dict)
    spent: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)

    @property
    def gap(self) -> Interval:
        """Points by which the set beats the better of random real images and the coreset."""
        return _gap(self.rows)

    def gap_at(self, factor: str) -> Interval:
        """Return the same at another length of training, one of `lengths`."""
        return _gap(self.lengths[factor])

    @property
    def times_to_target(self) -> dict[str, TimeToAccuracy]:
        """When the students of each row first reach `eval.target`, without the seconds before; empty without one."""
        return _times(self.protocol, self.rows, None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        lengths = {
            factor: {"rows": _scores_to_json(rows), "gap": asdict(self.gap_at(factor))}
            for factor, rows in self.lengths.items()
        }
        own = {"rows": _scores_to_json(self.rows), "gap": asdict(self.gap), "lengths": lengths}
        return asdict(self) | own | _times_to_json(self.times_to_target)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "RegimeReport":
        """Rebuild it from the result of `to_dict`."""
        known: dict[str, Any] = {k: v for k, v in value.items() if k in cls.__dataclass_fields__}
        known["rows"] = _scores_from_json(value["rows"])
        known["lengths"] = {name: _scores_from_json(one["rows"]) for name, one in value.get("lengths", {}).items()}
        return cls(**known)


@dataclass(frozen=True)
class Report:
    """The accuracy of a set, with the references and facts needed to interpret it.

    Attributes:
        accuracy: fresh students on the set.
        control: fresh students on as many random real images, redrawn per student, at the better of the learned and the
            default lr, chosen on held-out images.
        start: fresh students on the set at iteration 0, with its labels of that time; lr chosen as for `control`.
        full: fresh students on all real training images, or None.
        decoded: fresh students on decoded mosaics of random real images with as many stored pixels; for tiled sets
            only.
        labels: who labelled the views that all students were trained on, and how; None if images have their own labels.
        missing: for each of the above that is None, the reason.
        protocol: the fields of the protocol; `fingerprint` is its hash together with network, augmentation and the
            making of labels.
        student: the fields of the network.
        dataset: name, path and notes of the data.
        bytes: size of the images, the labels and the whole set, see `DistilledSet.bytes`.
        cost: seconds and peak memory in bytes, per stage.
        expected: the accuracy band of the recipe's cell, if any.
        verdict: "inside", "outside" or "unverified", with the reason in `verdict_note`.
        classes: class names in label order.
        outside: share in [0, 1] of pixel values outside the displayable range, see `DistilledSet.outside`.
        notes: warnings for the reader, one line each.
        regimes: the same set and references under other labels, if `eval.labels` asks for them.
        recipe: what the run was asked for: "settings" by dotted key, "decided", the method's decisions, "digests" of
            the files that settings name, "method_version", and "compiled", whether training loops were; empty if no run
            made the set.
    """

    accuracy: Score
    control: Score | None
    start: Score | None
    full: Score | None
    missing: Mapping[str, str]
    protocol: Mapping[str, Any]
    fingerprint: str
    student: Mapping[str, Any]
    dataset: Mapping[str, Any]
    bytes: Mapping[str, int]
    name: str = ""
    cost: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None
    verdict: str = "unverified"
    verdict_note: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    recipe_hash: str = ""
    command: str = ""
    decoded: Score | None = None
    labels: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()
    outside: float | None = None
    notes: tuple[str, ...] = ()
    regimes: tuple[RegimeReport, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        from dd.evaluation.table import heading, score_in_words

        gap = "" if self.control is None else f", {self.gap:+.2f} points to random real images"
        return f"<Report {heading(self)}: {score_in_words(self.accuracy)} %{gap}>"

    def _repr_html_(self) -> str:
        """Return the report's table, for a notebook."""
        from dd.evaluation.table import html

        return html(self)

    def regime(self, kind: str) -> RegimeReport | None:
        """Return the scores under one kind of labels; None if it was not asked for."""
        return next((one for one in self.regimes if one.regime == kind), None)

    def has(self, kind: str) -> bool:
        """Return whether there is a score with labels of this kind, one of `KINDS`."""
        return kind == OWN or self.regime(kind) is not None

    @property
    def gap(self) -> float | None:
        """Points by which the set beats the control."""
        return None if self.control is None else self.accuracy.mean - self.control.mean

    @property
    def gap_interval(self) -> Interval | None:
        """The gap with its 95 % interval, students paired by their initial weights; None if their numbers differ."""
        if self.control is None or self.control.n != self.accuracy.n:
            return None
        return paired_gap(self.accuracy.values, self.control.values)

    @property
    def recovery(self) -> float | None:
        """Share of the accuracy on all real images that the set reaches."""
        return None if self.full is None else recovery_ratio(self.accuracy.mean, self.full.mean)

    @property
    def ranking(self) -> Ranking | None:
        """DD-Ranking's scores, from the set under its own recipe and under hard labels; None if one is missing.

        "All real images" are those of the hard labels' regime: shown as often as the set is.
        """
        regime = self.regime("hard")
        hard = {} if regime is None else regime.rows
        if "full" not in hard or self.control is None or self.control.n != self.accuracy.n:
            return None
        scores = (hard["full"], hard["accuracy"], self.accuracy, self.control)
        full, own_hard, own, random = ([value / 100 for value in score.values] for score in scores)
        return ranking(full, own_hard, own, random)

    @property
    def making_seconds(self) -> float | None:
        """Seconds that making the set took: artefacts when they were made, synthesis, labels; None if unknown."""
        spent = [
            max(cost.get("seconds") or 0, cost.get("artefact_seconds") or 0)
            for stage, cost in self.cost.items()
            if stage != "evaluate"
        ]
        return sum(spent) or None

    @property
    def times_to_target(self) -> dict[str, TimeToAccuracy]:
        """When the students of each row first reach `eval.target`, by the names in `SCORES`; empty without one."""
        rows = {name: score for name in SCORES if (score := getattr(self, name)) is not None}
        return _times(self.protocol, rows, self.making_seconds)

    @property
    def gain(self) -> float | None:
        """Points by which the set beats its own starting point."""
        return None if self.start is None else self.accuracy.mean - self.start.mean

    @property
    def decoded_gap(self) -> float | None:
        """Points by which the set beats the decoded control."""
        return None if self.decoded is None else self.accuracy.mean - self.decoded.mean

    @property
    def pooled_std(self) -> float | None:
        """sqrt((s1^2 + s2^2) / 2) over the set's students and the control's draws."""
        return None if self.control is None else pooled_std(self.accuracy, self.control)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        value = {"format": FORMAT} | asdict(replace(self, regimes=()))
        for name in SCORES:
            score = getattr(self, name)
            value[name] = None if score is None else score.to_dict()
        derived = {name: getattr(self, name) for name in ("gap", "gain", "decoded_gap", "pooled_std", "recovery")}
        interval = self.gap_interval
        value["regimes"] = [regime.to_dict() for regime in self.regimes]
        more = {"gap_interval": interval, "ranking": self.ranking}
        derived |= {name: None if one is None else asdict(one) for name, one in more.items()}
        return value | derived | _times_to_json(self.times_to_target)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Report":
        """Rebuild a report from the result of `to_dict`."""
        known = {k: v for k, v in value.items() if k in cls.__dataclass_fields__}
        for name in SCORES:
            known[name] = None if value.get(name) is None else Score.from_dict(value[name])
        known |= {name: tuple(value.get(name, ())) for name in ("classes", "notes")}
        known["regimes"] = tuple(map(RegimeReport.from_dict, value.get("regimes", ())))
        return cls(**known)


def shared_kinds(reports: Collection[Report]) -> list[str]:
    """Return the kinds of labels that all reports have a score with."""
    return [kind for kind in KINDS if all(report.has(kind) for report in reports)]


def pooled_std(one: Score, other: Score) -> float | None:
    """Return sqrt((s1^2 + s2^2) / 2) of two scores; None if one has a single student."""
    if one.std is None or other.std is None:
        return None
    return math.sqrt((one.std**2 + other.std**2) / 2)


def _gap(rows: Mapping[str, Score]) -> Interval:
    """Return points by which the set beats the better of random real images and the coreset."""
    return gap_to_best(rows["accuracy"].values, [rows[name].values for name in ("control", "coreset") if name in rows])


def _scores_to_json(rows: Mapping[str, Score]) -> dict[str, Any]:
    return {name: score.to_dict() for name, score in rows.items()}


def _scores_from_json(rows: Mapping[str, Any]) -> dict[str, Score]:
    return {name: Score.from_dict(score) for name, score in rows.items()}


def _times(protocol: Mapping[str, Any], rows: Mapping[str, Score], before: float | None) -> dict[str, TimeToAccuracy]:
    """Return when the students of each row first reach the target; only the set takes the seconds `before`."""
    if (target := protocol.get("target")) is None:
        return {}
    found = {name: score.time_to(target, before if name == "accuracy" else 0.0) for name, score in rows.items()}
    return {name: time for name, time in found.items() if time is not None}


def _times_to_json(times: Mapping[str, TimeToAccuracy]) -> dict[str, Any]:
    return {"times_to_target": {name: asdict(time) for name, time in times.items()}} if times else {}
