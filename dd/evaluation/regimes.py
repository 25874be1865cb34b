"""Score a set and its references under hard labels, one soft label for each image, and a teacher on every view."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dd.engine.method import Task
from dd.evaluation.arms import (
    Arm,
    control_arm,
    decoded_arm,
    equal_bytes_arm,
    fixed_arm,
    full_arm,
    noise_arm,
    require_rounds,
)
from dd.evaluation.evaluate import NOT_REFERRED, Evaluator, arm_of, making
from dd.evaluation.protocols import Protocol, Regime
from dd.evaluation.report import RegimeReport, Score
from dd.evaluation.suites import Suite
from dd.labels import Labeller
from dd.sets import DistilledSet

_HALF = 0.5  # weight of the hard label in a mixed one
LONGER = ("accuracy", "control", "coreset")  # rows that are also scored at other lengths of training


@dataclass(frozen=True)
class RegimeArms:
    """What students are trained on in every regime; labels are classes.

    Attributes:
        arms: by the name of a row, see `RegimeReport.rows`; all but "full".
        missing: for rows that do not exist, the reason.
        lr: the learning rate that the set learned, a candidate for SGD; None if it has none.
        mixed: also score the set with labels that are half hard, half soft, where there is one soft label per image.
        coreset: the name of the selection method of the row "coreset".
        images: bytes of the set's images.
        labelled: number of different images that a student on the set is shown, tiles decoded.
    """

    arms: Mapping[str, Arm]
    missing: Mapping[str, str]
    lr: float | None
    mixed: bool
    coreset: str
    images: int
    labelled: int


def score_regimes(
    distilled: DistilledSet,
    start: DistilledSet | None,
    coresets: Mapping[str, DistilledSet],
    evaluator: Evaluator,
    suite: Suite,
    teacher: Labeller | None,
) -> tuple[RegimeReport, ...]:
    """Score a set and its references in every regime that the protocol asks for.

    Args:
        distilled: the set; it keeps its images and the class of each, whatever labels it has.
        start: the set at iteration 0, or None.
        coresets: sets of selected real images, as many per class, by method.
        evaluator: its protocol names the regimes and the numbers of students.
        suite: the protocol of each regime.
        teacher: labels images and views; needed for all regimes but "hard".

    Raises:
        UsageError: the set's images have no single class, or it is a schedule of too few passes, or several coresets
            are given and nothing is held out to choose one.
    """
    require_lengths(distilled, evaluator.protocol, suite)
    asked = evaluator.protocol
    under: dict[Regime, Evaluator] = {
        regime: evaluator.under(suite.protocol(regime, asked), None) for regime in asked.labels
    }
    best, used = _best(coresets, under[asked.labels[0]]), _bytes_used(distilled, evaluator)
    return tuple(
        _scored(regime, _rows(distilled, start, best, used, one), one, None if regime == "hard" else teacher)
        for regime, one in under.items()
    )


def require_lengths(distilled: DistilledSet, asked: Protocol, suite: Suite) -> None:
    """Raise `UsageError` if a set is a schedule with fewer passes than a regime's protocol needs.

    Args:
        distilled: the set.
        asked: names the regimes.
        suite: the protocol of each regime.
    """
    for regime in asked.labels:
        way_out = f"eval.labels={regime} trains by the protocol {suite.protocols[regime]}; name another eval.suite"
        way_out += " or shorter eval.lengths" if asked.lengths else ""
        for factor in (1.0, *asked.lengths):
            require_rounds(distilled, suite.protocol(regime, asked).stretched(factor), way_out)


def hardened(distilled: DistilledSet) -> DistilledSet:
    """Return a set's images with the class of each as its label; a soft label becomes its most probable class."""
    return replace(distilled, labels=distilled.own_classes(), label_kind="hard", views=None)


