"""Base classes of methods that select images by how a network learns them, from recorded training runs."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.engine.selection import Fact, Selection
from dd.errors import UsageError
from dd.selection.ranking import best, best_of_each, grouped, tied, tied_of_each
from dd.selection.scores import probability_margins
from dd.training.record import Record, Recorded, RecordSettings
from dd.training.squeeze import augmentation

Records = tuple[Record, ...]
Margin = Literal["logit", "probability"]


@dataclass(frozen=True)
class OfRecords(Selection[Records]):
    """Base class of methods that select by recorded training runs."""

    record: RecordSettings = field(default_factory=RecordSettings)
    """How networks are trained and recorded."""

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The recorded runs."""
        return [Recorded(task, self.record)]

    def prepare(self, task: Task, got: Got) -> Records:
        """The records."""
        return got[Recorded(task, self.record)]

    def facts(self, task: Task, prepared: Records, index: Tensor) -> Mapping[str, Fact]:
        """What the scores are made of, and the least and the most images of a class."""
        settings = self.record
        counts = torch.bincount(task.data.train.labels.cpu()[index], minlength=task.classes)
        augment = augmentation(settings.augment, task.data) if settings.mode == "train" else "none"
        return {
            "score": self.name,
            "mode": settings.mode,
            "augment": augment,
            "runs": settings.runs,
            "epochs": settings.recorded,
            "schedule_epochs": settings.epochs,
            "seed": settings.seed,
            "records": ", ".join(record.key for record in prepared),
            "fewest_of_a_class": int(counts.min()),
            "most_of_a_class": int(counts.max()),
        }

    def require_all_classes(self, task: Task, index: Tensor) -> None:
        """Refuse a choice without images of a class.

        Raises:
            UsageError: a class has none.
        """
        counts = torch.bincount(task.data.train.labels.cpu()[index], minlength=task.classes)
        if not counts.all():
            name = task.data.classes[int(counts.argmin())]
            raise UsageError(
                f"class {name!r} has none of the {len(index)} images that {self.name} chooses over all classes: "
                "balanced=true, or a larger fraction"
            )


@dataclass(frozen=True)
class Ranked(OfRecords):
    """Base class of methods that keep the images with the largest values of a score.  A subclass implements `wanted`.

    Of equal values, the image with the lower index is kept.
    """

    @abstractmethod
    def wanted(self, records: Records) -> Tensor:
        """Return (n,) values, the largest of which are kept."""

    def choose(self, task: Task, prepared: Records) -> Tensor:
        """The largest values of every class or, without `balanced`, of all classes."""
        values, labels = self.wanted(prepared), task.data.train.labels.cpu()
        if self.balanced:
            counts = torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()
            return torch.cat(best_of_each(values, labels, counts))
        index = grouped(best(values, len(task.targets)), labels)
        self.require_all_classes(task, index)
        return index

    def facts(self, task: Task, prepared: Records, index: Tensor) -> Mapping[str, Fact]:
        """Adds the order of ties, and the share of the images that it decides."""
        values, labels = self.wanted(prepared), task.data.train.labels.cpu()
        share = tied_of_each(values, labels, index) if self.balanced else tied(values, index)
        return {**super().facts(task, prepared, index), "ties": "lowest index", "tied_at_the_cut": round(share, 4)}


@dataclass(frozen=True)
class OfDifficulty(Ranked):
    """Base class of methods that rank images from hard to easy.  A subclass implements `difficulty`."""

    keep: Literal["hard", "easy"] = "hard"
    """Which images are kept: "hard" as in the papers, whose subsets are large; small subsets need "easy" ones."""

    @abstractmethod
    def difficulty(self, records: Records) -> Tensor:
        """Return (n,) values, larger for harder images."""

    def wanted(self, records: Records) -> Tensor:
        """The difficulty, or its negative."""
        values = self.difficulty(records)
        return values if self.keep == "hard" else -values

    def facts(self, task: Task, prepared: Records, index: Tensor) -> Mapping[str, Fact]:
        """Adds the direction."""
        return {**super().facts(task, prepared, index), "keep": self.keep}


@dataclass(frozen=True)
class OfOneEpoch(OfDifficulty):
    """Base class of methods that take the difficulty from early epochs.  A subclass implements `rows`.

    Defaults: 10 runs after 20 epochs, on the images as they are.
    """

    record: RecordSettings = field(default_factory=lambda: RecordSettings(mode="clean", runs=10, stop=20))
    """How networks are trained and recorded."""
    epoch: Annotated[int, Field(ge=1)] | None = None
    """The epoch that counts; None: the last recorded one."""
    window: Annotated[int, Field(ge=1)] = 1
    """Number of epochs, up to that one, over which the value is averaged."""

    def __post_init__(self) -> None:
        if self._last > self.record.recorded:
            raise ValueError(f"epoch={self.epoch} must be at most the {self.record.recorded} recorded epochs")
        if self.window > self._last:
            raise ValueError(f"window={self.window} must be at most the {self._last} epochs that count")

    @abstractmethod
    def rows(self, record: Record) -> Tensor:
        """Return (epochs, n) values of one run, larger for harder images."""

    def difficulty(self, records: Records) -> Tensor:
        """The value, averaged over the window and the runs."""
        first = self._last - self.window
        return over_runs(records, lambda record: self.rows(record)[first : self._last].double().mean(0))

    def facts(self, task: Task, prepared: Records, index: Tensor) -> Mapping[str, Fact]:
        """Adds which epochs count."""
        return {**super().facts(task, prepared, index), "epoch": self._last, "window": self.window}

    @property
    def _last(self) -> int:
        return self.record.recorded if self.epoch is None else self.epoch


def over_runs(records: Records, score: Callable[[Record], Tensor]) -> Tensor:
    """The mean (n,) float64 of a score over the runs."""
    return torch.stack([score(record).double() for record in records]).mean(0)


def aum(records: Records, margin: Margin) -> Tensor:
    """The margin of an image's class, (n,), averaged over all recorded epochs and runs."""

    def one(record: Record) -> Tensor:
        each = record.margin if margin == "logit" else probability_margins(record.log_p, record.margin)
        return each.double().mean(0)

    return over_runs(records, one)
