"""Memory of sets: how much saving, loading and evaluating one takes, relative to its own bytes.

Every side begins with the same work on a set of a few images, so that libraries, the network, and test images are in
its memory before; what rises above that is the set's.  The peak is the process's own high-water mark.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from noise import noise
from scale import Scale
from torch import Tensor
from worker import Gate, resident

from dd.data import RealData
from dd.engine.method import Task
from dd.evaluation import Protocol
from dd.evaluation.evaluate import Evaluator, evaluate
from dd.labels import LabelSettings, LabelStore
from dd.labels.spec import LabelSpec
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.sets import DistilledSet, load, save
from dd.sets.formats import set_file
from dd.views import ViewPolicy

BATCH, TESTED = 20, 8  # images per step of a student, and classes with a test image
POLICY = ViewPolicy(crop=0.5, flip=True)


def make(gate: Gate, scale: Scale, folder: str, classes: int, ipc: int, side: int, kind: str) -> None:
    """Write a set of noise of a shape into a folder, and one of a few images beside it."""
    gate.ready()
    for name, n in (("few", 2 * BATCH), ("set", classes * ipc)):
        save(_set(n, classes, side, kind, Path(folder) / name), Path(folder) / name / "set.safetensors")
    gate.pause()


def saving(gate: Gate, scale: Scale, folder: str, classes: int, ipc: int, side: int, kind: str) -> None:
    """Save a set that is in memory; the set itself counts."""
    there = Path(folder) / "again"
    save(_set(2 * BATCH, classes, side, "bytes", there), there / "few.safetensors")
    _measured(gate, lambda: save(_set(classes * ipc, classes, side, _held(kind), there), there / "set.safetensors"))


def loading(gate: Gate, scale: Scale, folder: str, classes: int, ipc: int, side: int, kind: str) -> None:
    """Load a set."""
    load(Path(folder) / "few" / "set.safetensors")
    _measured(gate, lambda: load(Path(folder) / "set" / "set.safetensors"))


def evaluating(gate: Gate, scale: Scale, folder: str, classes: int, ipc: int, side: int, kind: str) -> None:
    """Load a set, and train a student on it for a few steps."""
    few, whole = (set_file(Path(folder) / name / "set.safetensors") for name in ("few", "set"))
    data = _real(classes, side)
    _evaluate(few, data)
    _measured(gate, lambda: _evaluate(whole, data))


def _measured(gate: Gate, work: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    gate.ready()
    held = work()  # what it returns stays in memory until the mark is read
    gate.pause(peak=resident("VmHWM"))
    del held


def _real(classes: int, side: int) -> RealData:
    """Real images of the first classes only: there are a few to test students on."""
    return replace(noise(TESTED, (3, side, side), 2), classes=tuple(map(str, range(classes))))


def _evaluate(file: Path, data: RealData) -> DistilledSet:
    distilled = load(file)
    spec = NetworkSpec(depth=4, width=8, norm="instance", arch="convnet")
    task = Task(
        data=data,
        targets=distilled.own_classes(),
        student=spec,
        seed=0,
        device=torch.device("cpu"),
        store=Store(),
    )
    protocol = Protocol(steps=3, students=1, batch=BATCH, full=False, views=POLICY if distilled.views else ViewPolicy())
    if distilled.views:
        protocol = replace(protocol, steps=None, epochs=1, inclusive=False)
    store = distilled.label_store() if distilled.views else None
    evaluate(distilled, None, Evaluator(task, protocol, force=True), controls=False, store=store)
    return distilled


def _held(kind: str) -> str:
    return "floats" if kind == "labelled" else kind


def _set(n: int, classes: int, side: int, kind: str, folder: Path) -> DistilledSet:
    shape, rng = (3, side, side), generator(0, "set")
    if kind == "bytes":
        images = torch.randint(0, 256, (n, *shape), generator=rng, dtype=torch.uint8)
    else:
        images = torch.randn(n, *shape, generator=rng)
    made = DistilledSet(
        images=images,
        labels=torch.arange(n) * classes // n,
        classes=tuple(map(str, range(classes))),
        source="noise",
        space=_real(classes, side).preprocess.spec(),
    )
    return made if kind != "labelled" else _labelled(made, folder)


def _labelled(made: DistilledSet, folder: Path) -> DistilledSet:
    """The set with one epoch of top-5 labels of views, of a teacher that is made up."""
    settings = LabelSettings(form="topk")
    shape = (made.images.shape[1], made.images.shape[2], made.images.shape[3])
    store = LabelStore(
        folder,
        LabelSpec(made.n, len(made.classes), 1, BATCH, shape, POLICY, settings, images=made.labelled_sha256()),
        made.labels,
    )
    rng = generator(0, "teacher")

    def label(views: Tensor, *_: Any) -> Tensor:
        return torch.randn(len(views), len(made.classes), generator=rng)

    store.make(0, lambda index: made.images[index], label)
    return replace(made, label_kind="views", views=store.stated())
