"""What a set says it is for, as the settings that use it: nothing that they do not know, nothing out of their range."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from dd.data import DataSettings
from dd.errors import UsageError
from dd.evaluation.protocols import Protocol, default_protocol
from dd.io.typed import typed
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.sets import DistilledSet
from dd.sets.origin import Imported
from dd.training.teachers import SqueezeSettings


@dataclass(frozen=True)
class LabelOrigin:
    """What `TeacherLabeller.of_origin` makes a labeller from."""

    teachers: Annotated[tuple[str, ...], Field(min_length=1)]
    squeeze: SqueezeSettings
    labels: LabelSettings
    weights: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.teachers):
            raise ValueError(f"{len(self.weights)} weights of {len(self.teachers)} teachers")


@dataclass(frozen=True)
class _Provenance:
    """How a set was made, as runs write it; a set from elsewhere may leave any of it out."""

    method: str = ""
    name: str = ""
    recipe: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["auto"] | bool = "auto"
    iterations: Annotated[int, Field(ge=0)] = 0
    data: DataSettings | None = None
    version: str = ""
    command: str = ""
    note: str = ""
    labeller: LabelOrigin | None = None
    imported: Imported | None = None


class Meant(NamedTuple):
    """Data, student and protocol that a set is meant for, who labels its views, and how it was made.

    A set that does not say gets the defaults of its source.
    """

    data: DataSettings
    student: NetworkSpec
    protocol: Protocol
    labeller: LabelOrigin | None
    made: Mapping[str, Any]


def meant_for(distilled: DistilledSet) -> Meant:
    """Everything that a set says, checked.

    Raises:
        UsageError: a key that nothing uses, or a value that is not of its type or out of range; the file is named.
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
            protocol=protocol or default_protocol(distilled.source),
            labeller=typed(LabelOrigin, views, "views.labeller") if views else provenance.labeller,
            made=distilled.provenance,
        )
    except UsageError as error:
        raise UsageError(f"{distilled.path or 'the set'} is unusable: {error}") from error
