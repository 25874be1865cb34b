"""Students of an evaluation: our evaluator against the loop that a researcher writes for each kind of labels.

Both sides train the same network on the same random real images, for the same steps, with our allocator setting, and
count the time from the first image to the accuracy of the last student.  A repeat is a process of its own, so that
compiling counts, too.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import plain
import torch
import torch.nn.functional as F
from pairs import Bench, Runs, in_turns
from report import Findings, compared
from scale import CEILINGS, EVALUATION, Scale
from sides import recipe_of
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision.transforms import v2
from worker import Gate

from dd.engine.method import Task
from dd.evaluation.arms import Arm, control_arm, fixed_arm
from dd.evaluation.evaluate import Evaluator
from dd.evaluation.protocols import Protocol
from dd.evaluation.suites import suite_named
from dd.labels import LabelSettings
from dd.networks import NetworkSpec, resolve_network
from dd.pipeline.task import make_task
from dd.rng import generator
from dd.runs.allocator import keep_large_buffers
from dd.training.relabel import TeacherLabeller
from dd.training.teacher_names import STUDENT
from dd.views.dsa import augment

SUITE = suite_named("quick")
FEW = 2  # students up to which a repeat is short enough to be paired more than once


def evaluation(bench: Bench, found: Findings) -> None:
    """Compare every number of students, network and kind of labels."""
    for what, options in EVALUATION.items():
        first, later = _paired(bench, options)
        ours, theirs = later.values()
        found.ratios.append(compared("evaluation", f"{what} / plain loop", ours, theirs, CEILINGS["evaluation"]))
        cold, slow = (run.warm_up for run in first.values())
        scores = ", ".join(
            f"{label} {statistics.fmean(value for report in run.reports for value in report['accuracy']):.1f} %"
            for label, run in later.items()
        )
        found.notes.append(
            f"evaluation: {what}: {cold / slow:.2f} the first time, with nothing compiled yet; test accuracy: {scores}"
        )
        found.machine |= ours.facts


def _paired(bench: Bench, options: dict[str, Any]) -> tuple[dict[str, Runs], dict[str, Runs]]:
    """Return the first pair, with an empty cache of compiled code, and the later pairs, which find it filled."""
    cache = tempfile.mkdtemp(prefix="compiled-", dir=bench.folder)
    sides = {"ours": ("scoring.ours", options), "plain": ("scoring.by_hand", options)}
    alone = replace(bench, scale=replace(bench.scale, repeats=0), compiled=Path(cache))
    first, later = in_turns(alone, sides), {label: Runs() for label in sides}
    pairs = bench.scale.pairs if options["students"] <= FEW else 1
    for _ in range(pairs):
        for label, run in in_turns(alone, sides).items():
            later[label].seconds.append(run.warm_up)
            later[label].reports += run.reports
            later[label].facts = run.facts
    return first, later


def ours(gate: Gate, scale: Scale, labels: str, students: int, network: dict[str, Any]) -> None:
    """Our evaluator, for as many students as are asked for, again and again."""
    task, protocol = _task_and_protocol(scale, labels, network)
    labeller = _labeller(task, labels)
    # students of an earlier pair are in the store: train them again
    evaluator = Evaluator(task, protocol, force=True, labeller=labeller if labels == "views" else None)
    arm = control_arm(task)
    if labels == "soft":
        assert labeller is not None, "soft labels have a teacher"
        arm = fixed_arm(arm, labeller, protocol.temperature)
    gate.ready()
    for repeat in count():
        members = range(repeat * students, (repeat + 1) * students)
        gate.pause(accuracy=[row["test"] for row in evaluator.students(arm, protocol.lr, members)])


def by_hand(gate: Gate, scale: Scale, labels: str, students: int, network: dict[str, Any]) -> None:
    """The plain loop for the same students."""
    task, protocol = _task_and_protocol(scale, labels, network)
    labeller, arm = _labeller(task, labels), control_arm(task)
    asked = None if labeller is None else labeller.teachers[0].network
    train = {"hard": _hard, "soft": _soft, "views": _views}[labels]
    test = task.data.test.images(torch.arange(len(task.data.test))), task.data.test.labels
    keep_large_buffers()
    gate.ready()
    for repeat in count():
        scores = []
        for j in range(repeat * students, (repeat + 1) * students):
            student = task.build(generator(0, "student", j))
            train(student, arm, j, protocol, task, asked)
            scores.append(plain.accuracy(student, *test, lambda images: images))
        gate.pause(accuracy=scores)


def _hard(student: nn.Module, arm: Arm, j: int, protocol: Protocol, task: Task, _: nn.Module | None) -> None:
    """SGD on the images and their classes, with DSA."""
    images, targets = _loaded(arm, j)
    _static(student, images, targets, j, protocol, task)


def _soft(student: nn.Module, arm: Arm, j: int, protocol: Protocol, task: Task, teacher: nn.Module | None) -> None:
    """The same with a teacher's probabilities of each image, at the protocol's temperature."""
    assert teacher is not None, "soft labels have a teacher"
    images, _ = _loaded(arm, j)
    with torch.no_grad():
        targets = (teacher(images) / protocol.temperature).softmax(1)
    _static(student, images, targets, j, protocol, task)


def _static(student: nn.Module, images: Tensor, targets: Tensor, j: int, protocol: Protocol, task: Task) -> None:
    batches = plain.loader(images, targets, protocol.batch)
    sgd = {"lr": protocol.lr, "momentum": protocol.momentum, "weight_decay": protocol.weight_decay}
    changed = partial(augment, task.data.augment, generator=generator(0, "plain", j))
    steps = protocol.total_steps(len(images))
    plain.student(student, batches, changed, steps, temperature=protocol.temperature, **sgd)


def _views(student: nn.Module, arm: Arm, j: int, protocol: Protocol, task: Task, teacher: nn.Module | None) -> None:
    """Crops, flips and CutMix of torchvision, the teacher asked on every batch, AdamW along a cosine."""
    assert teacher is not None, "views have a teacher's labels"
    assert protocol.epochs is not None, "a protocol of decoupled methods"
    images, targets = _loaded(arm, j)
    crop = v2.RandomResizedCrop(images.shape[-2:], (protocol.views.crop or 1.0, 1.0), antialias=True)
    each: Callable[[Tensor], Tensor] = v2.Compose([crop, v2.RandomHorizontalFlip()])
    mix = v2.CutMix(num_classes=task.classes)
    adamw = torch.optim.AdamW(student.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay)
    cosine = CosineAnnealingLR(adamw, protocol.epochs)
    student.train()
    for _ in range(protocol.epochs):
        for batch, classes in plain.loader(images, targets, protocol.batch):
            views, _ = mix(torch.stack([each(image) for image in batch]), classes)
            with torch.no_grad():
                wanted = (teacher(views) / protocol.temperature).softmax(1)
            adamw.zero_grad()
            F.cross_entropy(student(views) / protocol.temperature, wanted).backward()
            adamw.step()
        cosine.step()


def _loaded(arm: Arm, j: int) -> tuple[Tensor, Tensor]:
    images, targets = arm.load(j)
    assert isinstance(images, Tensor), "a hundred images fit in a tensor"
    return images, targets


def _task_and_protocol(scale: Scale, labels: Any, network: dict[str, Any]) -> tuple[Task, Protocol]:
    task, protocol = make_task(recipe_of(scale)), SUITE.protocol(labels, Protocol())
    student = resolve_network(NetworkSpec(**network), task.data.size, task.data.channels)
    if protocol.epochs is None:
        protocol = replace(protocol, steps=scale.student_steps)
    else:
        protocol = replace(protocol, epochs=max(1, scale.student_steps // 2))  # two steps each, as in the protocol
    return replace(task, student=student), protocol


def _labeller(task: Task, labels: str) -> TeacherLabeller | None:
    """The teacher of label regimes, of the student's architecture; trained once, before anything is timed."""
    if labels == "hard":
        return None
    origin = {"teachers": (STUDENT,), "squeeze": asdict(SUITE.squeeze), "weights": None}
    return TeacherLabeller.of_origin(task, {**origin, "labels": asdict(LabelSettings(mode="live"))})