def same_presentations(protocol: Protocol, n: int, whole: int) -> Protocol:
    """Return a protocol under which a student on `whole` images is shown as many as under `protocol` on n.

    The numbers differ by at most half a batch.  Schedules keep their shape; a warm-up keeps its share of the training
    to the nearest pass.

    Args:
        protocol: how students are trained on n images.
        n: number of images of the set.
        whole: number of all images.
    """
    shown, own = presented(protocol, n), protocol.total_steps(n)
    whole -= protocol.batch > 1 and whole % protocol.batch == 1  # `full_arm` drops a batch of a single image
    full, rest = divmod(shown, whole)
    steps = max(full * protocol.passes_to_steps(whole) + round(rest / protocol.batch), 1)
    warmup = protocol.warmup * protocol.passes_to_steps(n) / own * steps / protocol.passes_to_steps(whole)
    return replace(protocol, steps=steps, epochs=None, warmup=round(warmup))


def presented(protocol: Protocol, n: int) -> int:
    """Return how many images a student on n images is shown in all."""
    full, rest = divmod(protocol.total_steps(n), protocol.passes_to_steps(n))
    return full * n + min(rest * protocol.batch, n)


def _best(coresets: Mapping[str, DistilledSet], evaluator: Evaluator) -> tuple[str, DistilledSet] | None:
    """Return the coreset with the best held-out accuracy of a few students, with its method."""
    if len(coresets) < 2:
        return next(iter(coresets.items()), None)
    protocol = evaluator.protocol
    means: dict[str, float] = {}
    for name, coreset in coresets.items():
        arm = arm_of(f"the coreset of {name}", hardened(coreset), evaluator)
        means[name] = statistics.fmean(evaluator.held_out(arm, protocol.lr, min(protocol.pilots, protocol.students)))
    best = max(means, key=lambda name: means[name])
    return best, coresets[best]


def _rows(
    distilled: DistilledSet,
    start: DistilledSet | None,
    coreset: tuple[str, DistilledSet] | None,
    used: int,
    evaluator: Evaluator,
) -> RegimeArms:
    """Return the rows of a regime.

    Args:
        distilled: the set.
        start: the set at iteration 0, or None.
        coreset: the coreset beside it, with its method, or None.
        used: bytes that the set takes with its own labels.
        evaluator: its protocol is the regime's.
    """
    task, wanted = evaluator.task, evaluator.protocol.references
    arms = {"accuracy": arm_of("the distilled set", hardened(distilled), evaluator), "control": control_arm(task)}
    missing: dict[str, str] = {}
    if coreset is None:
        missing["coreset"] = "not requested: eval.coreset=METHOD"
    else:
        arms["coreset"] = arm_of(f"the coreset of {coreset[0]}", hardened(coreset[1]), evaluator)
    if distilled.decode_factor > 1 and "decoded" in wanted:
        arms["decoded"] = decoded_arm(task, distilled.decode_factor)
    if "start" not in wanted:
        missing["start"] = NOT_REFERRED
    elif start is None:
        missing["start"] = "the set at iteration 0 is not stored"
    else:
        arms["start"] = arm_of("the set at iteration 0", hardened(start), evaluator)
    if "noise" in wanted:
        arms["noise"] = noise_arm(task)
    if "bytes" not in wanted:
        missing["bytes"] = NOT_REFERRED
    elif distilled.image_kind in ("indices", "schedule"):
        missing["bytes"] = "the set holds indices, which need the real images"
    elif (arm := equal_bytes_arm(task, used)) is None:
        missing["bytes"] = "the set is smaller than one real image"
    else:
        arms["bytes"] = arm
    lr = None if distilled.lr is None else evaluator.lr_of(distilled)
    labelled = arms["accuracy"].n
    if distilled.image_kind == "schedule":
        labelled = len(distilled.images[: evaluator.protocol.passes(distilled.n)].unique())
    found = {"coreset": coreset[0] if coreset else "", "images": distilled.bytes()["images"], "labelled": labelled}
    return RegimeArms(arms, missing, lr, "mixed" in wanted, **found)


def _bytes_used(distilled: DistilledSet, evaluator: Evaluator) -> int:
    """Return what the set takes with its own labels: images, labels, and the teacher if its students ask one."""
    asked = evaluator.labeller.bytes if evaluator.labeller is not None and distilled.views is None else 0
    return distilled.bytes()["total"] + asked


