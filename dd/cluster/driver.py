"""The process that the user started: it submits the lead, and helpers where the lead has work to divide.

The lead executes the ordinary run; helpers make what nobody is making and end (`dd.pipeline.run.help_run`).  A job that
is lost costs only what it was making: the lead is submitted again and resumes, and others take what a helper left.
"""

import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dd.cluster.jobs import HELPER, LEAD, LOST, Executor, Job
from dd.cluster.processes import LocalExecutor
from dd.engine import parallel
from dd.errors import Interrupted, RunError, UsageError
from dd.io import home_address, is_locked, locked, writable
from dd.pipeline import Outcome, locate, run_recipe
from dd.pipeline.outcome import finished
from dd.recipes import Recipe, RunOptions
from dd.recipes.given import without
from dd.recipes.jobs import KEYS
from dd.runs import RunFolder
from dd.runs.sharing import Offer
from dd.runs.stop import EXIT_CODES, Stop

log = logging.getLogger(__name__)

_SAVED = EXIT_CODES[signal.SIGTERM]  # exit code of a run that saved and wants to be started again
_WAY_OUT = "choose another folder with out=FOLDER or DD_RUNS"
_SHORT, _SHORTS = 60.0, 3  # a lead that is lost so many times within so many seconds of its begin is not lost by chance
_FAILURES = 3  # helpers that may fail until no more are started


def drive(recipe: Recipe, options: RunOptions, words: Sequence[str], command: str) -> Outcome:
    """Execute a run as jobs; return its outcome once they are done.

    Args:
        recipe: the settings, with the device of the jobs.
        options: where the jobs are executed, and how many.
        words: the words of the run, as on the command line.
        command: the command that started it.

    Raises:
        UsageError: the jobs cannot be started, or the lead ended with a usage error.
        RunError: the run failed.
        Interrupted: a signal stopped this process; the jobs are cancelled.
    """
    _refuse_torchrun(options)
    folder = locate(recipe, options.out)
    done = None if options.force else _finished(recipe, options, folder)
    if done is not None:
        return done
    stop = Stop(f"the jobs are cancelled and everything finished is kept; the same command resumes: {command}")
    executor = _executor(options, writable(folder.jobs, _WAY_OUT), recipe.device)
    with stop.watching(), locked(folder.jobs / ".lock", f"the run in {folder.path} with jobs"):
        done = None if options.force else _finished(recipe, options, folder)
        if done is not None:  # by the process that this one waited for
            return done
        work = _Work(("run",), words, folder.is_finished, folder.lock_file)
        _Crew(folder, options, executor, stop, work).execute()
    return replace(finished(folder), fresh=True)


def drive_experts(recipe: Recipe, options: RunOptions, words: Sequence[str], command: str) -> dict[str, Any]:
    """Make the experts of a run as jobs; return what the lead says of them (see `dd experts make`).

    Arguments and errors are those of `drive`.  What the jobs say is in the folder of that run.
    """
    _refuse_torchrun(options)
    folder = locate(recipe, options.out)
    stop = Stop(f"the jobs are cancelled and finished experts are kept; the same command resumes: {command}")
    executor = _executor(options, writable(folder.jobs, _WAY_OUT), recipe.device)
    with stop.watching(), locked(folder.jobs / ".lock", f"the experts of the run in {folder.path} with jobs"):
        folder.experts.unlink(missing_ok=True)
        work = _Work(("experts", "make"), words, folder.experts.is_file)
        _Crew(folder, options, executor, stop, work).execute()
    said: dict[str, Any] = json.loads(folder.experts.read_text(encoding="utf-8"))
    return said


def _finished(recipe: Recipe, options: RunOptions, folder: RunFolder) -> Outcome | None:
    """Report a run that was finished before; None if it is not finished."""
    return run_recipe(recipe, out=options.out, track=options.track) if folder.is_finished() else None


def _refuse_torchrun(options: RunOptions) -> None:
    if parallel.started() > 1:
        raise UsageError(f"on={options.on} jobs={options.jobs} start processes themselves: leave out torchrun")


def _executor(options: RunOptions, folder: Path, device: str) -> Executor:
    if options.on == "local":
        return LocalExecutor(folder, options.jobs, device)
    if options.on == "ray":
        from dd.cluster.ray_tasks import RayExecutor

        # machines that share nothing but an address cannot write to this folder
        lead = None if home_address() is None else LocalExecutor(folder, 1, device)
        return RayExecutor(folder, options.ray, lead)
    from dd.cluster.slurm import SlurmExecutor

    return SlurmExecutor(folder, options.slurm)


