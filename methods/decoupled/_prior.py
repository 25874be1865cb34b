"""How well a student learns from each member of a committee alone: the priors that their votes follow."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.engine.synthesise import distil
from dd.errors import RunError, UsageError
from dd.runs.store import Payload, Wanted
from dd.settings import identity
from dd.training.committee import logits, published_prior
from dd.training.loop import Fit, Trainer, accuracy
from dd.training.teacher_names import PublishedWeights, teacher_source
from dd.training.teachers import Teacher, Teachers
from dd.views import ViewPolicy, draw_view

from ._teachers import Committee

if TYPE_CHECKING:
    from .sre2l import SRe2L

KIND = "priors"
BATCHES = "prior-batches"  # recovered on the way to a prior, and removed when it is there
VERSION = 1
_VIEWS = ViewPolicy(crop=0.5, flip=True, mix="cutmix")
_SEED = 0  # of the stage; runs with other seeds share it

Source = Literal["prior", "teacher", "distil", "equal"]


@dataclass(frozen=True)
class DistilSettings:
    """How a member is measured: a small set from it alone, labelled by it, a student, the held-out images."""

    ipc: Annotated[int, Field(ge=1)] = 10
    """Images per class."""
    iterations: Annotated[int, Field(ge=1)] = 500
    """Iterations of their recovery."""
    epochs: Annotated[int, Field(ge=1)] = 150
    """Passes of the student."""
    batch: Annotated[int, Field(ge=2)] = 50
    """Images per step of the student."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate of the student's SGD, with momentum 0.9."""
    students: Annotated[int, Field(ge=1)] = 1
    """Whose mean counts."""


def published_priors(task: Task, names: Sequence[str]) -> tuple[float, ...] | None:
    """CV-DD's constants for these teachers on this data set, in percent; None where one of them has none."""
    origins = [teacher_source(name, task.student) for name in names]
    archs = [origin.name if isinstance(origin, PublishedWeights) else origin.spec.arch for origin in origins]
    found = [published_prior(task.data.name, arch) for arch in archs]
    return None if None in found else tuple(value for value in found if value is not None)


def require_holdout(votes: Source, task: Task) -> None:
    """Refuse votes by held-out accuracy where nothing is held out.

    Raises:
        UsageError: see above.
    """
    if not len(task.data.holdout):
        raise UsageError(
            f"votes={votes} scores on held-out images, but there are none: use data.holdout=0.1, votes=equal, or "
            "prior=[...], one number per teacher"
        )


@dataclass(frozen=True, eq=False)
class Priors(Need[tuple[float, ...]]):
    """Held-out accuracy in percent of students on sets recovered from each teacher alone; an artefact per teacher.

    Attributes:
        method: whose settings recover.
        task: the run.
        settings: how they are measured.
        staff: the teachers.
    """

    method: "SRe2L"
    task: Task
    settings: DistilSettings
    staff: Teachers
    name = "priors"

    def artefacts(self) -> list[Wanted]:
        """One per teacher."""
        names = enumerate(self.method.teachers)
        return [Wanted(KIND, self.spec(at), f"prior of {name} on {self.task.data.name}") for at, name in names]

    def fetch(self, got: Got) -> tuple[float, ...]:
        """The accuracies in the order of the teachers.

        Raises:
            RunError: a recovery diverged.
        """
        found = []
        for (kind, spec, words), teacher in zip(self.artefacts(), got[self.staff], strict=True):
            make = partial(_measure, self, teacher)
            kept = self.task.store.value(kind, spec, make, words, describe=lambda value: f": {value:.2f} %")
            found.append(kept.value)
        return tuple(found)

    def spec(self, number: int) -> dict[str, Any]:
        """Everything that determines a teacher's prior."""
        method, task = self.method, self.task
        return {
            "version": VERSION,
            "data": task.data.fingerprint,
            "teacher": self.staff.keys()[number],
            "recover": identity(_alone(method, self.settings, number), "member"),
            "settings": asdict(self.settings),
            "student": asdict(task.student),
            "precision": task.precision,
            "compile": task.compile,
            "device": task.device.type,
        }


def _alone(method: "SRe2L", settings: DistilSettings, number: int) -> "SRe2L":
    """The method with one teacher; from real images where it starts from patches, whose choice all members make."""
    start = "real" if method.start_from == "crops" else method.start_from
    alone: dict[str, Any] = {"teachers": (method.teachers[number],), "prior": (0.0,)}
    return replace(method, iterations=settings.iterations, start_from=start, **alone)


def _measure(priors: Priors, teacher: Teacher) -> float:
    method, task, settings = priors.method, priors.task, priors.settings
    number = method.teachers.index(teacher.name)
    alone, committee = _alone(method, settings, number), Committee((teacher,), (0.0,))
    targets = torch.arange(task.classes, device=task.device).repeat_interleave(settings.ipc)
    small = replace(task, targets=targets, seed=_SEED, part=None)
    images = torch.empty(len(targets), *task.data.shape, device=task.device)
    # neither student nor its training has a part in how images are recovered
    spec = {k: v for k, v in priors.spec(number).items() if k not in ("settings", "student")} | {"ipc": settings.ipc}
    for at, batch in enumerate(small.in_parts(slots := list(alone.parts(small)))):
        places = slots[0] if batch.part is None else batch.part.slots
        words = f"batch {at + 1} of {len(slots)} of the prior of {teacher.name}"
        kept = task.store.tensors(BATCHES, spec | {"batch": at}, partial(_recover, alone, batch, committee), words)
        assert kept.tensors is not None
        images[places.to(task.device)] = task.data.preprocess(kept.tensors["images"].to(task.device))
    passes = -(-len(targets) // settings.batch)
    fit = Fit(settings.epochs * passes, settings.lr, momentum=0.9, weight_decay=5e-4)
    trainer = Trainer(task.build, task.compile, task.precision)
    paths = [(_SEED, "prior", student) for student in range(settings.students)]
    scores = [
        accuracy(student, task.data.holdout.batches(512))
        for student in trainer.train(paths, partial(_labelled, images, teacher, settings.batch), fit)
    ]
    for at in range(len(slots)):
        task.store.remove(BATCHES, spec | {"batch": at})
    return sum(scores) / len(scores)


def _recover(method: "SRe2L", task: Task, committee: Committee) -> Payload:
    """uint8 (n, c, h, w): one batch from its first iteration to its last.

    Raises:
        RunError: it diverged.
    """
    try:
        return {"images": distil(method, task, committee).images.cpu()}, {}
    except RunError as error:
        raise RunError(
            f"votes: images recovered from {committee.teachers[0].name} diverged; lower lr_img ({error})"
        ) from error


def _labelled(images: Tensor, teacher: Teacher, size: int, rng: Generator, _: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled pass of views with the teacher's probabilities."""
    channels, height, width = images.shape[1:]
    for index in torch.randperm(len(images), generator=rng).split(size):
        views = draw_view(_VIEWS, len(index), (channels, height, width), rng)(images[index.to(images.device)])
        yield views, logits(teacher, views).softmax(1)
