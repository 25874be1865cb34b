"""Jobs as processes on this machine."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dd.cluster.jobs import LOST, PATIENCE, Job
from dd.runs.cost import cores


def started(
    words: Sequence[str], log: Path, variables: Mapping[str, str], *, folder: str | None = None, apart: bool = False
) -> "subprocess.Popen[bytes]":
    """Call `dd` in a process of its own.

    Args:
        words: the words of the command.
        log: the file that receives its messages; what it prints besides is lost.
        variables: of the environment, beside those of this process.
        folder: the current folder; None for that of this process.
        apart: in a session of its own, so that Ctrl-C in the terminal does not reach it.
    """
    with log.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "dd", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=os.environ | variables,
            cwd=folder,
            start_new_session=apart,
        )


@dataclass(eq=False)
class _Process:
    """A job; `slot` is its number among those that run at the same time."""

    name: str
    log: Path
    slot: int
    process: subprocess.Popen[bytes]

    def ended(self) -> int | None:
        code = self.process.poll()
        return LOST if code is not None and code < 0 else code


@dataclass
class LocalExecutor:
    """Starts processes; each has a share of the cores, or a GPU of its own if there are enough.

    Attributes:
        folder: the folder of their logs.
        jobs: how many run at the same time.
        device: the device of the run.
    """

    folder: Path
    jobs: int
    device: str
    pause: float = 0.2
    _started: list[_Process] = field(default_factory=list)

    def submit(self, words: Sequence[str], count: int = 1) -> list[Job]:
        """See `Executor`."""
        return [self._start(words) for _ in range(count)]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """See `Executor`."""
        processes = [one.process for one in self._started if one in jobs]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
        finally:
            for process in processes:
                process.kill()

    def _start(self, words: Sequence[str]) -> _Process:
        busy = {one.slot for one in self._started if one.ended() is None}
        slot = next(number for number in range(len(busy) + 1) if number not in busy)
        log = self.folder / f"process-{os.getpid()}-{len(self._started)}.log"
        process = started(words, log, self._share(slot), apart=True)  # Ctrl-C is for the driver alone
        job = _Process(f"process {process.pid}", log, slot, process)
        self._started.append(job)
        return job

    def _share(self, slot: int) -> dict[str, str]:
        """Return the environment that gives a job its part of the machine."""
        if self.device == "cuda":
            devices = _visible()
            return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}
        # processes with more threads than cores slow each other many times over
        threads = max(1, cores() // self.jobs)
        return {} if self.device != "cpu" or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}


def _visible() -> list[str]:
    """Return the CUDA devices that this process may use, as the driver names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
