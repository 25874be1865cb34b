"""Images distilled for a linear head on a frozen encoder: the loop that the methods of this family share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor
from torch.optim import Adam, Optimizer

from dd.data import RealData
from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.needs import Got, Need
from dd.networks import NetworkSpec
from dd.sets import DistilledSet
from dd.settings import OnlyWith
from dd.training.encoders import Encoder, Encoders, EncoderSettings
from dd.views import ViewPolicy, draw_view

from ._pyramid import Added, Pyramid, RestartedAdam

_PYRAMID = OnlyWith("variables", ("pyramid",))


@dataclass(frozen=True)
class NoiseSettings:
    """Gaussian noise on views, in pixels (0 black, 1 white), not clamped."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that a view is noisy."""
    mean: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Mean of the noise; the official code of LGM has 0.5, which seems to be a slip."""
    std: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Standard deviation of the noise."""

    def __call__(self, images: Tensor, data: RealData, rng: Generator) -> Tensor:
        """Noisy copies of images (n, c, h, w) in model space; differentiable."""
        if not self.share:
            return images
        chosen = (torch.rand(len(images), 1, 1, 1, generator=rng) < self.share).to(images.device)
        noise = (torch.randn(images.shape, generator=rng) * self.std + self.mean).to(images.device)
        noisy = data.preprocess.encode(data.preprocess.invert(images) + noise)
        return torch.where(chosen, noisy, images)


@dataclass(frozen=True, eq=False)
class Frozen:
    """What `prepare` returns: the encoder, and the features (n, d) of all real images if views are off."""

    encoder: Encoder
    features: Tensor | None


@dataclass(frozen=True)
class FrozenHead(Method[Frozen]):
    """Base class: real and synthetic images are compared through a linear head on a frozen encoder."""

    iterations: Annotated[int, Field(ge=0)] = 5000
    """Updates of the images."""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """The frozen encoder."""
    lr_img: Annotated[float, Field(gt=0)] = 2e-3
    """Learning rate of Adam on the variables of the images."""
    variables: Literal["pyramid", "pixels"] = "pyramid"
    """Variables of the images: the levels of a "pyramid", or "pixels" in model space."""
    level_every: Annotated[int, Field(ge=1), _PYRAMID] = 200
    """Iterations between two levels of the pyramid; Adam restarts with every new one."""
    added: Annotated[Added, _PYRAMID] = "noise"
    """Initial values of a new level: "noise" or "zero"."""
    colour: Annotated[bool, _PYRAMID] = True
    """Whether the pyramid's colours are decorrelated; grey images have none."""
    start_from: Annotated[Literal["real", "noise"], OnlyWith("variables", ("pixels",))] = "real"
    """Initial pixels: random "real" images of each class, or "noise" N(0, 1) in model space."""
    copies: Annotated[int, Field(ge=1)] = 10
    """Views of each synthetic image per iteration [A]."""
    batch_real: Annotated[int, Field(ge=1)] | None = None
    """Real images per iteration, of all classes together; None: as many as views of synthetic images."""
    views: ViewPolicy = field(default_factory=lambda: ViewPolicy(crop=0.08, flip=True))
    """How views of real and synthetic images are drawn; without any operation, real features are computed once."""
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    """Noise on the views."""

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """Digest of the encoder if it is a file."""
        return self.encoder.digests(student)

    def settle(self, task: Task) -> Self:
        """Resolve the number of real images per iteration."""
        return replace(self, batch_real=self.batch_real or min(len(task.targets) * self.copies, len(task.data.train)))

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The encoder."""
        return [Encoders(task, self.encoder)]

    def prepare(self, task: Task, got: Got) -> Frozen:
        """The encoder; if real images are never augmented, also their features."""
        encoder = got[Encoders(task, self.encoder)]
        plain = self.views == ViewPolicy() and not self.noise.share
        return Frozen(encoder, encoder.of_split(task.data.train) if plain else None)

    def start(self, task: Task, prepared: Frozen) -> Synthetic:
        """A pyramid of one level, or pixels; hard labels."""
        if self.variables == "pixels":
            return Synthetic(task.first_images(self.start_from), task.targets)
        rng = task.generator("level", 0)
        return Pyramid(task.targets, task.data.shape, task.data.preprocess, rng, self.colour)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """Adam, which restarts when the pyramid grows."""
        if isinstance(syn, Pyramid):
            return [RestartedAdam([syn.values], self.lr_img, self.level_every, len(syn.sides) - 1)]
        return [Adam([syn.images], lr=self.lr_img, foreach=False)]

    def grows(self, it: int) -> bool:
        """Whether a level is due before iteration `it`, which counts from 0."""
        return it > 0 and it % self.level_every == 0

    def loss(self, syn: Synthetic, task: Task, prepared: Frozen, it: int) -> Objective:
        """The objective of the method, on one batch of views; grows the pyramid first when that is due."""
        if isinstance(syn, Pyramid) and self.grows(it):
            syn.grow(self.added, task.generator("level", it // self.level_every))
        real, classes = self._real(task, prepared, it)
        images = syn.decode() if isinstance(syn, Pyramid) else syn.images
        copies, targets = (whole.repeat_interleave(self.copies, 0) for whole in (images, syn.targets))
        views, labels = self._viewed(copies, targets, task, task.generator("synthetic views", it))
        return self.objective(prepared.encoder.network(views), labels, real, classes, task.generator("head", it))

    def objective(self, ours: Tensor, labels: Tensor, real: Tensor, classes: Tensor, rng: Generator) -> Objective:
        """What the method minimises.

        Args:
            ours: features (m, d) of the synthetic views, with gradient.
            labels: their class probabilities (m, k).
            real: features (b, d) of the real views.
            classes: their class probabilities (b, k).
            rng: for random heads.
        """
        raise NotImplementedError

    def project(self, syn: Synthetic, task: Task) -> None:
        """Keep the decoded images of a pyramid up to date."""
        if isinstance(syn, Pyramid):
            syn.refresh()

    def finish(self, syn: Synthetic, task: Task, prepared: Frozen) -> DistilledSet:
        """The images, with the encoder recorded that they are meant for."""
        made = super().finish(syn, task, prepared)
        return replace(made, provenance={**made.provenance, "encoder": prepared.encoder.origin})

    @torch.no_grad()
    def _real(self, task: Task, prepared: Frozen, it: int) -> tuple[Tensor, Tensor]:
        """Features (b, d) and class probabilities (b, k) of a batch of real images, drawn from all classes together."""
        train, rng = task.data.train, task.generator("real", it)
        assert self.batch_real is not None, "settled"
        index = torch.randperm(len(train), generator=rng)[: self.batch_real]
        targets = train.labels[index.to(train.labels.device)]
        if prepared.features is not None:
            return prepared.features[index.to(prepared.features.device)], _one_hot(targets, task)
        views, labels = self._viewed(train.images(index), targets, task, rng)
        return prepared.encoder.of(views), labels

    def _viewed(self, images: Tensor, targets: Tensor, task: Task, rng: Generator) -> tuple[Tensor, Tensor]:
        """Views of images, and their class probabilities."""
        data = task.data
        view = draw_view(self.views, len(images), data.shape, rng, data.augment, data.black if self.views.pad else None)
        return self.noise(view(images), data, rng), view.mixed(_one_hot(targets, task))


def _one_hot(targets: Tensor, task: Task) -> Tensor:
    return F.one_hot(targets, task.classes).float()
