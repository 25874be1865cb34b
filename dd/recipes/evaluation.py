"""Settings of `dd eval`: those recorded in the set, overridden by the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dd.errors import UsageError
from dd.recipes import checks, given
from dd.recipes.layers import BARE, COMMAND_LINE, Layer, Parts, Problems
from dd.recipes.schema import Leaf, flatten, groups, leaves
from dd.settings import build

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.evaluation.downstream import Downstream
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec


@dataclass(frozen=True)
class Allowed:
    """What the user allows a set made elsewhere to do on this machine."""

    teachers: tuple[str, ...] = ()
    """Files of the set's teachers, or their names, in the set's order; they replace those that the set names."""
    hours: Annotated[float, Field(gt=0)] = 10.0
    """Time limit in hours for training its students, and permission to train missing teachers if given."""


@dataclass(frozen=True)
class Purpose:
    """What a set is evaluated for."""

    task: str | None = None
    """Downstream task, such as "continual" or "nas", with settings of its own, `continual.steps=5`; null for the test
    accuracy of one network.
    """


_ALLOWED, _PURPOSE = leaves(Allowed()), leaves(Purpose())


@dataclass(frozen=True)
class Evaluation:
    """How an existing set is evaluated; see `Recipe` for the other fields.

    Attributes:
        allowed: what a set made elsewhere may do on this machine.
        task: the downstream task; None for the test accuracy of one network.
        named: the keys that the user gave explicitly.
    """

    dataset: str
    seed: int
    device: str
    precision: Literal["fp32", "bf16"]
    deterministic: bool
    compile: Any
    force: bool
    data: "DataSettings"
    student: "NetworkSpec"
    eval: "Protocol"
    allowed: Allowed
    task: "Downstream | None"
    named: frozenset[str]


def resolve_evaluation(
    overrides: Mapping[str, Any],
    *,
    dataset: str,
    data: "DataSettings",
    student: "NetworkSpec",
    protocol: "Protocol",
    made: Mapping[str, Any],
) -> Evaluation:
    """Override the settings recorded in a set with those from the command line of `dd eval`.

    Args:
        overrides: dotted or nested keys, with plain values or objects; `eval.protocol=NAME` starts from that protocol
            instead of the set's, and `student.arch=NAME` from that architecture's default size, with the set's norm.
        dataset: the data set that the set was distilled from.
        data: how its real images were split and preprocessed.
        student: the network the set is meant for.
        protocol: the protocol the set is meant for.
        made: how the set was made; seed, precision and compile default to these values, so that stored students are
            found again.

    Raises:
        UsageError: one line for every problem.
    """
    problems = Problems()
    parts = Parts(None, data, student, protocol)
    keys = {field.name for field in fields(Evaluation)} & BARE.keys()
    known = parts.known() | {key: BARE[key] for key in keys} | _ALLOWED | _PURPOSE | _of_tasks()
    layers = given.in_words(Layer(COMMAND_LINE, given.plain(overrides)), parts, problems)
    layers = [Layer(layer.where, flatten(layer.settings, groups(known))) for layer in layers]
    settled = parts.settle(layers, known, problems)
    bare: dict[str, Any] = {key: BARE[key].default for key in keys} | {"dataset": dataset}
    bare |= {key: made[key] for key in ("seed", "precision", "compile") if key in made}
    bare |= {key: value for key, value in settled.values.items() if key in keys}
    if "dataset" in settled.values:
        with problems.caught():
            checks.check_dataset(bare["dataset"])
    with problems.caught():
        bare["device"] = checks.device(bare["device"])
    with problems.caught():
        checks.student(settled.parts.student)
        checks.regimes(settled.parts.eval, settled.parts.student)
    task = None
    with problems.caught():
        task = _task(settled.values)
    problems.raise_any()
    result = settled.parts
    return Evaluation(
        **bare,
        data=result.data,
        student=result.student,
        eval=result.eval,
        allowed=build(Allowed(), settled.values),
        task=task,
        named=frozenset(settled.values),
    )


def _of_tasks() -> dict[str, Leaf]:
    """Return the settings of all downstream tasks."""
    from dd.evaluation.downstream import TASKS

    return {key: leaf for name, task in TASKS.items() for key, leaf in leaves(task(), f"{name}.").items()}


def _task(values: Mapping[str, Any]) -> "Downstream | None":
    """Return the requested downstream task with its settings.

    Raises:
        UsageError: there is no such task, or a setting belongs to another one.
    """
    from dd.evaluation.downstream import TASKS, task_named

    name = values.get("task")
    task = None if name is None else task_named(name)
    for key in values:
        group = key.partition(".")[0]
        if "." in key and group in TASKS and group != name:
            raise UsageError(f"{key}={values[key]} is a setting of another task: it needs task={group}")
    return None if task is None else build(task, values, f"{task.name}.")
