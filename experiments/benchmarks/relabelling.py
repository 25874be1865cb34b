"""Labelling of views by a teacher: our label stage against a torchvision loop that saves batches.

Both sides have the same images, teacher, crops, flips and CutMix patches, and store all logits as float16.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from recovering import task_of, teacher_of
from scale import Scale
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from worker import Gate

from dd.data.preprocess import Standard
from dd.engine.method import Task
from dd.evaluation.protocols import PROTOCOLS, Protocol
from dd.labels import LabelSettings, LabelStore
from dd.labels.spec import LabelSpec
from dd.pipeline.label import label, label_spec
from dd.runs import RunFolder
from dd.sets import DistilledSet
from dd.training.relabel import TeacherLabeller
from dd.views import View

IPC, BATCH, SIDE = 2, 100, 224
FORMS = ("logits", "topk", "hard", "distances")


def ours(gate: Gate, scale: Scale, folder: str, times: int, network: dict[str, Any]) -> None:
    """Our label stage as in a run, into a new folder."""
    task, protocol = task_of(**network, ipc=IPC), _protocol(scale, times)
    images, labeller = _images(task), TeacherLabeller((teacher_of(task),), LabelSettings(), None, {}, [])
    distilled = DistilledSet(images, task.targets, task.data.classes, task.data.name, space=task.data.preprocess.spec())

    def finish(store: LabelStore) -> dict[str, Any]:
        batches = (batch for epoch in range(store.spec.epochs) for batch in store.epoch(epoch))
        return {"total": _total(batch.labels["logits"] for batch in batches)}

    gate.ready()
    for repeat in count():
        _, store = label(distilled, labeller, protocol, task, RunFolder(Path(folder, f"ours {repeat}")))
        gate.pause(partial(finish, store), count=protocol.passes(len(images)) * len(images))


def image_by_image(gate: Gate, scale: Scale, folder: str, times: int, network: dict[str, Any]) -> None:
    """The same views, made one image at a time."""
    task, protocol = task_of(**network, ipc=IPC), _protocol(scale, times)
    images, teacher = _images(task), teacher_of(task).network
    drawn, space = label_spec(LabelSettings(), protocol, task), task.data.preprocess
    assert isinstance(space, Standard), "published constants"
    mean, std = space.mean.tolist(), space.std.tolist()

    def shown(image: Tensor, box: list[int], mirrored: bool) -> Tensor:
        image = tv.resized_crop(image, *box, size=[task.data.size] * 2, antialias=True)
        image = tv.horizontal_flip(image) if mirrored else image
        return tv.normalize(tv.to_dtype(image, torch.float32, scale=True), mean, std)

    def finish(files: list[Path]) -> dict[str, Any]:
        return {"total": _total(torch.load(file)["logits"] for file in files)}

    gate.ready()
    for repeat in count():
        files = []
        for epoch in range(drawn.epochs):
            at = Path(folder, f"plain {repeat}", f"epoch_{epoch}")
            at.mkdir(parents=True)
            for number, index in enumerate(drawn.order(epoch).split(drawn.batch)):
                files.append(at / f"batch_{number}.pt")
                _save(files[-1], images[index], drawn.view(epoch, number), shown, teacher)
        gate.pause(partial(finish, files), count=drawn.epochs * drawn.n)


def sizes(gate: Gate, scale: Scale, classes: list[int]) -> None:
    """Bytes per view of every label form, with replay from the seed and from records."""
    policy = PROTOCOLS["sre2l"].views

    def each(form: Any, of: int, replay: Any) -> int:
        settings = LabelSettings(form=form, replay=replay)
        return LabelSpec(1, of, 1, 1, (3, SIDE, SIDE), policy, settings).bytes()

    gate.ready()
    rows = {of: {form: [each(form, of, replay) for replay in ("seed", "records")] for form in FORMS} for of in classes}
    gate.pause(rows=rows)


def _protocol(scale: Scale, times: int) -> Protocol:
    return replace(PROTOCOLS["sre2l"], batch=BATCH, epochs=times * scale.iterations)


def _images(task: Task) -> Tensor:
    """The images, uint8, ordered by class."""
    return task.data.train.raw(torch.arange(len(task.targets)))


def _total(logits: Iterator[Tensor]) -> float:
    """Sum of the squared logits."""
    return sum(float(some.double().square().sum()) for some in logits)


@torch.no_grad()
def _save(file: Path, images: Tensor, view: View, shown: Callable[..., Tensor], teacher: torch.nn.Module) -> None:
    """Make, mix and label the views of one batch; save their parameters and logits."""
    assert view.boxes is not None
    assert view.flips is not None
    assert view.patch is not None
    made = [shown(*one) for one in zip(images, view.boxes.tolist(), view.flips.tolist(), strict=True)]
    views, (top, left, height, width) = torch.stack(made), view.patch
    rows, columns = slice(top, top + height), slice(left, left + width)
    views[:, :, rows, columns] = views[view.partner][:, :, rows, columns]
    kept = {"boxes": view.boxes, "flips": view.flips, "partner": view.partner, "patch": view.patch}
    torch.save({**kept, "weight": view.weight, "logits": teacher(views).half()}, file)