@dataclass
class _Lead:
    """The job that executes the run, and what was read of its messages.

    Attributes:
        job: the job.
        began: when it first said something, in seconds of `time.monotonic`.
        error: the lines of the error with which it ended, if any.
    """

    job: Job
    began: float | None = None
    error: list[str] = field(default_factory=list)
    _read: int = 0

    def follow(self) -> None:
        """Log what the lead said since the last call, but for the error with which it ends."""
        try:
            with self.job.log.open("rb") as file:
                file.seek(self._read)
                said = file.read()
        except FileNotFoundError:
            return
        whole = said[: said.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            self.began = self.began or time.monotonic()
            if self.error or line.startswith("dd: "):
                self.error.append(line)
            else:
                log.info("%s", line)

    def fate(self) -> str:
        """Say how it ended, if it may be submitted again."""
        return f"{self.job.name} was {'stopped' if self.job.ended() == _SAVED else 'lost'}"

    def end(self, code: int) -> BaseException | None:
        """Return the exception that ends the run after this exit code; None if the lead may be submitted again."""
        if code in (LOST, _SAVED):
            return None
        lines = [line.removeprefix("dd: ").strip() for line in self.error]
        lines = lines[1:] if len(lines) > 1 and lines[0].endswith(" problems") else lines
        words = "\n".join(lines) or f"{self.job.name} ended with exit code {code}; see {self.job.log}"
        if code in EXIT_CODES.values():
            return Interrupted(words, code)
        return UsageError(words) if code == 2 else RunError(words)


@dataclass(frozen=True)
class _Work:
    """What the jobs do together.

    Attributes:
        verb: what they call: ("run",).
        words: the words after it, as the user gave them.
        is_done: whether it is done.
        lock_file: held by the process that does it; None if several may.
    """

    verb: Sequence[str]
    words: Sequence[str]
    is_done: Callable[[], bool]
    lock_file: Path | None = None


@dataclass
class _Crew:
    """The jobs of a run."""

    folder: RunFolder
    options: RunOptions
    executor: Executor
    stop: Stop
    work: _Work
    helpers: list[Job] = field(default_factory=list)
    lead: _Lead | None = None
    _all: list[Job] = field(default_factory=list)
    _offer: Offer | None = None
    _open: int = 0  # helpers that may be submitted for this offer
    _failures: int = 0
    _shorts: int = 0

    def execute(self) -> None:
        """Submit and watch the jobs until all is done; stop them if that fails."""
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what it has to say; the result is ours
            try:
                self._work()
            finally:
                self.executor.cancel(self._all)

    def _work(self) -> None:
        self._let_finish()
        force = self.options.force
        while force or not self.work.is_done():
            lead = self._led(force)
            while (code := lead.job.ended()) is None:
                lead.follow()
                self._help(force)
                self._pause()
            lead.follow()
            if code == 0:
                return
            if error := lead.end(code):
                raise error
            self._require_progress(lead)
            force = False  # what was repeated so far is kept

    def _let_finish(self) -> None:
        """Wait for a process that executes the run already, as the lead of a driver that was lost; help it."""
        file = self.work.lock_file
        if file is None:
            return
        if is_locked(file):
            log.info("another process is executing the run in %s: its result is waited for", self.folder.path)
        while is_locked(file):
            self._help(force=False)
            self._pause()

    def _led(self, force: bool) -> _Lead:
        """Submit the lead."""
        again = "" if self.lead is None else f"; {self.lead.fate()}, and it resumes"
        self._offer = None
        self.folder.offer.unlink(missing_ok=True)  # a lead that was killed leaves it
        self.lead = lead = _Lead(self._submit(LEAD, force, 1)[0])
        log.info("submitted the run as %s%s (log: %s)", lead.job.name, again, lead.job.log)
        return lead

    def _require_progress(self, lead: _Lead) -> None:
        """Raise `RunError` if leads are lost soon after they begin, one after the other."""
        lived = 0.0 if lead.began is None else time.monotonic() - lead.began
        self._shorts = self._shorts + 1 if lived < _SHORT else 0
        if self._shorts == _SHORTS:
            raise RunError(f"{lead.fate()}, as {_SHORTS - 1} jobs before it were; see {lead.job.log}")

    def _help(self, force: bool) -> None:
        """Submit helpers for what the lead offers."""
        for job in list(self.helpers):
            if (code := job.ended()) is not None:
                self.helpers.remove(job)
                self._note(job, code)
        offer = Offer.read(self.folder.offer)
        if offer is not None and offer != self._offer:
            self._offer = offer
            self._open = min(self.options.jobs, offer.units) - 1 - len(self.helpers)  # one of them is the lead's
        if offer is None or self._open < 1 or self._failures >= _FAILURES:
            return
        count, self._open = self._open, 0
        try:
            self.helpers += self._submit(HELPER, force, count)
        except UsageError as error:  # the lead goes on without them
            self._failures += 1
            log.warning("no helpers: %s", error)
            return
        names = ", ".join(job.name for job in self.helpers[-count:])
        log.info("%s: %d helper%s for %d pieces (%s)", offer.stage, count, "s" * (count > 1), offer.units, names)

    def _note(self, job: Job, code: int) -> None:
        """Note how a helper ended."""
        if code == _SAVED:
            self._open += 1  # it was stopped, so there may be more to do
        elif code != 0:
            self._failures += code != LOST
            what = "was lost" if code == LOST else f"failed with exit code {code}"
            log.warning("helper %s %s; others make what it left (log: %s)", job.name, what, job.log)

    def _submit(self, role: str, force: bool, count: int) -> list[Job]:
        kept = without(self.work.words, lambda key: key == "force" or key.partition(".")[0] in KEYS)
        with self.stop.deferred():  # a job that is submitted must not be forgotten
            jobs = self.executor.submit([*self.work.verb, *kept, *(["force=true"] if force else []), role], count)
            self._all += jobs
        if self.stop.requested is not None:
            raise self.stop.error()
        return jobs

    def _pause(self) -> None:
        time.sleep(self.executor.pause)
