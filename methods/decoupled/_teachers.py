"""What all of the family share: teachers, labels by them, and images that are saved as bytes."""

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
    """What a method of the family is given.

    Attributes:
        teachers: in the order in which they were named.
        prior: one number per teacher, accuracies in percent that its votes follow; all equal where nothing is known.
        patches: real patches to start from, where the method does.
        fast: teachers' networks, compiled, by weights and the shape of what they are given.
    """

    teachers: tuple[Teacher, ...]
    prior: tuple[float, ...]
    patches: Stitched | None = None
    fast: dict[Any, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def network(self, teacher: Teacher, task: Task, images: Tensor, iterations: int) -> Callable[[Tensor], Tensor]:
        """A teacher's network, compiled where asking it `iterations` times about as many images pays for that.

        Not to be called where hooks are set: what is worth compiling is found out by a forward pass.
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
"""At least one teacher."""


@dataclass(frozen=True)
class Taught(Method[Committee]):
    """A method whose images and labels come from teachers."""

    votes_on_labels: ClassVar[bool] = False
    """Whether its teachers have priors to weigh their logits by."""

    teachers: Names = ("student",)
    """Names: "student", `ARCH:width=48`, `timm:NAME`, `torchvision:NAME`, with a tag of weights pretrained, or a
    checkpoint's path.
    """
    squeeze: Annotated[SqueezeSettings, _KEYED] = field(default_factory=SqueezeSettings)
    """How those are trained that are trained here."""
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
        """Of the teachers that are files."""
        return file_digests(self.teachers, student)

    def settle(self, task: Task) -> Self:
        """Nothing is left to decide; data whose pixels have no range are refused.

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
        """The teachers, each of which must know the images and be of use to the method."""

        def check(teacher: Teacher) -> None:
            self.require_usable(teacher.name, teacher.network)
            require_fit(teacher, task)

        return Teachers(task, self.teachers, self.squeeze, check, partial(announce, task))

    def prepare(self, task: Task, got: Got) -> Committee:
        """The teachers, with equal votes."""
        return Committee(got[self.staff(task)], (0.0,) * len(self.teachers))

    def require_usable(self, name: str, network: nn.Module) -> None:
        """Refuse a network that the method has no use for; all will do.

        Raises:
            UsageError: see above.
        """

    @property
    def labelling(self) -> LabelSettings | None:
        """`labels`, unless it says "off"."""
        return None if self.labels.mode == "off" else self.labels

    def labeller(self, task: Task, prepared: Committee) -> TeacherLabeller | None:
        """All teachers, as `labels` says."""
        if self.labelling is None:
            return None
        weights = None
        if self.labels.ensemble == "logit_weighted":
            weights = votes(prepared.prior, self.labels.tau).tolist()
        return TeacherLabeller.of(task, prepared.teachers, self.squeeze, self.labels, weights)

    def finish(self, syn: Synthetic, task: Task, prepared: Committee) -> DistilledSet:
        """Images as they are saved: bytes, rounded where the authors truncate."""
        made = super().finish(syn, task, prepared)
        return replace(made, images=to_bytes(task.data.preprocess, made.images))
