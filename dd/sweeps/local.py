"""A sweep on this machine: run the trials of a sweep file in one or several processes, then score the winner."""

import json
import logging
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dd.engine import parallel, registry
from dd.errors import RunError, UsageError, in_one_line
from dd.evaluation.read import report_from
from dd.evaluation.report import Report
from dd.io import Json, locked, user_path, writable, write_json, write_text
from dd.pipeline import run_recipe
from dd.pipeline.following import plain_name, require_holdout
from dd.pipeline.trial import Trial, give_up, run_trial
from dd.recipes import Recipe, RunOptions, parse_overrides, resolve, run_options
from dd.runs import runs_root
from dd.runs.stop import Stop
from dd.runs.trackers import LogRow
from dd.sweeps.picture import draw_sweep
from dd.sweeps.study import JOURNAL, Drawn, Study, TrialRow
from dd.sweeps.yaml_file import SweepFile, read_sweep

log = logging.getLogger(__name__)

_RESULT, _COPY = "sweep.json", "sweep.yaml"
_POLL = 0.5  # seconds between checks on the trials of other processes
_CHECKED = 64  # values per setting that are validated before the first trial


class _Pruned(Exception):
    """The pruner stopped a trial."""


@dataclass(frozen=True)
class Swept:
    """The result of a sweep.

    Attributes:
        folder: folder with `sweep.json`, `sweep.png`, `report.json`, and the state from which the sweep resumes.
        metric: the metric that ranks trials.
        rows: every trial, see `Study.rows`.
        best: the row of the winner.
        report: the winner's report, with a note on the number of trials.
        run: the folder of the winner's run.
    """

    folder: Path
    metric: str
    rows: Sequence[TrialRow]
    best: TrialRow
    report: Report
    run: Path

    def counts(self) -> dict[str, int]:
        """Return the number of trials, in total and per state."""
        states = [row["state"] for row in self.rows]
        return {"trials": len(states)} | {state: states.count(state) for state in ("complete", "pruned", "failed")}

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        head = {"folder": str(self.folder), "metric": self.metric, **self.counts(), "best": self.best["trial"]}
        return head | {"run": str(self.run), "rows": list(self.rows), "report": self.report.to_dict()}


def sweep(
    file: str | Path, words: Mapping[str, Json], *, trials: int | None = None, workers: int = 1, command: str = ""
) -> Swept | None:
    """Run the remaining trials of a sweep, then score the winner on the test images, once.

    Concurrent calls share the trials, also on several machines that share the folder of runs.  So do the processes of
    torchrun, of which the first alone returns a result.

    Args:
        file: the sweep file.
        words: settings shared by all trials, and `out` and `track`, by dotted key.
        trials: total number of trials; None for the number in the file.
        workers: number of processes on this machine.
        command: the command that started it.

    Raises:
        UsageError: invalid file or settings, or a test accuracy as the metric.
        RunError: no trial finished.
    """
    first = parallel.is_first()
    if parallel.started() > 1:
        if workers > 1:
            raise UsageError(f"workers={workers} start processes themselves: leave out torchrun, or workers")
        words = {**words, **parse_overrides(_device(words, int(os.environ.get("LOCAL_RANK", "0"))))}
    with parallel.alone():
        job = _Job.of(file, words, trials, command)
        if workers > 1:
            job.shared(workers)
        job.work(wait=first)
        return job.end() if first else None


