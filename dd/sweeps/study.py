"""The state of a sweep: an Optuna study in a journal file shared by several processes.

A process holds the lock file of the trial that it runs.  A running trial whose lock is free belonged to a process that
no longer exists, and is resumed.
"""

import contextlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, cast

from filelock import FileLock, Timeout

from dd.errors import UsageError
from dd.io import Json
from dd.sweeps.yaml_file import Parameter, SweepFile

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
_GRID, _WHY = "grid", "why"


class TrialRow(TypedDict):
    """A trial as JSON."""

    trial: int
    """Its number, from 0."""
    state: Literal["complete", "pruned", "failed", "running", "waiting"]
    value: float | None
    """The metric in percent, if the trial is complete."""
    settings: dict[str, Json]
    """The swept settings by dotted key."""
    probes: list[float]
    """Accuracies of its probes in percent, in order."""
    recipe: NotRequired[str]
    """Hash of its recipe."""
    run: NotRequired[str]
    """Folder of its run."""
    holdout: NotRequired[list[float]]
    """Held-out accuracy of each student in percent."""
    why: NotRequired[str]
    """The reason of a failure."""


@dataclass(frozen=True)
class Drawn:
    """A trial run by this process.

    Attributes:
        trial: the trial in Optuna.
        settings: its values by dotted key.
    """

    trial: "optuna.Trial"
    settings: Mapping[str, Json]

    @property
    def number(self) -> int:
        """Number of the trial, from 0."""
        return self.trial.number


