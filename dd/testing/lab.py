"""The test bench: runs a method on a tiny task with real images and records what it did."""

import dataclasses
import signal
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Method, Synthetic, Task, prepare
from dd.engine.synthesise import Watch, synthesise
from dd.errors import Interrupted
from dd.io import digest
from dd.pipeline.task import make_task
from dd.recipes import Recipe, recipe_file, resolve
from dd.recipes.schema import Leaf, leaves
from dd.runs import Store
from dd.runs.stop import Stop
from dd.runs.store import Artefact
from dd.sets import DistilledSet
from dd.settings import build
from dd.testing.surroundings import disturbed, hooked, snapshot

# 500 training images and a network with a thousand parameters: a whole run takes less than a second
_TASK: Mapping[str, Any] = {
    "dataset": "fashion-mini",
    "ipc": 1,
    "device": "cpu",
    "compile": False,
    "data.holdout": 0.95,
    "student.width": 4,
}
# last part of a setting's name -> values to try, smallest first, as long as they are below the current one
_FEWER: Mapping[str, tuple[int, ...]] = {
    "iterations": (3,),
    "steps": (2, 3, 5, 10),
    "count": (2,),
    "epochs": (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30),
}
_SKELETON = ("network", "skeleton")  # of `Task.functional`, whose weights do not matter


class WatchedStore(Store):
    """A store that records every request as (kind, key)."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: set[tuple[str, str]] = set()

    def peek(self, kind: str, spec: Mapping[str, Any]) -> Artefact | None:
        """Record the request; every request starts with a look-up."""
        self.asked.add((kind, digest(spec)))
        return super().peek(kind, spec)


@dataclass(frozen=True)
class WatchedTask(Task):
    """A task that records which generators were used and which networks were built."""

    drawn: set[tuple[str | int, ...]] = field(default_factory=set)
    built: list[nn.Module] = field(default_factory=list)

    def generator(self, *path: str | int) -> torch.Generator:
        """Record the generator; see `Task`."""
        self.drawn.add(path)
        return super().generator(*path)

    def common(self, *path: str | int) -> torch.Generator:
        """Record the generator; see `Task`."""
        self.drawn.add(path)
        return super().common(*path)

    def build(self, rng: torch.Generator) -> nn.Module:
        """Record the network; see `Task`."""
        self.built.append(super().build(rng))
        return self.built[-1]

    @property
    def is_random(self) -> bool:
        """Whether the result may depend on random draws."""
        return bool(self.drawn - {_SKELETON})


@dataclass(frozen=True, eq=False)
class Seen:
    """One run of a method, with its side effects.

    Attributes:
        method: the method with its tiny settings.
        task: the task, with its records.
        syn: the variables after the last iteration.
        start: the set at iteration 0.
        result: the final set.
        needed: the artefacts that `prepare` requested, as (kind, key).
        warnings: warnings as "Category: text".
        disturbed: names of global states that have changed.
        hooked: modules that still have hooks.
    """

    method: Method
    task: WatchedTask
    syn: Synthetic
    start: DistilledSet
    result: DistilledSet
    needed: frozenset[tuple[str, str]]
    warnings: tuple[str, ...]
    disturbed: tuple[str, ...]
    hooked: tuple[str, ...]


class Lab:
    """Runs methods for the checks; each run is shared by all checks, and experts by all methods.

    Args:
        folder: folder for the store and for checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._recipes: dict[type[Method], Recipe] = {}
        self._seen: dict[tuple[type[Method], int, int], Seen] = {}

    def recipe(self, cls: type[Method]) -> Recipe:
        """Return the method's `preset=smoke` if it has one, else its defaults, with every size as small as allowed."""
        if cls not in self._recipes:
            asked = {"method": cls.name, **_TASK}
            if "smoke" in recipe_file(cls.name).presets:
                asked["preset"] = "smoke"
            self._recipes[cls] = resolve(asked | _fewer(resolve(asked).method))
        return self._recipes[cls]

    def method(self, cls: type[Method], task: Task) -> Method:
        """Return the method of `recipe`, settled for a task."""
        return self.recipe(cls).method.settle(task)

    def task(self, cls: type[Method], seed: int = 0) -> WatchedTask:
        """Return a fresh task for a method."""
        task = make_task(dataclasses.replace(self.recipe(cls), seed=seed))
        given: dict[str, Any] = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
        given["store"] = WatchedStore(self.folder / "store")
        return WatchedTask(**given)

    def seen(self, cls: type[Method], seed: int = 0, time: int = 1) -> Seen:
        """Return a whole run with this seed; `time` distinguishes repetitions."""
        if (cls, seed, time) not in self._seen:
            task = self.task(cls, seed)
            self._seen[cls, seed, time] = _watch(self.method(cls, task), task)
        return self._seen[cls, seed, time]

    def tried(self, cls: type[Method], task: Task) -> DistilledSet:
        """Return the set of a run on a task other than the method's own."""
        return _once(self.method(cls, task), task)[2]

    def interrupted(self, cls: type[Method]) -> DistilledSet:
        """Return the set of a run that is stopped and resumed as a new process after every iteration."""
        task = self.task(cls)
        method = self.method(cls, task)
        checkpoint = Checkpoint(self.folder / "checkpoints" / f"{cls.name}.safetensors", "conformance")
        checkpoint.path.unlink(missing_ok=True)
        for _ in range(method.iterations + 1):
            try:
                return _once(build(method, {}), task, checkpoint, interrupt=True)[2]
            except Interrupted:
                continue
        raise RuntimeError(f"still at iteration {checkpoint.iteration()} of {method.iterations} after that many starts")


def _watch(method: Method, task: WatchedTask) -> Seen:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = snapshot()
        syn, start, result = _once(method, task)
        after = snapshot()
    store = task.store
    assert isinstance(store, WatchedStore)
    return Seen(
        method=method,
        task=task,
        syn=syn,
        start=start,
        result=result,
        needed=frozenset(store.asked),
        warnings=tuple(f"{w.category.__name__}: {w.message}" for w in caught),
        disturbed=tuple(disturbed(before, after)),
        hooked=tuple(hooked([*task.built, syn])),
    )


def _once(
    method: Method, task: Task, checkpoint: Checkpoint | None = None, *, interrupt: bool = False
) -> tuple[Synthetic, DistilledSet, DistilledSet]:
    """Prepare, start, synthesise and finish; optionally stop after the first iteration."""
    stop = Stop("")

    def after_iteration(it: int, scalars: Mapping[str, Any]) -> None:
        if interrupt:
            stop.requested = signal.SIGINT

    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    start = method.finish(syn, task, prepared)
    synthesise(method, task, prepared, syn, checkpoint, Watch(log=after_iteration, stop=stop))
    return syn, start, method.finish(syn, task, prepared)


def _fewer(method: Method) -> dict[str, Any]:
    """Return the smallest valid value for each setting that affects the length of a run."""
    chosen: dict[str, Any] = {}
    for key, leaf in leaves(method).items():
        for value in _FEWER.get(key.rpartition(".")[2], ()):
            if _is_less(value, leaf) and _allows(method, chosen | {key: value}):
                chosen[key] = value
                break
    return chosen


def _is_less(value: int, leaf: Leaf) -> bool:
    now = leaf.default
    return isinstance(now, int) and not isinstance(now, bool) and value < now


def _allows(method: Method, values: Mapping[str, Any]) -> bool:
    try:
        build(method, values)
    except ValueError:
        return False
    return True
