"""The rows of a benchmark report, and how they are printed."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pairs import Runs, ratios

SAME = 1e-3  # up to this relative difference, two results count as the same work


@dataclass(frozen=True)
class Ratio:
    """One comparison.

    Attributes:
        part: part of the benchmark.
        what: description, "ours / theirs".
        ours: seconds of every repeat.
        theirs: seconds of the paired repeat.
        ratios: ours / theirs, pair by pair.
        ceiling: upper limit of the median ratio; None for no limit.
    """

    part: str
    what: str
    ours: list[float]
    theirs: list[float]
    ratios: list[float]
    ceiling: float | None = None

    @property
    def median(self) -> float:
        """Median of the ratios (not the ratio of the medians)."""
        return statistics.median(self.ratios)

    def cells(self) -> list[str]:
        """As a line of the table."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        spread = f"{self.median:.2f} [{min(self.ratios):.2f}, {max(self.ratios):.2f}]"
        return [self.part, self.what, f"{ours:.2f} / {theirs:.2f}", spread, str(len(self.ratios)), *self._verdict()]

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-serialisable values."""
        return vars(self) | {"median": self.median, "min": min(self.ratios), "max": max(self.ratios)}

    def _verdict(self) -> list[str]:
        return verdict(self.median, self.ceiling)


@dataclass(frozen=True)
class Memory:
    """Peak memory of one gradient mode for one number of inner steps; None if the process was killed.

    Attributes:
        engine: "full", "stepwise" or "the paper".
        steps: inner steps.
        start: resident bytes before the first iteration: libraries, data, expert.
        peak: peak resident bytes.
        seconds: time of two outer iterations, measured once.
    """

    engine: str
    steps: int
    start: int | None = None
    peak: int | None = None
    seconds: float | None = None

    @property
    def above(self) -> int | None:
        """Bytes above the start."""
        return None if self.peak is None or self.start is None else self.peak - self.start

    def cells(self) -> list[str]:
        """As a line of the table."""
        if self.peak is None or self.start is None or self.above is None:
            return [self.engine, str(self.steps), "-", "-", "-", "-"]
        return [
            self.engine,
            str(self.steps),
            *map(_mb, (self.start, self.peak, self.above)),
            f"{self.seconds or 0:.1f}",
        ]


@dataclass(frozen=True)
class Group:
    """An outer iteration that several processes share.

    Attributes:
        ipc: images per class.
        width: of the student.
        processes: number of processes.
        threads: of each process.
        seconds: of an outer iteration, in every repeat.
        summed: bytes that are summed over the processes in an outer iteration.
    """

    ipc: int
    width: int
    processes: int
    threads: int
    seconds: list[float]
    summed: int

    def cells(self) -> list[str]:
        """As a line of the table."""
        spread = f"{statistics.median(self.seconds):.2f} [{min(self.seconds):.2f}, {max(self.seconds):.2f}]"
        counts = (self.ipc, self.width, self.processes, self.threads)
        return [*map(str, counts), spread, f"{self.summed / 1e6:.2f}"]


@dataclass
class Findings:
    """All measurements of a run."""

    ratios: list[Ratio] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    growth: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    pieces: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All measurements as JSON-serialisable values."""
        return {
            "machine": self.machine,
            "ratios": [row.to_dict() for row in self.ratios],
            "memory": [vars(row) for row in self.memory],
            "groups": [vars(row) for row in self.groups],
            "growth": self.growth,
            "pieces": self.pieces,
            "notes": self.notes,
        }


def compared(part: str, what: str, ours: Runs, theirs: Runs, ceiling: float | None = None) -> Ratio:
    """The row for two sides that ran in turns."""
    return Ratio(part, what, ours.seconds, theirs.seconds, ratios(ours.seconds, theirs.seconds), ceiling)


def same_work(apart: float, what: str) -> str:
    """A phrase on the relative difference of `what` between two sides."""
    return f"{what} are {apart:.0e} apart ({'the same work' if apart <= SAME else 'NOT THE SAME WORK'})"


def machine() -> dict[str, Any]:
    """Facts about the machine that need no PyTorch."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model or "unknown CPU", "cores": cores, "load": round(os.getloadavg()[0], 2)}


def machine_line(facts: dict[str, Any]) -> str:
    """The machine in one readable line."""
    told = {"threads": "?", "torch": "?", "python": "?"} | facts
    return (
        "machine: {cpu}, {cores} cores, {threads} threads, torch {torch}, Python {python}; "
        "load {load} before the start".format(**told)
    )


def verdict(value: float, ceiling: float | None) -> list[str]:
    """Two cells: the ceiling, and whether `value` is within it."""
    if ceiling is None:
        return ["", ""]
    return [f"{ceiling:.2f}", "ok" if value <= ceiling else "ABOVE"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table with aligned columns."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def text(found: Findings) -> str:
    """The whole report as readable text."""
    blocks = [machine_line(found.machine)]
    if found.ratios:
        head = ["part", "ours / theirs", "median seconds", "ratio: median [min, max]", "pairs", "ceiling", ""]
        blocks.append(table(head, [row.cells() for row in found.ratios]))
    if found.memory:
        head = ["engine", "inner steps", "start MB", "peak MB", "above start", "seconds, 2 its"]
        blocks.append(table(head, [row.cells() for row in found.memory]))
    if found.groups:
        head = ["ipc", "width", "processes", "threads", "seconds: median [min, max]", "MB summed"]
        blocks.append(table(head, [row.cells() for row in found.groups]))
    if found.notes:
        blocks.append("\n".join(found.notes))
    return "\n\n".join(blocks)


def draw(pieces: dict[str, dict[str, float]], path: Path) -> None:
    """Plot the seconds in `pieces` (engine -> piece -> seconds) as one stacked bar per engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.7 + 0.55 * len(pieces)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(pieces)
    for piece in next(iter(pieces.values())):
        widths = [1000 * spent[piece] for spent in pieces.values()]
        axes.barh(list(pieces), widths, left=left, label=piece)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of an outer iteration")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.3), ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def _mb(amount: int) -> str:
    return f"{amount / 1e6:.0f}"
