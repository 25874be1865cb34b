"""Linear heads on frozen encoders, trained on the set: its own encoder, and others that it was not distilled for.

A set that is only good for its own encoder has adapted to that encoder (Cazenavette et al., NeurIPS 2025, table of
transfer between encoders).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dd.engine.method import Task
from dd.engine.needs import Got
from dd.errors import UsageError
from dd.evaluation.arms import Arm, Images
from dd.evaluation.downstream.contract import Contender, Downstream, common, contenders
from dd.evaluation.downstream.measures import MeasuresReport
from dd.evaluation.evaluate import NOT_AT_HAND, Evaluator, student_passes
from dd.evaluation.learners import LinearHead
from dd.evaluation.report import Score
from dd.labels import LabelStore
from dd.sets import DistilledSet
from dd.training.barlow import BarlowSettings
from dd.training.encoders import Encoder, Encoders, EncoderSettings
from dd.training.squeeze import SqueezeSettings

_NEAREST = "nearest"


@dataclass(frozen=True)
class Linear(Downstream):
    """Accuracy of linear heads on frozen encoders, trained on the set."""

    name: ClassVar[str] = "linear"
    lighter: ClassVar[str] = "linear.encoders, eval.students, eval.epochs"

    encoders: tuple[str, ...] = ()
    """Names of encoders, as for `encoder.name`; none: the one that the set was distilled for, or else "student"."""
    barlow: BarlowSettings = field(default_factory=BarlowSettings)
    """How those that are named and trained without labels are trained."""
    squeeze: SqueezeSettings = field(default_factory=SqueezeSettings)
    """How those that are named and trained with labels are trained."""

    def require_usable(self, distilled: DistilledSet, *, taught: bool) -> None:
        """See `Downstream`."""
        if distilled.label_kind == "representations":
            raise UsageError(
                "task=linear trains classifiers, but this set's labels are representations: use task=transfer"
            )
        if taught or distilled.label_kind == "views":
            raise UsageError("task=linear cannot use teachers' labels of views: give a set with labels of its own")

    def measure(
        self,
        distilled: DistilledSet,
        evaluator: Evaluator,
        *,
        store: LabelStore | None = None,
        without: str = NOT_AT_HAND,
    ) -> "LinearReport":
        """See `Downstream`.

        Raises:
            UsageError: an encoder is not available.
        """
        task, students = evaluator.task, evaluator.protocol.students
        encoders = self._encoders(evaluator)
        own = evaluator.learner.encoder if isinstance(evaluator.learner, LinearHead) else None
        scores: dict[str, dict[str, Score]] = {}
        missing: Mapping[str, str] = {}
        for encoder in encoders:
            each = Evaluator(task, evaluator.protocol, force=evaluator.force, learner=LinearHead(task, encoder))
            found, missing = contenders(distilled, each, store, without)
            found[_NEAREST] = Contender(nearest_arm(task, own or encoder), evaluator.protocol.lr, "")
            for arm, one in found.items():
                scores.setdefault(arm, {})[encoder.name] = each.score(one.arm, one.lr, students, one.note)
        return LinearReport(scores=scores, **common(self, distilled, evaluator, store, missing))

    def work(self, distilled: DistilledSet, evaluator: Evaluator) -> Iterator[tuple[Evaluator, int]]:
        """See `Downstream`."""
        n = distilled.n * distilled.decode_factor**2
        yield evaluator, max(1, len(self.encoders)) * 3 * evaluator.protocol.students * student_passes(evaluator, n)

    def _encoders(self, evaluator: Evaluator) -> list[Encoder]:
        """Return the encoders, trained here if need be."""
        if not self.encoders and isinstance(evaluator.learner, LinearHead):
            return [evaluator.learner.encoder]
        settings = [EncoderSettings(name, None, self.barlow, self.squeeze) for name in self.encoders or ("student",)]
        return [Encoders(evaluator.task, one).fetch(Got()) for one in settings]


@dataclass(frozen=True, kw_only=True)
class LinearReport(MeasuresReport):
    """Accuracies of linear heads, by the name of the encoder.

    "nearest" are the real images nearest to the mean features of their classes, in the set's own encoder if it has one.
    For the attributes see `MeasuresReport`.
    """

    heading: ClassVar[str] = "encoder"
    arms: ClassVar[Mapping[str, str]] = {_NEAREST: "real images nearest to their class's mean"}


def nearest_arm(task: Task, encoder: Encoder) -> Arm:
    """Return the arm of the real images nearest to the mean features of their classes, as many as targets."""
    index = nearest_to_means(encoder.of_split(task.data.train), task.data.train.labels, task.targets)

    def load(_: int) -> tuple[Images, Tensor]:
        return task.data.train.images(index), task.data.train.labels[index]

    key = {"nearest": torch.bincount(task.targets.cpu(), minlength=task.classes).tolist(), "encoder": encoder.key}
    return Arm("real images nearest to class means", lambda _: key, load, len(index))


def nearest_to_means(features: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the (m,) indices of the examples nearest to the mean of their class, ties by lowest index.

    Args:
        features: (n, d).
        labels: (n,) int64.
        targets: (m,) int64, sorted: the classes of the examples to choose.
    """
    chosen: list[Tensor] = []
    for c, count in enumerate(torch.bincount(targets).tolist()):
        rows = (labels == c).nonzero().flatten()
        apart = (features[rows] - features[rows].mean(0)).square().sum(1)
        chosen.append(rows[apart.argsort(stable=True)[:count]])
    return torch.cat(chosen)
