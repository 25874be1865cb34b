"""The intended use recorded in a set, validated as settings: no unknown keys, no values out of range."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from dd.data import DataSettings
from dd.engine.method import Task
from dd.engine.selection import Fact
from dd.errors import UsageError
from dd.evaluation.learners import Learner, learner_of
from dd.evaluation.protocols import ALL_ROWS, Protocol, default_protocol
from dd.io.typed import typed
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.sets import DistilledSet
from dd.sets.origin import Imported
from dd.training.encoders import EncoderSettings
from dd.training.teachers import SqueezeSettings


@dataclass(frozen=True)
class LabelOrigin:
    """The record from which `TeacherLabeller.of_origin` creates a labeller."""

    teachers: Annotated[tuple[str, ...], Field(min_length=1)]
    squeeze: SqueezeSettings
    labels: LabelSettings
    weights: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.teachers):
            raise ValueError(f"{len(self.weights)} weights of {len(self.teachers)} teachers")


@dataclass(frozen=True)
class _Provenance:
    """The provenance that runs record; sets from other sources may omit any of it."""

    method: str = ""
    name: str = ""
    recipe: str = ""
    series: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["auto"] | bool = "auto"
    iterations: Annotated[int, Field(ge=0)] = 0
    data: DataSettings | None = None
    version: str = ""
    command: str = ""
    note: str = ""
    labeller: LabelOrigin | None = None
    encoder: EncoderSettings | None = None
    selection: Mapping[str, Fact] | None = None
    imported: Imported | None = None


_UNASKED: dict[str, Any] = {
    **{"labels": (), "suite": None, "teachers": (), "coreset": (), "lengths": (), "references": ALL_ROWS},
    **{"curve": 0, "target": None},
}


class Meant(NamedTuple):
    """Data, student, protocol and encoder for which a set is meant, the labeller of its views, and its provenance.

    Missing values are replaced by the defaults of the set's source.
    """

    data: DataSettings
    student: NetworkSpec
    protocol: Protocol
    labeller: LabelOrigin | None
    encoder: EncoderSettings | None
    made: Mapping[str, Any]


def meant_for(distilled: DistilledSet) -> Meant:
    """Validate what a set records about its use.

    Raises:
        UsageError: an unknown key, or a value of the wrong type or out of range; the message names the file.
    """
    try:
        provenance = typed(_Provenance, distilled.provenance, "provenance")
        views = distilled.views and distilled.views.labeller
        protocol = typed(Protocol, distilled.protocol, "protocol") if distilled.protocol else None
        student = typed(NetworkSpec, distilled.student, "student") if distilled.student else NetworkSpec()
        kind = {"preprocess": distilled.space.get("kind", "standard")}
        return Meant(
            data=provenance.data or typed(DataSettings, kind, "space"),
            student=student,
            # the regimes and curves of its run are no part of a set's use: whoever evaluates it asks for them
            protocol=replace(protocol, **_UNASKED) if protocol else default_protocol(distilled.source),
            labeller=typed(LabelOrigin, views, "views.labeller") if views else provenance.labeller,
            encoder=provenance.encoder,
            made=distilled.provenance,
        )
    except UsageError as error:
        raise UsageError(f"{distilled.path or 'the set'} is unusable: {error}") from error


def learner_for(distilled: DistilledSet, task: Task) -> Learner:
    """Return what a set trains and how that is scored; see `dd.evaluation.learners`.

    Raises:
        UsageError: its encoder is not available, or what it records about its use is invalid.
    """
    return learner_of(distilled, task, meant_for(distilled).encoder)
