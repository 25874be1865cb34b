"""Experts: networks trained on the real images, kept as trajectories of their parameters, one artefact each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dd.engine.method import Task
from dd.errors import RunError
from dd.networks import Functional
from dd.training.loop import Fit, Trainer, accuracy

KIND = "experts"
VERSION = 1  # of the training procedure: part of every key, raised when its results change


@dataclass(frozen=True)
class ExpertSettings:
    """How experts are trained.  Defaults: MTT's (Cazenavette et al., CVPR 2022, official code).

    Attributes:
        count: number of experts; a larger pool keeps the experts of a smaller one.
        epochs: passes over the real training images; a snapshot is kept after each, and one before the first.
        lr: constant learning rate.
        momentum: of SGD; the papers use none, because a plain trajectory is easier to imitate.
        weight_decay: of SGD.
        batch: real images per step.
        augment: DSA, one operation per batch, with the data set's strategy.
        kind: "sgd", or "ftd" for flat experts by GSAM with adaptive perturbation.
        rho: radius of the perturbation (kind ftd).
        alpha: weight of the orthogonal component (kind ftd).
        seed: root seed of the pool, apart from the run's, so that runs with other seeds share it.
    """

    count: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    batch: Annotated[int, Field(ge=1)] = 256
    augment: bool = True
    kind: Literal["sgd", "ftd"] = "sgd"
    rho: Annotated[float, Field(gt=0)] = 0.01
    alpha: Annotated[float, Field(ge=0)] = 0.3
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Trajectories:
    """A pool of experts.

    Attributes:
        snapshots: per expert, (epochs + 1, P) float32 on the CPU, memory-mapped; row 0 is the initialisation.
        holdout: per expert, accuracy on the held-out images in percent after the last epoch, None without a hold-out.
        seconds: what training them took, summed over experts, whether now or earlier.
    """

    snapshots: tuple[Tensor, ...]
    holdout: tuple[float | None, ...]
    seconds: float

    def __len__(self) -> int:
        return len(self.snapshots)

    def snapshot(self, expert: int, epoch: int, device: torch.device) -> Tensor:
        """(P,) parameters of one expert after `epoch` epochs; a copy that the caller may change."""
        return self.snapshots[expert][epoch].to(device, copy=True)

    def last(self, expert: int, device: torch.device) -> Tensor:
        """(P,) final parameters of one expert."""
        return self.snapshots[expert][-1].to(device, copy=True)


def expert_spec(task: Task, settings: ExpertSettings, member: int) -> dict[str, Any]:
    """Everything that determines one expert: the key of its artefact."""
    plain = {k: v for k, v in asdict(settings).items() if k != "count"}
    if settings.kind != "ftd":
        del plain["rho"], plain["alpha"]
    return {
        "version": VERSION,
        "data": task.data.fingerprint,
        "augment": task.data.augment if settings.augment else "none",
        "network": asdict(task.student),
        "settings": plain,
        "compile": task.compile,
        "precision": task.precision,
        "device": task.device.type,
        "member": member,
    }


def expert_needs(task: Task, settings: ExpertSettings) -> list[tuple[str, dict[str, Any], str]]:
    """The artefacts of a pool, as `Method.needs` lists them."""
    return [(KIND, expert_spec(task, settings, m), _words(task, settings, m)) for m in range(settings.count)]


def trajectories(task: Task, settings: ExpertSettings) -> Trajectories:
    """The pool that `settings` asks for, trained where it does not exist yet.

    Every expert is an artefact of its own: a pool can be extended, and an interrupted one goes on with the next expert.

    Raises:
        RunError: an expert diverged.
    """
    template = task.functional()
    pool = _Pool(task, settings, template, Trainer(task.build, task.compile, task.precision))
    found = [task.store.tensors(*pool.request(member)) for member in range(settings.count)]
    for artefact in found:
        template.require(artefact.info["header"], str(artefact.path))
    snapshots = tuple(a.tensors["snapshots"] for a in found if a.tensors is not None)
    return Trajectories(snapshots, tuple(a.info["holdout"] for a in found), sum(a.seconds for a in found))


@dataclass(frozen=True)
class _Pool:
    task: Task
    settings: ExpertSettings
    template: Functional
    trainer: Trainer

    def request(self, member: int) -> tuple[str, dict[str, Any], Any, str]:
        """What to ask the store for: kind, spec, maker, words."""
        words = _words(self.task, self.settings, member)
        return KIND, expert_spec(self.task, self.settings, member), partial(self.make, member), words

    def make(self, member: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train one expert: (tensors, info) for the store."""
        data, settings = self.task.data, self.settings
        snapshots: list[Tensor] = []

        def keep(_: int, network: nn.Module) -> None:
            # flatten copies: a view would alias the live parameters on a CPU
            snapshots.append(self.template.flatten(network).cpu())

        batches = partial(data.train.batches, settings.batch)
        fit = expert_fit(settings, len(data.train), data.augment)
        network = next(self.trainer.train([(settings.seed, "expert", member)], batches, fit, keep))
        kept = torch.stack(snapshots)
        if not kept.isfinite().all():
            raise RunError(f"expert {member} diverged: its parameters are not finite; lower experts.lr={settings.lr}")
        holdout = accuracy(network, data.holdout.batches(512)) if len(data.holdout) else None
        return {"snapshots": kept}, {"header": self.template.header(), "holdout": holdout}


def expert_fit(settings: ExpertSettings, images: int, strategy: str) -> Fit:
    """The training of one expert on `images` images as a `Fit`."""
    return Fit(
        steps=settings.epochs * -(-images // settings.batch),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        strategy=strategy if settings.augment else "none",
        sam=(settings.rho, settings.alpha) if settings.kind == "ftd" else None,
    )


def expert_logits(task: Task, pool: Trajectories, index: Tensor, members: Sequence[int] | None = None) -> Tensor:
    """Logits (experts, n, classes) of every expert's last snapshot on training images, as they are, in eval mode."""
    template = task.functional()
    template.module.eval()
    rows = []
    for expert in members if members is not None else range(len(pool)):
        flat = pool.last(expert, task.device)
        with torch.no_grad():
            rows.append(torch.cat([template(flat, task.data.train.images(chunk)) for chunk in index.split(512)]))
    return torch.stack(rows)


def _words(task: Task, settings: ExpertSettings, member: int) -> str:
    return f"expert {member + 1} of {settings.count} ({settings.kind}, {task.data.name}, {settings.epochs} epochs)"
