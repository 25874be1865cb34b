"""The base class of methods that select images by their features in a trained network, the proxy."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
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
from dd.selection.submodular import CandidateDraw, sample_size, sampled
from dd.settings import Outside
from dd.training.embeddings import Embedded, Embeddings
from dd.training.fitness import announce, require_fit
from dd.training.teacher_names import PublishedWeights, teacher_source
from dd.training.teachers import SqueezeSettings, Teachers, file_digests, named_by

_PROXY = "proxy"

Rng: TypeAlias = Callable[[], torch.Generator]
"""Returns a generator; called only if something is drawn."""


@dataclass(frozen=True, eq=False)
class FromFeatures:
    """What `prepare` returns to the methods of the family.

    Attributes:
        embedded: the features.
        demand: (n,) float64, a weight of every training image, if the method uses weights.
    """

    embedded: Embedded
    demand: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SelectionPool:
    """The images of a class, or all images, among which some are chosen.

    Attributes:
        index: (n,) int64, their positions in the training images.
        features: (n, d) float32.
        errors: (n, classes) float64, see `Embedded.errors`, if the method is `of_gradients`.
        demand: (n,) float64, their weights, if the method uses weights.
    """

    index: Tensor
    features: Tensor
    errors: Tensor | None = None
    demand: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def part(self, places: Tensor) -> "SelectionPool":
        """The images at int64 places (m,)."""
        errors, demand = (None if one is None else one[places] for one in (self.errors, self.demand))
        return SelectionPool(self.index[places], self.features[places], errors, demand)


@dataclass(frozen=True)
class OfFeatures(Selection[FromFeatures]):
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
    def pick(self, pool: SelectionPool, count: int, rng: Rng) -> Tensor:
        """Choose `count` images of a pool, which has at least as many.

        Returns:
            (count,) int64 places in the pool, in order of selection.
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

    def prepare(self, task: Task, got: Got) -> FromFeatures:
        """The features."""
        return FromFeatures(got[self.embeddings(task)])

    def choose(self, task: Task, prepared: FromFeatures) -> Tensor:
        """Pick among the images of each class, one class in memory at a time; or among all images."""
        if not self.balanced:
            pool = joined([self.pool(task, prepared, c) for c in range(task.classes)])
            index = pool.index[self.pick(pool, len(task.targets), partial(task.generator, "pick"))]
            return index[task.data.train.labels.cpu()[index].argsort(stable=True)]
        # filled in place: a small tensor kept for every class would fragment the memory of the large ones
        chosen, counts = torch.empty_like(task.targets, device="cpu"), torch.bincount(task.targets.cpu())
        for c, place in enumerate(torch.arange(len(chosen)).split(counts.tolist())):
            if len(place):
                pool = self.pool(task, prepared, c)
                chosen[place] = pool.index[self.pick(pool, len(place), partial(task.generator, "pick", c))]
        return chosen

    def pool(self, task: Task, prepared: FromFeatures, c: int) -> SelectionPool:
        """The images of a class."""
        index, features = task.data.train.of_class(c), prepared.embedded.of_class(c)
        errors = prepared.embedded.errors(features, c) if self.of_gradients else None
        return SelectionPool(index, features, errors, None if prepared.demand is None else prepared.demand[index])

    def facts(self, task: Task, prepared: FromFeatures, index: Tensor) -> Mapping[str, Fact]:
        """What the choice depends on."""
        outside = isinstance(teacher_source(self.proxy, task.student), PublishedWeights)
        return {
            "of": "gradients of the last layer" if self.of_gradients else "features before the last layer",
            "mode": "eval, images not augmented",
            "proxy": self.proxy,
            "proxy_sha256": prepared.embedded.teacher.sha256,
            "proxy_holdout_accuracy": prepared.embedded.teacher.holdout,
            "outside_data": outside,
            "tie_break": "lowest index",
        }


def joined(pools: Sequence[SelectionPool]) -> SelectionPool:
    """The images of several pools."""

    def cat(parts: Sequence[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if there else None

    index, features = torch.cat([pool.index for pool in pools]), torch.cat([pool.features for pool in pools])
    return SelectionPool(index, features, cat([pool.errors for pool in pools]), cat([pool.demand for pool in pools]))


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

    def candidates(self, images: int, count: int, rng: Rng) -> CandidateDraw | None:
        """Draws the candidates of a step of stochastic greedy; None for all."""
        return None if self.epsilon is None else sampled(sample_size(images, count, self.epsilon), rng())
