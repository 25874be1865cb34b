"""The label regimes of an evaluation: their teacher, their coresets, and the scores."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dd.engine.method import Method, Task
from dd.engine.method import prepare as prepared_by
from dd.errors import UsageError
from dd.evaluation.evaluate import Evaluator
from dd.evaluation.protocols import Protocol
from dd.evaluation.regimes import require_lengths, score_regimes
from dd.evaluation.report import Report
from dd.evaluation.suites import Suite, suite_of
from dd.labels import Labeller, LabelSettings
from dd.recipes import checks, resolve
from dd.sets import DistilledSet
from dd.training.relabel import TeacherLabeller
from dd.training.teacher_names import STUDENT


@dataclass(frozen=True)
class Beside:
    """What the label regimes need besides the set.

    Attributes:
        suite: the protocol of each regime.
        coresets: the selected real images, by method.
        teacher: labels images and views; None if all labels are hard.
    """

    suite: Suite
    coresets: Mapping[str, DistilledSet]
    teacher: TeacherLabeller | None


def beside(distilled: DistilledSet, evaluator: Evaluator, dataset: str) -> Beside | None:
    """Return what the label regimes of the protocol need besides the set, before anything is trained on it.

    Args:
        distilled: the set.
        evaluator: the evaluator of the set's own labels.
        dataset: the data set, as recipes name it.

    Returns:
        None if the protocol asks for no regimes.

    Raises:
        UsageError: an unknown suite or coreset method, a teacher that is unavailable or unfit, or a schedule of too few
            passes.
    """
    protocol, task = evaluator.protocol, evaluator.task
    if not protocol.labels:
        return None
    suite = suite_of(protocol.suite, task.data.name)
    require_lengths(distilled, protocol, suite)
    teacher = None if set(protocol.labels) == {"hard"} else _teacher(task, protocol, suite, evaluator.labeller)
    return Beside(suite, {name: selected(name, task, dataset) for name in protocol.coreset}, teacher)


def with_regimes(
    report: Report, distilled: DistilledSet, start: DistilledSet | None, evaluator: Evaluator, others: Beside | None
) -> Report:
    """Return a report with the scores in the label regimes that the protocol asks for, if any.

    Args:
        report: the report on the set's own labels.
        distilled: the set.
        start: the set at iteration 0, or None.
        evaluator: the evaluator of the report.
        others: the result of `beside`.

    Raises:
        UsageError: the regimes cannot label the set's images.
    """
    if others is None:
        return report
    found = score_regimes(distilled, start, others.coresets, evaluator, others.suite, others.teacher)
    return replace(report, regimes=found)


def selected(name: str, task: Task, dataset: str) -> DistilledSet:
    """Return the real images that a selection method chooses, as many per class as the task has targets.

    Args:
        name: the method; its settings are those of its recipe for this data set and size.
        task: the targets and the real images.
        dataset: the data set, as recipes name it.

    Raises:
        UsageError: there is no such method, or it selects no images of a fixed size.
    """
    counts = torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()
    ipc = counts[0] if len(set(counts)) == 1 else counts
    checks.coreset(name)
    method = resolve({"method": name, "dataset": dataset, "ipc": ipc}).method
    found = _chosen(method.settle(task), task)
    if found.image_kind == "schedule":
        raise UsageError(f"eval.coreset={name} selects other images for every pass, so it is no set of this size")
    return found


def _chosen(method: Method[Any], task: Task) -> DistilledSet:
    prepared = prepared_by(method, task)
    return method.finish(method.start(task, prepared), task, prepared)


def _teacher(task: Task, protocol: Protocol, suite: Suite, own: Labeller | None) -> TeacherLabeller:
    """Return the teachers of the soft regimes: those that are named, those of the set, or one of the student's kind.

    They label every image independently, whatever statistics the set's own labels were made with.
    """
    origin: Mapping[str, Any] = {"teachers": protocol.teachers or (STUDENT,), "squeeze": asdict(suite.squeeze)}
    if not protocol.teachers and own is not None:
        origin = own.origin
    settings = LabelSettings(mode="live")
    return TeacherLabeller.of_origin(task, {**origin, "labels": asdict(settings), "weights": None})
