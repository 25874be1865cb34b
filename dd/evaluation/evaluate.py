"""Train fresh students on a set and on its references.

Every student is an artefact of its own: an interrupted evaluation resumes with the next student, and all methods share
the reference students of a data set.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dd.engine.method import Task
from dd.errors import UsageError
from dd.evaluation.arms import (
    Arm,
    control_arm,
    decoded_arm,
    full_arm,
    schedule_arm,
    selection_arm,
    set_arm,
    shuffled,
    stored_arm,
)
from dd.evaluation.curve import Curve, CurveRecorder
from dd.evaluation.learners import Learner
from dd.evaluation.notes import assumed_at_import, notes_on, reads_more
from dd.evaluation.protocols import Protocol
from dd.evaluation.report import Report, Score
from dd.evaluation.scores import calibration_error, top_k
from dd.labels import Labeller, LabelStore, live
from dd.rng import generator
from dd.runs import sampling
from dd.runs.store import Wanted
from dd.sets import DistilledSet
from dd.training.loop import Fit, Trainer, accuracy, predict, recall, right, viewed
from dd.views import Batches, ViewPolicy

KIND = "students"
NOT_REFERRED = "left out of eval.references"
NOT_AT_HAND = "the teachers that labelled the set are missing here"
_WATCHED, _LONG = 4, 2.0  # number of steps to time, and the maximum seconds to spend on them
_GUESSES = 5  # of the top-5 accuracy
_ELSEWHERE: dict[str, Any] = {"test": 0.0, "holdout": 0.0, "seconds": 0.0}  # a student that another process is training
VERSION = 1  # of student training: part of every key, increased when results change


class _SeenEnough(Exception):
    """Raised to stop training once enough steps are timed."""


class Evaluator:
    """Trains students of one architecture under one protocol, and stores each of them.

    Args:
        task: provides data, student, seed, device and store.
        protocol: how students are trained.
        force: train students again even if the store has them.
        labeller: teachers that label the views of every arm; None to use the arms' own labels.
        learner: what is trained and how it is scored; None for a classifier.
        helping: whether to train for another process only.  A score then does not wait for students that other
            processes are training: zeros stand in their place.
    """

    def __init__(
        self,
        task: Task,
        protocol: Protocol,
        *,
        force: bool = False,
        labeller: Labeller | None = None,
        learner: Learner | None = None,
        helping: bool = False,
    ) -> None:
        self.task, self.protocol, self.force, self.labeller = task, protocol, force, labeller
        self.helping = helping
        self.learner = Learner(task) if learner is None else learner
        self._trainer: Trainer | None = None

    def score(self, arm: Arm, lr: float, students: int, note: str = "") -> Score:
        """Train `students` students on an arm and return their score."""
        rows = self.students(arm, lr, range(students), wait=not self.helping)
        holdout = tuple(row["holdout"] for row in rows if row["holdout"] is not None)
        # a stored student may have a curve that this protocol does not ask for
        curves = tuple(Curve.from_dict(row["curve"]) for row in rows if "curve" in row) if self.protocol.curve else ()
        facts = _by_class(rows) | _predicted(rows)
        return Score(tuple(row["test"] for row in rows), holdout, lr, note, **facts, curves=curves)

    def students(
        self, arm: Arm, lr: float, members: Iterable[int], *, tested: bool = True, wait: bool = True
    ) -> list[dict[str, Any]]:
        """Train the students of these numbers on an arm; returns what each reached, in percent.

        Args:
            arm: what they are trained on.
            lr: learning rate.
            members: number of each student: its weights and batches, and the draw of an arm that is redrawn.
            tested: False to look at held-out images only; the rows then need not have the first three keys.
            wait: False to return zeros for students that another process is training.

        Returns:
            For each student "test", the accuracy on all test images; "classes", the same by class, None for a class
            without test images; "balanced", the mean of these; "also", what the learner measures besides, if anything;
            "holdout", the held-out accuracy or None; "seconds"; "curve", see `Curve`, if the protocol asks for one, and
            perhaps if not.
        """
        numbers = list(members)
        wanted = [self._wanted(arm, lr, j, tested=tested) for j in numbers]

        def trained(at: int) -> dict[str, Any]:
            return self._student(arm, lr, numbers[at], tested=tested)

        return self.task.store.each(wanted, trained, alike=True, instead=None if wait else _ELSEWHERE)

    def held_out(self, arm: Arm, lr: float, students: int) -> tuple[float, ...]:
        """Held-out accuracies in percent of `students` students on an arm; no test image is looked at.

        Raises:
            UsageError: nothing is held out.
        """
        self.require_holdout()
        return tuple(row["holdout"] for row in self.students(arm, lr, range(students), tested=False))

    def better_lr(self, arm: Arm, candidates: Sequence[float], students: int) -> Score:
        """Train at the candidate lr with the best held-out accuracy, judged by a few pilot students."""
        lr, why = self.choose_lr(arm, candidates, students)
        return self.score(arm, lr, students, why)

    def choose_lr(self, arm: Arm, candidates: Sequence[float], students: int) -> tuple[float, str]:
        """Return the candidate lr with the best held-out accuracy of a few pilot students, and how it was chosen."""
        if len(candidates) == 1:
            return candidates[0], "the protocol's lr"
        if not len(self.task.data.holdout):
            return candidates[0], "the protocol's lr: no held-out images to choose with"
        pilots = min(self.protocol.pilots, students)
        trials = [self.students(arm, lr, range(pilots)) for lr in candidates]
        means = [statistics.fmean(row["holdout"] for row in rows) for rows in trials]
        best = candidates[means.index(max(means))]
        tried = ", ".join(f"{lr:.4g}: {mean:.1f} %" for lr, mean in zip(candidates, means, strict=True))
        return best, f"better of {tried} on held-out images"

    def require_holdout(self) -> None:
        """Raise `UsageError` where nothing is held out."""
        if not len(self.task.data.holdout):
            raise UsageError(f"{self.task.data.name} has no held-out images to choose by; give a larger data.holdout")

    def probe(self, distilled: DistilledSet) -> tuple[float, ...]:
        """Return the held-out accuracies in percent of `probe_students` briefly trained students: for a curve."""
        steps = min(self.protocol.probe_steps, self.protocol.total_steps(distilled.n))
        brief = self.under(replace(self.protocol, steps=steps, epochs=None), self.labeller)
        arm = set_arm("probe", distilled, self.task.data.preprocess)
        return brief.held_out(arm, self.lr_of(distilled), self.protocol.probe_students)

    def under(self, protocol: Protocol, labeller: Labeller | None) -> "Evaluator":
        """Return an evaluator of the same students under another protocol; it shares the compiled network."""
        given = {"force": self.force, "learner": self.learner, "helping": self.helping}
        other = Evaluator(self.task, protocol, labeller=labeller, **given)
        other._trainer = self._shared_trainer()
        return other

    def lr_of(self, distilled: DistilledSet) -> float:
        """Return the set's learned lr, or the protocol's lr if the set has none.

        Raises:
            UsageError: the learned lr is not positive, so it cannot train a student.
        """
        if distilled.lr is None:
            return self.protocol.lr
        if distilled.lr <= 0:
            raise UsageError(
                f"the set's learned lr is {distilled.lr:.3g}, unusable for training a student; distil with a smaller "
                "lr_lr"
            )
        return distilled.lr

    def lrs_of(self, distilled: DistilledSet) -> list[float]:
        """Return the candidate lrs of the references of a set: the protocol's, and the one that the set learned."""
        return [self.protocol.lr] if distilled.lr is None else [self.protocol.lr, self.lr_of(distilled)]

    def pace(self, arm: Arm, lr: float) -> float:
        """Return the seconds per training step on an arm, timed over the first few steps and then discarded."""
        batches, temperature = self._batches(arm, 0)
        ended: list[float] = [time.perf_counter()]

        def watched(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches(rng, number):
                yield batch
                if self.task.device.type == "cuda":
                    torch.cuda.synchronize(self.task.device)
                ended.append(time.perf_counter())
                if len(ended) > _WATCHED or ended[-1] - ended[0] > _LONG:
                    raise _SeenEnough

        fit = self._fit(arm, lr, temperature)
        with contextlib.suppress(_SeenEnough):
            next(self._shared_trainer().train([(self.task.seed, "pace")], watched, fit))
        each = [after - before for before, after in itertools.pairwise(ended)]
        return min(each[1:] or each, default=0.0)  # the first step includes compilation and data loading

    def _student(self, arm: Arm, lr: float, j: int, *, tested: bool = True) -> dict[str, Any]:
        """What student j reached; without `tested` on held-out images alone."""
        store, (kind, spec, what) = self.task.store, self._wanted(arm, lr, j, tested=tested)
        train, words = partial(self._train, arm, lr, j, tested), _test_accuracy if tested else _holdout_accuracy
        if not tested and not self.force:
            whole = store.peek(*self._wanted(arm, lr, j)[:2])
            if whole is not None and whole.value["holdout"] is not None:
                return whole.value
        wanted = list(self.protocol.curve_steps(arm.n)) if tested and self.protocol.curve else None

        def enough(row: Mapping[str, Any]) -> bool:
            # a curve is no part of the key, because a student is the same with and without
            return wanted is None or row.get("curve", {}).get("steps") == wanted

        return store.value(kind, spec, train, what, force=self.force, describe=words, enough=enough).value

    def _wanted(self, arm: Arm, lr: float, j: int, *, tested: bool = True) -> Wanted:
        """Return the artefact of student j; without `tested`, of what it reached on held-out images alone."""
        spec = self._spec(arm, lr, j) | ({} if tested else {"tested": False})
        return Wanted(KIND, spec, f"student {j + 1} on {arm.name} (lr {lr:.4g})")

    def _spec(self, arm: Arm, lr: float, j: int) -> dict[str, Any]:
        """Return everything that determines student j: the key of its artefact."""
        task = self.task
        spec: dict[str, Any] = {
            "version": VERSION,
            "arm": arm.key(j),
            "lr": lr,
            "training": self.protocol.training(),
            "student": self.learner.student,
            "data": task.data.fingerprint,
            "augment": task.data.augment,
            "seed": task.seed,
            "member": j,
            "compile": task.compile,
            "precision": task.precision,
            "device": task.device.type,
        }
        if self.labeller is not None and arm.temperature is None:
            spec["labels"] = self.labeller.facts
        return spec

    def _train(self, arm: Arm, lr: float, j: int, tested: bool = True) -> dict[str, Any]:
        data, began = self.task.data, time.perf_counter()
        batches, temperature = self._batches(arm, j)
        fit = self._fit(arm, lr, temperature)
        recorder = None
        if tested and self.protocol.curve and sampling.active() is None:
            recorder = CurveRecorder(self.protocol.curve_steps(arm.n), self._measure, self.task.device, began)
            batches = recorder.counted(batches)
        path = (self.task.seed, "student", j)
        trained = next(self._shared_trainer().train([path], batches, fit, after_step=recorder))
        network = self.learner.classifier(trained)
        holdout = self._held_out(network)
        if not tested:
            return {"holdout": holdout, "seconds": time.perf_counter() - began}
        logits, labels = self._tested(network)
        predicted = logits.argmax(1)
        classes, balanced = recall(predicted, labels, len(data.classes))
        row = {"test": right(predicted, labels), "balanced": balanced, "classes": classes}
        row |= {"calibration": 100 * calibration_error(logits, labels)}
        if len(data.classes) > _GUESSES:
            row |= {"top5": top_k(logits, labels, _GUESSES)}
        if also := self.learner.also(trained, network, generator(self.task.seed, "student", j, "also")):
            row |= {"also": also}
        if tested and self.protocol.curve and sampling.active() is not None:
            points = self.protocol.curve_steps(arm.n)
            sampling.credit(len(points) * sampling.timed(partial(self._measure, trained)))
        if recorder is not None:
            row |= {"curve": recorder.curve().to_dict()}
        return row | {"holdout": holdout, "seconds": time.perf_counter() - began}

    def _measure(self, trained: nn.Module) -> tuple[float, float | None]:
        """Return the accuracies in percent of a student on all test images and on the held-out images, if any."""
        network = self.learner.classifier(trained)
        logits, labels = self._tested(network)
        return right(logits.argmax(1), labels), self._held_out(network)

    def _tested(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Return logits (n, k) and labels (n,) of all test images."""
        return predict(network, self.task.data.tested(self.protocol.test_resize).batches(512))

    def _held_out(self, network: nn.Module) -> float | None:
        """Return the accuracy in percent on the held-out images; None if there are none."""
        holdout = self.task.data.holdout
        return accuracy(network, holdout.batches(512)) if len(holdout) else None

    def _fit(self, arm: Arm, lr: float, temperature: float) -> Fit:
        """Return how a student is trained on an arm; `temperature` is that of its labels."""
        fit = self.protocol.fit(arm.n, lr, self.task.data.augment, temperature)
        return fit if self.learner.criterion is None else replace(fit, criterion=self.learner.criterion)

    def _batches(self, arm: Arm, j: int) -> tuple[Batches, float]:
        """Return the batches of student j, and the temperature of their labels."""
        protocol, data, labeller = self.protocol, self.task.data, self.labeller
        batches = arm.batches or partial(shuffled, *arm.load(j), protocol.batch)
        if arm.viewed:
            assert arm.temperature is not None, "views have a teacher's labels"
            return batches, arm.temperature
        if labeller is not None and arm.temperature is None:
            temperature = labeller.settings.temperature(protocol.temperature)
            return live(labeller, batches, protocol.views, data, temperature, protocol.micro), temperature
        if protocol.views != ViewPolicy():
            batches = viewed(batches, protocol.views, data)
        return batches, 1.0 if arm.temperature is None else arm.temperature

    def _shared_trainer(self) -> Trainer:
        if self._trainer is None:
            self._trainer = Trainer(self.learner.build, self.task.compile, self.task.precision)
        return self._trainer


def evaluate(
    distilled: DistilledSet,
    start: DistilledSet | None,
    evaluator: Evaluator,
    *,
    controls: bool = True,
    store: LabelStore | None = None,
    without: str = NOT_AT_HAND,
) -> Report:
    """Score a set, its control, its starting point and the full data.

    Args:
        distilled: the set.
        start: the set at iteration 0, or None.
        evaluator: task and protocol.
        controls: False to score only the set itself.
        store: the stored labels of the set's views, if any.
        without: if the references of such a set cannot be labelled, the reason, for the report.
    """
    task, protocol = evaluator.task, evaluator.protocol
    missing: dict[str, str] = {}
    lr = evaluator.lr_of(distilled)
    own = "learned by the method" if distilled.lr is not None else "the protocol's lr"
    accuracy_ = evaluator.score(own_arm(distilled, evaluator, store), lr, protocol.students, own)
    candidates = evaluator.lrs_of(distilled)
    control = begin = full = decoded = None
    if controls and store is not None and evaluator.labeller is None:
        # without the teachers, the references would have different labels than the set
        missing |= dict.fromkeys(("control", "start", "full"), without)
    elif controls:
        learner = evaluator.learner
        if learner.without:
            missing |= dict.fromkeys(("control", "full"), learner.without)
        else:
            control = evaluator.better_lr(learner.labelled(control_arm(task)), candidates, protocol.students)
        if "start" not in protocol.references:
            missing["start"] = NOT_REFERRED
        elif start is None:
            missing["start"] = "the set at iteration 0 is not stored"
        else:
            arm = arm_of("the set at iteration 0", start, evaluator)
            begin = evaluator.better_lr(arm, candidates, protocol.students)
        if distilled.decode_factor > 1 and not learner.without and "decoded" in protocol.references:
            arm = learner.labelled(decoded_arm(task, distilled.decode_factor))
            decoded = evaluator.better_lr(arm, candidates, protocol.students)
        if not learner.without:
            full, why = _full(evaluator)
            missing |= {"full": why} if why else {}
    else:
        missing |= dict.fromkeys(("control", "start", "full"), "not requested")
    outside = distilled.outside(task.data.preprocess)
    return Report(
        accuracy=accuracy_,
        control=control,
        start=begin,
        full=full,
        decoded=decoded,
        missing=missing,
        classes=task.data.classes,
        outside=outside,
        notes=((evaluator.learner.note,) if evaluator.learner.note else ())
        + notes_on(accuracy_, begin, outside, task.data)
        + reads_more(distilled)
        + assumed_at_import(distilled.provenance),
        **conditions(distilled, evaluator, store),
    )


def conditions(distilled: DistilledSet, evaluator: Evaluator, store: LabelStore | None) -> dict[str, Any]:
    """Return the fields of a report that say what its numbers hold for: protocol, student, labels, data, set."""
    task, protocol = evaluator.task, evaluator.protocol
    student, labels = evaluator.learner.student, _labels(evaluator, store)
    return {
        "protocol": protocol.to_dict(),
        "fingerprint": protocol.fingerprint(student, task.data.augment, making(labels)),
        "student": student,
        "labels": labels,
        "dataset": {k: getattr(task.data, k) for k in ("name", "where", "licence", "notes", "fingerprint")},
        "bytes": distilled.bytes(),
        "provenance": dict(distilled.provenance),
    }


def own_arm(distilled: DistilledSet, evaluator: Evaluator, store: LabelStore | None) -> Arm:
    """Return the arm of the set itself, with the stored labels of its views, if any."""
    return arm_of("the distilled set", distilled, evaluator, store)


def arm_of(name: str, distilled: DistilledSet, evaluator: Evaluator, store: LabelStore | None = None) -> Arm:
    """Return the arm of a set of any kind, with the stored labels of its views, if any."""
    task = evaluator.task
    if distilled.image_kind == "indices":
        return selection_arm(name, distilled, task.data)
    if distilled.image_kind == "schedule":
        return schedule_arm(name, distilled, task.data, evaluator.protocol)
    if store is None:
        return set_arm(name, distilled, task.data.preprocess)
    return stored_arm(name, distilled, store, task, evaluator.protocol)


def _by_class(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return balanced and per-class accuracies; empty if an older stored student lacks them."""
    if not all("classes" in row for row in rows):
        return {}
    each = zip(*(row["classes"] for row in rows), strict=True)  # a class without test images is None in every row
    means = tuple(None if None in shares else statistics.fmean(shares) for shares in each)
    return {"balanced": tuple(row["balanced"] for row in rows), "classes": means}


def _predicted(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Return top-5 accuracies and calibration errors; without those that an older stored student lacks."""
    names = [name for name in ("top5", "calibration") if all(name in row for row in rows)]
    return {name: tuple(row[name] for row in rows) for name in names}


def _labels(evaluator: Evaluator, store: LabelStore | None) -> dict[str, Any] | None:
    """Return the report's description of the teachers' labels."""
    labeller, epochs = evaluator.labeller, None if store is None else store.spec.epochs
    if labeller is None:
        known = {"names": None, "accuracies": None, "stored_epochs": epochs}
        return None if store is None else {**store.spec.facts, **known}
    return {
        **labeller.facts,
        "names": list(labeller.origin["teachers"]),
        "accuracies": list(labeller.accuracies),
        "stored_epochs": epochs,
    }


def making(labels: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the label settings that affect a number, regardless of the teachers' identity and of label storage."""
    if labels is None:
        return None
    how = ["form", "teacher_mode"]
    how += ["top"] if labels["form"] == "topk" else []
    how += ["ensemble"] if len(labels["teachers"]) > 1 else []
    how += ["low", "high", "smooth"] if labels.get("high") else []
    return {name: labels[name] for name in how}


def student_passes(evaluator: Evaluator, n: int) -> int:
    """Return how many images a student on n images processes; one that is only scored counts a third."""
    protocol, data = evaluator.protocol, evaluator.task.data
    scored = (1 + len(protocol.curve_steps(n))) * (len(data.test) + len(data.holdout))
    return protocol.total_steps(n) * min(protocol.batch, n) + scored // 3


def full_passes(protocol: Protocol, n: int) -> int:
    """Return how many images all students on the n real images process; 0 if this arm is disabled."""
    passes = _passes_of_full(protocol, n)
    allowed = protocol.full or (protocol.full is None and passes <= protocol.full_budget)
    return passes if allowed else 0


def _passes_of_full(protocol: Protocol, n: int) -> int:
    return protocol.total_steps(n) * min(protocol.batch, n) * protocol.full_students


def _full(evaluator: Evaluator) -> tuple[Score | None, str]:
    protocol, data = evaluator.protocol, evaluator.task.data
    if protocol.full is False:
        return None, "eval.full=false"
    if not full_passes(protocol, len(data.train)):
        passes, budget = _passes_of_full(protocol, len(data.train)), protocol.full_budget
        return None, f"{passes:,} image passes are above eval.full_budget={budget:,}; request it with eval.full=true"
    arm = evaluator.learner.labelled(full_arm(data, protocol.batch))
    return evaluator.score(arm, protocol.lr, protocol.full_students, "the protocol's lr"), ""


def _test_accuracy(row: dict[str, Any]) -> str:
    return f": {row['test']:.2f} %"


def _holdout_accuracy(row: dict[str, Any]) -> str:
    return f": {row['holdout']:.2f} % of held-out images"
