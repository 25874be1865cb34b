"""What the driver of a run asks of the place where its jobs are executed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

LOST = -1
"""The exit code of a job that ended without one: it was killed, or its node failed."""


LEAD, HELPER = "--lead", "--helper"
"""The last word of a job: what it does in a run."""
PATIENCE = 60.0
"""Seconds that a cancelled job has to save."""


class Job(Protocol):
    """A submitted job.

    Attributes:
        name: what people call it: "job 12", "process 4711".
        log: the file that receives its messages; it need not exist yet.
    """

    name: str
    log: Path

    def ended(self) -> int | None:
        """Return the exit code, or `LOST`; None while the job waits or runs."""
        ...


class Executor(Protocol):
    """Executes calls of `dd` as jobs.

    Attributes:
        pause: seconds between two looks at the jobs.
    """

    pause: float

    def submit(self, words: Sequence[str], count: int = 1) -> list[Job]:
        """Submit `count` jobs that call `dd` with these words.

        Raises:
            UsageError: they are refused.
        """
        ...

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop jobs, which may save first; does nothing to those that ended."""
        ...
