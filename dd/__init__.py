"""Dataset distillation for vision: `dd.run("datm", ipc=10)` makes a set, `dd.evaluate(set)` scores one."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dd.pipeline import evaluate, run
    from dd.sets import DistilledSet, load

__version__ = "0.1.0"
__all__ = ["DistilledSet", "evaluate", "load", "run"]

_HOMES = {"run": "dd.pipeline", "evaluate": "dd.pipeline", "load": "dd.sets", "DistilledSet": "dd.sets"}


def __getattr__(name: str) -> Any:
    # lazy, so that `dd --help` does not wait for torch
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dd' has no attribute {name!r}")
