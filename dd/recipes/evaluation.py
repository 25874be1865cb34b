"""Settings of `dd eval`: those a set is meant to be evaluated with, and what the command line says otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dd.recipes import checks, given
from dd.recipes.layers import BARE, COMMAND_LINE, Layer, Parts, Problems
from dd.recipes.schema import flatten, groups, leaves
from dd.settings import build

if TYPE_CHECKING:
    from dd.data import DataSettings
    from dd.evaluation.protocols import Protocol
    from dd.networks import NetworkSpec


@dataclass(frozen=True)
class Allowed:
    """What a user allows a set that was made elsewhere."""

    teachers: tuple[str, ...] = ()
    hours: Annotated[float, Field(gt=0)] = 10.0


_ALLOWED = leaves(Allowed())


@dataclass(frozen=True)
class Evaluation:
    """How an existing set is evaluated; see `Recipe` for the fields.

    Attributes:
        allowed: what the set may ask for, beyond what any may.
        named: the keys that the user gave, whatever the set says.
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
    """Put the command line of `dd eval` over what the set itself says.

    Args:
        overrides: dotted or nested keys, values also as objects; `eval.protocol=NAME` starts from that protocol instead
            of the set's, and `student.arch=NAME` from that architecture's own sizes, with the set's norm.
        dataset: the data set the set was distilled from.
        data: how its real images were split and preprocessed.
        student: the network it is meant for.
        protocol: the protocol it is meant for.
        made: how it was made; seed, precision and compile are taken from there, so that the same students are asked.

    Raises:
        UsageError: one line for every problem.
    """
    problems = Problems()
    parts = Parts(None, data, student, protocol)
    keys = {field.name for field in fields(Evaluation)} & BARE.keys()
    known = parts.known() | {key: BARE[key] for key in keys} | _ALLOWED
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
    problems.raise_any()
    result = settled.parts
    return Evaluation(
        **bare,
        data=result.data,
        student=result.student,
        eval=result.eval,
        allowed=build(Allowed(), settled.values),
        named=frozenset(settled.values),
    )
