"""Jobs of a Slurm cluster, submitted through submitit.

submitit writes the batch script and passes the call to the job, which writes its exit code to a file.  A job that is
told to end (preempted, cancelled, or out of time) receives SIGTERM, saves, and exits with 75, like any run; the driver
submits it again.  So Slurm's own requeueing and submitit's are off: there is one way to go on, wherever a job was.
"""

import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dd.cluster.jobs import LOST, Job
from dd.errors import UsageError
from dd.io import write_json
from dd.recipes.jobs import SlurmSettings

if TYPE_CHECKING:
    import submitit

_NOTICE = 120  # seconds before the time limit at which a job is told to save
_LATE = 30.0  # seconds that a shared file system may take to show what a job wrote at its end
_ASKED = 60.0  # seconds to wait for an answer of Slurm


def call(words: Sequence[str], folder: Path) -> None:
    """Call `dd` in this process, which is a job, and write the exit code to a file in `folder`."""
    sys.argv = ["dd", *words]
    code: object = 0
    try:
        # not in a process of its own, which would not receive what Slurm sends to the job
        runpy.run_module("dd", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    write_json(_code_file(folder, _own_id()), code if isinstance(code, int) else int(code is not None))


def _own_id() -> str:
    """Return Slurm's number of the job in which this process is."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _code_file(folder: Path, job: str) -> Path:
    return folder / f"{job}_exit.json"


@dataclass(eq=False)
class _SlurmJob:
    """A job.

    Attributes:
        name: "job 12", or "job 12_3" of an array.
        log: what it writes to stderr.
        id: Slurm's number of it.
        code: the file with its exit code.
        executor: knows which jobs Slurm has.
        gone: when Slurm was first found not to have it any more, in seconds of `time.monotonic`.
    """

    name: str
    log: Path
    id: str
    code: Path
    executor: "SlurmExecutor"
    gone: float | None = None

    def ended(self) -> int | None:
        if self.code.is_file():
            return int(json.loads(self.code.read_text(encoding="utf-8")))
        if self.id in self.executor.queued():
            self.gone = None
            return None
        now = time.monotonic()
        self.gone = now if self.gone is None else self.gone
        return LOST if now - self.gone > _LATE else None


class SlurmExecutor:
    """Submits jobs with `sbatch`, several at once as an array.

    Args:
        folder: the folder of their scripts and logs, which all nodes must see.
        settings: options of the jobs.
    """

    pause = 2.0

    def __init__(self, folder: Path, settings: SlurmSettings) -> None:
        try:
            from submitit import SlurmExecutor as Submitter
        except ImportError as error:
            raise UsageError("on=slurm: submitit is not installed; pip install 'dd-workbench[slurm]'") from error
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UsageError("on=slurm: no sbatch on the PATH; start the command on a machine of the cluster")
        self._folder = folder.absolute()
        self._submitter = Submitter(self._folder)
        self._submitter.update_parameters(**_parameters(settings))
        self._queued: frozenset[str] = frozenset()
        self._asked = -_ASKED

    def submit(self, words: Sequence[str], count: int = 1) -> list[Job]:
        """See `Executor`."""
        try:
            with self._submitter.batch() if count > 1 else contextlib.nullcontext():
                jobs = [self._submitter.submit(call, list(words), self._folder) for _ in range(count)]
        except Exception as error:  # submitit has several for what sbatch says
            raise UsageError(f"on=slurm: the jobs were refused: {_why(error)}") from error
        self._queued |= {job.job_id for job in jobs}
        self._asked = time.monotonic()  # a job that was just submitted is queued
        return [self._of(job) for job in jobs]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """See `Executor`; Slurm lets them save for a while, for which this does not wait."""
        ids = [job.id for job in jobs if isinstance(job, _SlurmJob) and job.ended() is None]
        if ids:
            subprocess.run(["scancel", *ids], capture_output=True, check=False, timeout=_ASKED)

    def queued(self) -> frozenset[str]:
        """Return the jobs of this user that wait or run; Slurm is asked at most once per pause."""
        if time.monotonic() - self._asked >= self.pause:
            self._asked = time.monotonic()
            command = ["squeue", "--me", "--array", "--noheader", "--format=%i|%T"]
            # accounting (sacct) would know more, but many clusters have none
            said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ASKED)
            if said.returncode == 0:  # otherwise the controller is busy, and nothing is known
                rows = [line.split("|") for line in said.stdout.splitlines()]
                self._queued = frozenset(row[0] for row in rows if row[-1] not in _OVER)
        return self._queued

    def _of(self, job: "submitit.Job[None]") -> _SlurmJob:
        code = _code_file(self._folder, job.job_id)
        return _SlurmJob(f"job {job.job_id}", job.paths.stderr, job.job_id, code, self)


_OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


def _parameters(settings: SlurmSettings) -> dict[str, Any]:
    """Return the options of a job in submitit's words."""
    # to the steps of the job, of which a run is one
    more: dict[str, Any] = {"signal": f"TERM@{_NOTICE}", "no-requeue": True}
    if settings.memory is not None:
        more["mem"] = settings.memory
    return {
        "job_name": "dd",
        "time": settings.time,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "gpus_per_node": settings.gpus or None,
        "cpus_per_task": settings.cpus,
        "setup": None if settings.setup is None else [settings.setup],
        # srun does not take it from the job since Slurm 22.05
        "srun_args": None if settings.cpus is None else [f"--cpus-per-task={settings.cpus}"],
        "additional_parameters": more,
    }


def _why(error: Exception) -> str:
    """Return what Slurm says, without the words around it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return "; ".join(said) or lines[-1]
