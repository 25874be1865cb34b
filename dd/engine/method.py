"""What a distillation method is: `Method`, its view of the world `Task`, its variables `Synthetic`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Self, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypeVar

from dd.data import RealData
from dd.engine.needs import Got, Need
from dd.errors import UsageError
from dd.labels import Labeller, LabelSettings
from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator
from dd.runs.cost import total_memory
from dd.runs.store import Store
from dd.sets import DistilledSet

P = TypeVar("P", default=Any)  # what a method prepares
LR_FLOOR = 100  # the floor of a learned lr is its first value divided by this; the published methods have none


@dataclass(frozen=True, eq=False)
class Part:
    """One of the independent parts that a synthetic set is made in.

    Attributes:
        number: which, from 0.
        of: how many there are.
        slots: (m,) int64, ascending, the places of its images among those of the whole set.
        ranks: (m,) int64, the place of each of them among the images of its class in the whole set.
    """

    number: int
    of: int
    slots: Tensor
    ranks: Tensor


@dataclass(frozen=True)
class Task:
    """What to distil.  Read-only; everything random is drawn from a generator named after its purpose.

    Attributes:
        data: the real images.
        targets: (n,) int64, the class of every synthetic image asked for, class-major.
        student: the architecture to distil for, resolved.
        seed: the run's root seed.
        device: where tensors live.
        store: artefacts shared between runs.
        compile: whether training loops may use `torch.compile`.
        precision: "fp32", or "bf16" for autocast in training loops; inner loops always run in fp32.
        part: the part of the set that `targets` are of, where it is made in several; None for all of it.
    """

    data: RealData
    targets: Tensor
    student: NetworkSpec
    seed: int
    device: torch.device
    store: Store
    compile: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    part: Part | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.classes)

    @property
    def ranks(self) -> Tensor:
        """(n,) int64 on the CPU, the place of every target among those of its class, in the whole set."""
        return ranks_of(self.targets) if self.part is None else self.part.ranks

    def in_parts(self, slots: "Sequence[Tensor]") -> "list[Task]":
        """One task for each part of the set; this very task where there is only one part.

        Args:
            slots: of each part, see `Method.parts`.
        """
        if len(slots) == 1:
            return [self]
        whole = ranks_of(self.targets)
        parts = [Part(number, len(slots), s, whole[s]) for number, s in enumerate(slots)]
        return [replace(self, targets=self.targets[p.slots.to(self.device)], part=p) for p in parts]

    def generator(self, *path: str | int) -> torch.Generator:
        """A CPU generator for one named purpose of this run, or of this part of it."""
        return generator(self.seed, *path) if self.part is None else self.common("part", self.part.number, *path)

    def common(self, *path: str | int) -> torch.Generator:
        """A CPU generator for one named purpose that all parts of a run share."""
        return generator(self.seed, *path)

    def build(self, rng: torch.Generator) -> nn.Module:
        """A student with fresh weights drawn from `rng`."""
        data = self.data
        shape = {"channels": data.channels, "size": data.size, "classes": self.classes}
        return build_network(self.student, **shape, generator=rng, device=self.device)

    def network(self, *path: str | int) -> nn.Module:
        """A fresh student whose weights are a function of the run's seed and of `path`."""
        return self.build(self.generator("network", *path))

    def functional(self) -> Functional:
        """The student as a pure function of one flat parameter vector; its own weights do not matter."""
        return Functional(self.network("skeleton"))

    def total_memory(self) -> int:
        """Bytes of memory that the device has in all, in use or not."""
        return total_memory(self.device)

    def real_indices(self, *path: str | int) -> Tensor:
        """(n,) indices of random, distinct real training images, one for every target; no two parts share one.

        Raises:
            UsageError: a class has fewer images than are asked for.
        """
        rng, targets, ranks = self.common(*path), self.targets.cpu(), self.ranks
        chosen = torch.empty(len(targets), dtype=torch.long)
        for c in range(self.classes):
            slots = (targets == c).nonzero().flatten()
            places, pool = ranks[slots], self.data.train.of_class(c)
            if len(slots) and len(pool) <= int(places.max()):
                asked, name = int(places.max()) + 1, self.data.classes[c]
                raise UsageError(f"{asked} real images of class {name!r} needed, but it has {len(pool)}: lower ipc")
            chosen[slots] = pool[torch.randperm(len(pool), generator=rng)[places]]
        return chosen

    def first_images(self, start_from: Literal["real", "noise"] = "real") -> Tensor:
        """(n, c, h, w) images to begin with, in model space: random real ones of each class, or noise N(0, 1)."""
        if start_from == "noise":
            shape = (len(self.targets), self.data.channels, self.data.size, self.data.size)
            return torch.randn(shape, generator=self.generator("start")).to(self.device)
        return self.data.train.images(self.real_indices("start"))


def ranks_of(targets: Tensor) -> Tensor:
    """(n,) int64 on the CPU: how many of (n,) targets stand before each that are of the same class."""
    targets = targets.cpu()
    order = targets.argsort(stable=True)
    counts = torch.bincount(targets)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - first)


