"""Teachers: networks trained on the real images, which give a distilled set its statistics or labels.

They are trained here (SRe2L's squeeze stage, Yin et al., NeurIPS 2023), one artefact each, or loaded from a checkpoint
or from published weights.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.errors import RunError, UsageError, in_one_line
from dd.io import digest, sha256_file, sha256_tensors
from dd.networks import NetworkSpec, resolve_network
from dd.networks.adapted import Adapted, pick
from dd.networks.checkpoints import load_weights, outputs_of, read_weights
from dd.networks.names import is_zoo_name
from dd.networks.pretrained import IMAGENET, published, wnids
from dd.rng import generator
from dd.runs.store import Wanted
from dd.training.squeeze import KIND, SqueezeSettings, build_teacher, holdout_accuracy, squeeze_spec, squeezed
from dd.training.teacher_names import (
    NO_TEACHER,
    STUDENT,
    PublishedWeights,
    SavedWeights,
    TeacherSource,
    Untrained,
    teacher_source,
)

__all__ = ["SqueezeSettings", "Teacher", "Teachers", "spelled", "teacher_keys", "teachers", "untrained"]


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network, ready for inference.

    Attributes:
        name: the name that was requested.
        network: on the run's device, in eval mode, frozen; maps images (n, c, h, w) in the run's model space to logits
            (n, classes) in the data's class order.
        classes: names of its outputs in order; None if its source does not state them.
        holdout: accuracy on the held-out real images in percent; None without held-out images.
        declared: accuracy stated by its source in percent; for a teacher trained here, the value at storage time.
        sha256: of its weights and buffers.
    """

    name: str
    network: nn.Module
    classes: tuple[str, ...] | None
    holdout: float | None
    declared: float | None
    sha256: str


@dataclass(frozen=True, eq=False)
class Teachers(Need[tuple[Teacher, ...]]):
    """The need for teachers, with one artefact for each that is trained here.

    Attributes:
        task: the run.
        names: see `dd.training.teacher_names.teacher_source`.
        squeeze: how teachers are trained here.
        check: raises if a teacher is unfit; called for each teacher before the next is trained.
        first: called before anything is loaded or trained.
        field: the setting that names them, for messages.
    """

    task: Task
    names: Sequence[str]
    squeeze: SqueezeSettings
    check: Callable[[Teacher], None] = lambda _: None
    first: Callable[[], None] = lambda: None
    field: str = "teachers"
    name = "teachers"

    def artefacts(self) -> list[Wanted]:
        """One per teacher that is trained here."""
        with named_by(self.field):
            return [
                Wanted(KIND, squeeze_spec(self.task, origin.spec, self.squeeze), _words(self.task, name, self.squeeze))
                for name, origin in _sources(self.task, self.names)
                if isinstance(origin, Untrained)
            ]

    def fetch(self, got: Got) -> tuple[Teacher, ...]:
        """Load or train the teachers; returns them in the order of their names.

        Raises:
            UsageError: a name is invalid, or its network cannot classify these images.
            RunError: a teacher diverged, or published weights are not available.
        """
        self.first()
        with named_by(self.field):
            sources = _sources(self.task, self.names)
            ready: dict[int, Teacher] = {}

            def fetch(at: int) -> None:
                ready[at] = _teacher(self.task, *sources[at], self.squeeze)
                self.check(ready[at])

            # load first, train later: report a bad checkpoint before hours of training
            trained = [at for at, (_, origin) in enumerate(sources) if isinstance(origin, Untrained)]
            for at in sorted(set(range(len(sources))) - set(trained)):
                fetch(at)
            self.task.store.each(self.artefacts(), lambda number: fetch(trained[number]))
            return tuple(ready[at] for at in range(len(sources)))

    def keys(self) -> list[dict[str, Any]]:
        """See `teacher_keys`."""
        with named_by(self.field):
            return teacher_keys(self.task, self.names, self.squeeze)


def teachers(
    task: Task, names: Sequence[str], settings: SqueezeSettings, check: Callable[[Teacher], None] = lambda _: None
) -> tuple[Teacher, ...]:
    """The teachers of the given names, outside a run; see `Teachers.fetch`."""
    return Teachers(task, names, settings, check).fetch(Got())


def teacher_keys(task: Task, names: Sequence[str], settings: SqueezeSettings) -> list[dict[str, Any]]:
    """Per teacher, JSON-serialisable facts that determine its logits; part of the key of everything made with it."""
    keys: list[dict[str, Any]] = []
    for _, origin in _sources(task, names):
        match origin:
            case Untrained(spec):
                keys.append({"trained": digest(squeeze_spec(task, spec, settings))})
            case SavedWeights(path, spec):
                keys.append({"file": sha256_file(path), "network": asdict(spec)})
            case PublishedWeights(name):
                keys.append({"published": name})
    return keys


def file_digests(names: Sequence[str], student: NetworkSpec) -> dict[str, str]:
    """SHA-256 of the checkpoints among some teachers, by `teachers[INDEX]`.

    Raises:
        UsageError: a file is missing.
    """
    origins = [teacher_source(name, student) for name in names]
    return {
        f"teachers[{at}]": sha256_file(origin.path)
        for at, origin in enumerate(origins)
        if isinstance(origin, SavedWeights)
    }


def untrained(task: Task, names: Sequence[str]) -> dict[str, nn.Module]:
    """The networks that would be trained here, by name, with arbitrary weights."""
    rng = partial(generator, 0, "skeleton")
    return {
        name: build_teacher(task, origin.spec, task.classes, rng())
        for name, origin in _sources(task, names)
        if isinstance(origin, Untrained)
    }