def read_swept(folder: Path) -> Swept:
    """Read the result of a sweep from its folder.

    Raises:
        UsageError: the sweep has not finished, or its files are damaged.
    """
    file = folder / _RESULT
    if not file.is_file():
        raise UsageError(f"{folder}: the sweep has not finished; the same `dd sweep` command resumes it")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        best = next(row for row in found["rows"] if row["trial"] == found["best"])
        report = report_from(found["report"])
        return Swept(folder, found["metric"], found["rows"], best, report, Path(found["run"]))
    except (OSError, UsageError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UsageError(
            f"{file} is damaged ({in_one_line(error)}); the same `dd sweep` command writes it again"
        ) from error


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep, finished or not."""
    return (folder / _COPY).is_file() and (folder / JOURNAL).is_file()


def work(file: str | Path, words: Mapping[str, Json], *, trials: int | None = None, command: str = "") -> None:
    """Run trials until none is left to start: the part of a worker process."""
    _Job.of(file, words, trials, command).work(wait=False)


_SAME = ("out", "force", "track")  # options under which a run's results are the same


@dataclass(frozen=True)
class _Job:
    """One process of a sweep."""

    path: Path
    file: SweepFile
    words: Mapping[str, Json]
    options: RunOptions
    wanted: int
    folder: Path
    study: Study
    command: str

    @classmethod
    def of(cls, path: str | Path, words: Mapping[str, Json], trials: int | None, command: str) -> "_Job":
        file = read_sweep(path)
        options = run_options({**file.fixed, **words})
        _refuse_code(path, file, words)
        if options.is_shared:
            raise UsageError(
                "on and jobs are for one run; a sweep shares its trials: workers=N, or start it several times"
            )
        if options.force:
            raise UsageError("force=true: a sweep resumes; to start over, delete its folder or rename the sweep")
        if idle := [p.key for p in file.parameters if p.key in _SAME]:
            raise UsageError(f"{path}: {idle[0]} changes nothing that is measured, so there is nothing to sweep")
        both = [p.key for p in file.parameters if p.key in words]
        if both:
            raise UsageError(f"{both[0]} is swept by {path}: leave out {both[0]}=")
        settings = {**file.fixed, **{key: value for key, value in words.items() if key not in ("out", "track")}}
        if file.metric == "probe" and (late := [p.key for p in file.parameters if p.key.startswith("eval.")]):
            raise UsageError(
                f"metric probe: {late[0]} has no effect on images, so trials share probes; use eval/holdout"
            )
        base = _checked(file, settings)
        combinations = len(file.grid()) if file.search == "grid" else 0
        wanted = trials or file.cap or combinations
        if not wanted:
            raise UsageError(f"give the number of trials: trials=N, or run_cap: N in {path}")
        counted = {key: value for key, value in settings.items() if key != "device"}  # workers may use several
        name = f"{plain_name(file.name)}-{file.identity(counted)[:8]}"
        folder = runs_root(options.out) / "sweeps" / name
        writable(folder, "choose another folder with out=FOLDER or DD_RUNS")
        write_text(folder / _COPY, user_path(path, "sweep").read_text(encoding="utf-8"))
        study = Study(folder, file, base.eval.probes, base.seed)
        return cls(Path(path), file, settings, options, wanted, folder, study, command)

    def recipe(self, settings: Mapping[str, Json]) -> Recipe:
        """Return the recipe of the trial with these settings."""
        return resolve({**self.words, **settings})

    def shared(self, workers: int) -> None:
        """Start worker processes on this machine, and wait for them."""
        words = [f"{key}={value}" for key, value in self.words.items() if key not in self.file.fixed]
        if self.options.out is not None:
            words.append(f"out={self.options.out}")
        call = [sys.executable, "-m", "dd", "sweep", str(self.path), "--worker", f"trials={self.wanted}", *words]
        processes = []
        with Stop(f"finished trials are kept; the same command resumes: {self.command}").watching():
            try:
                for number in range(workers):
                    processes.append(subprocess.Popen([*call, *_device(self.words, number)], stdin=subprocess.DEVNULL))
                for process in processes:
                    process.wait()
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait()

    def work(self, wait: bool = True) -> None:
        """Run trials until none is left; with `wait` also those that other processes abandon."""
        while True:
            with self.study.next(self.wanted) as drawn:
                if drawn is not None:
                    self._try(drawn)
                    continue
            if not wait or not self.study.under_way():
                return
            time.sleep(_POLL)

    def end(self) -> Swept:
        """Score the winner and write the results of the sweep."""
        rows = self.study.rows()
        whole = [row for row in rows if row["state"] == "complete"]
        if not whole:
            why = next((row["why"] for row in rows if "why" in row), "all were stopped early")
            raise RunError(f"no trial of {self.file.name} finished: {why}; see {self.folder}")
        best = max(whole, key=lambda row: (row["value"], -row["trial"]))
        with locked(self.folder / ".winner.lock", "the score of the winner"):
            outcome = run_recipe(
                self.recipe(best["settings"]), out=self.options.out, track=self.options.track, command=self.command
            )
            assert outcome is not None, "a sweep is not shared by torchrun"
            swept = Swept(self.folder, self.file.metric, rows, best, outcome.report, outcome.folder.path)
            swept = replace(swept, report=_noted(swept, self.file.name))
            draw_sweep(self.folder / "sweep.png", swept.metric, rows, best["trial"])
            write_json(self.folder / "report.json", swept.report.to_dict())
            write_json(self.folder / _RESULT, swept.to_dict())
        return swept

    def _try(self, drawn: Drawn) -> None:
        """Run one trial and record its result; a failure is recorded, too, and does not stop the sweep."""
        log.info("trial %d of %d: %s", drawn.number + 1, self.wanted, _in_words(drawn.settings))
        try:
            recipe = self.recipe(drawn.settings)
            try:
                trial = self._run(drawn, recipe)
            except _Pruned:
                give_up(recipe, self.options.out)
                self.study.prune(drawn, {"recipe": recipe.hash})
                log.info("trial %d stopped early", drawn.number + 1)
                return
        except Exception as error:
            self.study.fail(drawn, in_one_line(error))
            log.warning("trial %d failed: %s", drawn.number + 1, in_one_line(error))
            return
        value = trial.probe if self.file.metric == "probe" else statistics.fmean(trial.holdout)
        if value is None:
            self.study.fail(drawn, "no probe: eval.probes=0, or the set is made in independent parts")
            return
        facts = {"recipe": recipe.hash, "run": str(trial.folder.path), "holdout": list(trial.holdout)}
        self.study.finish(drawn, value, facts)
        log.info("trial %d: %s %.2f %%", drawn.number + 1, self.file.metric, value)

    def _run(self, drawn: Drawn, recipe: Recipe) -> Trial:
        probes, iterations = recipe.eval.probes, recipe.method.iterations

        def watch(row: LogRow) -> None:
            it, value = row["it"], row.get("probe")
            if isinstance(value, int | float) and isinstance(it, int) and iterations:
                number = max(1, round(it * probes / iterations))
                if self.study.seen(drawn, number, float(value)) and number < probes:
                    raise _Pruned

        students = self.file.metric != "probe"
        return run_trial(recipe, out=self.options.out, students=students, watch=watch, command=self.command)


def _refuse_code(path: str | Path, file: SweepFile, words: Mapping[str, Json]) -> None:
    """Raise `UsageError` if a sweep file, which is data, names a file of code that the command line does not."""
    values = [file.fixed.get("method"), *(value for p in file.parameters if p.key == "method" for value in p.values)]
    code = [value for value in values if isinstance(value, str) and registry.is_code(value)]
    if code and "method" not in words:
        raise UsageError(
            f"{path} names a file of code as its method, which a sweep file does not run; if you trust it, add "
            f"method={shlex.quote(code[0])}"
        )


def _checked(file: SweepFile, settings: Mapping[str, Json]) -> Recipe:
    """Validate the settings at both ends of every range, and return the recipe of the first.

    Raises:
        UsageError: one line for every invalid setting.
    """
    first = {p.key: p.ends[0] for p in file.parameters}
    base = resolve({**settings, **first})
    problems: list[str] = []
    for parameter in file.parameters:
        for value in parameter.ends[1:_CHECKED]:
            try:
                resolve({**settings, **first, parameter.key: value})
            except UsageError as error:
                problems += str(error).splitlines()
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    require_holdout(base)
    return base


def _noted(swept: Swept, name: str) -> Report:
    """Return the winner's report with a note on the number of trials."""
    counts = swept.counts()
    others = ", ".join(f"{counts[state]} {words}" for state, words in _STATES.items() if counts[state])
    note = (
        f"best of {counts['trials']} trials of sweep {name} by {swept.metric}, the accuracy on held-out images"
        f"{f' ({others})' if others else ''}; only this trial was scored on test images"
    )
    return replace(swept.report, notes=(*swept.report.notes, note))


_STATES = {"pruned": "stopped early", "failed": "failed"}


def _in_words(settings: Mapping[str, Json]) -> str:
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in settings.items()}
    return " ".join(f"{key}={value}" for key, value in shown.items())


def _device(words: Mapping[str, Json], number: int) -> list[str]:
    """Assign GPUs to worker processes in turn, unless a device is given."""
    if words.get("device", "auto") not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    return [f"device=cuda:{number % count}"] if count > 1 else []
