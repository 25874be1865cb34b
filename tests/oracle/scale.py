"""A selection from as many images as ImageNet-1k has, in a process of its own whose time and memory are measured.

    python tests/oracle/scale.py METHOD FOLDER CLASSES IMAGES WIDTH COUNT

prints one JSON object, see `main`.  The images are made up whenever they are asked for, and so is the network; their
features are computed, stored and selected from by the code under test.
"""

import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dd.data import RealData
from dd.data.positions import by_class
from dd.data.preprocess import standard
from dd.engine.method import Task
from dd.engine.registry import get
from dd.engine.selection import Selection
from dd.io import load_tensors, save_tensors
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.training.embeddings import Embeddings
from dd.training.record import Record
from dd.training.teachers import SqueezeSettings, Teacher, Teachers

PIXELS = 16


class MadeUp:
    """A `Split` of images (1, 4, 4), functions of their position and class; only the labels are in memory."""

    originals = None

    def __init__(self, classes: int, images: int) -> None:
        # classes in turn, so that those of a class are far apart, and the last classes have one image less
        self.labels = torch.arange(images) % classes
        self._by_class = by_class(self.labels, classes)
        self._prototypes = torch.randn(classes, PIXELS, generator=generator(0, "prototypes"))

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """See `Split`."""
        phases = index.double()[:, None] * torch.arange(1, PIXELS + 1).double().sqrt()
        return (self._prototypes[self.labels[index]] + phases.sin().float()).view(-1, 1, 4, 4)

    def of_class(self, c: int) -> Tensor:
        """See `Split`."""
        return self._by_class[c]


def made_up(folder: Path, classes: int, images: int, width: int, count: int) -> Task:
    """A task of `count` images per class on made-up data."""
    split = MadeUp(classes, images)
    space = standard(torch.empty(0), ((0.5,), (0.5,)))
    names = tuple(f"class {c}" for c in range(classes))
    given = {"channels": 1, "size": 4, "preprocess": space, "augment": "none", "where": "memory", "licence": "none"}
    data = RealData(
        **given,
        name="made up",
        classes=names,
        train=split,  # pyright: ignore[reportArgumentType]
        holdout=split,  # pyright: ignore[reportArgumentType]
        test=split,  # pyright: ignore[reportArgumentType]
        fingerprint=f"made up {classes} {images} {width}",
    )
    targets = torch.arange(classes).repeat_interleave(count)
    return Task(data, targets, NetworkSpec(), 0, torch.device("cpu"), Store(folder))


def features_of(task: Task, width: int) -> Any:
    """The features (n, width) of a network with random weights, made and stored in blocks of classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, task.classes)]
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    staff = Teachers(task, ("student",), SqueezeSettings())
    teacher = Teacher("made up", network, None, None, None, "")
    features = Embeddings(task, staff, head=True).fetch({staff: (teacher,)})  # pyright: ignore[reportArgumentType]
    return importlib.import_module("dd.methods.selection._features").FromFeatures(features)


def record_of(task: Task, epochs: int) -> Any:
    """A recorded run of `epochs` epochs, made up, and memory-mapped as one from the store."""
    shape = (epochs, len(task.data.train))
    make = partial(torch.rand, shape, generator=generator(0, "record"))
    path = task.store.root / "record.safetensors"
    save_tensors(path, {"log_p": -make(), "margin": make() - 0.5, "el2n": make()})
    tensors = load_tensors(path)
    correct = torch.zeros(1, 1).bool().expand(shape)
    return (Record(**tensors, correct=correct, grand=correct, change=correct, key="", holdout=None, seconds=0.0),)


GIVEN: Mapping[str, Callable[[Task, int], Any]] = defaultdict(lambda: features_of, ccs=record_of)
"""What `prepare` returns to a method, from the task and a number: the width of its features, or epochs."""


def peak() -> int:
    """The largest memory of this process so far, in bytes; `getrusage` would count that of its parent, too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main(method: str, folder: str, *numbers: str) -> dict[str, float | bool]:
    """Measure a selection.

    Returns:
        "before": peak memory in bytes with labels and positions in memory; "made" and "peak": the same after making
        what the method needs, and after the selection; "making" and "selecting": seconds; "valid": whether the choice
        has as many different images as requested, of every class if it is balanced.
    """
    torch.set_num_threads(1)
    classes, images, width, count = map(int, numbers)
    task = made_up(Path(folder), classes, images, width, count)
    facts: dict[str, float | bool] = {}
    chooser = cast(Selection[Any], get(method)())
    facts["before"], began = peak(), time.perf_counter()
    given = GIVEN[method](task, width)
    facts["made"], facts["making"] = peak(), time.perf_counter() - began
    began = time.perf_counter()
    index = chooser.choose(task, given)
    facts["peak"], facts["selecting"] = peak(), time.perf_counter() - began
    right = not chooser.balanced or torch.equal(task.data.train.labels[index], task.targets)
    return facts | {"valid": right and len(index.unique()) == len(task.targets)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
