"""The priors of a committee: how accurate a student becomes on images distilled from each teacher alone."""

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
from dd.runs.store import Payload, Store, Wanted
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
BATCHES = "prior-batches"  # intermediate images, removed once the prior is stored
VERSION = 1
_VIEWS = ViewPolicy(crop=0.5, flip=True, mix="cutmix")
_SEED = 0  # of this stage; runs with different seeds share the priors

Source = Literal["prior", "teacher", "distil", "equal"]


@dataclass(frozen=True)
class DistilSettings:
    """How a teacher's prior is measured: recover and label a small set with it alone, train students, test held-out."""

    ipc: Annotated[int, Field(ge=1)] = 10
    """Images per class."""
    iterations: Annotated[int, Field(ge=1)] = 500
    """Iterations of recovery."""
    epochs: Annotated[int, Field(ge=1)] = 150
    """Training epochs of a student."""
    batch: Annotated[int, Field(ge=2)] = 50
    """Batch size of a student."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate of a student's SGD, with momentum 0.9."""
    students: Annotated[int, Field(ge=1)] = 1
    """Number of students; the prior is their mean accuracy."""


def published_priors(task: Task, names: Sequence[str]) -> tuple[float, ...] | None:
    """CV-DD's constants for these teachers on this data set, in percent; None if any of them is missing."""
    origins = [teacher_source(name, task.student) for name in names]
    archs = [origin.name if isinstance(origin, PublishedWeights) else origin.spec.arch for origin in origins]
    found = [published_prior(task.data.name, arch) for arch in archs]
    return None if None in found else tuple(value for value in found if value is not None)


def require_holdout(votes: Source, task: Task) -> None:
    """Refuse votes by held-out accuracy if nothing is held out.

    Raises:
        UsageError: there are no held-out images.
    """
    if not len(task.data.holdout):
        raise UsageError(
            f"votes={votes} scores on held-out images, but there are none: use data.holdout=0.1, votes=equal, or "
            "prior=[...], one number per teacher"
        )


@dataclass(frozen=True, eq=False)
class Priors(Need[tuple[float, ...]]):
    """The need for priors: held-out accuracy in percent of students on sets recovered from each teacher alone.

    There is one artefact per teacher.

    Attributes:
        method: the method, for its recovery settings.
        task: the run.
        settings: how priors are measured.
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
        """Return the priors in the order of the teachers, measured if they are not in the store.

        Raises:
            RunError: a recovery diverged.
        """
        store, members, wanted = self.task.store, got[self.staff], self.artefacts()

        def fetched(number: int) -> float:
            recovery, (kind, spec, words) = _Recovery.of(self, number), wanted[number]
            make = partial(_measure, self, members[number], recovery)
            kept = store.value(kind, spec, make, words, describe=lambda value: f": {value:.2f} %")
            recovery.forget(store)  # only once the prior is stored
            return kept.value

        return tuple(store.each(wanted, fetched))

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
    """The method with one teacher; it starts from real images instead of patches, which all teachers would choose."""
    start = "real" if method.start_from == "crops" else method.start_from
    alone: dict[str, Any] = {"teachers": (method.teachers[number],), "prior": (0.0,)}
    return replace(method, iterations=settings.iterations, start_from=start, **alone)


@dataclass(frozen=True, eq=False)
class _Recovery:
    """How the images of one teacher's prior are recovered.

    Attributes:
        method: the method with this teacher alone.
        task: the task of all images.
        slots: for each batch, the places (b,) of its images.
        specs: for each batch, the spec of its artefact.
    """

    method: "SRe2L"
    task: Task
    slots: Sequence[Tensor]
    specs: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, priors: Priors, number: int) -> "_Recovery":
        task, settings = priors.task, priors.settings
        alone = _alone(priors.method, settings, number)
        targets = torch.arange(task.classes, device=task.device).repeat_interleave(settings.ipc)
        small = replace(task, targets=targets, seed=_SEED, part=None)
        slots = list(alone.parts(small))
        # recovered images do not depend on the student or its training
        spec = {k: v for k, v in priors.spec(number).items() if k not in ("settings", "student")}
        return cls(alone, small, slots, [spec | {"ipc": settings.ipc, "batch": at} for at in range(len(slots))])

    def forget(self, store: Store) -> None:
        for spec in self.specs:
            store.remove(BATCHES, spec)


def _measure(priors: Priors, teacher: Teacher, recovery: _Recovery) -> float:
    task, settings, slots = priors.task, priors.settings, recovery.slots
    committee = Committee((teacher,), (0.0,))
    images = torch.empty(len(recovery.task.targets), *task.data.shape, device=task.device)
    for at, (batch, spec) in enumerate(zip(recovery.task.in_parts(slots), recovery.specs, strict=True)):
        places = slots[0] if batch.part is None else batch.part.slots
        words = f"batch {at + 1} of {len(slots)} of the prior of {teacher.name}"
        kept = task.store.tensors(BATCHES, spec, partial(_recover, recovery.method, batch, committee), words)
        assert kept.tensors is not None
        images[places.to(task.device)] = task.data.preprocess(kept.tensors["images"].to(task.device))
    passes = -(-len(images) // settings.batch)
    fit = Fit(settings.epochs * passes, settings.lr, momentum=0.9, weight_decay=5e-4)
    trainer = Trainer(task.build, task.compile, task.precision)
    paths = [(_SEED, "prior", student) for student in range(settings.students)]
    scores = [
        accuracy(student, task.data.holdout.batches(512))
        for student in trainer.train(paths, partial(_labelled, images, teacher, settings.batch), fit)
    ]
    return sum(scores) / len(scores)


def _recover(method: "SRe2L", task: Task, committee: Committee) -> Payload:
    """Recover one batch: uint8 (n, c, h, w).

    Raises:
        RunError: the recovery diverged.
    """
    try:
        return {"images": distil(method, task, committee).images.cpu()}, {}
    except RunError as error:
        raise RunError(
            f"votes: images recovered from {committee.teachers[0].name} diverged; lower lr_img ({error})"
        ) from error


def _labelled(images: Tensor, teacher: Teacher, size: int, rng: Generator, _: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled pass over views with the teacher's probabilities."""
    channels, height, width = images.shape[1:]
    for index in torch.randperm(len(images), generator=rng).split(size):
        views = draw_view(_VIEWS, len(index), (channels, height, width), rng)(images[index.to(images.device)])
        yield views, logits(teacher, views).softmax(1)
