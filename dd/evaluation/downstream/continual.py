"""Class-incremental learning with the set as the memory, in the protocol of the DC/DM line.

At every step new classes arrive, and the memory grows by the set's images of them.  A fresh network is trained on the
memory alone, as in GDumb (Prabhu et al., ECCV 2020), and tested on the test images of the classes seen so far, with an
output for every class (Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, section 4.4).
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dd.errors import UsageError
from dd.evaluation.arms import Arm, Images
from dd.evaluation.downstream.contract import Contender, Downstream, DownstreamReport, common, contenders
from dd.evaluation.evaluate import NOT_AT_HAND, Evaluator, student_passes
from dd.evaluation.report import Score
from dd.evaluation.scores import Interval, paired_gap
from dd.evaluation.table import ARMS, in_between, score_in_words
from dd.labels import LabelStore
from dd.sets import DistilledSet
from dd.sets.tiles import decoded_labels

ClassOrder: TypeAlias = tuple[tuple[int, ...], ...]
"""The classes that arrive at each step."""
_JOINT = (
    "the images were made with all classes at hand; in the published protocol, those of a step are made from its "
    "classes alone"
)


@dataclass(frozen=True)
class Continual(Downstream):
    """Accuracy on the classes seen so far, after every step of class-incremental learning.

    Published for CIFAR-100: 5 or 10 steps, 20 images per class, 5 orders of the classes, `eval.students=3` networks for
    each, `eval.protocol=mtt`.
    """

    name: ClassVar[str] = "continual"
    lighter: ClassVar[str] = "continual.orders, continual.steps, eval.students"

    steps: Annotated[int, Field(ge=1, le=10**4)] = 5
    """Number of steps; the classes are divided among them as evenly as possible."""
    orders: Annotated[int, Field(ge=1, le=10**4)] = 5
    """Number of class orders: NumPy's permutations with seeds 0, 1, …, the same for every set and every root seed."""

    def require_usable(self, distilled: DistilledSet, *, taught: bool) -> None:
        """See `Downstream`."""
        if distilled.label_kind == "representations":
            raise UsageError("task=continual needs images with classes, but this set's labels are representations")
        if taught or distilled.label_kind == "views":
            raise UsageError(
                "task=continual cannot use teachers' labels of views: the teachers have seen the classes of every "
                "step; give a set whose images have labels of their own"
            )
        if distilled.image_kind == "schedule":
            raise UsageError(
                "task=continual cannot use a schedule: a memory holds the same images in every pass; give a set of "
                "images or of indices"
            )
        class_orders(len(distilled.classes), self.steps, 1)

    def measure(
        self,
        distilled: DistilledSet,
        evaluator: Evaluator,
        *,
        store: LabelStore | None = None,
        without: str = NOT_AT_HAND,
    ) -> "ContinualReport":
        """See `Downstream`.  Every order has students and control draws of its own.

        Raises:
            UsageError: more steps than classes, or the set cannot be a memory (see `require_usable`).
        """
        self.require_usable(distilled, taught=evaluator.labeller is not None or store is not None)
        data, classes = evaluator.task.data, evaluator.task.classes
        orders = class_orders(classes, self.steps, self.orders)
        counts = torch.bincount(data.test.labels.cpu(), minlength=classes).tolist()
        images = torch.bincount(evaluator.task.targets.cpu(), minlength=classes).tolist()
        memory = [[sum(images[c] for c in seen) for seen in _seen(order)] for order in orders]
        if not all(map(min, memory)) or not all(sum(counts[c] for c in order[0]) for order in orders):
            raise UsageError(
                "the classes of a first step have no images in the set or in the test data: lower continual.steps"
            )
        found, missing = contenders(distilled, evaluator, store, without)
        scores = {key: self._scores(evaluator, one, orders, counts) for key, one in found.items()}
        notes = () if distilled.image_kind == "indices" else (_JOINT,)
        return ContinualReport(
            orders=orders,
            memory=tuple(map(tuple, memory)),
            scores=scores,
            **common(self, distilled, evaluator, store, missing, notes),
        )

    def work(self, distilled: DistilledSet, evaluator: Evaluator) -> Iterator[tuple[Evaluator, int]]:
        """See `Downstream`."""
        images = torch.bincount(evaluator.task.targets.cpu(), minlength=evaluator.task.classes).tolist()
        decoded = distilled.decode_factor**2
        total = 0
        for order in class_orders(evaluator.task.classes, self.steps, self.orders):
            for seen in _seen(order):
                n = sum(images[c] for c in seen)
                total += student_passes(evaluator, n * decoded) + student_passes(evaluator, n)
                total += student_passes(evaluator, n * decoded) if decoded > 1 else 0
        yield evaluator, total * evaluator.protocol.students

    def _scores(
        self, evaluator: Evaluator, one: Contender, orders: Sequence[ClassOrder], counts: Sequence[int]
    ) -> tuple[Score, ...]:
        """Return the score of every step, over all students of all orders."""
        students, owners = evaluator.protocol.students, _owners(evaluator, one.arm.n)
        values: list[list[float]] = [[] for _ in range(self.steps)]
        for number, order in enumerate(orders):
            members = range(number * students, (number + 1) * students)
            for step, seen in enumerate(_seen(order)):
                rows = evaluator.students(restricted(one.arm, owners, seen), one.lr, members)
                values[step] += [seen_accuracy(row["classes"], counts, seen) for row in rows]
        return tuple(Score(tuple(some), (), one.lr, one.note) for some in values)


