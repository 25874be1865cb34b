"""Helpers of the trajectory-matching methods: objective, segments of expert trajectories, synthetic batches.

Symbols of the papers, in brackets: steps [N], span [M], start_min [T-], start_max [T+], lr [eta].
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dd.engine import parallel
from dd.engine.method import Task
from dd.engine.shares import InShares
from dd.engine.unroll import Backprop, FrozenAdjoint, FullGraph, KeptGraphs, Stepwise
from dd.networks import Functional, closed_form, saved_bytes
from dd.rng import generator
from dd.training import Trajectories
from dd.views.dsa import Draw, apply, draw, some

log = logging.getLogger(__name__)

FULL_GRAPH_SHARE = 0.25  # share of the device's total memory for a full graph
MAPS_SHARE = 1 / 16  # the same for a full graph with maps, which is three times as large and 4 to 13 % faster


def trajectory_distance(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """||student - target||^2 / ||start - target||^2, the objective of MTT (Cazenavette et al. 2022, equation 2).

    It is 1 if the student did not move and 0 if it reached the target.  The norms are accumulated in float64, because
    the denominator is small for late segments.

    Args:
        student: (P,), parameters after the inner loop.
        start: (P,), the expert's parameters at the start of the segment.
        target: (P,), the expert's parameters at its end.
    """
    reached = (student - target).double().square().sum()
    distance = (start - target).double().square().sum()
    return (reached / distance).to(student.dtype)


def synthetic_batches(n: int, batch: int | None, steps: int, rng: torch.Generator) -> list[Tensor]:
    """Indices of the synthetic images of every inner step, sampled as in the official code.

    All n images are permuted and split into chunks of `batch`, which are consumed from the end, so that a short
    remainder comes first; then they are permuted again.

    Args:
        n: number of synthetic images.
        batch: images per step; None or at least n for all images in order.
        steps: number of inner steps.
        rng: draws the permutations.
    """
    if batch is None or batch >= n:
        return [torch.arange(n)] * steps
    queue: list[Tensor] = []
    chosen = []
    for _ in range(steps):
        if not queue:
            queue = list(torch.randperm(n, generator=rng).split(batch))
        chosen.append(queue.pop())
    return chosen


def expert_at(pool: int, it: int, seed: int) -> int:
    """The expert of iteration `it`: each pass over the pool uses every expert once, in a new random order."""
    order = torch.randperm(pool, generator=generator(seed, "expert order", it // pool))
    return int(order[it % pool])


@dataclass(frozen=True)
class Segment:
    """A segment of an expert's trajectory.

    Attributes:
        expert: number of the expert.
        epoch: start epoch.
        start: (P,), parameters at the start epoch.
        target: (P,), parameters `span` epochs later.
    """

    expert: int
    epoch: int
    start: Tensor
    target: Tensor


def draw_segment(task: Task, pool: Trajectories, it: int, low: int, high: int, span: int, again: int = 0) -> Segment:
    """Draw the segment of iteration `it`, with a start epoch uniform in {low, ..., high - 1}.

    With `again` > 0, draw the `again`-th replacement instead, from a random expert.
    """
    rng = task.generator("another segment", it, again) if again else task.generator("start epoch", it)
    expert = int(torch.randint(len(pool), (), generator=rng)) if again else expert_at(len(pool), it, task.seed)
    epoch = int(torch.randint(low, high, (), generator=rng))
    start = pool.snapshot(expert, epoch, task.device)
    return Segment(expert, epoch, start, pool.snapshot(expert, epoch + span, task.device))


class StudentLoss:
    """The student's loss at an inner step, for `dd.engine.unroll`: a pure function of theta, step, images and labels.

    Batches and augmentations are drawn once per outer iteration, and replayed whenever a step is recomputed.

    Args:
        network: the student.
        batches: image indices of every step.
        draws: the augmentation of every step.
        hard: int64 (n,) classes; None if labels are logits, which are then the second variable.
        scale: factor of the loss.
    """

    def __init__(
        self,
        network: Functional,
        batches: Sequence[Tensor],
        draws: Sequence[Draw],
        hard: Tensor | None,
        scale: float = 1.0,
    ) -> None:
        self.network, self.batches, self.draws, self.hard, self.scale = network, batches, draws, hard, scale

    def __call__(self, theta: Tensor, step: int, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """`scale` times the mean cross-entropy of step `step`."""
        seen, targets = self.inputs(step, images, labels)
        logits = self.network(theta, seen)
        if labels is None:
            loss = F.cross_entropy(logits, targets)
        else:
            loss = soft_cross_entropy(logits, targets)
        return loss if self.scale == 1.0 else self.scale * loss

    def inputs(self, step: int, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the student sees in step `step`: augmented images (b, c, h, w); classes (b,) or label logits (b, k)."""
        index, targets = self.batches[step], self.targets(labels)
        whole = len(index) == len(images)
        seen = apply(self.draws[step], images if whole else images[index])
        return seen, targets if whole else targets[index]

    def targets(self, labels: Tensor | None) -> Tensor:
        """The given label logits (n, k), or the classes (n,)."""
        targets = self.hard if labels is None else labels
        assert targets is not None
        return targets

    def weight(self, step: int) -> float:
        """The weight of an image of step `step`."""
        return self.scale / len(self.batches[step])

    def own(self) -> "OwnImages":
        """The images of this process's share of every batch."""
        return OwnImages(self, parallel.stride())


