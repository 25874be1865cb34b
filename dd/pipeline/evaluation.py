"""Scoring a set that exists."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dd.data import DataSettings, open_data
from dd.engine.method import Task
from dd.errors import RunError, UsageError
from dd.evaluation.evaluate import NOT_AT_HAND, Evaluator
from dd.evaluation.evaluate import evaluate as evaluate_set
from dd.evaluation.protocols import Protocol, default_protocol, protocol_of
from dd.evaluation.report import Report
from dd.labels import LabelStore
from dd.networks import NetworkSpec
from dd.pipeline.label import label_spec, stored_labels
from dd.pipeline.run import Outcome
from dd.pipeline.task import context, numerics, task_for
from dd.recipes import resolve_evaluation
from dd.runs.cost import measured
from dd.runs.stop import Stop
from dd.sets import DistilledSet
from dd.sets import load as load_set
from dd.training.relabel import TeacherLabeller, labels_of


def load(made: str | Path | Outcome) -> DistilledSet:
    """A distilled set: of a file, of the folder of a run, or of what `dd.run` returned.

    It knows its file (`path`), beside which the labels of its views are where it has such.

    Raises:
        UsageError: there is no set, or what is there is damaged or of a newer version.
    """
    return load_set(made.folder.set if isinstance(made, Outcome) else made)


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
        settings: `dataset`, `seed`, `precision`, `deterministic`, `compile`, `force`; dotted keys as
            `**{"eval.students": 3}`.

    Raises:
        UsageError: settings that do not fit, or a set without the labels it was made with; one line says why.
    """
    keys = {"device": device, "data": data, "student": student, "eval": eval}
    overrides = {key: value for key, value in keys.items() if value is not None} | settings
    return evaluate_distilled(made if isinstance(made, DistilledSet) else load(made), overrides)


def evaluate_distilled(distilled: DistilledSet, overrides: Mapping[str, Any]) -> Report:
    """Score a set under its own protocol, or under what `overrides` says."""
    distilled.check()
    settings = resolve_evaluation(overrides, dataset=distilled.source, **_meant_for(distilled))
    data = open_data(settings.dataset, settings.data, torch.device(settings.device))
    distilled.require_match(data)
    task = task_for(data, distilled.own_classes(), settings)
    stop = Stop("students that were finished are kept; the same command goes on")
    with stop.watching(), numerics(settings), measured(task.device) as cost:
        store = stored_labels(distilled, settings.eval)
        labeller, why = _labeller(distilled, task, settings.eval, store)
        evaluator = Evaluator(task, settings.eval, force=settings.force, labeller=labeller)
        report = evaluate_set(distilled, None, evaluator, store=store, without=why)
    costs = {"evaluate": asdict(cost)}
    return replace(
        report, cost=costs, **context(settings.device), recipe_hash=str(distilled.provenance.get("recipe", ""))
    )


def _labeller(
    distilled: DistilledSet, task: Task, protocol: Protocol, store: LabelStore | None
) -> tuple[TeacherLabeller | None, str]:
    """The teachers that label what a set is compared with; or, of a set with stored labels, why there are none.

    Raises:
        UsageError: the set's own students ask them, and they cannot be had, or the protocol has no use for them.
    """
    origin = distilled.views.labeller if distilled.views else distilled.provenance.get("labeller")
    if origin is None:
        return None, NOT_AT_HAND
    if store is None:
        label_spec(labels_of(origin), protocol, task)  # may refuse, so it comes before teachers are made
        try:
            return TeacherLabeller.of_origin(task, origin), ""
        except UsageError as error:
            raise UsageError(f"students of this set ask its teachers for labels: {error}") from error
    try:
        if TeacherLabeller.facts_of(task, origin) == store.spec.facts:
            return TeacherLabeller.of_origin(task, origin), ""
    except (UsageError, RunError) as error:  # a checkpoint or published weights that are not on this machine
        return None, f"{NOT_AT_HAND} ({error})"
    return None, (
        f"{NOT_AT_HAND}: a file of theirs has changed, or device, data or precision are others than those they were "
        "trained with"
    )


def _meant_for(distilled: DistilledSet) -> dict[str, Any]:
    """Data, student and protocol that a set says it is for; a set that does not say gets the defaults of its source."""
    kind = distilled.space.get("kind", "standard")
    said = distilled.provenance.get("data") or {"preprocess": kind}
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    protocol = protocol_of(distilled.protocol) if distilled.protocol else default_protocol(distilled.source)
    student = NetworkSpec(**distilled.student) if distilled.student else NetworkSpec()
    return {
        "data": DataSettings(**settings),
        "student": student,
        "protocol": protocol,
        "made": distilled.provenance,
    }