@dataclass(frozen=True, kw_only=True)
class ContinualReport(DownstreamReport):
    """Accuracies of class-incremental learning.

    Attributes:
        orders: for every class order, the classes that arrive at each step.
        memory: for every order, the number of stored images in the memory at each step.
        scores: for "accuracy" (the set), "control" and "decoded", where there is one, the test accuracy on the classes
            seen so far at each step; the values are those of all students of the first order, then of the second, ….

    For the other attributes see `DownstreamReport`.
    """

    orders: tuple[ClassOrder, ...]
    memory: tuple[tuple[int, ...], ...]
    scores: Mapping[str, tuple[Score, ...]]

    def average(self, arm: str) -> Score:
        """Return the mean accuracy over the steps, of every student of every order ("accuracy", "control", …)."""
        steps = self.scores[arm]
        each = zip(*(score.values for score in steps), strict=True)
        return Score(tuple(map(statistics.fmean, each)), (), steps[0].lr, steps[0].note)

    def gap(self, step: int | None = None) -> Interval | None:
        """Return the points by which the set beats the control at a step, with their interval; None: over all steps.

        Orders are paired: the values are the differences of the means over the students of each.  None without a
        control.
        """
        if "control" not in self.scores:
            return None
        own, other = (self.average(arm) if step is None else self.scores[arm][step] for arm in ("accuracy", "control"))
        return paired_gap(self._by_order(own), self._by_order(other))

    def _by_order(self, score: Score) -> list[float]:
        """Return the mean over the students of each order."""
        students = score.n // len(self.orders)
        return [statistics.fmean(score.values[i : i + students]) for i in range(0, score.n, students)]

    def headings(self) -> list[str]:
        """See `DownstreamReport`."""
        arms = [f"{ARMS[arm]} %" for arm in self.scores]
        return ["classes seen", "images", *arms, "the set is ahead by (95 %, orders paired)"]

    def rows(self) -> list[list[str]]:
        """See `DownstreamReport`."""
        found: list[list[str]] = []
        for step in range(len(self.orders[0])):
            classes = sum(len(group) for group in self.orders[0][: step + 1])
            sizes = sorted({memory[step] for memory in self.memory})
            images = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
            cells = [score_in_words(score[step]) for score in self.scores.values()]
            found.append([f"{classes}", images, *cells, self._ahead(step)])
        return [*found, ["mean", "", *(score_in_words(self.average(arm)) for arm in self.scores), self._ahead(None)]]

    def _ahead(self, step: int | None) -> str:
        gap = self.gap(step)
        return self.missing.get("control", "") if gap is None else f"{in_between(gap)} points"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        gaps = [self.gap(step) for step in (*range(len(self.orders[0])), None)]
        return super().to_dict() | {
            "scores": {arm: [score.to_dict() for score in steps] for arm, steps in self.scores.items()},
            "average": {arm: self.average(arm).to_dict() for arm in self.scores},
            "gaps": [None if gap is None else asdict(gap) for gap in gaps],
        }


def class_orders(classes: int, steps: int, orders: int) -> tuple[ClassOrder, ...]:
    """Return the class orders: the permutations of NumPy's seeds 0, 1, …, each divided into steps.

    Raises:
        UsageError: there are more steps than classes.
    """
    if steps > classes:
        raise UsageError(f"continual.steps={steps}, but there are {classes} classes: at most one step for each")
    found: list[ClassOrder] = []
    for seed in range(orders):
        # the legacy generator, because the published orders are its permutations; NumPy keeps its stream as it is
        order = np.random.RandomState(seed).permutation(classes)
        found.append(tuple(tuple(map(int, group)) for group in np.array_split(order, steps)))
    return tuple(found)


def restricted(arm: Arm, owners: Tensor, seen: Sequence[int]) -> Arm:
    """Return the part of an arm whose images belong to some classes; with all classes, the arm itself.

    The targets still have a place for every class.  Probabilities of other classes are removed and the rest is scaled
    to sum to one, because labels cannot know of classes that come later.

    Args:
        arm: an arm that loads images and targets.
        owners: (n,) int64 on the CPU, the class of every image.
        seen: the classes.
    """
    wanted = torch.tensor(sorted(seen))
    kept = torch.isin(owners, wanted).nonzero().flatten()
    if len(kept) == arm.n:
        return arm

    def load(j: int) -> tuple[Images, Tensor]:
        images, targets = arm.load(j)
        targets = targets[kept.to(targets.device)]
        if targets.dim() > 1:
            some = torch.zeros_like(targets)
            there = wanted.to(targets.device)
            some[:, there] = targets[:, there]
            targets = some / some.sum(1, keepdim=True)
        if isinstance(images, Tensor):
            return images[kept.to(images.device)], targets
        return lambda index: images(kept[index]), targets

    def key(j: int) -> dict[str, Any]:
        return {"of": arm.key(j), "classes": wanted.tolist()}

    return replace(arm, name=f"{arm.name}, {len(wanted)} classes seen", key=key, load=load, n=len(kept))


def seen_accuracy(classes: Sequence[float | None], counts: Sequence[int], seen: Sequence[int]) -> float:
    """Return the accuracy in percent on the test images of some classes, among predictions of all classes.

    Args:
        classes: accuracy of each class in percent; None for a class without test images.
        counts: number of test images of each class.
        seen: the classes, at least one of them with test images.
    """
    tested = [(share, counts[c]) for c in seen if (share := classes[c]) is not None]
    return sum(share * count for share, count in tested) / sum(count for _, count in tested)


def _seen(order: ClassOrder) -> Iterator[tuple[int, ...]]:
    """Yield the classes seen so far after each step."""
    seen: tuple[int, ...] = ()
    for group in order:
        seen += group
        yield seen


def _owners(evaluator: Evaluator, n: int) -> Tensor:
    """Return the class of each of an arm's n images, (n,) int64 on the CPU; n is a multiple for mosaics."""
    targets = evaluator.task.targets.cpu()
    return decoded_labels(targets, round((n // len(targets)) ** 0.5), len(targets))