class Synthetic(nn.Module):
    """The outer variables.  What is a `Parameter` here is what an optimiser may move.

    A method may add variables of its own by assigning further parameters or buffers; checkpoints carry all of them.

    Args:
        images: (n, c, h, w) float, in the model space of the data.
        targets: (n,) int64 class of every image.
        labels: (n, k) logits where labels are learned or soft, else None.
        lr: initial student learning rate where the method learns one, else None.
    """

    targets: Tensor
    lr_floor: float = 0.0  # a learned lr is not let below it: no student can be trained with a negative one

    def __init__(self, images: Tensor, targets: Tensor, labels: Tensor | None = None, lr: float | None = None) -> None:
        super().__init__()
        self.images = nn.Parameter(images.detach().clone())
        self.register_buffer("targets", targets)
        self.labels = None if labels is None else nn.Parameter(labels.detach().clone())
        self.lr = (
            None if lr is None else nn.Parameter(torch.tensor(float(lr), device=images.device, dtype=images.dtype))
        )
        self.lr_floor = 0.0 if lr is None else lr / LR_FLOOR

    @torch.no_grad()
    def take(self, images: Tensor, labels: Tensor | None = None, lr: float | None = None) -> None:
        """Begin from given values (`init=SET`): images, and logits and lr where there are such variables here.

        A method whose variables follow from others overrides this to bring them along.
        """
        self.images.copy_(images)
        if self.labels is not None and labels is not None:
            self.labels.copy_(labels)
        if self.lr is not None and lr is not None:
            self.lr_floor = min(self.lr_floor, lr / LR_FLOOR) if lr > 0 else self.lr_floor
            self.lr.fill_(max(lr, self.lr_floor))


@dataclass(frozen=True)
class Skip:
    """Returned by `Method.loss` for an iteration that the method itself leaves out; nothing is updated.

    Attributes:
        value: the objective that led to it, for the log; may be NaN.
        reason: a few words for the log.
    """

    value: float
    reason: str


Objective: TypeAlias = Tensor | Mapping[str, Tensor] | Skip
"""What `Method.loss` returns: a scalar, named scalars that are summed, or a `Skip`."""


class Method(Generic[P]):
    """A published method.  A frozen dataclass: its fields are its hyper-parameters, and nothing else.

    The engine calls `settle`, fetches `needs`, calls `prepare` and `parts`; for every part `start`, `optimisers`, then
    `loss`, `rate` and `project` once an iteration, then `finish`.  P is what `prepare` returns and the others are
    given.  A method with no outer loop (selection, crops) has `iterations = 0`.  `__post_init__` may only raise
    `ValueError`, for fields that contradict one another.  `version` is raised when the same fields give other images
    than before, so that none from before are taken for them.  `even` says that it needs as many images of one class as
    of every other; a run that asks for anything else is refused.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    version: ClassVar[int] = 1
    even: ClassVar[bool] = False
    iterations: int = 0

    @classmethod
    def by_ipc(cls, ipc: int) -> Mapping[str, Any]:
        """Settings that follow from the images per class, by dotted key: what holds where nobody says otherwise.

        They stand in the resolved recipe; a recipe file, a cell and the command line are all stronger.
        """
        return {}

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """SHA-256 of the files that settings name, by dotted key; they count for the run's identity, not their paths.

        Args:
            student: the network to distil for, as asked for.

        Raises:
            UsageError: a file is not there.
        """
        return {}

    def settle(self, task: Task) -> Self:
        """This method with everything decided that depends on shapes or on the size of the machine ("auto").

        Called once a run, before anything else, and everything below is called on what it returns; the decisions stand
        in the resolved recipe and are kept on resume.  What cannot work on these data is refused here.

        Raises:
            UsageError: see above.
        """
        return self

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """What the engine is to fetch before `prepare`, in this order: experts, teachers, statistics."""
        return ()

    def prepare(self, task: Task, got: Got) -> P:
        """What the methods below are given, made of what was fetched: `got[need]` for each of `needs`."""
        return cast(P, None)  # a method without needs is a Method[None]

    def start(self, task: Task, prepared: P) -> Synthetic:
        """The variables at iteration 0."""
        raise NotImplementedError

    def parts(self, task: Task) -> Sequence[Tensor]:
        """The independent parts of the set, each as the places of its images in `task.targets`, ascending (m,) int64.

        Every place is in exactly one part.  With several, each part has a task of its own, with its targets alone and
        with generators of its own, and goes from `start` to `finish` without the others: whoever makes them, in
        whatever order, the set is the same.
        """
        return [torch.arange(len(task.targets))]

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """One optimiser per group of variables; all are stepped once an iteration."""
        return ()

    def rate(self, it: int) -> float:
        """Factor of all learning rates in iteration `it`, for a schedule."""
        return 1.0

    def loss(self, syn: Synthetic, task: Task, prepared: P, it: int) -> Objective:
        """The objective of iteration `it`, to be minimised."""
        raise NotImplementedError

    @property
    def labelling(self) -> LabelSettings | None:
        """How augmented views of the finished set are labelled; None where its images have labels of their own."""
        return None

    def labeller(self, task: Task, prepared: P) -> Labeller | None:
        """Who labels augmented views of the finished set, as `labelling` says; None for nobody."""
        return None

    def project(self, syn: Synthetic, task: Task) -> None:
        """Called after every update, for example to clamp pixels."""

    def finish(self, syn: Synthetic, task: Task, prepared: P) -> DistilledSet:
        """The set that evaluation consumes; also called on the variables at iteration 0, for `start`."""
        images = syn.images.detach().clone()
        hard = syn.labels is None
        return DistilledSet(
            images=images,
            labels=syn.targets.clone() if syn.labels is None else syn.labels.detach().clone(),
            label_kind="hard" if hard else "logits",
            classes=task.data.classes,
            source=task.data.name,
            source_fingerprint=task.data.fingerprint,
            space=task.data.preprocess.spec(),
            augment=task.data.augment,
            lr=None if syn.lr is None else float(syn.lr.detach()),
        )


def prepare(method: Method[P], task: Task) -> P:
    """What `Method.prepare` makes of everything that the method needs, fetched here.

    Args:
        method: settled.
        task: what to distil.
    """
    return method.prepare(task, Got(method.needs(task)))
