"""The suite itself: a sound method passes, and each check catches the fault it is there for."""

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Optimizer

from dd.engine import registry
from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.needs import Got, Made, Need
from dd.sets import DistilledSet
from dd.testing import conformance
from dd.testing.lab import Lab

KIND, SPEC = "toy", {"what": "class means"}


class Behaviour(Method):
    """Pulls noise towards the mean image of each class; with momentum and draws, so that resuming is no gift."""

    iterations = 50

    def means(self, task: Task) -> Made:
        def make(got: Got) -> tuple[dict[str, Tensor], dict[str, Any]]:
            every = [task.data.train.images(task.data.train.of_class(c)).mean(0) for c in range(task.classes)]
            return {"means": torch.stack(every)}, {}

        return Made(KIND, task.store, SPEC, make, "class means")

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        return [self.means(task)]

    def prepare(self, task: Task, got: Got) -> Any:
        means = got[self.means(task)].tensors
        assert means is not None
        return {"means": means["means"][task.targets], "network": task.network("judge"), "calls": 0}

    def start(self, task: Task, prepared: Any) -> Synthetic:
        return Synthetic(torch.randn(prepared["means"].shape, generator=task.generator("start")), task.targets)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        return [SGD([syn.images], lr=1.0, momentum=0.9)]

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        weight = torch.rand(len(syn.images), 1, 1, 1, generator=task.generator("weights", it))
        return {"distance": (weight * (syn.images - prepared["means"]).square()).mean()}


@dataclass(frozen=True)
class Sound(Behaviour):
    """A sound method."""

    iterations: Annotated[int, Field(ge=0)] = 50
    """How many."""
    strength: Annotated[float, Field(gt=0)] = 1.0
    """Of nothing."""


@dataclass
class Thawed(Behaviour):
    """A method whose fields can be changed."""

    iterations: int = 50


@dataclass(frozen=True)
class Incomplete(Behaviour):
    """A method that cannot be made without arguments."""

    _: KW_ONLY
    strength: float


@dataclass(frozen=True)
class Untyped(Behaviour):
    """A method that takes anything."""

    strength: Any = 1
    """Anything."""


@dataclass(frozen=True)
class OutOfRange(Behaviour):
    """A method whose default is not allowed."""

    strength: Annotated[int, Field(ge=1)] = 0
    """Above what it is."""


@dataclass(frozen=True)
class Undescribed(Behaviour):
    """A method with a field that nobody explains."""

    strength: float = 1.0


@dataclass(frozen=True)
class Mute(Behaviour):
    iterations: int = 50


@dataclass(frozen=True)
class Unsettled(Behaviour):
    """A method that changes its own settings."""

    strength: int = 1
    """One more whenever it is built."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", self.strength + 1)


@dataclass(frozen=True)
class Lossless(Method):
    """A method that can be asked for iterations that it does not have."""

    iterations: int = 0

    def start(self, task: Task, prepared: Any) -> Synthetic:
        return Synthetic(task.data.train.images(task.real_indices("start")), task.targets)


class TorchDraw(Sound):
    """A method that draws from torch's global generator."""

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        return (syn.images * torch.rand_like(syn.images)).square().mean()


class NumpyDraw(Sound):
    """A method that draws from numpy's global generator."""

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        return syn.images.square().mean() * np.random.rand()  # noqa: NPY002


class PythonDraw(Sound):
    """A method that draws from Python's global generator."""

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        return syn.images.square().mean() * random.random()


class Switch(Sound):
    """A method that turns a global switch."""

    def prepare(self, task: Task, got: Got) -> Any:
        torch.set_float32_matmul_precision("high")
        return super().prepare(task, got)


class Hook(Sound):
    """A method that leaves a hook on a network."""

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        prepared["network"].register_forward_hook(lambda *_: None)
        return super().loss(syn, task, prepared, it)


class Memory(Sound):
    """A method that counts its iterations where no checkpoint sees it."""

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        prepared["calls"] += 1
        return syn.images.square().mean() * prepared["calls"]


