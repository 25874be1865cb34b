"""Building a `Task` from settings, and the context of a run."""

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from dd.data import RealData, open_data
from dd.engine.method import Task
from dd.errors import UsageError
from dd.networks import resolve_network
from dd.recipes import Evaluation, Recipe
from dd.runs import RunFolder, Store, sharing
from dd.runs.cost import measured
from dd.runs.memory import enough_memory
from dd.runs.stop import Stop
from dd.runs.trackers import Trackers
from dd.training.compiled import can_compile


def make_task(recipe: Recipe) -> Task:
    """Open the data and lay out the targets.

    Raises:
        UsageError: the data is missing, a class has too few images, the number of ipc values differs from the number of
            classes, or they differ and the method requires equal ones.
    """
    data = open_data(recipe.dataset, recipe.data, torch.device(recipe.device))
    counts = torch.bincount(data.train.labels.cpu(), minlength=len(data.classes))
    wanted = _wanted(recipe, counts)
    if recipe.method.even and int(wanted.min()) < int(wanted.max()):
        raise UsageError(
            f"method {recipe.method.name} needs the same number of images in every class, but {recipe.size} asks for "
            f"{int(wanted.min())} to {int(wanted.max())}; give one number, such as ipc={int(wanted.min())}"
        )
    if (wanted > counts).any():
        c = int((wanted > counts).nonzero()[0])
        raise UsageError(
            f"{recipe.size} asks for {int(wanted[c])} images of class {data.classes[c]!r}, but {recipe.dataset} has "
            f"{int(counts[c])} training images of it (data.holdout={recipe.data.holdout} is set aside); lower ipc"
        )
    return task_for(data, torch.arange(len(counts)).repeat_interleave(wanted), recipe)


def _wanted(recipe: Recipe, counts: Tensor) -> Tensor:
    """Return the (k,) numbers of images requested per class; `counts` (k,) are the numbers available."""
    if recipe.fraction is not None:
        return (counts * recipe.fraction).round().long().clamp_min(1)
    if isinstance(recipe.ipc, tuple):
        if len(recipe.ipc) != len(counts):
            raise UsageError(
                f"ipc has {len(recipe.ipc)} numbers, {recipe.dataset} has {len(counts)} classes: give one number for "
                f"all, or one per class in label order (`dd data check {recipe.dataset}` lists the classes)"
            )
        return torch.tensor(recipe.ipc)
    assert recipe.ipc is not None
    return torch.full_like(counts, recipe.ipc)


def task_for(data: RealData, targets: Tensor, settings: Recipe | Evaluation) -> Task:
    """Return a task on `data` with the given (n,) targets."""
    device = torch.device(settings.device)
    return Task(
        data=data,
        targets=targets.to(device),
        student=resolve_network(settings.student, data.size, data.channels),
        seed=settings.seed,
        device=device,
        store=Store(),
        compile=can_compile(device) if settings.compile == "auto" else settings.compile,
        precision=settings.precision,
    )


@dataclass(frozen=True, eq=False)
class Run:
    """A run in progress.

    Attributes:
        recipe: the settled recipe.
        task: what to distil.
        folder: the folder for its files.
        stop: pending signals.
        command: the command that started it.
        force: repeat what is already finished.
        trackers: the trackers that follow it.
        costs: "seconds", "peak_memory" and further values of each finished stage, by stage name.
    """

    recipe: Recipe
    task: Task
    folder: RunFolder
    stop: Stop
    command: str
    force: bool
    trackers: Trackers = field(default_factory=Trackers)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, words: str, ahead: int = 0) -> Iterator[None]:
        """Measure a stage, and offer its work to others; if it runs out of memory, name a setting that needs less.

        Args:
            name: name of the stage.
            words: what it does, for the message: "training students".
            ahead: how many artefacts it needs altogether, if it asks for them in several steps.
        """
        # what is made again must not be made by several processes
        alone = self.force and name != "prepare"
        shared = contextlib.nullcontext() if alone else sharing.stage(name, ahead)
        with measured(self.task.device) as cost, enough_memory(words, lighter(self.recipe, name)), shared:
            yield
        self.costs[name] = asdict(cost)


def lighter(recipe: Recipe, stage: str) -> str:
    """Suggest a setting that reduces the memory needed by a stage.

    Args:
        recipe: the run's recipe.
        stage: "data", "prepare", "synthesise", "label" or "evaluate".
    """
    found = lighter_settings(recipe, stage)
    return found[0] if found else "a smaller data.size" if stage == "data" else "a smaller ipc"


def lighter_settings(recipe: Recipe, stage: str) -> list[str]:
    """Return the settings, `key=value`, that reduce the memory needed by a stage, those that cost least first."""
    flat = recipe.flat()
    if stage == "data":
        return ["data.stream=true"] if recipe.data.stream is not True else []
    found = []
    if stage == "synthesise" and flat.get("backprop") not in (None, "stepwise"):
        found.append("backprop=stepwise")
    if stage == "synthesise" and flat.get("chunk", 1) != 1:
        found.append("chunk=1")
    keys = {
        "prepare": ("experts.batch", "squeeze.batch"),
        "synthesise": ("batch", "batch_real", "crops.candidates"),
        "label": ("eval.micro", "eval.batch"),
        "evaluate": ("eval.micro", "eval.batch"),
    }[stage]
    values = [(key, flat.get(key)) for key in keys]
    return found + [f"{key}={max(1, value // 2)}" for key, value in values if isinstance(value, int) and value > 1]


@contextlib.contextmanager
def numerics(settings: Recipe | Evaluation) -> Iterator[None]:
    """Use deterministic kernels inside the block, if requested."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(settings.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def context(device: str) -> dict[str, Any]:
    """Return device and versions, in the form a `Report` expects."""
    names = ("torch", "torchvision", "kornia", "timm", "numpy", "dd-workbench")
    chip = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return {
        "device": f"{device} ({chip}{threads})",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
    }
