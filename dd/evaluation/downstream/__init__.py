"""Downstream tasks: what a set is good for besides training one network, `dd eval SET task=NAME`.

One file per task: a frozen dataclass whose fields are the settings `NAME.setting`.
"""

from dd.evaluation.downstream.contract import Downstream, DownstreamReport
from dd.evaluation.downstream.tasks import TASKS, task_named

__all__ = ["TASKS", "Downstream", "DownstreamReport", "task_named"]