def spelled(task: Task, name: str) -> str:
    """A teacher's name made independent of the run's student and of the working directory."""
    if name == STUDENT:
        return _in_words(task.student)
    origin = teacher_source(name, task.student)
    return f"{origin.path.resolve()}@{_in_words(origin.spec)}" if isinstance(origin, SavedWeights) else name


@contextlib.contextmanager
def named_by(field: str) -> Iterator[None]:
    """Reword errors for the setting that names the teachers."""
    try:
        yield
    except (UsageError, RunError) as error:
        text = str(error)
        if field == "teachers" or "teachers=" not in text:
            raise
        raise type(error)(text.replace("teachers=", f"{field}=")) from error


def _in_words(network: NetworkSpec) -> str:
    """`ARCH:field=value…`; networks of timm and torchvision have no fields."""
    if is_zoo_name(network.arch):
        return network.arch
    values = {key: value for key, value in asdict(network).items() if key != "arch" and value is not None}
    return ":".join([network.arch, *(f"{key}={value}" for key, value in values.items())])


def _sources(task: Task, names: Sequence[str]) -> list[tuple[str, TeacherSource]]:
    """Every name with its parsed source; architectures are resolved for the images."""
    if not names:
        raise UsageError(NO_TEACHER)
    found: list[tuple[str, TeacherSource]] = []
    for name in names:
        origin = teacher_source(name, task.student)
        if isinstance(origin, Untrained | SavedWeights):
            with _named(name):
                spec = resolve_network(origin.spec, task.data.size, task.data.channels)
            origin = Untrained(spec) if isinstance(origin, Untrained) else SavedWeights(origin.path, spec)
        found.append((name, origin))
    return found


def _teacher(task: Task, name: str, origin: TeacherSource, settings: SqueezeSettings) -> Teacher:
    with _named(name):
        match origin:
            case Untrained(spec):
                return _trained(task, name, spec, settings)
            case SavedWeights():
                return _saved(task, name, origin)
            case PublishedWeights():
                return _published(task, name)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Reword a network's errors, which mention `student.arch`, for a teacher."""
    try:
        yield
    except UsageError as error:
        text = str(error)
        if name != STUDENT:
            text = text.replace("use another student.arch", "name another teacher")
            text = text.replace("student.arch=", "").replace("student.", "")
        prefix = "" if text.startswith("teachers=") else f"teachers={name}: "
        raise UsageError(f"{prefix}{text}") from error


def _trained(task: Task, name: str, spec: NetworkSpec, settings: SqueezeSettings) -> Teacher:
    kept = squeezed(task, spec, settings, _words(task, name, settings))
    assert kept.tensors is not None, "made of tensors"
    network = build_teacher(task, spec, task.classes, generator(0, "skeleton"))
    load_weights(network, kept.tensors, str(kept.path))
    sha256, holdout = sha256_tensors(network.state_dict()), kept.info["holdout"]
    return Teacher(name, _frozen(network), tuple(kept.info["classes"]), holdout, holdout, sha256)


def _saved(task: Task, name: str, origin: SavedWeights) -> Teacher:
    file = read_weights(origin.path)
    rng = partial(generator, 0, "skeleton")
    network = build_teacher(task, origin.spec, task.classes, rng())
    count = outputs_of(file.state, network) or task.classes
    if count != task.classes:
        theirs = file.classes or (wnids(count) if count == IMAGENET else None)
        chosen = pick(theirs, count, task.data.classes)
        network = build_teacher(task, origin.spec, count, rng())
        classes = task.data.classes
    else:  # trust the file's class order; the fitness check verifies it
        chosen, classes = None, file.classes
    load_weights(network, file.state, str(origin.path))
    return _adapted(task, name, network, file.normalise, None, chosen, classes, file.accuracy)


def _published(task: Task, name: str) -> Teacher:
    there = published(name)
    chosen = pick(there.classes, there.outputs, task.data.classes)
    known = there.classes is not None and set(task.data.classes) <= set(there.classes)
    network, normalise = there.network.to(task.device), (there.mean, there.std)
    classes = task.data.classes if known else None
    return _adapted(task, name, network, normalise, there.size, chosen, classes, there.declared)


def _adapted(
    task: Task,
    name: str,
    network: nn.Module,
    normalise: tuple[Sequence[float], Sequence[float]] | None,
    size: int | None,
    outputs: Sequence[int] | None,
    classes: tuple[str, ...] | None,
    declared: float | None,
) -> Teacher:
    """Wrap a loaded network as a teacher; runs it on one image and on the held-out images."""
    sha256 = sha256_tensors(network.state_dict())
    if normalise is not None or outputs is not None:
        network = Adapted(network, task.data.preprocess.invert, normalise, size, outputs)
    network = _frozen(network.to(task.device))
    try:
        shape = tuple(network(torch.zeros(1, *task.data.shape, device=task.device)).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"teachers={name} cannot take images of {_shape(task)}: {in_one_line(error)}") from error
    if shape != (1, task.classes):
        raise UsageError(f"teachers={name} gives {shape} for one image, not {task.classes} logits")
    return Teacher(name, network, classes, holdout_accuracy(task, network), declared, sha256)


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _shape(task: Task) -> str:
    return "x".join(map(str, task.data.shape))


def _words(task: Task, name: str, settings: SqueezeSettings) -> str:
    return f"teacher {name} ({task.data.name}, {settings.epochs} epochs)"
