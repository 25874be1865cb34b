"""Scoring a set that exists."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dd.data import DataSettings, open_data
from dd.engine.method import Task
from dd.errors import RunError, UsageError
from dd.evaluation.budget import require_memory, require_time
from dd.evaluation.evaluate import NOT_AT_HAND, Evaluator
from dd.evaluation.evaluate import evaluate as evaluate_set
from dd.evaluation.protocols import Protocol
from dd.evaluation.report import Report
from dd.labels import LabelStore
from dd.networks import NetworkSpec
from dd.pipeline.foreign import is_foreign, require_modest, require_teachers
from dd.pipeline.label import label_spec, stored_labels
from dd.pipeline.meant import LabelOrigin, meant_for
from dd.pipeline.outcome import Outcome
from dd.pipeline.task import context, numerics, task_for
from dd.recipes import Evaluation, resolve_evaluation
from dd.runs.cost import measured
from dd.runs.stop import Stop
from dd.sets import DistilledSet, hashed_once
from dd.sets import load as load_set
from dd.training.relabel import TeacherLabeller


def load(made: str | Path | Outcome) -> DistilledSet:
    """A distilled set: of a file, of the folder of a run, or of what `dd.run` returned.

    It knows its file (`path`), beside which the labels of its views are where it has such.

    Raises:
        UsageError: there is no set, what is there is damaged or of a newer version, or says what nothing can use.
    """
    distilled = load_set(made.folder.set if isinstance(made, Outcome) else made)
    meant_for(distilled)
    return distilled


def evaluate(
    made: DistilledSet | Outcome | str | Path,
    *,
    device: str | None = None,
    data: DataSettings | Mapping[str, Any] | None = None,
    student: str | NetworkSpec | Mapping[str, Any] | None = None,
    eval: str | Protocol | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Report:
    """Score a set as `dd eval` does: fresh students on it, and on what it must be compared with.

    `dd.evaluate(outcome)`, `dd.evaluate("set.safetensors", student="resnet18")`,
    `dd.evaluate(small, eval={"students": 20})`.  The set says what data, network and protocol it is meant for; what is
    given here wins, in words or objects as for `dd.run`.

    Args:
        made: a set, its file, the folder of its run, or what `dd.run` returned.
        device: "cpu", "cuda", "cuda:N", "mps"; None for the best there is.
        data: how real images are split and preprocessed.
        student: the network: its name in its own size and with the set's norm, a `NetworkSpec`, or a mapping.
        eval: how students are trained: a protocol's name (`dd.list_protocols()`), a `Protocol`, or a mapping.
        settings: `dataset`, `seed`, `precision`, `deterministic`, `compile`, `force`; for a set that was made
            elsewhere `teachers`, where the files of its teachers are, and `hours`, how long its students may train;
            dotted keys as `**{"eval.students": 3}`.

    Raises:
        UsageError: settings that do not fit, or a set without the labels it was made with; one line says why.
    """
    keys = {"device": device, "data": data, "student": student, "eval": eval}
    overrides = {key: value for key, value in keys.items() if value is not None} | settings
    with hashed_once():
        distilled = made if isinstance(made, DistilledSet) else load(made)
        return evaluate_distilled(distilled, overrides, own=isinstance(made, Outcome))


def evaluate_distilled(distilled: DistilledSet, overrides: Mapping[str, Any], *, own: bool = False) -> Report:
    """Score a set under its own protocol, or under what `overrides` says; `own` ones may ask for everything."""
    with hashed_once():
        return _evaluated(distilled, overrides, foreign=not own and is_foreign(distilled))


def _evaluated(distilled: DistilledSet, overrides: Mapping[str, Any], foreign: bool) -> Report:
    distilled.check()
    meant = meant_for(distilled)
    settings = resolve_evaluation(
        overrides,
        dataset=distilled.source,
        data=meant.data,
        student=meant.student,
        protocol=meant.protocol,
        made=meant.made,
    )
    if foreign:
        require_modest(distilled, settings)
    origin = _teachers_named(meant.labeller, settings.allowed.teachers)
    data = open_data(settings.dataset, settings.data, torch.device(settings.device))
    distilled.require_match(data)
    task = task_for(data, distilled.own_classes(), settings)
    if foreign:
        require_memory(distilled, task, settings.eval)
    stop = Stop("finished students are kept; the same command resumes")
    with stop.watching(), numerics(settings), measured(task.device) as cost:
        store = stored_labels(distilled, settings.eval)
        labeller, why = _labeller(origin, task, settings, store, foreign)
        evaluator = Evaluator(task, settings.eval, force=settings.force, labeller=labeller)
        if foreign:
            require_time(distilled, evaluator, store, settings.allowed.hours)
        report = evaluate_set(distilled, None, evaluator, store=store, without=why)
    costs = {"evaluate": asdict(cost)}
    return replace(
        report, cost=costs, **context(settings.device), recipe_hash=str(distilled.provenance.get("recipe", ""))
    )


def _teachers_named(origin: LabelOrigin | None, teachers: tuple[str, ...]) -> LabelOrigin | None:
    """The origin of labels with the names that the user gives its teachers."""
    if not teachers:
        return origin
    if origin is None:
        raise UsageError(
            f"teachers={','.join(teachers)}: this set has its own labels, not a teacher's; leave out teachers="
        )
    if len(teachers) != len(origin.teachers):
        raise UsageError(
            f"teachers={','.join(teachers)}: the set has {len(origin.teachers)} ({', '.join(origin.teachers)}); "
            "name the same number, in this order"
        )
    return replace(origin, teachers=teachers)


def _labeller(
    origin: LabelOrigin | None, task: Task, settings: Evaluation, store: LabelStore | None, foreign: bool
) -> tuple[TeacherLabeller | None, str]:
    """The teachers that label what a set is compared with; or, of a set with stored labels, why there are none.

    Args:
        origin: how they were made.
        task: the evaluation.
        settings: of it.
        store: the labels of the set's views, where it has such.
        foreign: whether the set was made elsewhere.

    Raises:
        UsageError: the set's own students ask them, and they cannot be had, or the protocol has no use for them.
    """
    if origin is None:
        return None, NOT_AT_HAND
    facts = asdict(origin)
    try:
        if foreign:
            require_teachers(origin, task, settings)
        if store is None:
            label_spec(origin.labels, settings.eval, task)  # may refuse, so it comes before teachers are made
            return TeacherLabeller.of_origin(task, facts), ""
        if TeacherLabeller.facts_of(task, facts) == store.spec.facts:
            return TeacherLabeller.of_origin(task, facts), ""
    except (UsageError, RunError) as error:  # a checkpoint or published weights that are not on this machine
        if store is not None:
            return None, f"{NOT_AT_HAND} ({error})"
        raise type(error)(f"students of this set need labels from its teachers: {error}") from error
    return None, (
        f"{NOT_AT_HAND}: one of their files has changed, or device, data or precision differ from those of "
        "their training"
    )
