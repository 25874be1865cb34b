"""Jobs as tasks of a Ray cluster.

A task calls `dd` in a process of its own, on the node that Ray chooses, and returns its exit code.  A task whose node
or worker dies is lost, and the driver submits it again; so Ray's own retries are off: there is one way to go on,
wherever a job was.
"""

import importlib
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd.cluster.jobs import LEAD, LOST, PATIENCE, Executor, Job
from dd.cluster.processes import started
from dd.errors import UsageError, in_one_line
from dd.recipes.jobs import RaySettings

log = logging.getLogger(__name__)

_LOOK = 0.2  # seconds between two looks at the process of a task
_AGAIN = 5.0  # seconds after which a task that goes on is cancelled again
_ASKED = 5.0  # seconds to wait for an answer of the head
_PASSED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # variables that a job takes from the driver, besides DD_…


def call(words: Sequence[str], folder: str, said: Path, variables: Mapping[str, str]) -> int:
    """Call `dd` in a process, and return its exit code; if the task is cancelled, let the process save first.

    Args:
        words: the words of the command.
        folder: the current folder, to which the words may refer, if the node has it.
        said: the file that receives its messages.
        variables: of the environment, beside those of the node.
    """
    said.parent.mkdir(parents=True, exist_ok=True)
    process = started(words, said, variables, folder=folder if os.path.isdir(folder) else None)
    told: float | None = None
    try:
        while process.poll() is None and (told is None or time.monotonic() - told < PATIENCE):
            if _is_cancelled_within(_LOOK) and told is None:
                process.terminate()
                told = time.monotonic()
    finally:
        process.kill()
    code = process.wait()
    return LOST if code < 0 else code


def _is_cancelled_within(seconds: float) -> bool:
    """Wait; return whether Ray cancelled the task meanwhile, which it does by an exception, perhaps more than once."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return True
    return False


@dataclass(eq=False)
class _Task:
    """A job; `result` is Ray's reference to its exit code."""

    name: str
    log: Path
    result: Any

    def ended(self) -> int | None:
        ray = _ray()
        done, _ = ray.wait([self.result], timeout=0)
        if not done:
            return None
        try:
            return int(ray.get(self.result))
        except ray.exceptions.RayError as error:
            log.info("%s: %s", self.name, in_one_line(error))
            return LOST


class RayExecutor:
    """Submits tasks to a Ray cluster.

    Args:
        folder: the folder of their logs, which all nodes must see, unless `lead` is given.
        settings: options of the tasks.
        lead: executes the lead, if not a task of the cluster does.
    """

    pause = 1.0

    def __init__(self, folder: Path, settings: RaySettings, lead: Executor | None = None) -> None:
        ray = _ray()
        _connect(settings.address)
        self._folder, self._count, self._lead = folder.absolute(), 0, lead
        # a process that ends after each task leaves nothing behind for the next one
        options: dict[str, Any] = {"max_retries": 0, "max_calls": 1, "num_gpus": settings.gpus or 0}
        if settings.cpus is not None:
            options["num_cpus"] = settings.cpus
        self._call = ray.remote(**options)(call)
        _warn_of_room(settings)

    def submit(self, words: Sequence[str], count: int = 1) -> list[Job]:
        """See `Executor`."""
        if self._lead is not None and words[-1] == LEAD:
            return self._lead.submit(words, count)
        return [self._start(words) for _ in range(count)]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """See `Executor`; waits until they saved, because Ray kills tasks whose driver ends."""
        if self._lead is not None:
            self._lead.cancel(jobs)
        ray = _ray()
        results = [job.result for job in jobs if isinstance(job, _Task) and job.ended() is None]
        deadline = time.monotonic() + PATIENCE
        while results and time.monotonic() < deadline:
            for result in results:
                ray.cancel(result)  # a task that is just starting may not notice
            _, results = ray.wait(results, num_returns=len(results), timeout=_AGAIN)
        ray.shutdown()

    def _start(self, words: Sequence[str]) -> _Task:
        self._count += 1
        said = self._folder / f"task-{os.getpid()}-{self._count}.log"
        variables = {name: value for name, value in os.environ.items() if name.startswith("DD_") or name in _PASSED}
        return _Task(f"task {self._count}", said, self._call.remote(list(words), os.getcwd(), said, variables))


def _ray() -> Any:
    """Import Ray, which is an extra.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError("on=ray: ray is not installed; pip install 'dd-workbench[ray]'") from error


def _connect(address: str | None) -> None:
    """Connect to the cluster.

    Raises:
        UsageError: there is none, or it has other versions.
    """
    ray = _ray()
    host, _, port = (address or "").rpartition(":")
    try:
        if host and port.isdigit():  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=_ASKED).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        where = f"at {address}" if address else "here"
        way_out = "start one with ray start --head, or give ray.address=HOST:PORT"
        raise UsageError(f"on=ray: no cluster {where} ({in_one_line(error)}); {way_out}") from error


def _warn_of_room(settings: RaySettings) -> None:
    """Warn if no node has what a task asks for, so that it waits."""
    ray = _ray()
    wanted = {"GPU": settings.gpus or 0, "CPU": settings.cpus or 1}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(what, 0) >= count for what, count in wanted.items()) for node in nodes):
        words = " and ".join(f"{count:g} {what}" for what, count in wanted.items() if count)
        log.warning("no node of the cluster has %s: the jobs wait for one that does", words)