class Elsewhere(Sound):
    """A method with a variable that is not in `Synthetic`."""

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        return [*super().optimisers(syn), SGD([torch.zeros(3, requires_grad=True)], lr=1.0)]


class Unreached(Sound):
    """A method with learned labels that its objective forgets."""

    def start(self, task: Task, prepared: Any) -> Synthetic:
        labels = torch.nn.functional.one_hot(task.targets, task.classes).float()
        return Synthetic(super().start(task, prepared).images, task.targets, labels)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        assert syn.labels is not None
        return [*super().optimisers(syn), SGD([syn.labels], lr=1.0)]


class Idle(Sound):
    """A method that does not move."""

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        return [SGD([syn.images], lr=0.0)]


class Seedless(Sound):
    """A method that draws, and lets nothing depend on it."""

    def start(self, task: Task, prepared: Any) -> Synthetic:
        super().start(task, prepared)
        return Synthetic(torch.zeros_like(prepared["means"]), task.targets)

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        return (syn.images - prepared["means"]).square().mean()


@dataclass(frozen=True)
class SeedItself(Method):
    """A method that takes the seed for a number."""

    def start(self, task: Task, prepared: Any) -> Synthetic:
        return Synthetic(torch.full((len(task.targets), 1, 28, 28), float(task.seed)), task.targets)


class Grumbler(Sound):
    """A method that warns."""

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        warnings.warn("not today", stacklevel=1)
        return super().loss(syn, task, prepared, it)


class Secret(Sound):
    """A method that makes an artefact it does not plan."""

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        return []

    def prepare(self, task: Task, got: Got) -> Any:
        return super().prepare(task, Got([self.means(task)]))


class Boast(Made):
    """Lists an artefact and asks the store for nothing."""

    def fetch(self, got: Got) -> Any:
        return None


class Boaster(Sound):
    """A method that plans an artefact it does not make."""

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        return [*super().needs(task), Boast("teachers", task.store, {"number": 1}, lambda got: ({}, {}), "a teacher")]


class Backwards(Sound):
    """A method whose images are not in the order of the task."""

    def start(self, task: Task, prepared: Any) -> Synthetic:
        return Synthetic(super().start(task, prepared).images, task.targets.flip(0))


class Foreign(Sound):
    """A method whose set says it is in another value space."""

    def finish(self, syn: Synthetic, task: Task, prepared: Any) -> DistilledSet:
        return replace(super().finish(syn, task, prepared), space={"kind": "raw"})


class Alias(Sound):
    """A method whose set keeps changing."""

    def finish(self, syn: Synthetic, task: Task, prepared: Any) -> DistilledSet:
        return replace(super().finish(syn, task, prepared), images=syn.images.detach())


class Meddler(Sound):
    """A method that clamps its variables when it is asked for its set."""

    def finish(self, syn: Synthetic, task: Task, prepared: Any) -> DistilledSet:
        with torch.no_grad():
            syn.images.clamp_(-0.5, 0.5)
        return super().finish(syn, task, prepared)


