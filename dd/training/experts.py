"""Experts: networks trained on the real images and stored as parameter trajectories, one artefact per expert."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.errors import RunError
from dd.io import digest
from dd.networks import Functional, saved_bytes
from dd.runs import sampling
from dd.runs.store import Artefact, Wanted
from dd.settings import OnlyWith, Outside, identity
from dd.training.buffers import Buffers, buffer_hash
from dd.training.loop import Fit, Path, Trainer, passes
from dd.training.stacked import StackedTrainer

KIND = "experts"
POOLS = "pools"
VERSION = 2  # of the training procedure; part of every key, raised when results change
STACK_SHARE = 0.25  # share of the device's total memory for the activations of experts trained together
MAX_STACK = 10  # most experts trained together; more gain little once the GPU is saturated


@dataclass(frozen=True)
class ExpertSettings:
    """How experts are trained.  Defaults: MTT's (Cazenavette et al., CVPR 2022, official code)."""

    count: Annotated[int, Field(ge=1), Outside("expert", "a larger pool keeps the experts of a smaller one")] = 100
    """Number of experts; a larger pool keeps the experts of a smaller one."""
    epochs: Annotated[int, Field(ge=1)] = 50
    """Passes over the real training images; a snapshot is stored after each, and one of the initialisation."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of SGD; most papers use 0, because a plain SGD trajectory is easier to match."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of SGD."""
    batch: Annotated[int, Field(ge=1)] = 256
    """Real images per step."""
    augment: bool = True
    """Whether to augment with DSA: the data set's strategy, one operation per batch."""
    kind: Literal["sgd", "ftd", "ast"] = "sgd"
    """How experts are trained: "sgd"; "ftd", in flat regions (GSAM with adaptive perturbation); "ast", smooth ones."""
    rho: Annotated[float, Field(gt=0), OnlyWith("kind", ("ftd",))] = 0.01
    """Radius of the perturbation."""
    alpha: Annotated[float, Field(ge=0), OnlyWith("kind", ("ftd",))] = 0.3
    """Weight of the orthogonal component."""
    clip: Annotated[int, Field(ge=0), OnlyWith("kind", ("ast",))] = 10
    """Number of initial epochs in which the loss factor rises from 1/2 towards 1; 0 for none."""
    penalty: Annotated[float, Field(ge=0), OnlyWith("kind", ("ast",))] = 2.0
    """Weight of the gradient penalty, see `dd.training.penalty`; 0 for none."""
    decay: Annotated[float, Field(gt=0, le=1), OnlyWith("kind", ("ast",))] = 0.6
    """Factor of the one lr decay, `epochs` // 2 + 2 epochs in; it also resets the momentum."""
    drops: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], OnlyWith("kind", ("sgd", "ftd"))] = ()
    """Shares of the epochs after which lr is multiplied by `drop`; momentum is kept."""
    drop: Annotated[float, Field(gt=0, le=1), OnlyWith("drops")] = 0.2
    """Factor of lr at each of `drops`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the pool; independent of the run's seed, so that runs with different seeds share the pool."""
    store: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the stored snapshots; bfloat16 halves the disk space and keeps about three digits."""
    from_: Annotated[str | None, Outside("run", "the digest of the files counts")] = None
    """Folder of the authors' expert buffers (`replay_buffer_N.pt`), or one such file, to read instead of training: the
    first `count` experts and `epochs` epochs. Then only `store` still matters among the other settings. Such experts
    have seen the held-out images.
    """
    stack: Annotated[Annotated[int, Field(ge=1)] | None, Outside("expert", "whether there were several counts")] = None
    """Number of experts trained together with stacked parameters; None: 1 on a CPU, and on a GPU as many as fit into a
    quarter of its memory, at most 10.
    """

    def digests(self) -> Mapping[str, str]:
        """The hash of the expert files, if experts are read from files."""
        return {} if self.from_ is None else {"experts.from": buffer_hash(self.from_)}


@dataclass(frozen=True)
class Trajectories:
    """A pool of experts.

    Attributes:
        snapshots: per expert, (epochs + 1, P) on the CPU, memory-mapped, in the stored dtype; row 0 is the
            initialisation.
        holdout: per expert, final accuracy on the held-out images in percent; None without held-out images.
        seconds: time to train (or read) all experts, in this run or an earlier one.
    """

    snapshots: tuple[Tensor, ...]
    holdout: tuple[float | None, ...]
    seconds: float

    def __len__(self) -> int:
        return len(self.snapshots)

    def snapshot(self, expert: int, epoch: int, device: torch.device) -> Tensor:
        """Parameters of one expert after `epoch` epochs, float32 (P,); a copy that the caller may modify."""
        return self.snapshots[expert][epoch].to(device, torch.float32, copy=True)

    def last(self, expert: int, device: torch.device) -> Tensor:
        """Final parameters of one expert, float32 (P,)."""
        return self.snapshot(expert, -1, device)


def expert_spec(task: Task, settings: ExpertSettings, member: int) -> dict[str, Any]:
    """Everything that determines one expert: the key of its artefact."""
    if settings.from_ is not None:
        return {
            "version": VERSION,
            "data": task.data.fingerprint,  # the data that it was checked on
            "network": asdict(task.student),
            "settings": {"kind": "files", "epochs": settings.epochs, "store": settings.store},
            "files": buffer_hash(settings.from_),
            "member": member,
        }
    return {
        "version": VERSION,
        "data": task.data.fingerprint,
        "augment": task.data.augment if settings.augment else "none",
        "network": asdict(task.student),
        "settings": identity(settings, "expert"),
        "stacked": stack_size(task, settings) > 1,
        "compile": task.compile,
        "precision": task.precision,
        "device": task.device.type,
        "member": member,
    }


@dataclass(frozen=True, eq=False)
class Experts(Need[Trajectories]):
    """The need for a pool of experts, one artefact per expert.

    Attributes:
        task: the run, for its network and images.
        settings: how the experts are trained.
    """

    task: Task
    settings: ExpertSettings
    name = "experts"

    def artefacts(self) -> list[Wanted]:
        """One per expert."""
        task, settings = self.task, self.settings
        return [Wanted(KIND, expert_spec(task, settings, m), _words(task, settings, m)) for m in range(settings.count)]

    def fetch(self, got: Got) -> Trajectories:
        """Return the pool; experts that do not exist yet are trained, or read from files.

        A pool can be extended, and an interrupted pool resumes with the next expert.  One manifest lists its shards.

        Raises:
            RunError: an expert diverged.
            UsageError: the expert files do not fit this run; see `dd.training.buffers`.
        """
        task, wanted, pool = self.task, self.artefacts(), _Pool(self.task, self.settings, self.task.functional())
        groups = [some.tolist() for some in torch.arange(len(wanted)).split(stack_size(task, self.settings))]

        def fetched(at: int) -> list[Artefact]:
            return task.store.tensors_of_many([wanted[m] for m in groups[at]], partial(pool.make, groups[at]))

        # the last of a group is stored last
        each = task.store.each([wanted[some[-1]] for some in groups], fetched, alike=True)
        found = [artefact for group in each for artefact in group][: len(wanted)]
        for artefact in found:
            pool.template.require(artefact.info["header"], str(artefact.path))
        _list(task, self.settings, found)
        snapshots = tuple(a.tensors["snapshots"] for a in found if a.tensors is not None)
        return Trajectories(snapshots, tuple(a.info["holdout"] for a in found), sum(a.seconds for a in found))


def trajectories(task: Task, settings: ExpertSettings) -> Trajectories:
    """The pool that `settings` describe, outside a run; see `Experts.fetch`."""
    return Experts(task, settings).fetch(Got())


def stack_size(task: Task, settings: ExpertSettings) -> int:
    """Number of experts trained together, from the settings, the shapes and the device's total memory."""
    if settings.from_ is not None:
        return 1
    if settings.stack is not None:
        return settings.stack
    if task.device.type == "cpu":
        return 1
    network = task.network("skeleton")
    images = torch.zeros(2, task.data.channels, task.data.size, task.data.size, device=task.device)
    with saved_bytes() as seen:
        network(images)
    one = sum(seen.values()) * settings.batch // 2 * (2 if settings.kind == "ast" else 1)
    return max(1, min(MAX_STACK, int(STACK_SHARE * task.total_memory()) // one))


def _list(task: Task, settings: ExpertSettings, found: Sequence[Artefact]) -> None:
    """Write the pool's manifest, which lists all known shards."""
    spec = {name: value for name, value in expert_spec(task, settings, 0).items() if name != "member"}
    beyond = settings.count
    while task.store.has(KIND, expert_spec(task, settings, beyond)):
        beyond += 1  # an earlier, larger request trained more
    keys = [a.key for a in found]
    keys += [digest(expert_spec(task, settings, member)) for member in range(settings.count, beyond)]
    task.store.note(POOLS, spec, {"shards": [f"{KIND}/{key}.safetensors" for key in keys]})


@dataclass(frozen=True)
class _Pool:
    task: Task
    settings: ExpertSettings
    template: Functional

    @cached_property
    def files(self) -> Buffers:
        assert self.settings.from_ is not None
        return Buffers(self.task, self.settings.from_, self.settings.epochs)

    @cached_property
    def trainer(self) -> Trainer:
        return Trainer(self.task.build, self.task.compile, self.task.precision)

    def make(self, members: Sequence[int], missing: Sequence[int]) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Train or read the members at the positions `missing`; returns (tensors, info) of each for the store."""
        made, numbers = [], [members[position] for position in missing]
        read = ((number, self.files.expert(number)) for number in numbers)
        for number, kept in self._trained(numbers) if self.settings.from_ is None else read:
            if not kept.isfinite().all():
                lr = self.settings.lr
                raise RunError(f"expert {number} diverged: its parameters are not finite; lower experts.lr={lr}")
            if sampling.active() is not None:
                kept = _prolonged(kept, self.settings.epochs + 1)
            info = {
                "header": self.template.header(),
                "holdout": self._holdout(kept[-1]),
                "data": self.task.data.name,
            }
            made.append(({"snapshots": kept.to(getattr(torch, self.settings.store))}, info))
        return made

    def _trained(self, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Train experts; yields each number with its snapshots (epochs + 1, P) on the CPU."""
        task, settings = self.task, self.settings
        paths: list[Path] = [(settings.seed, "expert", number) for number in numbers]
        batches = passes(task.data.train, settings.batch)
        fit = expert_fit(settings, len(task.data.train), task.data.augment)
        # copy the snapshots: on a CPU, views would alias the live parameters
        if stack_size(task, settings) > 1:
            stacks: list[Tensor] = []
            trainer = StackedTrainer(task.build, task.precision)
            last = trainer.train(paths, batches, fit, lambda _, thetas: stacks.append(thetas.to("cpu", copy=True)))
            if sampling.active() is not None:
                stacks.append(last.to("cpu", copy=True))
            yield from zip(numbers, torch.stack(stacks, 1), strict=True)
            return
        rows: list[Tensor] = []
        networks = self.trainer.train(paths, batches, fit, lambda _, net: rows.append(self.template.flatten(net).cpu()))
        for number, network in zip(numbers, networks, strict=True):
            if sampling.active() is not None:
                rows.append(self.template.flatten(network).cpu())
            yield number, torch.stack(rows)
            rows.clear()

    def _holdout(self, theta: Tensor) -> float | None:
        data = self.task.data
        if not len(data.holdout):
            return None
        theta = theta.to(self.task.device)
        right = [
            (self.template.predict(theta, images).argmax(1) == targets) for images, targets in data.holdout.batches(512)
        ]
        return 100.0 * torch.cat(right).double().mean().item()


def _prolonged(snapshots: Tensor, rows: int) -> Tensor:
    """Return the trajectory (rows, P) of a sampled expert: it goes on in a straight line from its first to its last."""
    first, last = snapshots[0], snapshots[-1]
    return first + torch.linspace(0, 1, rows)[:, None] * (last - first)


def expert_fit(settings: ExpertSettings, images: int, strategy: str) -> Fit:
    """The training of one expert on `images` images as a `Fit`."""
    per_pass = -(-images // settings.batch)
    fit = Fit(
        steps=settings.epochs * per_pass,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        strategy=strategy if settings.augment else "none",
        decay_at=tuple(int(share * settings.epochs) * per_pass for share in settings.drops),
        decay=settings.drop if settings.drops else Fit.decay,
        keep_state=bool(settings.drops),
    )
    if settings.kind == "ftd":
        return replace(fit, sam=(settings.rho, settings.alpha))
    if settings.kind == "ast":
        return replace(
            fit,
            keep_state=False,
            decay_at=((settings.epochs // 2 + 2) * per_pass,) if settings.decay < 1 else (),
            decay=settings.decay,
            factors=tuple(0.5 + 0.5 * epoch / settings.clip for epoch in range(settings.clip)),
            penalty=settings.penalty,
        )
    return fit


def expert_logits(
    task: Task, pool: Trajectories, index: Tensor, members: Sequence[int] | None = None, epoch: int = -1
) -> Tensor:
    """Logits (experts, n, classes) of the experts on unaugmented training images, in eval mode.

    Args:
        task: the run.
        pool: the experts.
        index: (n,) int64, of the training images.
        members: numbers of the experts; None for all.
        epoch: of the experts' training; -1 for the last.
    """
    template, images = task.functional(), task.data.train.images(index)
    thetas = (pool.snapshot(m, epoch, task.device) for m in (range(len(pool)) if members is None else members))
    return torch.stack([template.predict(theta, images) for theta in thetas])


def _words(task: Task, settings: ExpertSettings, member: int) -> str:
    kind = settings.kind if settings.from_ is None else f"from {settings.from_}"
    return f"expert {member + 1} of {settings.count} ({kind}, {task.data.name}, {settings.epochs} epochs)"