class Study:
    """The trials of one sweep.

    Args:
        folder: folder of the sweep.
        file: the sweep file.
        probes: number of probes per trial.
        seed: seed of the sampler.
    """

    def __init__(self, folder: Path, file: SweepFile, probes: int, seed: int) -> None:
        optuna = _optuna()
        self._optuna, self._folder, self._file, self._seed = optuna, folder, file, seed
        journal = folder / JOURNAL
        backend = optuna.storages.journal.JournalFileBackend(str(journal), JournalLock(journal))
        storage = optuna.storages.JournalStorage(backend)
        with self._alone():
            self.study = optuna.create_study(
                study_name=file.name,
                storage=storage,
                pruner=_pruner(file.early, probes),
                direction="maximize",
                load_if_exists=True,
            )
            if file.search == "grid" and _GRID not in self.study.user_attrs:
                self._enqueue(file.grid())

    @contextlib.contextmanager
    def next(self, wanted: int) -> "Iterator[Drawn | None]":
        """Hold the next trial for the duration of the block; yield None if none of the `wanted` trials is left."""
        with contextlib.ExitStack() as held:
            with self._alone():
                drawn = self._left(held) or self._new(held, wanted)
            yield drawn

    def under_way(self) -> list[int]:
        """Return the numbers of running trials."""
        return [t.number for t in self._trials("RUNNING")]

    def finish(self, drawn: Drawn, value: float, facts: Mapping[str, Json]) -> None:
        """Record the result of a trial, in percent, and JSON-able facts."""
        self._end(drawn, "COMPLETE", value, facts)

    def prune(self, drawn: Drawn, facts: Mapping[str, Json]) -> None:
        """Record that a trial was stopped early."""
        self._end(drawn, "PRUNED", None, facts)

    def fail(self, drawn: Drawn, why: str) -> None:
        """Record that a trial failed, and why."""
        self._end(drawn, "FAIL", None, {_WHY: why})

    def seen(self, drawn: Drawn, number: int, value: float) -> bool:
        """Record probe `number` (from 1) of a trial, and return whether to stop the trial."""
        trial = drawn.trial
        if number not in self.study.trials[trial.number].intermediate_values:
            trial.report(value, number)
        return trial.should_prune()

    def rows(self) -> list[TrialRow]:
        """Return every trial, in order."""
        return [self._row(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _row(self, t: "optuna.trial.FrozenTrial") -> TrialRow:
        names = {"FAIL": "failed"}
        row = {
            "trial": t.number,
            "state": names.get(t.state.name, t.state.name.lower()),
            "value": t.value if t.state.name == "COMPLETE" else None,
            "settings": self._settings(t.params or t.system_attrs.get("fixed_params", {})),
            **t.user_attrs,  # the facts of `finish`, `prune` or `fail`
            "probes": [t.intermediate_values[step] for step in sorted(t.intermediate_values)],
        }
        return cast(TrialRow, row)

    def _enqueue(self, grid: list[dict[str, Json]]) -> None:
        """Add all combinations as waiting trials."""
        there = len(self.study.get_trials(deepcopy=False))  # a process may have been killed while adding them
        for settings in grid[there:]:
            written = {p.key: _written(p, settings[p.key]) for p in self._file.parameters}
            self.study.enqueue_trial(written)
        self.study.set_user_attr(_GRID, len(grid))

    def _left(self, held: contextlib.ExitStack) -> Drawn | None:
        """Return a running trial whose process is gone."""
        for frozen in self._trials("RUNNING"):
            if self._take(frozen.number, held):
                self.study.sampler = self._sampler(frozen.number)
                trial = self._optuna.Trial(self.study, frozen._trial_id)
                return Drawn(trial, self._settings(self._drawn(trial)))
        return None

    def _new(self, held: contextlib.ExitStack, wanted: int) -> Drawn | None:
        waiting, there = self._trials("WAITING"), len(self.study.get_trials(deepcopy=False))
        if not waiting and (self._file.search == "grid" or there >= wanted):
            return None
        if waiting and there - len(waiting) >= wanted:
            return None
        self.study.sampler = self._sampler(there)
        trial = self.study.ask()
        if not self._take(trial.number, held):
            raise UsageError(f"{self._lock_file(trial.number)} is held by another program; end it, then try again")
        return Drawn(trial, self._settings(self._drawn(trial)))

    def _drawn(self, trial: "optuna.Trial") -> dict[str, Json]:
        """Return the values of a trial, drawing those that it does not have yet."""
        return {p.key: _suggested(trial, p) for p in self._file.parameters}

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """Return the sampler for one trial; its own seed keeps processes from drawing the same values."""
        samplers, seed = self._optuna.samplers, (self._seed * 1_000_003 + number) % 2**31
        if self._file.search == "bayes":
            with warnings.catch_warnings():
                # earlier versions of Optuna warn that this argument is experimental
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                return samplers.TPESampler(seed=seed, constant_liar=True)
        return samplers.RandomSampler(seed=seed)

    def _settings(self, params: Mapping[str, Json]) -> dict[str, Json]:
        return {p.key: _read(p, params[p.key]) for p in self._file.parameters if p.key in params}

    def _trials(self, state: str) -> "list[optuna.trial.FrozenTrial]":
        states = (self._optuna.trial.TrialState[state],)
        return self.study.get_trials(deepcopy=False, states=states)

    def _end(self, drawn: Drawn, state: str, value: float | None, facts: Mapping[str, Json]) -> None:
        for key, fact in facts.items():
            drawn.trial.set_user_attr(key, fact)
        self.study.tell(drawn.trial, value, state=self._optuna.trial.TrialState[state])

    def _take(self, number: int, held: contextlib.ExitStack) -> bool:
        """Try to lock a trial, and return whether it succeeded."""
        lock = FileLock(self._lock_file(number))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        held.callback(lock.release)
        return True

    def _lock_file(self, number: int) -> Path:
        return self._folder / f".trial{number}.lock"

    def _alone(self) -> contextlib.AbstractContextManager[object]:
        return FileLock(self._folder / ".study.lock")


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise UsageError("dd sweep needs optuna: pip install 'dd-workbench[search]'") from error
    optuna.logging.set_verbosity(logging.ERROR)
    return optuna


class JournalLock:
    """A lock for Optuna that the system releases if its holder is killed, unlike Optuna's own.

    It also removes a half-written last line of the journal, after which Optuna could not read further lines.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._lock = journal, FileLock(journal.parent / f".{journal.name}.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        text = self._journal.read_bytes() if self._journal.is_file() and not self._is_whole() else b""
        if text:
            with self._journal.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _is_whole(self) -> bool:
        with self._journal.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def _pruner(early: Mapping[str, float] | None, probes: int) -> "optuna.pruners.BasePruner":
    """Create the pruner; W&B counts logged values of the metric, we count probes."""
    import optuna

    if early is None:
        return optuna.pruners.NopPruner()
    most = int(early.get("max_iter", max(probes, 1)))
    least = min(int(early.get("min_iter", 1)), most)
    return optuna.pruners.HyperbandPruner(least, most, max(2, round(early.get("eta", 3))))


def _suggested(trial: "optuna.Trial", p: Parameter) -> Json:
    if p.law == "choice":
        return trial.suggest_categorical(p.key, [json.dumps(value) for value in p.values])
    if p.law == "int":
        return trial.suggest_int(p.key, int(p.low), int(p.high))
    if p.law == "steps":
        return trial.suggest_float(p.key, p.low, p.high, step=p.step)
    return trial.suggest_float(p.key, p.low, p.high, log=p.law in ("log", "log_steps"))


def _written(p: Parameter, value: Json) -> Json:
    """Convert a value to the form stored by Optuna: choices, which may be lists or of mixed types, as JSON."""
    return json.dumps(value) if p.law == "choice" else value


def _read(p: Parameter, value: Json) -> Json:
    """Invert `_written`, and round to multiples of the step."""
    if p.law == "choice":
        return json.loads(str(value))
    if not isinstance(value, int | float):
        raise UsageError(f"{p.key}: {value!r} in the journal is not a number; is it of another sweep?")
    if p.law == "log_steps":
        value = min(max(round(value / p.step) * p.step, p.low), p.high)
    return value if isinstance(value, int) else float(f"{value:.12g}") if math.isfinite(value) else value
