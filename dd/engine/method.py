"""The interface of a distillation method: `Method`, its input `Task`, and its outer variables `Synthetic`."""

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

P = TypeVar("P", default=Any)  # the type that `Method.prepare` returns
LR_FLOOR = 100  # a learned lr never falls below its initial value divided by this; the published methods have no floor


@dataclass(frozen=True, eq=False)
class Part:
    """One independently synthesised part of a synthetic set.

    Attributes:
        number: index of the part, from 0.
        of: number of parts.
        slots: (m,) int64, ascending: the indices of its images in the whole set.
        ranks: (m,) int64: the index of each image within its class in the whole set.
    """

    number: int
    of: int
    slots: Tensor
    ranks: Tensor


@dataclass(frozen=True)
class Task:
    """What to distil: data, targets, student and device.  Read-only; every random draw uses a named generator.

    Attributes:
        data: the real images.
        targets: (n,) int64, the class of every synthetic image, sorted by class.
        student: the resolved architecture to distil for.
        seed: the root seed of the run.
        device: where tensors live.
        store: artefacts shared between runs.
        compile: whether training loops may use `torch.compile`, and networks their closed forms in C.
        precision: "fp32", or "bf16" for autocast in training loops; inner loops always run in fp32.
        part: the part of the set that `targets` belongs to, if the set is made in parts; None for the whole set.
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
        """The number of classes."""
        return len(self.data.classes)

    @property
    def ranks(self) -> Tensor:
        """(n,) int64 on the CPU: the index of every target within its class, in the whole set."""
        return ranks_of(self.targets) if self.part is None else self.part.ranks

    def in_parts(self, slots: "Sequence[Tensor]") -> "list[Task]":
        """Return one task per part of the set; `[self]` if there is only one part.

        Args:
            slots: the image indices of each part, see `Method.parts`.
        """
        if len(slots) == 1:
            return [self]
        whole = ranks_of(self.targets)
        parts = [Part(number, len(slots), s, whole[s]) for number, s in enumerate(slots)]
        return [replace(self, targets=self.targets[p.slots.to(self.device)], part=p) for p in parts]

    def generator(self, *path: str | int) -> torch.Generator:
        """Return a CPU generator for one named purpose of this run or, if the task is a part, of this part."""
        return generator(self.seed, *path) if self.part is None else self.common("part", self.part.number, *path)

    def common(self, *path: str | int) -> torch.Generator:
        """Return a CPU generator for one named purpose, shared by all parts of a run."""
        return generator(self.seed, *path)

    def build(self, rng: torch.Generator) -> nn.Module:
        """Build a student with fresh weights drawn from `rng`."""
        data = self.data
        shape = {"channels": data.channels, "size": data.size, "classes": self.classes}
        return build_network(self.student, **shape, generator=rng, device=self.device)

    def network(self, *path: str | int) -> nn.Module:
        """Build a fresh student whose weights are a function of the run's seed and `path`."""
        return self.build(self.generator("network", *path))

    def functional(self) -> Functional:
        """Return the student as a pure function of one flat parameter vector; its own weights are not used."""
        return Functional(self.network("skeleton"))

    def total_memory(self) -> int:
        """Return the total memory of the device in bytes, whether in use or free."""
        return total_memory(self.device)

    def real_indices(self, *path: str | int) -> Tensor:
        """Return (n,) indices of distinct random training images, one per target; parts never share an image.

        Raises:
            UsageError: a class has fewer images than requested.
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
        """Return (n, c, h, w) initial images in model space: random real ones of each class, or noise from N(0, 1)."""
        if start_from == "noise":
            shape = (len(self.targets), self.data.channels, self.data.size, self.data.size)
            return torch.randn(shape, generator=self.generator("start")).to(self.device)
        return self.data.train.images(self.real_indices("start"))


def ranks_of(targets: Tensor) -> Tensor:
    """Return (n,) int64 on the CPU: for each of the (n,) targets, how many earlier ones have the same class."""
    targets = targets.cpu()
    order = targets.argsort(stable=True)
    counts = torch.bincount(targets)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - first)


class Synthetic(nn.Module):
    """The outer variables.  Every `Parameter` of this module can be optimised.

    A method may add variables by assigning further parameters or buffers; checkpoints include all of them.

    Args:
        images: (n, c, h, w) float, in the model space of the data.
        targets: (n,) int64, the class of every image.
        labels: (n, k) logits if labels are learned or soft, else None.
        lr: initial student learning rate if the method learns it, else None.
    """

    targets: Tensor
    lr_floor: float = 0.0  # lower bound of a learned lr: a negative one cannot train a student

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
        """Overwrite the variables with those of an existing set (`init=SET`); logits and lr only if they exist here.

        Override this if some variables are derived from others, to update them too.
        """
        self.images.copy_(images)
        if self.labels is not None and labels is not None:
            self.labels.copy_(labels)
        if self.lr is not None and lr is not None:
            self.lr_floor = min(self.lr_floor, lr / LR_FLOOR) if lr > 0 else self.lr_floor
            self.lr.fill_(max(lr, self.lr_floor))


@dataclass(frozen=True)
class Skip:
    """Returned by `Method.loss` to skip an iteration: nothing is updated.

    Attributes:
        value: the objective that caused the skip, for the log; may be NaN.
        reason: a few words for the log.
    """

    value: float
    reason: str


Objective: TypeAlias = Tensor | Mapping[str, Tensor] | Skip
"""The return type of `Method.loss`: a scalar, named scalars to be summed, or a `Skip`."""


class Method(Generic[P]):
    """Base class of distillation methods.  A subclass is a frozen dataclass whose fields are its hyper-parameters.

    The engine calls `settle`, fetches `needs`, then calls `prepare` and `parts`.  For every part it calls `start` and
    `optimisers`; `loss`, `rate` and `project` once per iteration; and finally `finish`.  `prepare` returns a P, which
    the later calls receive.  A method without an outer loop (selection, crops) sets `iterations = 0`.  `__post_init__`
    may only raise `ValueError`, for fields that contradict each other.

    Attributes:
        name: the registered name, set by `register`.
        paper: the publication.
        version: increase it when the same fields produce different images than before, so that old results are not
            reused.
        even: the method needs the same number of images for every class; other requests are refused.
        iterations: number of outer iterations.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    version: ClassVar[int] = 1
    even: ClassVar[bool] = False
    iterations: int = 0

    @classmethod
    def by_ipc(cls, ipc: int) -> Mapping[str, Any]:
        """Return default settings that depend on the images per class, by dotted key.

        They appear in the resolved recipe; recipe files, cells and the command line override them.
        """
        return {}

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """Return the SHA-256 of every file named by a setting, by dotted key; the run's identity uses these, not paths.

        Args:
            student: the requested network to distil for.

        Raises:
            UsageError: a file does not exist.
        """
        return {}

    def settle(self, task: Task) -> Self:
        """Return this method with every "auto" that depends on shapes or on the machine's memory resolved.

        Called once per run, before all other methods, which are called on its result.  The decisions are written to the
        resolved recipe and kept on resume.  Override it to reject data that the method cannot handle.

        Raises:
            UsageError: the method cannot work on these data.
        """
        return self

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """Return what the engine fetches before `prepare`, in this order: experts, teachers, statistics."""
        return ()

    def prepare(self, task: Task, got: Got) -> P:
        """Build the object that the later calls receive; `got[need]` is the fetched result of each of `needs`."""
        return cast(P, None)  # a method that does not override this is a Method[None]

    def start(self, task: Task, prepared: P) -> Synthetic:
        """Return the variables at iteration 0."""
        raise NotImplementedError

    def parts(self, task: Task) -> Sequence[Tensor]:
        """Return the independent parts of the set: for each, the ascending (m,) int64 indices in `task.targets`.

        Every index is in exactly one part.  Each part has its own task, with its own targets and generators, and runs
        from `start` to `finish` separately.  The resulting set does not depend on which process makes a part, or in
        which order.
        """
        return [torch.arange(len(task.targets))]

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """Return one optimiser per group of variables; all of them step once per iteration."""
        return ()

    def rate(self, it: int) -> float:
        """Return the factor applied to all learning rates in iteration `it`, for schedules."""
        return 1.0

    def loss(self, syn: Synthetic, task: Task, prepared: P, it: int) -> Objective:
        """Return the objective of iteration `it`, to be minimised.

        With several processes, every one returns the whole objective, and its gradient must be the whole gradient: a
        method that divides the work sums it itself (`dd.engine.parallel`).
        """
        raise NotImplementedError

    @property
    def labelling(self) -> LabelSettings | None:
        """How augmented views of the finished set are labelled; None if the images have labels of their own."""
        return None

    def labeller(self, task: Task, prepared: P) -> Labeller | None:
        """Return the labeller of augmented views that `labelling` describes; None if there is none."""
        return None

    def project(self, syn: Synthetic, task: Task) -> None:
        """Project the variables after each update, for example clamp pixels.  Does nothing by default."""

    def finish(self, syn: Synthetic, task: Task, prepared: P) -> DistilledSet:
        """Return the finished set for evaluation; also called on the variables at iteration 0, for the `start` set."""
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
    """Fetch everything that the method needs and return the result of `Method.prepare`.

    Args:
        method: the settled method.
        task: what to distil.
    """
    return method.prepare(task, Got(method.needs(task)))