def _scored(regime: Regime, rows: RegimeArms, evaluator: Evaluator, teacher: Labeller | None) -> RegimeReport:
    task, protocol = evaluator.task, evaluator.protocol
    temperature = protocol.temperature if teacher is None else teacher.settings.temperature(protocol.temperature)
    views = evaluator.under(protocol, teacher) if regime == "views" else evaluator

    def labelled(arm: Arm) -> Arm:
        return arm if regime != "soft" or teacher is None else fixed_arm(arm, teacher, temperature)

    # a learned lr is one of SGD with momentum
    candidates = [protocol.lr] + ([] if rows.lr is None or protocol.optimiser != "sgd" else [rows.lr])
    scores: dict[str, Score] = {}
    for name, arm in rows.arms.items():
        if name != "bytes" or regime == "hard":
            scores[name] = views.better_lr(labelled(arm), candidates, protocol.students)
    if rows.mixed and regime == "soft" and teacher is not None:
        arm = fixed_arm(rows.arms["accuracy"], teacher, temperature, hard=_HALF)
        scores["mixed"] = views.better_lr(arm, candidates, protocol.students)
    lengths: dict[str, dict[str, Score]] = {}
    for factor in evaluator.protocol.lengths:
        longer = views.under(protocol.stretched(factor), views.labeller)
        some = {name: labelled(arm) for name, arm in rows.arms.items() if name in LONGER}
        lengths[f"{factor:g}"] = {
            name: longer.better_lr(arm, candidates, protocol.students) for name, arm in some.items()
        }
    missing = dict(rows.missing)
    n, whole = rows.arms["accuracy"].n, len(task.data.train)
    if protocol.full is False:
        missing["full"] = "eval.full=false"
    else:
        longer = views.under(same_presentations(protocol, n, whole), views.labeller)
        arm = labelled(full_arm(task.data, protocol.batch))
        scores["full"] = longer.score(arm, protocol.lr, protocol.full_students, "the protocol's lr")
    labels = None if teacher is None else _described(teacher)
    made = making(labels)
    if made is not None:
        made |= {"asked": "once" if regime == "soft" else "every view"}
    return RegimeReport(
        regime=regime,
        rows=scores,
        missing=missing,
        protocol=protocol.to_dict(),
        fingerprint=protocol.fingerprint(evaluator.learner.student, task.data.augment, made),
        coreset=rows.coreset,
        labels=labels,
        bytes=_bytes(regime, rows, task, labels),
        spent=_spent(regime, protocol, n, rows.labelled),
        lengths=lengths,
    )


def _described(teacher: Labeller) -> dict[str, Any]:
    names, accuracies = list(teacher.origin["teachers"]), list(teacher.accuracies)
    return {**teacher.facts, "names": names, "accuracies": accuracies, "bytes": teacher.bytes}


def _bytes(regime: Regime, rows: RegimeArms, task: Task, labels: Mapping[str, Any] | None) -> dict[str, int]:
    """Return what the set needs in this regime, in bytes: images, labels, and the teacher that students ask."""
    each = {"hard": torch.int64.itemsize, "soft": task.classes * torch.float32.itemsize, "views": 0}[regime]
    images, held = rows.images, rows.labelled * each
    asked = labels["bytes"] if regime == "views" and labels is not None else 0
    return {"images": images, "labels": held, "teacher": asked, "total": images + held + asked}


def _spent(regime: Regime, protocol: Protocol, n: int, labelled: int) -> dict[str, int]:
    """Return what one student on the set takes: steps, images shown, and images that the teacher has to label.

    Args:
        regime: the labels.
        protocol: how the student is trained.
        n: number of images of a pass.
        labelled: number of different images.
    """
    shown = presented(protocol, n)
    return {
        "steps": protocol.total_steps(n),
        "images": shown,
        "queries": {"hard": 0, "soft": labelled, "views": shown}[regime],
    }
