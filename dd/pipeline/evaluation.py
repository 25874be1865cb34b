"""Evaluation of existing sets: `dd.load` and `dd.evaluate`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from dd.data import DataSettings, open_data
from dd.engine.method import Task
from dd.errors import RunError, UsageError
from dd.evaluation.arms import spread
from dd.evaluation.budget import require_memory, require_time
from dd.evaluation.downstream import DownstreamReport
from dd.evaluation.evaluate import NOT_AT_HAND, Evaluator
from dd.evaluation.evaluate import evaluate as evaluate_set
from dd.evaluation.learners import learner_of
from dd.evaluation.protocols import Protocol
from dd.evaluation.report import Report
from dd.labels import LabelStore
from dd.networks import NetworkSpec
from dd.pipeline.foreign import is_foreign, remember, require_encoder, require_modest, require_teachers
from dd.pipeline.label import label_spec, stored_labels
from dd.pipeline.meant import LabelOrigin, meant_for
from dd.pipeline.outcome import Outcome, folder_of
from dd.pipeline.regimes import beside, with_regimes
from dd.pipeline.task import context, numerics, task_for
from dd.recipes import Evaluation, resolve_evaluation
from dd.released.pull import Pulled, is_released, no_set_at, pull
from dd.runs.cost import measured
from dd.runs.stop import Stop
from dd.sets import DistilledSet, hashed_once
from dd.sets import load as load_set
from dd.sets.formats import set_file
from dd.training.encoders import EncoderSettings
from dd.training.relabel import TeacherLabeller


def load(made: str | Path | Outcome) -> DistilledSet:
    """Load a distilled set from a file, from a run folder, or from the result of `dd.run`; or a released one by name.

    `dd.load("dm/fashion-mini-ipc1")` and `dd.load("hf:USER/NAME")` fetch the set if it is not on this machine; a path
    that exists comes first.
    The set remembers its file as `path`; the labels of its views, if any, are stored beside it.

    Raises:
        UsageError: the set does not exist, is damaged, has a newer format version, or contains invalid values.
        RunError: a released set cannot be fetched.
    """
    file = made.folder.set if isinstance(made, Outcome) else made
    if isinstance(file, str):
        file = pull_set(file).path if is_released(file) else existing_set(file)
    distilled = load_set(file)
    meant_for(distilled)
    return distilled


def existing_set(file: str) -> Path:
    """Return the file of a set, given that file or the folder of its run.

    Raises:
        UsageError: it does not exist; the message suggests released sets with similar names.
    """
    path = set_file(file)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.isdir(file):
            return path  # to be reported as a folder without a set
        raise no_set_at(path, file) from error
    return path


def pull_set(
    name: str, said: Mapping[str, Any] | None = None, *, trust: bool = False, by_hand: Sequence[Path] = ()
) -> Pulled:
    """Fetch a released set as `dd.released.pull.pull` does; one that ships with this package counts as made here."""
    found = pull(name, said, trust=trust, by_hand=by_hand)
    if found.record is not None and found.record.is_shipped:
        remember(found.path)
    return found


@overload
def evaluate(
    made: DistilledSet | Outcome | str | Path,
    *,
    task: None = None,
    device: str | None = None,
    data: DataSettings | Mapping[str, Any] | None = None,
    student: str | NetworkSpec | Mapping[str, Any] | None = None,
    eval: str | Protocol | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Report: ...


@overload
def evaluate(
    made: DistilledSet | Outcome | str | Path,
    *,
    task: str,
    device: str | None = None,
    data: DataSettings | Mapping[str, Any] | None = None,
    student: str | NetworkSpec | Mapping[str, Any] | None = None,
    eval: str | Protocol | Mapping[str, Any] | None = None,
    **settings: Any,
) -> DownstreamReport: ...


def evaluate(
    made: DistilledSet | Outcome | str | Path,
    *,
    task: str | None = None,
    device: str | None = None,
    data: DataSettings | Mapping[str, Any] | None = None,
    student: str | NetworkSpec | Mapping[str, Any] | None = None,
    eval: str | Protocol | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Report | DownstreamReport:
    """Evaluate a set as `dd eval` does: train fresh students on it and on the references it must be compared with.

    `dd.evaluate(outcome)`, `dd.evaluate("set.safetensors", student="resnet18")`,
    `dd.evaluate(small, eval={"students": 20})`.  Data, network and protocol default to those recorded in the set; the
    arguments override them and take the same forms as in `dd.run`.

    Args:
        made: a set, its file, the folder of its run, or the result of `dd.run`.
        task: a downstream task, with its settings under its own name: `task="continual", continual={"steps": 2}`; None
            for the test accuracy of one network.
        device: "cpu", "cuda", "cuda:N", "mps"; None for the best one available.
        data: how real images are split and preprocessed.
        student: the network: a name (default size, the set's norm layers), a `NetworkSpec`, or a mapping.
        eval: how students are trained: the name of a protocol (`dd.list_protocols()`), a `Protocol`, or a mapping.
        settings: `dataset`, `seed`, `precision`, `deterministic`, `compile`, `force`; for a set made elsewhere also
            `teachers`, the files of its teachers, and `hours`, the time limit for training its students; dotted keys as
            `**{"eval.students": 3}`.

    Raises:
        UsageError: the settings do not fit, or the labels of the set are missing; one line says why.
    """
    keys = {"task": task, "device": device, "data": data, "student": student, "eval": eval}
    overrides = {key: value for key, value in keys.items() if value is not None} | settings
    with hashed_once():
        distilled = made if isinstance(made, DistilledSet) else load(made)
        return evaluate_distilled(distilled, overrides, own=isinstance(made, Outcome))


def evaluate_distilled(
    distilled: DistilledSet, overrides: Mapping[str, Any], *, own: bool = False
) -> Report | DownstreamReport:
    """Evaluate a set under its own protocol with `overrides`; `own` skips the limits for sets made elsewhere."""
    with hashed_once():
        return _evaluated(distilled, overrides, foreign=not own and is_foreign(distilled))


def _evaluated(distilled: DistilledSet, overrides: Mapping[str, Any], foreign: bool) -> Report | DownstreamReport:
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
    encoder, teachers = _encoder_named(meant.encoder, settings.allowed.teachers)
    origin = _teachers_named(meant.labeller, teachers)
    if settings.task is not None:
        _require_no_accuracies(settings.eval)
        settings.task.require_usable(distilled, taught=origin is not None)
    data = open_data(settings.dataset, settings.data, torch.device(settings.device))
    distilled.require_match(data)
    task = task_for(data, _classes_of(distilled), settings)
    if foreign:
        for student in settings.task.architectures(task) if settings.task else (task.student,):
            require_memory(distilled, replace(task, student=student), settings.eval)
        if encoder is not None:
            require_encoder(encoder, task, settings)
    stop = Stop("finished students are kept; the same command resumes")
    with stop.watching(), numerics(settings), measured(task.device) as cost:
        store = stored_labels(distilled, settings.eval)
        labeller, why = _labeller(origin, task, settings, store, foreign)
        learner = learner_of(distilled, task, encoder)
        evaluator = Evaluator(task, settings.eval, force=settings.force, labeller=labeller, learner=learner)
        if foreign:
            require_time(distilled, evaluator, store, settings.allowed.hours, settings.task)
        if settings.task is not None:
            report = settings.task.measure(distilled, evaluator, store=store, without=why)
        else:
            others = beside(distilled, evaluator, settings.dataset)
            start = None if foreign else _start(distilled)
            report = evaluate_set(distilled, start, evaluator, store=store, without=why)
            report = with_regimes(report, distilled, start, evaluator, others)
    costs = {"evaluate": asdict(cost)}
    return replace(
        report, cost=costs, **context(settings.device), recipe_hash=str(distilled.provenance.get("recipe", ""))
    )


def _require_no_accuracies(protocol: Protocol) -> None:
    """Raise `UsageError` if a protocol asks for more about test accuracies: a downstream task measures none."""
    for key, asked in {"eval.labels compares": protocol.labels, "eval.curve follows": protocol.curve}.items():
        if asked:
            raise UsageError(f"{key} test accuracies: leave it out with task=")


def _start(distilled: DistilledSet) -> DistilledSet | None:
    """Return the set at iteration 0 of the run that made a set, if both are still in the folder of that run."""
    folder = folder_of(distilled)
    if folder is None:
        return None
    try:
        start = load_set(folder.start)
    except UsageError:
        return None
    same = all(start.provenance.get(key) == distilled.provenance.get(key) for key in ("recipe", "seed"))
    return start if same and not is_foreign(start) else None


def _classes_of(distilled: DistilledSet) -> Tensor:
    """Return the class (n,) of every image; representations name none, so the classes count as equally frequent."""
    if distilled.label_kind == "representations":
        return spread(distilled.n, len(distilled.classes))
    own = distilled.own_classes()
    return own[0] if distilled.image_kind == "schedule" else own


def _encoder_named(
    encoder: EncoderSettings | None, teachers: tuple[str, ...]
) -> tuple[EncoderSettings | None, tuple[str, ...]]:
    """Return the set's encoder, replaced by the one that the user names as its teacher, and the other teachers."""
    if encoder is None or not teachers:
        return encoder, teachers
    return replace(encoder, name=teachers[0]), teachers[1:]


def _teachers_named(origin: LabelOrigin | None, teachers: tuple[str, ...]) -> LabelOrigin | None:
    """Return the origin of the labels with its teachers replaced by those that the user names."""
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
    """Return the teachers that label the references; or, if stored labels have no teachers here, the reason.

    Args:
        origin: how the set's labels were made.
        task: the evaluation task.
        settings: the evaluation settings.
        store: the stored labels of the set's views, if any.
        foreign: whether the set was made elsewhere.

    Raises:
        UsageError: the set's own students need the teachers but they are unavailable, or the protocol cannot use them.
    """
    if origin is None:
        return None, NOT_AT_HAND
    facts = asdict(origin)
    try:
        if foreign:
            require_teachers(origin, task, settings)
        if store is None:
            label_spec(origin.labels, settings.eval, task)  # check this before loading teachers
            return TeacherLabeller.of_origin(task, facts), ""
        if TeacherLabeller.facts_of(task, facts) == store.spec.facts:
            return TeacherLabeller.of_origin(task, facts), ""
    except (UsageError, RunError) as error:  # a checkpoint or published weights missing on this machine
        if store is not None:
            return None, f"{NOT_AT_HAND} ({error})"
        raise type(error)(f"students of this set need labels from its teachers: {error}") from error
    return None, (
        f"{NOT_AT_HAND}: one of their files has changed, or device, data or precision differ from those of "
        "their training"
    )
