"""Run the sides of a comparison in separate processes that take turns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scale import Scale

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Bench:
    """The configuration that all sides of a run share.

    Attributes:
        scale: how much is measured.
        folder: an initially empty folder for the whole run, so that caches of artefacts and compiled code start cold.
        threads: threads of every side; None for PyTorch's default.
        compiled: folder of compiled code that all sides share; None for an empty one for each.
    """

    scale: Scale
    folder: Path
    threads: int | None = None
    compiled: Path | None = None

    def environment(self) -> dict[str, str]:
        """The environment of a side: no allocator tuning from outside, and empty caches."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "TORCH"))}
        env |= {
            "DD_HOME": str(self.folder / "home"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.compiled or tempfile.mkdtemp(prefix="compiled-", dir=self.folder)),
        }
        return env | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})

    def fewer(self) -> "Bench":
        """The same with at most five repeats."""
        return replace(self, scale=replace(self.scale, repeats=min(self.scale.repeats, 5)))


class Died(Exception):
    """A side's process ended before it had finished."""


class Side:
    """A running side.

    Args:
        bench: the shared configuration.
        name: a function in `sides`, or MODULE.FUNCTION.
        options: further arguments of the function.
    """

    def __init__(self, bench: Bench, name: str, options: Mapping[str, Any] | None = None):
        self.name = name
        request = json.dumps({"scale": asdict(bench.scale), "options": dict(options or {})})
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), name, request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=bench.environment(),
        )
        self.facts = self._read()

    def go(self) -> dict[str, Any]:
        """Run one repeat; returns {"seconds": ..., and what the side adds}."""
        self._write("go")
        return self._read()

    def finish(self) -> dict[str, Any]:
        """End the process; returns its final report."""
        self._write("finish")
        facts = self._read()
        self._process.wait()
        return facts

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe and not pipe.closed:
                pipe.close()

    def _write(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Died(f"{self.name} ended with code {self._process.wait()}") from None

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Died(f"{self.name} ended with code {self._process.wait()}")
        return json.loads(line)


@dataclass
class Runs:
    """The measurements of one side.

    Attributes:
        warm_up: seconds of the first repeat, which enters no ratio.
        seconds: of every later repeat, divided by the number of pieces in a repeat.
        reports: the reports of all repeats, including the first.
        last: the final report.
        facts: threads and versions.
    """

    warm_up: float = 0.0
    seconds: list[float] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def in_turns(bench: Bench, wanted: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Runs]:
    """Start the sides one after another, then run their repeats in turns: A B A B ...

    Args:
        bench: the shared configuration.
        wanted: label -> (name, options) of every side.
    """
    runs = {label: Runs() for label in wanted}
    with ExitStack() as stack:
        sides = {label: stack.enter_context(Side(bench, name, options)) for label, (name, options) in wanted.items()}
        for repeat in range(bench.scale.repeats + 1):
            for label, side in sides.items():
                report = side.go()
                runs[label].reports.append(report)
                said = "warm-up" if repeat == 0 else f"repeat {repeat} of {bench.scale.repeats}"
                sys.stderr.write(f"{label}, {said}: {report['seconds']:.2f} s\n")
        for label, side in sides.items():
            runs[label].facts, runs[label].last = side.facts, side.finish()
    for run in runs.values():
        run.warm_up, *run.seconds = (report["seconds"] / report.get("pieces", 1) for report in run.reports)
    return runs


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ratios of the paired repeats, ours / theirs."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]
