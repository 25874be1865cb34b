"""The base class of decoupled methods: teachers, labels from teachers, and images saved as bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator
from torch import Tensor, nn

from dd.engine.method import Method, Synthetic, Task
from dd.engine.needs import Got, Need
from dd.errors import UsageError
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.sets import DistilledSet
from dd.settings import Outside
from dd.training.committee import votes
from dd.training.compiled import can_compile, compiled, worth_compiling
from dd.training.fitness import announce, require_fit
from dd.training.relabel import TeacherLabeller
from dd.training.teacher_names import NO_TEACHER
from dd.training.teachers import SqueezeSettings, Teacher, Teachers, file_digests

from ._crops import Stitched
from ._pixels import to_bytes


@dataclass(frozen=True, eq=False)
class Committee:
    """What `prepare` returns to the methods of the family.

    Attributes:
        teachers: in the order of their names.
        prior: one accuracy in percent per teacher, for the vote weights; all equal if unknown.
        patches: real patches to start from, if the method uses them.
        fast: compiled networks of the teachers, by weights and input shape.
    """

    teachers: tuple[Teacher, ...]
    prior: tuple[float, ...]
    patches: Stitched | None = None
    fast: dict[Any, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def network(self, teacher: Teacher, task: Task, images: Tensor, iterations: int) -> Callable[[Tensor], Tensor]:
        """A teacher's network, compiled if `iterations` passes over such images justify it.

        Do not call it while hooks are registered, because it runs a forward pass to estimate the work.
        """
        if not task.compile or not can_compile(images.device):
            return teacher.network
        key = (teacher.sha256, tuple(images.shape))
        if key not in self.fast:
            worth = worth_compiling(teacher.network, images.detach(), iterations)
            self.fast[key] = compiled(teacher.network) if worth else teacher.network
        return self.fast[key]


def _at_least_one(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError(NO_TEACHER)
    return names


_KEYED = Outside("member", "the key of that teacher counts")
Names = Annotated[tuple[str, ...], AfterValidator(_at_least_one), _KEYED]
"""Names of at least one teacher."""


@dataclass(frozen=True)
class Taught(Method[Committee]):
    """Base class of methods whose images and labels come from teachers."""

    votes_on_labels: ClassVar[bool] = False
    """Whether the teachers have priors for weighting their logits."""

    teachers: Names = ("student",)
    """Names of the teachers: "student", `ARCH:width=48`, `timm:NAME` or `torchvision:NAME` (pretrained if the name has
    a tag of weights), or the path of a checkpoint.
    """
    squeeze: Annotated[SqueezeSettings, _KEYED] = field(default_factory=SqueezeSettings)
    """How teachers are trained, unless they are pretrained."""
    labels: Annotated[LabelSettings, Outside("images", "labels are made of finished images")] = field(
        default_factory=LabelSettings
    )
    """How views of the images are labelled."""

    def __post_init__(self) -> None:
        if self.labels.ensemble == "logit_weighted" and not self.votes_on_labels:
            raise ValueError(
                f"labels.ensemble=logit_weighted needs votes, which {self.name} does not have: use method=cvdd, or "
                "labels.ensemble=logit_mean"
            )

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """Digests of the teachers that are files."""
        return file_digests(self.teachers, student)

    def settle(self, task: Task) -> Self:
        """Refuse whitened data, whose pixels have no fixed range; nothing else to resolve.

        Raises:
            UsageError: the data are whitened.
        """
        if task.data.preprocess.kind != "standard":
            raise UsageError(
                f"data.preprocess={task.data.preprocess.kind}: {self.name} clips and saves pixels, whose range is "
                "known only with data.preprocess=standard"
            )
        return self

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The teachers."""
        return [self.staff(task)]

    def staff(self, task: Task) -> Teachers:
        """The need for the teachers, with checks that each classifies the images and suits the method."""

        def check(teacher: Teacher) -> None:
            self.require_usable(teacher.name, teacher.network)
            require_fit(teacher, task)

        return Teachers(task, self.teachers, self.squeeze, check, partial(announce, task))

    def prepare(self, task: Task, got: Got) -> Committee:
        """The teachers, with equal votes."""
        return Committee(got[self.staff(task)], (0.0,) * len(self.teachers))

    def require_usable(self, name: str, network: nn.Module) -> None:
        """Hook to refuse a network that does not suit the method; by default every network does.

        Raises:
            UsageError: the network does not suit the method.
        """

    @property
    def labelling(self) -> LabelSettings | None:
        """The label settings; None if `labels.mode` is "off"."""
        return None if self.labels.mode == "off" else self.labels

    def labeller(self, task: Task, prepared: Committee) -> TeacherLabeller | None:
        """A labeller with all teachers, configured by `labels`."""
        if self.labelling is None:
            return None
        weights = None
        if self.labels.ensemble == "logit_weighted":
            weights = votes(prepared.prior, self.labels.tau).tolist()
        return TeacherLabeller.of(task, prepared.teachers, self.squeeze, self.labels, weights)

    def finish(self, syn: Synthetic, task: Task, prepared: Committee) -> DistilledSet:
        """Convert the images to bytes, rounded (the official code truncates)."""
        made = super().finish(syn, task, prepared)
        return replace(made, images=to_bytes(task.data.preprocess, made.images))
