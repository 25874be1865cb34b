"""Where the jobs of a run are executed: `on=local`, `on=slurm` and `on=ray`, and the options of the last two."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d)")

Place = Literal["local", "slurm", "ray"]
KEYS = ("on", "jobs", "slurm", "ray")  # the last two are groups


def _minutes(value: Any) -> Any:
    """Convert H:MM and D-HH:MM, which Slurm would read as minutes and seconds, to minutes."""
    if not isinstance(value, str):
        return value
    if (found := _TIME.fullmatch(value)) is None or int(found["minutes"]) > 59:
        raise ValueError(f"{value!r} is not a time; give minutes, H:MM or D-HH:MM")
    return (int(found["days"] or 0) * 24 + int(found["hours"])) * 60 + int(found["minutes"])


@dataclass(frozen=True)
class SlurmSettings:
    """Options of `sbatch`, for every job; what is null is left to the cluster."""

    partition: str | None = None
    """`--partition`."""
    account: str | None = None
    """`--account`."""
    qos: str | None = None
    """`--qos`."""
    constraint: str | None = None
    """`--constraint`."""
    time: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_minutes)] = None
    """`--time`: minutes, or H:MM, or D-HH:MM.  A job that reaches it is submitted again and resumes."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """`--gpus-per-node`: GPUs of each job.  If it is given, `device=auto` stands for cuda, else for cpu."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """`--cpus-per-task`."""
    memory: str | None = None
    """`--mem`, for example 32G."""
    setup: str | None = None
    """A shell command that every job executes first, for example "module load cuda"."""


@dataclass(frozen=True)
class RaySettings:
    """Options of Ray's tasks, one of which is a job; what is null is left to Ray."""

    address: str | None = None
    """HOST:PORT of the cluster's head; null stands for the cluster of which this machine is a node, or RAY_ADDRESS."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """`num_gpus`: GPUs of each job.  If it is given, `device=auto` stands for cuda, else for cpu."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """`num_cpus`: cores of each job, which Ray makes the number of its threads, too."""
