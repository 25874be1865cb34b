"""Label the views of a distilled set with one or more teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from dd.engine.method import Task
from dd.labels import LabelSettings
from dd.labels.forms import calibrate
from dd.labels.settings import label_facts
from dd.training.committee import ensemble, logits
from dd.training.fitness import require_fit
from dd.training.teachers import SqueezeSettings, Teacher, spelled, teacher_keys, teachers


@dataclass(frozen=True, eq=False)
class TeacherLabeller:
    """A `Labeller` that combines the logits of its teachers.

    Attributes:
        teachers: at least one.
        settings: how views are labelled.
        weights: (teachers,), for "logit_weighted"; None otherwise.
        origin: JSON-serialisable description from which `of_origin` rebuilds it.
        keys: per teacher, JSON-serialisable, what determines its logits.
    """

    teachers: tuple[Teacher, ...]
    settings: LabelSettings
    weights: tuple[float, ...] | None
    origin: Mapping[str, Any]
    keys: Sequence[Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        task: Task,
        members: Sequence[Teacher],
        squeeze: SqueezeSettings,
        settings: LabelSettings,
        weights: Sequence[float] | None = None,
    ) -> "TeacherLabeller":
        """Build a labeller from teachers that were made from their names with `squeeze`."""
        names = [spelled(task, teacher.name) for teacher in members]
        votes = None if weights is None else tuple(weights)
        origin = {"teachers": names, "squeeze": asdict(squeeze), "labels": asdict(settings), "weights": votes}
        return cls(tuple(members), settings, votes, origin, teacher_keys(task, names, squeeze))

    @classmethod
    def of_origin(cls, task: Task, origin: Mapping[str, Any]) -> "TeacherLabeller":
        """Rebuild the labeller that `origin` describes; teachers missing from the store are retrained.

        Raises:
            UsageError: a teacher is not available, or cannot classify the images.
        """
        squeeze, settings = _squeeze_of(origin), labels_of(origin)
        members = teachers(task, origin["teachers"], squeeze, partial(require_fit, task=task))
        return cls.of(task, members, squeeze, settings, origin["weights"])

    @classmethod
    def facts_of(cls, task: Task, origin: Mapping[str, Any]) -> dict[str, Any]:
        """The `facts` of the labeller that `origin` describes, after a JSON round trip; makes no teacher.

        Raises:
            UsageError: a teacher's file is missing.
        """
        squeeze, settings = _squeeze_of(origin), labels_of(origin)
        keys = teacher_keys(task, origin["teachers"], squeeze)
        return label_facts(settings, keys, origin["weights"])

    @property
    def facts(self) -> dict[str, Any]:
        """See `label_facts`."""
        return label_facts(self.settings, self.keys, self.weights)

    @property
    def accuracies(self) -> list[float | None]:
        """Accuracy of each teacher on held-out images, in percent."""
        return [teacher.holdout for teacher in self.teachers]

    @property
    def bytes(self) -> int:
        """Size of the teachers' weights and buffers."""
        states = [teacher.network.state_dict().values() for teacher in self.teachers]
        return sum(value.numel() * value.element_size() for state in states for value in state)

    def logits(self, views: Tensor, own: Tensor, micro: int | None, seed: int = 0) -> Tensor:
        """Logits (b, classes) of a batch of views; if labels are calibrated, the log-probabilities.

        Args:
            views: (b, c, h, w).
            own: (b,) classes of their images.
            micro: images per micro-batch; matters if teachers use batch statistics.
            seed: of dropout, which is on in mode "train" only; every teacher has its own.
        """
        settings, mode = self.settings, self.settings.teacher_mode
        pieces = micro if mode == "batch" else None
        each = torch.stack([logits(t, views, mode, pieces, seed + at) for at, t in enumerate(self.teachers)])
        weights = None if self.weights is None else torch.tensor(self.weights)
        together = ensemble(each.float(), settings.ensemble, weights)
        if not settings.high:
            return together
        trusted = calibrate(together.softmax(1), own.to(views.device), settings.low, settings.high, settings.smooth)
        return trusted.clamp_min(torch.finfo(torch.float16).tiny).log()


def labels_of(origin: Mapping[str, Any]) -> LabelSettings:
    """The label settings in a labeller's `origin`."""
    return TypeAdapter(LabelSettings).validate_python(origin["labels"])


def _squeeze_of(origin: Mapping[str, Any]) -> SqueezeSettings:
    return TypeAdapter(SqueezeSettings).validate_python(origin["squeeze"])
