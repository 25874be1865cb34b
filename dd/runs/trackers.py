"""Experiment trackers that follow a run, one small class each: `track=wandb,trackio`.

A tracker never stops a run: one that raises is dropped, with one warning.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar, cast

from dd.errors import UsageError, in_one_line, unknown
from dd.io import write_text
from dd.plugins import Named

log = logging.getLogger(__name__)

T = TypeVar("T")
LogRow = Mapping[str, str | int | float | None]
"""One row of a log by column name; `it` is the outer iteration."""

LOCAL = ("csv", "none")  # names without a class: log.csv is always written
_KNOWN = {"wandb": "dd.runs._wandb:WandbRun", "trackio": "dd.runs._trackio:TrackioRun"}
_AGENT = "WANDB_SWEEP_ID"  # set by the agent of a W&B sweep


@dataclass(frozen=True)
class MadeFrom:
    """An input of the synthesis: experts, teachers, statistics.

    Attributes:
        kind: "experts", "teachers", ...
        name: includes the start of its key, so that equal inputs have equal names.
        facts: JSON-able.
    """

    kind: str
    name: str
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Results:
    """The results of a finished run.

    Attributes:
        metrics: numbers by name; sweeps maximise `eval/holdout`; names with `eval/test` are accuracies on test images.
        columns: headings of the report's table.
        rows: rows of that table.
        pictures: PNG files by name.
        name: artifact name of the set: letters, digits, `-`, `_` and `.`.
        aliases: aliases of this version of the set.
        files: files of the set.
        facts: JSON-able metadata of the set.
        origins: inputs of the synthesis.
    """

    metrics: Mapping[str, float]
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    pictures: Mapping[str, Path]
    name: str
    aliases: Sequence[str]
    files: Sequence[Path]
    facts: Mapping[str, object]
    origins: Sequence[MadeFrom] = ()


@dataclass(frozen=True)
class Subject:
    """The run that a tracker follows.

    Attributes:
        folder: folder of the run, which also holds the trackers' ids.
        name: name of the run.
        config: every setting by dotted key, JSON-able.
        fresh: the run starts over, so that earlier ids are not reused.
    """

    folder: Path
    name: str
    config: Mapping[str, object] = field(default_factory=dict)
    fresh: bool = False

    def known(self, tracker: str) -> str | None:
        """Return the id that a tracker used for this run before, or None."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self._file(tracker).read_text(encoding="utf-8").strip()[:100] or None
        return None

    def remember(self, tracker: str, name: str) -> None:
        """Store the id that a tracker uses for this run."""
        self._file(tracker, "told").unlink(missing_ok=True)
        write_text(self._file(tracker), name + "\n")

    def mark_told(self, tracker: str) -> None:
        """Note that a tracker has received the results of this run."""
        write_text(self._file(tracker, "told"), "")

    def told(self, tracker: str) -> bool:
        """Return whether a tracker has received the results of this run."""
        return self._file(tracker, "told").is_file()

    def _file(self, tracker: str, what: str = "id") -> Path:
        return self.folder / f"{tracker}-{what}"


class Tracker(Protocol):
    """Follows one run.  It may raise anything at any time: the run continues without it."""

    def __init__(self, subject: Subject) -> None:
        """Start, or continue after an interruption of the same run."""
        ...

    def log(self, row: LogRow) -> None:
        """Receive one row of the log; empty cells are None."""
        ...

    def results(self, results: Results) -> None:
        """Receive the results of the finished run."""
        ...

    def close(self, failed: bool) -> None:
        """End; `failed` if the run did not finish."""
        ...


def _accept(_name: str, given: object) -> type[Tracker]:
    """Return the class that a plug-in gives under a name."""
    missing = [call for call in ("log", "results", "close") if not callable(getattr(given, call, None))]
    if not isinstance(given, type) or missing:
        raise ValueError("it is not a class with log, results and close")
    return cast(type[Tracker], given)


TRACKERS: Named[type[Tracker]] = Named("tracker", {}, _accept, lambda name: name in (*_KNOWN, *LOCAL))
"""Trackers of plug-ins."""


def tracker_names() -> tuple[str, ...]:
    """Return the names that `track=` accepts."""
    return (*_KNOWN, *TRACKERS, *LOCAL)


def in_agent() -> bool:
    """Return whether the agent of a W&B sweep started this process."""
    return bool(os.environ.get(_AGENT))


def chosen(track: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the trackers to use; by default wandb inside a W&B agent, and none elsewhere.

    Raises:
        UsageError: unknown tracker.
    """
    for name in track:
        if name not in (*_KNOWN, *LOCAL) and name not in TRACKERS:
            raise unknown("tracker", name, tracker_names())
    if not track:
        return ("wandb",) if in_agent() else ()
    return tuple(dict.fromkeys(name for name in track if name not in LOCAL))


def tracker_class(name: str) -> type[Tracker]:
    """Import the class of a tracker.

    Raises:
        UsageError: the package that it needs is not installed.
        RunError: a plug-in that fails to import, or is not a tracker.
    """
    if name not in _KNOWN:
        return TRACKERS[name]
    module, _, attribute = _KNOWN[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except ImportError as error:
        raise UsageError(
            f"track={name}: {in_one_line(error)}; install it with: pip install 'dd-workbench[track]'"
        ) from error
    return found


class Trackers:
    """Forwards to several trackers.  One that raises gets nothing more but the end of the run, with one warning."""

    def __init__(
        self, names: Sequence[str] = (), subject: Subject | None = None, watch: Callable[[LogRow], None] | None = None
    ) -> None:
        """Start the trackers.

        Args:
            names: as returned by `chosen`.
            subject: the run; required if there are names.
            watch: called with every row; its exceptions are not caught.

        Raises:
            UsageError: a package that a tracker needs is not installed.
        """
        classes = {name: tracker_class(name) for name in names}
        self._watch, self._subject = watch, subject
        self._at_work: dict[str, Tracker] = {}
        self._left_out: list[Tracker] = []
        for name, cls in classes.items():
            assert subject is not None
            with self._guarded(name):
                self._at_work[name] = cls(subject)

    def log(self, row: LogRow) -> None:
        """See `Tracker`."""
        if self._watch is not None:
            self._watch(row)
        for name, tracker in list(self._at_work.items()):
            with self._guarded(name):
                tracker.log(row)

    def results(self, results: Results) -> None:
        """See `Tracker`."""
        for name, tracker in list(self._at_work.items()):
            with self._guarded(name):
                tracker.results(results)
                if self._subject is not None:
                    self._subject.mark_told(name)

    def close(self, failed: bool = False) -> None:
        """See `Tracker`; trackers that failed earlier are closed as well, silently."""
        for tracker in self._left_out:
            with contextlib.suppress(Exception):
                tracker.close(failed)
        for name, tracker in list(self._at_work.items()):
            with self._guarded(name):
                tracker.close(failed)
        self._at_work.clear()
        self._left_out.clear()

    @property
    def listening(self) -> bool:
        """Whether any tracker is still at work."""
        return bool(self._at_work)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if tracker := self._at_work.pop(name, None):
                self._left_out.append(tracker)
            log.warning("%s no longer follows this run (%s); the run goes on", name, in_one_line(error) or type(error))


def within(seconds: float, function: Callable[[], T]) -> T:
    """Call a function in a thread and wait a limited number of seconds for its result.

    Raises:
        TimeoutError: no result in time; the thread is abandoned and ends with the process.
    """
    found: list[T] = []
    raised: list[Exception] = []

    def call() -> None:
        try:
            found.append(function())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return found[0]
