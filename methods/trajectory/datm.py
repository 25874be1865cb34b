"""DATM: lossless distillation by difficulty-aligned trajectory matching (Guo et al., ICLR 2024, arXiv:2310.05773)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Optimizer

from dd.engine import parallel
from dd.engine.method import Objective, Skip, Synthetic, Task
from dd.engine.registry import register
from dd.training import ExpertSettings, expert_logits

from ._matching import draw_segment
from .mtt import MTT, Prepared


def mean_correct_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Average the logits of the experts that classify an image correctly, or of all experts if none does.

    Args:
        logits: (experts, n, k).
        targets: (n,) int64.

    Returns:
        (n, k).  If at least one expert is right, the largest entry of a row is its class.
    """
    right = (logits.argmax(2) == targets).to(logits.dtype)  # (experts, n)
    weight = torch.where(right.sum(0, keepdim=True) > 0, right, torch.ones_like(right))
    return (weight.unsqueeze(2) * logits).sum(0) / weight.sum(0).unsqueeze(1)


def widened(low: int, high: int, iterations: int, it: int) -> int:
    """Upper end of the window at iteration `it`: rises linearly from `low` to `high` over `iterations`."""
    return min(low + math.floor((high - low) * it / iterations), high)


@register("datm")
@dataclass(frozen=True)
class DATM(MTT):
    """Difficulty-aligned trajectory matching: MTT with a widening window of start epochs and learned soft labels.

        L = || theta_N - theta*_{s+M} ||^2 / || theta*_s - theta*_{s+M} ||^2,   s in {T-, ..., T(it) - 1}

    Small sets match early epochs and large sets late ones, which is the choice of T- and T+; T(it) rises to T+.

    1. Train experts in flat regions (as FTD).
    2. Start from real images that an expert classifies correctly; their labels are the experts' mean logits.
    3. Every iteration, draw a segment, and train the student N steps on images and soft labels.
    4. Update images, labels and learning rate; skip segments whose L exceeds `threshold`.
    """

    paper = "https://arxiv.org/abs/2310.05773"

    iterations: Annotated[int, Field(ge=0)] = 10_000
    lr_label: Annotated[float, Field(ge=0)] = 2.0
    """SGD learning rate of the label logits."""
    momentum_label: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the labels' optimiser."""
    threshold: Annotated[float, Field(gt=0)] = 1.0
    """A segment whose distance is larger, or NaN, is discarded, and another one is drawn."""
    tries: Annotated[int, Field(ge=1)] = 5
    """Segments that an iteration may draw before it is skipped; 1 skips immediately, as the authors' code does. If half
    of the segments exceed the threshold, 5 tries skip one iteration in 32.
    """
    window_start: Annotated[int, Field(ge=1)] | None = None
    """Upper end of the window of start epochs at iteration 0 [T]; None for a window that does not widen."""
    window_its: Annotated[int, Field(ge=1)] = 1000
    """Number of iterations over which the window widens to start_max."""
    start_from: Literal["correct", "real", "noise"] = "correct"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Initial images: "correct", random real ones that an expert classifies correctly; "real", any random real ones; or
    "noise".
    """
    experts: ExpertSettings = field(default_factory=lambda: ExpertSettings(kind="ftd", epochs=100))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_start is not None and not self.start_min < self.window_start <= self.start_max:
            raise ValueError(
                f"window_start={self.window_start} must be above start_min={self.start_min} and at most "
                f"start_max={self.start_max}"
            )

    def window(self, it: int) -> tuple[int, int]:
        """Start epochs {low, ..., high - 1} of iteration `it`; widens from easy (early) to hard (late) segments."""
        if self.window_start is None:
            return self.start_min, self.start_max
        return self.start_min, widened(self.window_start, self.start_max, self.window_its, it)

    def start(self, task: Task, prepared: Prepared) -> Synthetic:
        """Real images, labelled with the experts' mean logits, or noise, labelled with smoothed one-hot logits."""
        if self.start_from == "noise":
            hard = torch.nn.functional.one_hot(task.targets, task.classes).float()
            return Synthetic(task.first_images("noise"), task.targets, hard * math.log(10 * task.classes), self.lr_init)
        index = task.real_indices("start")
        if self.start_from == "correct":
            index = correct_indices(task, prepared)
        # for "real", the authors use the logits of the first expert, whether right or wrong
        logits = expert_logits(task, prepared.pool, index, None if self.start_from == "correct" else [0])
        labels = mean_correct_logits(logits, task.targets) if self.start_from == "correct" else logits[0]
        return Synthetic(task.data.train.images(index), task.targets, labels, self.lr_init)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """MTT's optimisers, and momentum SGD on the label logits."""
        assert syn.labels is not None
        return [*super().optimisers(syn), SGD([syn.labels], lr=self.lr_label, momentum=self.momentum_label)]

    def loss(self, syn: Synthetic, task: Task, prepared: Prepared, it: int) -> Objective:
        """MTT's distance with soft labels, on the first segment whose distance is at most `threshold`."""
        values: list[float] = []
        for again in range(self.tries):
            segment = draw_segment(task, prepared.pool, it, *self.window(it), self.span, again)
            distance = self.distance(syn, task, prepared, it, segment)
            values.append(parallel.agreed(float(distance.detach())))  # all processes must go the same way
            if values[-1] <= self.threshold:
                return {"distance": distance}
            del distance  # free its graph before the next one is built
        others = f", like those of {self.tries - 1} other segments" if self.tries > 1 else ""
        return Skip(values[0], f"distance {values[0]:.3f} is above threshold={self.threshold}{others}")


def correct_indices(task: Task, prepared: Prepared) -> Tensor:
    """Indices (n,) of random real images of each target's class that a final expert classifies correctly.

    The images of a class are tried in random order with the first expert, then with the next ones until there are
    enough.  If all experts fail, the first images of the order fill up.
    """
    chosen = torch.empty(len(task.targets), dtype=torch.long)
    rng = task.generator("start")
    for c in range(task.classes):
        slots = (task.targets.cpu() == c).nonzero().flatten()
        pool = task.data.train.of_class(c)
        order = pool[torch.randperm(len(pool), generator=rng)]
        found: dict[int, None] = {}
        for expert in range(len(prepared.pool)):
            if len(found) >= len(slots):
                break
            for chunk in order.split(256):
                right = expert_logits(task, prepared.pool, chunk, [expert])[0].argmax(1).cpu() == c
                found |= dict.fromkeys(chunk[right].tolist())
                if len(found) >= len(slots):
                    break
        found |= dict.fromkeys(order.tolist())
        chosen[slots] = torch.tensor(list(found)[: len(slots)])
    return chosen