class Level(Sound):
    """A method that takes for granted that every class has as many images."""

    def loss(self, syn: Synthetic, task: Task, prepared: Any, it: int) -> Objective:
        return (syn.images - prepared["means"]).view(task.classes, len(syn.images) // task.classes, -1).square().mean()


class Mislabelled(Sound):
    """A method whose images all become its first class's where classes are uneven."""

    def finish(self, syn: Synthetic, task: Task, prepared: Any) -> DistilledSet:
        made = super().finish(syn, task, prepared)
        return made if len(made.labels) == task.classes else replace(made, labels=torch.zeros_like(made.labels))


class Forgetful(Sound):
    """A method whose parts leave images out."""

    def parts(self, task: Task) -> Sequence[Tensor]:
        return list(torch.arange(len(task.targets)).split(4))[:2]


class Unsorted(Sound):
    """A method whose parts are not in order."""

    def parts(self, task: Task) -> Sequence[Tensor]:
        return [torch.arange(len(task.targets)).flip(0)]


FAULTS: list[tuple[type[Method], conformance.Check, str]] = [
    (Thawed, conformance.frozen, "Thawed is not frozen"),
    (Incomplete, conformance.constructible, "without a default: strength"),
    (Untyped, conformance.typed_fields, "'strength' may be anything"),
    (OutOfRange, conformance.typed_fields, "'strength': its default does not pass"),
    (Undescribed, conformance.documented_fields, "without a docstring below them: strength"),
    (Mute, conformance.registered, "no docstring of its own"),
    (Unsettled, conformance.recipe_round_trip, "strength: "),
    (Lossless, conformance.iterations_are_its_own, "no loss to be called"),
    (TorchDraw, conformance.surroundings_untouched, "torch's global generator"),
    (TorchDraw, conformance.same_seed_same_bits, "in images"),
    (NumpyDraw, conformance.surroundings_untouched, "numpy's global generator"),
    (PythonDraw, conformance.surroundings_untouched, "Python's global generator"),
    (Switch, conformance.surroundings_untouched, "the precision of float32 products"),
    (Hook, conformance.surroundings_untouched, "itself has _forward_hooks"),
    (Memory, conformance.resumes, "gives another set: in images"),
    (Elsewhere, conformance.gradients_arrive, "checkpoints do not carry"),
    (Unreached, conformance.gradients_arrive, "reaches 'labels'"),
    (Idle, conformance.variables_move, "the same after 3 iterations"),
    (Seedless, conformance.other_seed_other_bits, "two seeds give the same set"),
    (SeedItself, conformance.other_seed_other_bits, "depends on the seed: in images"),
    (Grumbler, conformance.no_warnings, "UserWarning: not today"),
    (Secret, conformance.plan_is_true, "does not name artefacts of kind toy"),
    (Boaster, conformance.plan_is_true, "kind teachers that are never used"),
    (Backwards, conformance.whole_output, "not the task's, class-major"),
    (Foreign, conformance.whole_output, "field 'space': kind is 'raw'"),
    (Forgetful, conformance.parts_make_the_whole, "do not hold every image exactly once"),
    (Unsorted, conformance.parts_make_the_whole, "do not ascend"),
    (Level, conformance.uneven_classes, "declare `even: ClassVar[bool] = True`"),
    (Mislabelled, conformance.uneven_classes, "its labels are not the task's targets"),
    (Alias, conformance.finish_only_reads, "shares memory with the variables"),
    (Meddler, conformance.finish_only_reads, "changes images"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def enrol(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Method]], type[Method]]:
    """Registers a class for the time of a test."""

    def enrol(cls: type[Method]) -> type[Method]:
        monkeypatch.setitem(registry._registered, cls.__name__.lower(), cls)
        cls.name = cls.__name__.lower()
        return cls

    return enrol


def test_a_sound_method_passes_every_check(enrol: Callable[..., type[Method]]) -> None:
    conformance.check(enrol(Sound))


@pytest.mark.parametrize(("faulty", "check", "words"), FAULTS, ids=lambda x: getattr(x, "__name__", None))
def test_a_faulty_method_is_caught(
    faulty: type[Method], check: conformance.Check, words: str, lab: Lab, enrol: Callable[..., type[Method]]
) -> None:
    precision = torch.get_float32_matmul_precision()
    try:
        with pytest.raises(conformance.NotConforming) as caught:
            check(enrol(faulty), lab)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert words in str(caught.value)


def test_every_fault_of_a_method_is_said_at_once(lab: Lab, enrol: Callable[..., type[Method]]) -> None:
    with pytest.raises(conformance.NotConforming) as caught:
        conformance.check(enrol(TorchDraw), lab)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"torchdraw fails {len(lines) - 1} checks"
    assert {line.partition(":")[0] for line in lines[1:]} >= {
        "surroundings_untouched",
        "same_seed_same_bits",
        "resumes",
    }


def test_every_check_is_known_to_bite() -> None:
    assert {check for _, check, _ in FAULTS} == set(conformance.CHECKS)


def test_the_store_of_a_lab_is_its_own(tmp_path: Path, enrol: Callable[..., type[Method]]) -> None:
    there = Lab(tmp_path)
    there.seen(enrol(Sound))
    assert len(list((tmp_path / "store" / KIND).glob("*.json"))) == 1