@dataclass(frozen=True)
class OwnImages:
    """The terms of some images of every batch in a `StudentLoss`, with their augmentation and weight there.

    Attributes:
        loss: the loss.
        rows: their positions in a batch.
    """

    loss: StudentLoss
    rows: slice

    def __call__(self, theta: Tensor, step: int, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The sum of the terms in step `step`."""
        return self.weight(step) * per_image_losses(self.loss.network, theta, *self.inputs(step, images, labels)).sum()

    def inputs(self, step: int, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `StudentLoss`, of these images."""
        index = self.loss.batches[step][self.rows]
        return apply(some(self.loss.draws[step], self.rows), images[index]), self.loss.targets(labels)[index]

    def weight(self, step: int) -> float:
        """The weight of an image of step `step`, in the whole batch."""
        return self.loss.weight(step)

    def is_empty(self, step: int) -> bool:
        """Whether none of these images is in the batch of step `step`."""
        return not len(self.loss.batches[step][self.rows])


def soft_cross_entropy(logits: Tensor, label_logits: Tensor) -> Tensor:
    """The mean of `soft_losses`."""
    return soft_losses(logits, label_logits).mean()


def student_loss(
    task: Task,
    network: Functional,
    it: int,
    batches: Sequence[Tensor],
    strategy: str,
    hard: Tensor | None,
    scale: float = 1.0,
) -> StudentLoss:
    """The loss of outer iteration `it`, with its augmentation draws."""
    shape = (task.data.channels, task.data.size, task.data.size)
    rng = task.generator("inner augmentation", it)
    draws = [draw(strategy, len(index), shape, rng) for index in batches]
    return StudentLoss(network, [index.to(task.device) for index in batches], draws, hard, scale)


def make_student(task: Task, backprop: str, steps: int, batch: int) -> Functional:
    """The student of the inner loop: its blocks have closed forms.

    Args:
        task: the run.
        backprop: the gradient mode: "full", "stepwise" or "frozen".
        steps: inner steps of an outer iteration.
        batch: images of an inner step.
    """
    keep = backprop != "full" or steps * graph_bytes(task, batch, keep=True) <= MAPS_SHARE * task.total_memory()
    return Functional(closed_form(task.network("skeleton"), keep=keep, fast=task.compile))


def make_backprop(task: Task, network: Functional, name: str, batch: int) -> Backprop:
    """The gradient mode of a settled `backprop`: "full", "stepwise" or "frozen".

    With several processes, each computes its share of the images of an inner step (`dd.engine.shares`), unless images
    interact: then each computes whole batches.

    Args:
        task: the run.
        network: the student.
        name: the mode.
        batch: images of an inner step.
    """
    images = torch.zeros((), device=task.device).expand(batch, *task.data.shape)
    shared = parallel.is_parallel() and not images_interact(network, images)
    if parallel.is_parallel() and not shared:
        log.info("images of a batch interact in this student: every process computes whole batches")
    if name == "full":
        # every process takes the same collective steps in the recursion, but not in a graph without its images
        return InShares(Stepwise(KeptGraphs)) if shared else FullGraph()
    recursion = {"stepwise": Stepwise, "frozen": FrozenAdjoint}[name]()
    return InShares(recursion) if shared else recursion


def choose_backprop(task: Task, steps: int, batch: int) -> Literal["full", "stepwise"]:
    """The full graph if it fits into a quarter of the device's total memory, else one step at a time.

    The choice depends on shapes and total memory, not on free memory.
    """
    needed = steps * graph_bytes(task, batch, keep=False)
    return "full" if needed <= FULL_GRAPH_SHARE * task.total_memory() else "stepwise"


def graph_bytes(task: Task, batch: int, *, keep: bool) -> int:
    """Bytes that one inner step with `batch` images saves for the backward pass, measured on two images.

    Args:
        task: the run.
        batch: images of an inner step.
        keep: whether the student keeps its maps, see `dd.networks.closed_form`.
    """
    network = Functional(closed_form(task.network("skeleton"), keep=keep))
    theta = network.flatten(network.module).requires_grad_()
    lr = torch.zeros((), device=task.device, requires_grad=True)
    images = torch.zeros(2, task.data.channels, task.data.size, task.data.size, device=task.device, requires_grad=True)
    hard = torch.zeros(2, dtype=torch.long, device=task.device)
    with saved_bytes() as seen:
        loss = F.cross_entropy(network(theta, images), hard)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        _ = theta - lr * gradient  # the update saves the gradient
    flat = 2 * 4 * network.size  # parameters and gradient do not grow with the batch
    return flat + max(sum(seen.values()) - flat, 0) * batch // 2


def per_image_losses(network: Functional, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (n,) of each image; targets are classes, int64 (n,), or label logits (n, k)."""
    logits = network(theta, images)
    if targets.is_floating_point():
        return soft_losses(logits, targets)
    return F.cross_entropy(logits, targets, reduction="none")


def soft_losses(logits: Tensor, label_logits: Tensor) -> Tensor:
    """-sum_k softmax(label_logits_i)_k log softmax(logits_i)_k of each image (n,), at temperature 1; both (n, k)."""
    return -(label_logits.softmax(1) * logits.log_softmax(1)).sum(1)


def images_interact(network: Functional, images: Tensor) -> bool:
    """Whether one of two images like `images` changes the logits of the other, as with batch statistics."""
    pair = torch.randn(2, *images.shape[1:], generator=generator(0, "pair")).to(images)
    theta = network.flatten(network.module).to(images)
    with torch.no_grad():
        together, beside_another = network(theta, pair), network(theta, torch.stack([pair[0], -pair[1]]))
    return not torch.allclose(together[0], beside_another[0], rtol=1e-4, atol=1e-5)
