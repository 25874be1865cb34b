"""AST: alignment with smooth and high-quality expert trajectories (Shen et al., 2023, arXiv:2310.10541)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Objective, Synthetic, Task
from dd.engine.registry import register
from dd.networks import Functional
from dd.selection.kmeans import representatives
from dd.training import ExpertSettings, expert_logits

from ._matching import draw_segment, trajectory_distance
from .mtt import MTT, Prepared


def balance(epoch: int, start_max: int) -> float:
    """Factor of the student's loss on a segment that starts at `epoch`: small for early segments, large for late ones.

    With m = start_max // 2, it is log_5(epoch - m + 8) if epoch >= m, else 1 / log_5(m - epoch + 8).
    """
    middle = start_max // 2
    return math.log(epoch - middle + 8, 5) if epoch >= middle else 1 / math.log(middle - epoch + 8, 5)


def perturbed(theta: Tensor, network: Functional, rng: torch.Generator) -> Tensor:
    """Perturb the convolution kernels W in parameters (P,): W + d * W, with Gaussian noise d of Frobenius norm 1."""
    parts = []
    for part in network.unflatten(theta).values():
        if part.dim() == 4:
            noise = torch.randn(part.shape, generator=rng, dtype=torch.float32).to(part)
            part = part + noise / noise.norm() * part
        parts.append(part.reshape(-1))
    return torch.cat(parts)


def middle_steps(steps: int, span: int) -> tuple[int, ...]:
    """Inner steps at which the intermediate epochs i of a segment are matched: i * floor(steps / span)."""
    return tuple(i * (steps // span) for i in range(1, span))


@register("ast")
@dataclass(frozen=True)
class AST(MTT):
    """MTT on smooth experts, with five changes to the student's inner loop, each with its own switch.

        L = sum over matched epochs i of w_i || theta_i - theta*_{s+i} ||^2 / || theta_0 - theta*_{s+i} ||^2

    1. Train smooth experts (`experts.kind=ast`, with switches `experts.clip` and `experts.penalty`).
    2. Start from the images nearest to k-means centres of each class (`start_from`).
    3. Every iteration, draw a segment and start the student from slightly perturbed parameters (`perturb`).
    4. Train the student with momentum (`momentum`), its loss scaled by the start epoch (`balance`).
    5. Match the target and the epochs before it (`middle`), and update images and learning rate.

    We could not read the paper's tables, and its released scripts disagree with their README.  The formulas are those
    of the released code, except for the start: the code uses ten centres for any ipc (and none at ipc 1).
    """

    paper = "https://arxiv.org/abs/2310.10541"

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the student's SGD in the inner loop."""
    start_from: Literal["cluster", "real", "noise"] = "cluster"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Initial images: "cluster", those nearest to the k-means centres of each class's expert logits; or as for MTT,
    "real" or "noise".
    """
    balance: bool = True
    """Scale the student's loss by the start epoch: below 1 for early segments, above 1 for late ones."""
    middle: Literal["off", "sum", "adaptive"] = "sum"
    """Also match the epochs between start and target: "sum" gives each weight 1, "adaptive" gives the i-th of n weight
    i / (n + 1), "off" matches the target only.
    """
    perturb: bool = True
    """Perturb the student's initial convolution kernels slightly, with relative Gaussian noise."""
    experts: ExpertSettings = field(
        default_factory=lambda: ExpertSettings(kind="ast", lr=0.003, momentum=0.9, weight_decay=1e-3)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.middle != "off" and self.steps < self.span:
            raise ValueError(f"middle={self.middle!r} needs steps={self.steps} to be at least span={self.span}")

    def start(self, task: Task, prepared: Prepared) -> Synthetic:
        """The images nearest to each class's k-means centres, by one expert's logits; or MTT's start."""
        if self.start_from != "cluster":
            return super().start(task, prepared)
        index = cluster_indices(task, prepared)
        return Synthetic(task.data.train.images(index), task.targets, lr=self.lr_init)

    def loss(self, syn: Synthetic, task: Task, prepared: Prepared, it: int) -> Objective:
        """The distance to the target, and those to the epochs before it."""
        assert syn.lr is not None
        segment = draw_segment(task, prepared.pool, it, *self.window(it), self.span)
        start = segment.start
        if self.perturb:
            start = perturbed(start, prepared.network, task.generator("perturbation", it))
        between = middle_steps(self.steps, self.span) if self.middle != "off" else ()
        scale = balance(segment.epoch, self.start_max) if self.balance else 1.0
        loss, variables = self.student(syn, task, prepared, it, scale=scale)
        options = {"steps": self.steps, "momentum": self.momentum, "at": (*between, self.steps)}
        *middle, end = prepared.backprop(loss, start, syn.lr, variables, **options)
        terms = {"distance": trajectory_distance(end, start, segment.target)}
        for i, theta in enumerate(middle, 1):
            target = prepared.pool.snapshot(segment.expert, segment.epoch + i, task.device)
            weight = i / (len(middle) + 1) if self.middle == "adaptive" else 1.0
            terms[f"distance at epoch {i}"] = weight * trajectory_distance(theta, start, target)
        return terms


def cluster_indices(task: Task, prepared: Prepared) -> Tensor:
    """Indices (n,) of training images: per class, those nearest to the k-means centres of one expert's logits."""
    chosen = torch.empty(len(task.targets), dtype=torch.long)
    rng = task.generator("start")
    expert = int(torch.randint(len(prepared.pool), (), generator=rng))
    for c in range(task.classes):
        slots: Sequence[int] = (task.targets.cpu() == c).nonzero().flatten().tolist()
        pool = task.data.train.of_class(c)
        logits = expert_logits(task, prepared.pool, pool, [expert])[0].double().cpu().numpy()
        seed = int(torch.randint(2**31, (), generator=rng))
        chosen[slots] = pool[representatives(logits, len(slots), seed)]
    return chosen
