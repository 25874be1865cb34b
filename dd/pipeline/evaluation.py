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
from dd.io import user_path
from dd.networks import NetworkSpec
from dd.pipeline.label import store_spec, stored_labels
from dd.pipeline.task import context, numerics, task_for
from dd.recipes import resolve_evaluation
from dd.runs.cost import measured
from dd.runs.stop import Stop
from dd.sets import DistilledSet, load
from dd.sets.soft_labels import LabelStore
from dd.training.relabel import Labeller, labels_of


def evaluate(distilled: DistilledSet | str | Path, **settings: Any) -> Report:
    """Score a set, or the file of one, as `dd eval` does."""
    if isinstance(distilled, DistilledSet):
        return evaluate_distilled(distilled, settings)
    file = user_path(distilled)
    return evaluate_distilled(load(file), settings, file)


def evaluate_distilled(distilled: DistilledSet, overrides: Mapping[str, Any], file: Path | None = None) -> Report:
    """Score a set under its own protocol, or under what `overrides` says; `file` is where it was read from."""
    distilled.check()
    settings = resolve_evaluation(overrides, dataset=distilled.source, **_meant_for(distilled))
    data = open_data(settings.dataset, settings.data, torch.device(settings.device))
    distilled.require_match(data)
    task = task_for(data, distilled.own_classes(), settings)
    stop = Stop("students that were finished are kept; the same command goes on")
    with stop.watching(), numerics(settings), measured(task.device) as cost:
        store = stored_labels(distilled, file, settings.eval)
        labeller, why = _labeller(distilled, task, settings.eval, store)
        evaluator = Evaluator(task, settings.eval, force=settings.force, labeller=labeller)
        report = evaluate_set(distilled, None, evaluator, store=store, without=why)
    costs = {"evaluate": asdict(cost)}
    return replace(
        report, cost=costs, **context(settings.device), recipe_hash=str(distilled.provenance.get("recipe", ""))
    )


def _labeller(
    distilled: DistilledSet, task: Task, protocol: Protocol, store: LabelStore | None
) -> tuple[Labeller | None, str]:
    """The teachers that label what a set is compared with; or, of a set with stored labels, why there are none.

    Raises:
        UsageError: the set's own students ask them, and they cannot be had, or the protocol has no use for them.
    """
    origin = (distilled.views or {}).get("labeller") or distilled.provenance.get("labeller")
    if origin is None:
        return None, NOT_AT_HAND
    if store is None:
        store_spec(labels_of(origin), protocol, task)  # may refuse, so it comes before teachers are made
        try:
            return Labeller.of_origin(task, origin), ""
        except UsageError as error:
            raise UsageError(f"students of this set ask its teachers for labels: {error}") from error
    try:
        if Labeller.facts_of(task, origin) == store.spec.teacher:
            return Labeller.of_origin(task, origin), ""
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
