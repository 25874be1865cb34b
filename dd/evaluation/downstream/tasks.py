"""The downstream tasks by name."""

from dd.errors import unknown
from dd.evaluation.downstream.continual import Continual
from dd.evaluation.downstream.contract import Downstream
from dd.evaluation.downstream.linear import Linear
from dd.evaluation.downstream.nas import ArchitectureSearch
from dd.evaluation.downstream.transfer import Transfer

TASKS: dict[str, type[Downstream]] = {task.name: task for task in (Continual, ArchitectureSearch, Linear, Transfer)}


def task_named(name: str) -> Downstream:
    """Return a task with its default settings.

    Raises:
        UsageError: there is no such task.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]()
