"""Dataset distillation for vision: `dd.run("datm", ipc=10)` distils a set, `dd.evaluate(set)` scores one."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.engine.registry import list_methods
    from dd.evaluation.protocols import Protocol, list_protocols
    from dd.evaluation.report import Report
    from dd.exchange import import_sets
    from dd.networks import NetworkSpec
    from dd.pipeline import Outcome, evaluate, load, run
    from dd.pipeline.exports import export
    from dd.pipeline.publish import push
    from dd.recipes import list_recipes
    from dd.sets import DistilledSet

__version__ = "0.1.0"
__all__ = [
    "DataSettings",
    "DistilledSet",
    "NetworkSpec",
    "Outcome",
    "Protocol",
    "Report",
    "evaluate",
    "export",
    "import_sets",
    "list_methods",
    "list_protocols",
    "list_recipes",
    "load",
    "push",
    "run",
]

_HOMES = {
    "DataSettings": "dd.data",
    "DistilledSet": "dd.sets",
    "NetworkSpec": "dd.networks",
    "Outcome": "dd.pipeline",
    "Protocol": "dd.evaluation.protocols",
    "Report": "dd.evaluation.report",
    "evaluate": "dd.pipeline",
    "export": "dd.pipeline.exports",
    "import_sets": "dd.exchange",
    # not `methods` and `recipes`: importing the packages of these names would put them in the functions' place
    "list_methods": "dd.engine.registry",
    "list_protocols": "dd.evaluation.protocols",
    "list_recipes": "dd.recipes",
    "load": "dd.pipeline",
    "push": "dd.pipeline.publish",
    "run": "dd.pipeline",
}


def __getattr__(name: str) -> Any:
    # lazy, so that `dd --help` does not wait for torch
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
