"""The training loop: batches on the device are augmented, and the optimiser takes one step on each.

Experts, teachers, students, probes and the full-data reference all use `Trainer`.  Networks are requested together and
trained one after another.  On a CPU this was measured to be 2 to 4 times faster than stacking their parameters
(`dd.training.stacked`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dd.data import RealData, Split
from dd.networks import portions
from dd.rng import generator
from dd.runs import sampling
from dd.runs.allocator import keep_large_buffers
from dd.training.compiled import BatchLoss, Loss
from dd.training.criteria import PLAIN, Criterion
from dd.training.gsam import gsam_gradient
from dd.training.penalty import gradient_penalty
from dd.views import Batches, ViewPolicy, draw_view
from dd.views.dsa import augment

WARM = 0.01  # share of lr at the start of a warm-up

AfterPass = Callable[[int, nn.Module], None]
"""Called with (passes done, network) after every full pass, and with 0 before the first."""

AfterStep = Callable[[int, nn.Module], None]
"""Called with (steps done, network) after every step; it leaves the weights and the mode of the network as they are."""


@dataclass(frozen=True)
class Fit:
    """How one network is trained.

    Attributes:
        steps: number of steps.
        lr: learning rate.
        momentum: heavy-ball momentum, as in `torch.optim.SGD`.
        weight_decay: L2 penalty, as in `torch.optim.SGD` and Adam; AdamW's own.
        decay_at: steps before which lr is multiplied by `decay` and the optimiser is recreated (resetting momentum), as
            in the code of the trajectory-matching family.
        decay: the factor.
        keep_state: decay lr without recreating the optimiser.
        optimiser: "sgd", "nesterov" (SGD with Nesterov's momentum), "adam" or "adamw".
        cosine: multiply lr by (1 + cos(pi t / (cosine * steps))) / 2 at step t: 1 ends at zero, 2 at half; None for no
            cosine schedule.
        min_lr: the lr that the cosine approaches instead of zero, as in `torch.optim.lr_scheduler.CosineAnnealingLR`.
        warmup: number of initial steps in which lr rises linearly from a hundredth.
        spare_vectors: no weight decay on parameters with fewer than two dimensions (biases and norm layers).
        criterion: the loss of logits and targets.
        micro: micro-batch size, with gradients accumulated over a step; None for the whole batch.
        strategy: DSA strategy, one operation per batch; "none" for none.
        sam: (rho, alpha) for flat experts, see `dd.training.gsam`; None for plain SGD.
        factors: factors of the loss in the first passes; afterwards it is 1.
        penalty: weight of `gradient_penalty` on the unaugmented images, added to the loss; 0 for none.
        momentum_after: momentum after the first decay; None keeps it.
    """

    steps: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at: tuple[int, ...] = ()
    decay: float = 0.1
    strategy: str = "none"
    sam: tuple[float, float] | None = None
    factors: tuple[float, ...] = ()
    penalty: float = 0.0
    momentum_after: float | None = None
    keep_state: bool = False
    optimiser: Literal["sgd", "nesterov", "adam", "adamw"] = "sgd"
    cosine: float | None = None
    min_lr: float = 0.0
    warmup: int = 0
    spare_vectors: bool = False
    criterion: Criterion = PLAIN
    micro: int | None = None

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        lr = self.lr * self.decay ** sum(at <= step for at in self.decay_at)
        if step < self.warmup:
            return lr * (WARM + (1 - WARM) * step / self.warmup)
        if self.cosine is None:
            return lr
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.min_lr + (lr - self.min_lr) * (1 + math.cos(math.pi * done / self.cosine)) / 2

    def factor(self, done: int) -> float:
        """Factor of the loss in the pass after `done` passes."""
        return self.factors[done] if done < len(self.factors) else 1.0


Path = tuple[int, *tuple[str | int, ...]]
"""(root seed, name, ...): identifies the random streams of one network."""


class Keep(Protocol):
    """Saves the state of one network between passes, so that a killed process can resume."""

    def load(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, int]:
        """Restore the saved state in place; returns (passes, steps) done, or (0, 0) if nothing is saved."""
        ...

    def save(self, network: nn.Module, optimiser: torch.optim.Optimizer, done: int, step: int) -> None:
        """Save the state after `done` passes and `step` steps."""
        ...


class Trainer:
    """Trains networks of one architecture, one after another, in a single module, so that it is compiled only once.

    A network depends on its path alone: weights, batch order and augmentation are drawn from generators seeded by the
    path, whichever other networks are requested.

    Args:
        build: generator -> a module with fresh weights drawn from it.
        compile: use `torch.compile` if there is enough work to justify it.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(
        self, build: Callable[[torch.Generator], nn.Module], compile: bool = False, precision: str = "fp32"
    ) -> None:
        keep_large_buffers()
        self._build = build
        self._loss = BatchLoss(build(generator(0, "skeleton")), compile, precision)

    def train(
        self,
        paths: Sequence[Path],
        batches: Batches,
        fit: Fit,
        after_pass: AfterPass | None = None,
        keeps: Sequence[Keep] | None = None,
        after_step: AfterStep | None = None,
    ) -> Iterator[nn.Module]:
        """Train one network per path.

        Args:
            paths: identify the networks.
            batches: the data, one shuffled pass at a time.
            fit: how to train.
            after_pass: called after every full pass of every network.
            keeps: one per path, to save the state after every full pass and to resume; a resumed training is
                bit-identical to an uninterrupted one.
            after_step: called after every step of every network.

        Yields:
            The trained network of each path; valid until the next one is requested.
        """
        network = self._loss.network
        for path, keep in zip(paths, keeps or [None] * len(paths), strict=True):
            network.load_state_dict(self._build(generator(*path, "weights")).state_dict())
            self._train_one(path, batches, fit, after_pass, keep, after_step)
            yield network

    def _train_one(
        self,
        path: Path,
        batches: Batches,
        fit: Fit,
        after_pass: AfterPass | None,
        keep: Keep | None,
        after_step: AfterStep | None,
    ) -> None:
        network, loss_of = self._loss.network, self._loss.of(fit.steps, fit.criterion)
        network.train()
        optimiser = make_optimiser(network.parameters(), fit, 0)
        done, step = keep.load(network, optimiser) if keep else (0, 0)
        laps = sampling.laps()
        if after_pass and not done:
            after_pass(0, network)
        while step < fit.steps:
            draws = generator(*path, "augment", done)
            for images, targets in batches(generator(*path, "order", done), done):
                if step == fit.steps:
                    break
                optimiser = at_step(optimiser, network.parameters(), fit, step)
                _step(network, loss_of, optimiser, images, targets, fit, done, draws)
                step += 1
                if after_step:
                    after_step(step, network)
                if sampling.ended(laps, fit.steps - step):
                    return
            else:
                done += 1
                if keep:
                    keep.save(network, optimiser, done, step)
                if after_pass:
                    after_pass(done, network)


def make_optimiser(parameters: Iterable[Tensor], fit: Fit, step: int) -> Optimizer:
    """A fresh optimiser for `fit`, starting at step `step`."""
    groups = _groups(list(parameters), fit)
    alone: Any = {"foreach": False, "fused": False}
    if fit.optimiser in ("adam", "adamw"):
        kind = AdamW if fit.optimiser == "adamw" else Adam
        return kind(groups, lr=fit.rate(step), weight_decay=fit.weight_decay, **alone)
    dropped = any(at <= step for at in fit.decay_at)
    momentum = fit.momentum if not dropped or fit.momentum_after is None else fit.momentum_after
    nesterov = fit.optimiser == "nesterov"
    return SGD(groups, lr=fit.rate(step), momentum=momentum, weight_decay=fit.weight_decay, nesterov=nesterov, **alone)


def at_step(optimiser: Optimizer, parameters: Iterable[Tensor], fit: Fit, step: int) -> Optimizer:
    """The optimiser with the learning rate of step `step`; recreated at a decay that resets its state."""
    if step in fit.decay_at and not fit.keep_state:
        return make_optimiser(parameters, fit, step)
    for group in optimiser.param_groups:
        group["lr"] = fit.rate(step)
    return optimiser


def passes(split: Split, size: int) -> Batches:
    """Shuffled passes over a split in batches of `size`."""
    return lambda rng, _: split.batches(size, rng)


def in_company(batches: Batches) -> Batches:
    """Skip batches of a single image, the remainder of a pass, because one image has no batch statistics."""
    return lambda rng, number: (batch for batch in batches(rng, number) if len(batch[1]) > 1)


def viewed(batches: Batches, policy: ViewPolicy, data: RealData) -> Batches:
    """Views of the batches' images; if images are mixed, labels become probabilities and are mixed too."""
    black = data.black if policy.pad else None

    def passes(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in batches(rng, number):
            view = draw_view(policy, len(images), data.shape, rng, data.augment, black)
            if policy.mix != "none":
                targets = targets if targets.dim() > 1 else F.one_hot(targets, len(data.classes)).float()
                targets = view.mixed(targets)
            yield view(images), targets

    return passes


def pieces(images: int, micro: int | None) -> list[int]:
    """Micro-batch sizes of a batch, the same for students and for teachers with batch statistics.

    A single remaining image joins the previous piece, because one image has no batch statistics.
    """
    if micro is None or images <= micro:
        return [images]
    sizes = [len(piece) for piece in torch.arange(images).split(micro)]
    return [*sizes[:-2], sizes[-2] + 1] if sizes[-1] == 1 else sizes


def _groups(parameters: list[Tensor], fit: Fit) -> list[dict[str, Any]]:
    if not fit.spare_vectors:
        return [{"params": parameters}]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def _step(
    network: nn.Module,
    loss_of: Loss,
    optimiser: Optimizer,
    images: Tensor,
    targets: Tensor,
    fit: Fit,
    done: int,
    draws: torch.Generator,
) -> None:
    """Take one step on a batch, in the pass after `done` passes."""
    optimiser.zero_grad(set_to_none=True)
    if fit.penalty:
        _penalise(network, images, fit.penalty)
    images = augment(fit.strategy, images, draws)
    _backward(loss_of, images, targets, fit.factor(done), fit.micro)
    if fit.sam:
        gsam_gradient(network, partial(loss_of, images, targets), *fit.sam)
    optimiser.step()


def _backward(loss_of: Loss, images: Tensor, targets: Tensor, factor: float, micro: int | None) -> None:
    """Add the gradient of `factor` times the batch's mean loss to `.grad`, `micro` images at a time."""
    sizes = pieces(len(images), micro)
    for some, theirs in zip(images.split(sizes), targets.split(sizes), strict=True):
        loss, weight = loss_of(some, theirs), factor * len(some) / len(images)
        (loss if weight == 1 else weight * loss).backward()


def _penalise(network: nn.Module, images: Tensor, weight: float) -> None:
    """Add the gradient of the weighted penalty to `.grad`; not compiled, because it is differentiated twice."""
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    (weight * gradient_penalty(slope)).backward(inputs=list(network.parameters()))


@torch.no_grad()
def predict(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits (n, k) and labels (n,) over one pass, in eval mode; restores the mode."""
    was_training = network.training
    network.eval()
    logits, labels = [], []
    for images, targets in batches:
        logits += [network(part) for part in portions(network, images)]
        labels.append(targets)
    network.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def accuracy(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy in percent over one pass, in eval mode."""
    logits, labels = predict(network, batches)
    return right(logits.argmax(1), labels)


def right(predicted: Tensor, labels: Tensor) -> float:
    """Accuracy in percent of predictions (n,) for labels (n,)."""
    return 100.0 * (predicted == labels).double().mean().item()


def recall(predicted: Tensor, labels: Tensor, classes: int) -> tuple[list[float | None], float]:
    """Per-class recall in percent, None for a class without images, and the mean over the other classes.

    Args:
        predicted: (n,) int64.
        labels: (n,) int64.
        classes: number of classes.
    """
    counts = torch.bincount(labels, minlength=classes).tolist()
    hits = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    each = [100.0 * hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
    known = [share for share in each if share is not None]
    return each, sum(known) / len(known)
