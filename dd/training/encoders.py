"""Frozen encoders: networks that map images to representations, trained here with or without labels, or pretrained."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dd.data.split import Split
from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.errors import RunError, UsageError, in_one_line
from dd.io import digest, sha256_file
from dd.networks import NetworkSpec, resolve_network
from dd.networks.adapted import Adapted
from dd.networks.checkpoints import load_weights, outputs_of, read_weights
from dd.networks.features import Embedding
from dd.networks.pretrained import published_encoder
from dd.rng import generator
from dd.runs.store import Wanted
from dd.training.barlow import BarlowSettings, barlow_spec, barlow_wanted, self_trained
from dd.training.squeeze import KIND as SQUEEZED
from dd.training.squeeze import SqueezeSettings, build_teacher, squeeze_spec, squeezed
from dd.training.teacher_names import STUDENT, PublishedWeights, SavedWeights, TeacherSource, Untrained, teacher_source
from dd.training.teachers import spelled

BARLOW = "barlow"
_AT_ONCE = 512  # images encoded at a time


@dataclass(frozen=True)
class EncoderSettings:
    """A frozen encoder, and how it is trained if it is trained here."""

    name: Annotated[str, Field(min_length=1)] = "student"
    """The encoder: "barlow" or `barlow:ARCH:width=48`, trained here without labels; "student" or `ARCH:width=48`,
    trained here with labels; `timm:NAME.TAG` or `torchvision:NAME.WEIGHTS`, pretrained; or the path of a checkpoint,
    `PATH@ARCH`. Representations are the input of its last linear layer.
    """
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Side in pixels to which images are resized for a pretrained encoder; None: its own if that is fixed, else no
    resizing.
    """
    barlow: BarlowSettings = field(default_factory=BarlowSettings)
    """How it is trained without labels."""
    squeeze: SqueezeSettings = field(default_factory=SqueezeSettings)
    """How it is trained with labels."""

    def digests(self, student: NetworkSpec) -> dict[str, str]:
        """SHA-256 of the checkpoint that it names, by `encoder.name`; empty for other names.

        Raises:
            UsageError: the file is missing, or the name is invalid.
        """
        with _reworded(self.name):
            origin, _ = _parsed(self.name, student)
        return {"encoder.name": sha256_file(origin.path)} if isinstance(origin, SavedWeights) else {}


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen encoder, ready for use.

    Attributes:
        name: the name that was requested.
        network: on the run's device, in eval mode, frozen; maps images (n, c, h, w) in the run's model space to
            representations (n, d); differentiable in the images.
        features: d.
        origin: JSON-serialisable settings from which `of_origin` rebuilds it.
        key: JSON-serialisable, everything that determines its representations.
    """

    name: str
    network: nn.Module
    features: int
    origin: dict[str, Any]
    key: dict[str, Any]

    @torch.no_grad()
    def of(self, images: Tensor) -> Tensor:
        """Representations (n, d) of images (n, c, h, w), a few at a time, without gradient."""
        return torch.cat([self.network(some) for some in images.split(_AT_ONCE)])

    def of_split(self, split: Split) -> Tensor:
        """Representations (n, d) of all images of a split, in order."""
        return torch.cat([self.of(images) for images, _ in split.batches(_AT_ONCE)])


@dataclass(frozen=True, eq=False)
class Encoders(Need[Encoder]):
    """The need for an encoder, with one artefact if it is trained here.

    Attributes:
        task: the run.
        settings: which encoder.
    """

    task: Task
    settings: EncoderSettings
    name = "encoder"

    def artefacts(self) -> list[Wanted]:
        """The encoder, if it is trained here."""
        origin, without_labels = _source(self.task, self.settings.name)
        if not isinstance(origin, Untrained):
            return []
        if without_labels:
            return [barlow_wanted(self.task, origin.spec, self.settings.barlow)]
        return [Wanted(SQUEEZED, squeeze_spec(self.task, origin.spec, self.settings.squeeze), self._words)]

    def fetch(self, got: Got) -> Encoder:
        """Load or train it.

        Raises:
            UsageError: the name is invalid, or its network cannot take these images.
            RunError: it diverged, or published weights are not available.
        """
        with _reworded(self.settings.name):
            origin, without_labels = _source(self.task, self.settings.name)
            match origin:
                case Untrained(spec):
                    network = self._trained(spec, without_labels)
                case SavedWeights():
                    network = _saved(self.task, origin, self.settings.size)
                case PublishedWeights(name):
                    network = _published(self.task, name, self.settings.size)
            return self._ready(network.to(self.task.device).eval().requires_grad_(False))

    def key(self) -> dict[str, Any]:
        """JSON-serialisable, everything that determines the encoder's representations; makes nothing.

        Raises:
            UsageError: the name is invalid, or its file is missing.
        """
        with _reworded(self.settings.name):
            origin, without_labels = _source(self.task, self.settings.name)
            size = {} if self.settings.size is None else {"size": self.settings.size}
            match origin:
                case Untrained(spec) if without_labels:
                    return {"trained": digest(barlow_spec(self.task, spec, self.settings.barlow))}
                case Untrained(spec):
                    return {"trained": digest(squeeze_spec(self.task, spec, self.settings.squeeze))}
                case SavedWeights(path, spec):
                    return {"file": sha256_file(path), "network": asdict(spec), **size}
                case PublishedWeights(name):
                    return {"published": name, **size}

    @property
    def _words(self) -> str:
        return f"encoder {self.settings.name} ({self.task.data.name}, {self.settings.squeeze.epochs} epochs)"

    def _trained(self, spec: NetworkSpec, without_labels: bool) -> nn.Module:
        task, settings = self.task, self.settings
        if without_labels:
            kept = self_trained(task, spec, settings.barlow)
        else:
            kept = squeezed(task, spec, settings.squeeze, self._words)
        assert kept.tensors is not None, "made of tensors"
        network = build_teacher(task, spec, task.classes, generator(0, "skeleton"))
        load_weights(network, kept.tensors, str(kept.path))
        return Embedding(network)

    def _ready(self, network: nn.Module) -> Encoder:
        task, shape = self.task, "x".join(map(str, self.task.data.shape))
        try:
            with torch.no_grad():
                found = tuple(network(torch.zeros(1, *task.data.shape, device=task.device)).shape)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UsageError(f"it cannot take images of {shape}: {in_one_line(error)}") from error
        if len(found) != 2:
            raise UsageError(f"it gives {found} for one image, not one representation")
        return Encoder(self.settings.name, network, found[1], self.origin(), self.key())

    def origin(self) -> dict[str, Any]:
        """The settings with the encoder's name independent of the run's student and of the working directory."""
        name = self.settings.name
        if name == BARLOW:
            full = f"{BARLOW}:{spelled(self.task, STUDENT)}"
        else:
            full = name if name.startswith(f"{BARLOW}:") else spelled(self.task, name)
        return asdict(replace(self.settings, name=full))


def _parsed(name: str, student: NetworkSpec) -> tuple[TeacherSource, bool]:
    """The source that a name stands for, and whether it is trained without labels."""
    if name != BARLOW and not name.startswith(f"{BARLOW}:"):
        return teacher_source(name, student), False
    origin = teacher_source(name.partition(":")[2] or STUDENT, student)
    if not isinstance(origin, Untrained):
        raise UsageError(f"it is trained already; leave out {BARLOW!r}")
    return origin, True


def _source(task: Task, name: str) -> tuple[TeacherSource, bool]:
    """As `_parsed`, with the architecture resolved for the images."""
    origin, without_labels = _parsed(name, task.student)
    if isinstance(origin, PublishedWeights):
        return origin, without_labels
    return replace(origin, spec=resolve_network(origin.spec, task.data.size, task.data.channels)), without_labels


def _saved(task: Task, origin: SavedWeights, size: int | None) -> nn.Module:
    file = read_weights(origin.path)
    network = build_teacher(task, origin.spec, task.classes, generator(0, "skeleton"))
    count = outputs_of(file.state, network) or task.classes
    if count != task.classes:
        network = build_teacher(task, origin.spec, count, generator(0, "skeleton"))
    load_weights(network, file.state, str(origin.path))
    if file.normalise is None:
        return Embedding(network)
    return Adapted(Embedding(network), task.data.preprocess.invert, file.normalise, size)


def _published(task: Task, name: str, size: int | None) -> nn.Module:
    there = published_encoder(name, size)
    return Adapted(there.network, task.data.preprocess.invert, (there.mean, there.std), size or there.size)


@contextlib.contextmanager
def _reworded(name: str) -> Iterator[None]:
    """Reword errors about teachers and students for an encoder."""
    try:
        yield
    except (UsageError, RunError) as error:
        text = str(error)
        for old, new in _WORDS:
            text = text.replace(old, new)
        prefix = "" if text.startswith("encoder.name=") else f"encoder.name={name}: "
        raise type(error)(f"{prefix}{text}") from error


_WORDS: Sequence[tuple[str, str]] = (
    ("use another student.arch", "name another encoder"),
    ("teachers=", "encoder.name="),
    ("student.arch=", ""),
    ("student.", ""),
)
