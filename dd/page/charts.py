"""Curves and bars of a page: numbers become coordinates here, the template draws them as inline SVG."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dd.evaluation.conditions import network_in_words, ranked_classes
from dd.evaluation.report import Report, Score
from dd.evaluation.table import ARMS, LABELS, REGIME_ARMS, heading, score_in_words
from dd.page.subject import ReportedSet
from dd.runs.pictures import curve

WIDTH, HEIGHT = 340, 190  # of a chart, in the units of its coordinates
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 24
CHARTS = 24  # most curves of a run
CLASSES = 40  # most classes whose accuracy is shown
_WHISKERS = 40  # most points of a learning curve with their spread
_POINTS = 400  # most points of a curve
_LARGEST = 1e100  # of a value that is drawn
_DIGITS = 12  # of an iteration
_LOG = 100  # ratio of the largest to the smallest value, above which the axis is logarithmic

_APART = ("it", "skipped", "probe", "probe_std")  # columns of the log that have no chart of their own

Point = tuple[float, float]
Spread = tuple[float, float, float]  # place along, mean, standard deviation


@dataclass(frozen=True)
class Whisker:
    """Mean and spread at one place, in coordinates."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """A curve, in coordinates: x from 0 to `WIDTH`, y from 0 (top) to `HEIGHT`.

    Attributes:
        title: what it shows.
        words: the curve in words, for those who do not see it.
        line: points of the curve, as SVG has them.
        dots: single points.
        whiskers: means with their spread.
        marks: places on the lower edge.
        across: labels of the x axis, by place.
        up: labels of the y axis, by place.
        note: a line below it.
    """

    title: str
    words: str
    line: str
    dots: tuple[Point, ...]
    whiskers: tuple[Whisker, ...]
    marks: tuple[float, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    note: str = ""


@dataclass(frozen=True)
class AccuracyBar:
    """An accuracy in percent as a bar.

    Attributes:
        label: what was trained on, or with.
        mean: length of the bar, in percent of its room.
        low: end of the spread (one standard deviation), see `mean`; equal to `high` for a single student.
        high: see `low`.
        values: the students.
        words: the accuracy in words.
    """

    label: str
    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    words: str


def bar(label: str, score: Score) -> AccuracyBar:
    """Return the bar of a score."""
    std = score.std or 0.0
    low, high = max(score.mean - std, 0.0), min(score.mean + std, 100.0)
    return AccuracyBar(label, score.mean, low, high, score.values, score_in_words(score))


def arms(report: Report) -> list[AccuracyBar]:
    """Return one bar for the set and for each of its references."""
    scores = [(words, getattr(report, name)) for name, words in ARMS.items()]
    return [bar(words, score) for words, score in scores if score is not None]


def regime_bars(report: Report) -> list[tuple[str, list[AccuracyBar]]]:
    """Return the bars of each label regime, under its name."""
    return [
        (LABELS[one.regime], [bar(words, one.rows[name]) for name, words in REGIME_ARMS.items() if name in one.rows])
        for one in report.regimes
    ]


def architectures(subjects: Sequence[ReportedSet]) -> list[AccuracyBar]:
    """Return one bar for each report, if their students are of several architectures."""
    named = [network_in_words(one.report.student) for one in subjects]
    if len(set(named)) < 2:
        return []
    return [
        bar(f"{heading(one.report)}: {name}", one.report.accuracy) for one, name in zip(subjects, named, strict=True)
    ]


def class_rows(report: Report) -> tuple[list[tuple[AccuracyBar, str, str]], int]:
    """Return the classes, worst first, as (bar, accuracy of the control, points ahead), and how many are left out."""
    control = report.control.classes if report.control is not None else ()
    ranked = ranked_classes(report)
    found = []
    for c, share in ranked[:CLASSES]:
        beside = control[c] if control else None
        words = ("-", "") if beside is None else (f"{beside:.1f}", f"{share - beside:+.1f}")
        found.append((AccuracyBar(report.classes[c], share, share, share, (), f"{share:.1f}"), *words))
    return found, max(len(ranked) - CLASSES, 0)


def curves(subject: ReportedSet) -> tuple[list[Chart], str]:
    """Return a chart of each column of the log, the held-out accuracy first, and what is left out."""
    rows = [row for row in subject.log if len(row["it"]) <= _DIGITS]
    skipped = [it for it, value in curve(rows, "skipped") if value]
    names = [name for name in subject.columns if name not in _APART and curve(rows, name)]
    held_out = _held_out(subject.report, curve(rows, "probe"), dict(curve(rows, "probe_std")))
    charts = [] if held_out is None else [held_out]
    room = CHARTS - len(charts)
    for name in names[:room]:
        points = [point for point in curve(rows, name) if abs(point[1]) < _LARGEST]
        if points:
            charts.append(_chart(name, points, marks=skipped if name == "loss" else ()))
    left = max(len(names) - room, 0)
    return charts, f"{left} further columns are in log.csv" if left else ""


def learning(report: Report) -> list[Chart]:
    """Return learning curves: test accuracy by step, the mean of the students of each row that has curves."""
    rows = [(words, getattr(report, name)) for name, words in ARMS.items()]
    for one in report.regimes:
        rows += [(f"{REGIME_ARMS[name]}, {LABELS[one.regime]}", one.rows.get(name)) for name in ("accuracy", "control")]
    return [_learning(words, score) for words, score in rows if score is not None and score.curves][:CHARTS]


def _learning(words: str, score: Score) -> Chart:
    steps = score.curves[0].steps
    each = [[curve.test[at] for curve in score.curves if at < len(curve.test)] for at in range(len(steps))]
    points = [(float(step), statistics.fmean(values)) for step, values in zip(steps, each, strict=True)]
    few = len(steps) <= _WHISKERS
    whiskers = [_spread(float(at), values) for at, values in zip(steps, each, strict=True)] if few else []
    note = f"mean{' ± std' if whiskers else ''} of {score.n} students; on test images, by which nothing is chosen"
    return _chart(f"{words}: test accuracy %", points, ends=whiskers, note=note, along="step", dotted=True)


def _spread(at: float, values: Sequence[float]) -> Spread:
    return at, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _held_out(report: Report, probes: Sequence[Point], deviations: Mapping[float, float]) -> Chart | None:
    """Return held-out accuracy: the probes, and the evaluation's students on the first and on the last set.

    Args:
        report: of the set.
        probes: iteration and mean accuracy of each probe.
        deviations: the standard deviation of its students, by iteration; empty for a single student.
    """
    probes = [point for point in probes if 0 <= point[1] <= 100]
    last = report.provenance.get("iterations")
    ends: list[Spread] = [(at, mean, deviations[at]) for at, mean in probes if at in deviations]
    if isinstance(last, int) and 0 < last < 10**_DIGITS:
        pairs = ((0, report.start), (last, report.accuracy))
        ends += [_spread(at, score.holdout) for at, score in pairs if score is not None and score.holdout]
    if not probes and not ends:
        return None
    who = "the students of each probe, mean ± std" if deviations else "one student for each probe"
    line = f"line: {who}, trained briefly" if probes else ""
    bars = "bars at its ends: the evaluation's students, mean ± std, on the set at its first and last iteration"
    bars = bars if len(ends) > len(deviations) else ""
    return _chart("held-out accuracy %", probes, ends=ends, note="; ".join(one for one in (line, bars) if one),
                  dotted=True)  # fmt: skip


def _chart(
    title: str,
    points: Sequence[Point],
    *,
    ends: Sequence[Spread] = (),
    marks: Sequence[float] = (),
    note: str = "",
    dotted: bool = False,
    along: str = "iteration",
) -> Chart:
    levels = [y for _, y in points] + [mean + sign * std for _, mean, std in ends for sign in (-1, 1)]
    places = [x for x, _ in points] + [at for at, _, _ in ends]
    is_log = not ends and min(levels) > 0 and max(levels) > _LOG * min(levels)
    x, y = _Axis(min(places), max(places), _LEFT, WIDTH - _RIGHT), _axis_up(levels, is_log)
    drawn = [(x(a), y(b)) for a, b in _thinned(points)]
    whiskers = tuple(Whisker(x(at), y(mean), y(mean - std), y(mean + std)) for at, mean, std in ends)
    few = dotted or len(points) < 3
    skips = f"{len(marks)} iterations were skipped (marks)" if marks else ""
    return Chart(
        title=title,
        words=_in_words(f"{title} by {along}", points, ends),
        line=" ".join(f"{a},{b}" for a, b in drawn) if len(drawn) > 1 else "",
        dots=tuple(drawn) if few else (),
        whiskers=whiskers,
        marks=tuple(x(at) for at, _ in _thinned([(mark, 0.0) for mark in marks])),
        across=tuple((x(at), f"{at:,.0f}") for at in dict.fromkeys((x.low, x.high))),
        up=tuple((y(at), f"{at:.4g}") for at in y.ticks()),
        note="; ".join(one for one in (note, "logarithmic axis" if is_log else "", skips) if one),
    )


def _in_words(title: str, points: Sequence[Point], spread: Sequence[Spread]) -> str:
    words = [title]
    if points:
        (a, first), (b, last) = points[0], points[-1]
        words.append(f"from {first:.4g} at {a:.0f} to {last:.4g} at {b:.0f}, {len(points)} values")
    words += [f"students at {at:.0f}: {mean:.2f} ± {std:.2f}" for at, mean, std in spread]
    return "; ".join(words)


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` at places from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def ticks(self) -> list[float]:
        """Return the round values between its ends; its ends if there are fewer than two."""
        if self.is_log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            found = [10.0**power for power in powers][:: max(1, math.ceil(len(powers) / 5))]
        else:
            step = _step(self.high - self.low)
            first = math.ceil(self.low / step - 1e-9) if step else 0
            found = [(first + i) * step for i in range(8) if step and (first + i) * step <= self.high + 1e-9 * step]
        return found if len(found) > 1 else list(dict.fromkeys((self.low, self.high)))


def _axis_up(levels: Sequence[float], is_log: bool) -> _Axis:
    return _Axis(min(levels), max(levels), HEIGHT - _BOTTOM, _TOP, is_log)


def _step(extent: float) -> float:
    """Return a round step of which a range has two to five."""
    if extent <= 0:
        return 0.0
    size = 10.0 ** math.floor(math.log10(extent))
    return next((size * part for part in (0.2, 0.25, 0.5, 1.0, 2.0, 2.5) if extent / (size * part) <= 5), size)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return about `_POINTS` points at most: the ends, and the lowest and highest of each stretch of equal length."""
    if len(points) <= _POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _POINTS)
    found: list[Point] = []
    for at in range(0, len(points), size):
        part = points[at : at + size]
        found += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return list(dict.fromkeys([points[0], *found, points[-1]]))
