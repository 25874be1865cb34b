"""The base class of methods that select images by their features in a trained network, the proxy."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Self, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.engine.selection import Fact, Selection
from dd.errors import UsageError
from dd.networks import NetworkSpec
from dd.selection.submodular import Draw, sample_size, sampled
from dd.settings import Outside
from dd.training.embeddings import Embedded, Embeddings
from dd.training.fitness import announce, require_fit
from dd.training.teacher_names import PublishedWeights, teacher_source
from dd.training.teachers import SqueezeSettings, Teachers, file_digests, named_by

_PROXY = "proxy"

Rng: TypeAlias = Callable[[], torch.Generator]
"""Returns a generator; called only if something is drawn."""


@dataclass(frozen=True)
class OfFeatures(Selection[Embedded]):
    """Base class of methods that select images by their features.  A subclass implements `pick`."""

    proxy: Annotated[str, Field(min_length=1), Outside("member", "its key counts")] = "student"
    """The network whose features count: "student", `ARCH:width=48`, `timm:NAME` or `torchvision:NAME`, trained here
    on the training images (pretrained, so with outside data, if the name has a tag of weights), or the path of a
    checkpoint.
    """
    squeeze: Annotated[SqueezeSettings, Outside("member", "the key of the proxy counts")] = field(
        default_factory=lambda: SqueezeSettings(epochs=40)
    )
    """How the proxy is trained, unless it is pretrained.  DeepCore trains for 40 epochs."""

    @property
    def of_gradients(self) -> bool:
        """Whether the gradients of the proxy's last layer are used."""
        return False

    @abstractmethod
    def pick(self, features: Tensor, errors: Tensor | None, count: int, rng: Rng) -> Tensor:
        """Choose among the images of a class, or among all images.

        Args:
            features: (n, d) float32.
            errors: (n, classes) float64 if `of_gradients`, see `Embedded.errors`; else None.
            count: number of images to choose, at most n.
            rng: for random draws.

        Returns:
            (count,) int64 rows of `features`, in order of selection.
        """

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """The digest of the proxy, if it is a file."""
        with named_by(_PROXY):
            found = file_digests([self.proxy], student)
        return {_PROXY: found["teachers[0]"]} if found else {}

    def settle(self, task: Task) -> Self:
        """Refuse more images than there are before a proxy is trained; nothing else to resolve.

        Raises:
            UsageError: a class, or the data set, has fewer images than requested.
        """
        wanted = torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()
        for c, count in enumerate(wanted if self.balanced else ()):
            there = len(task.data.train.of_class(c))
            if count > there:
                name = task.data.classes[c]
                raise UsageError(f"{count} real images of class {name!r} needed, but it has {there}: lower ipc")
        return self

    def needs(self, task: Task) -> list[Need[Any]]:
        """The proxy, and its features of the training images."""
        return [self.staff(task), self.embeddings(task)]

    def staff(self, task: Task) -> Teachers:
        """The need for the proxy."""
        check = partial(require_fit, task=task)
        return Teachers(task, (self.proxy,), self.squeeze, check, partial(announce, task), _PROXY)

    def embeddings(self, task: Task) -> Embeddings:
        """The need for the features."""
        return Embeddings(task, self.staff(task), self.of_gradients)

    def prepare(self, task: Task, got: Got) -> Embedded:
        """The features."""
        return got[self.embeddings(task)]

    def choose(self, task: Task, prepared: Embedded) -> Tensor:
        """Pick among the images of each class, one class in memory at a time; or among all images."""
        if not self.balanced:
            return self._of_all(task, prepared)
        chosen = [torch.empty(0, dtype=torch.int64)]
        for c, count in enumerate(torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()):
            if count:
                picked = self.pick(*self._seen(prepared, c), count, partial(task.generator, "pick", c))
                chosen.append(task.data.train.of_class(c)[picked])
        return torch.cat(chosen)

    def facts(self, task: Task, prepared: Embedded, index: Tensor) -> Mapping[str, Fact]:
        """What the choice depends on."""
        outside = isinstance(teacher_source(self.proxy, task.student), PublishedWeights)
        return {
            "of": "gradients of the last layer" if self.of_gradients else "features before the last layer",
            "mode": "eval, images not augmented",
            "proxy": self.proxy,
            "proxy_sha256": prepared.teacher.sha256,
            "proxy_holdout_accuracy": prepared.teacher.holdout,
            "outside_data": outside,
            "tie_break": "lowest index",
        }

    def _of_all(self, task: Task, prepared: Embedded) -> Tensor:
        seen = [self._seen(prepared, c) for c in range(task.classes)]
        errors = [part for _, part in seen if part is not None]
        features = torch.cat([part for part, _ in seen])
        places = torch.cat([task.data.train.of_class(c) for c in range(task.classes)])
        rng = partial(task.generator, "pick")
        picked = self.pick(features, torch.cat(errors) if errors else None, len(task.targets), rng)
        index = places[picked]
        return index[task.data.train.labels.cpu()[index].argsort(stable=True)]

    def _seen(self, prepared: Embedded, c: int) -> tuple[Tensor, Tensor | None]:
        features = prepared.of_class(c)
        return features, prepared.errors(features, c) if self.of_gradients else None


@dataclass(frozen=True)
class OfSimilarity(OfFeatures):
    """Base class of submodular selection, by similarities of images."""

    gradients: bool = True
    """Compare the gradients that images give the proxy's last layer, as DeepCore does; false: compare features."""
    epsilon: Annotated[float, Field(ge=0.01, le=0.1)] | None = None
    """Stochastic greedy: look at -ln(epsilon) n / k random candidates per step, so that the expected value is lower by
    at most the share epsilon of the optimum; None: look at all.
    """

    @property
    def of_gradients(self) -> bool:
        """Whether gradients are compared."""
        return self.gradients

    def candidates(self, images: int, count: int, rng: Rng) -> Draw | None:
        """Draws the candidates of a step of stochastic greedy; None for all."""
        return None if self.epsilon is None else sampled(sample_size(images, count, self.epsilon), rng())
