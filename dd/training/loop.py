"""The training loop: batches that are already on the device, augmented there, and an optimiser's step on each.

Experts, students, probes and the full-data reference all go through `Trainer`.  Networks are asked for together and
trained one after another; on a CPU that was measured 2 to 4 times faster than stacking their parameters
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
from dd.rng import generator
from dd.runs.allocator import keep_large_buffers
from dd.training.compiled import BatchLoss, Loss
from dd.training.criteria import PLAIN, Criterion
from dd.training.gsam import gsam_gradient
from dd.training.penalty import gradient_penalty
from dd.views import Batches, ViewPolicy, draw_view
from dd.views.dsa import augment

WARM = 0.01  # share of lr that a warm-up begins with

AfterPass = Callable[[int, nn.Module], None]
"""Called with (passes done, network) after every whole pass, and with 0 before the first."""


@dataclass(frozen=True)
class Fit:
    """How one network is trained.

    Attributes:
        steps: number of steps.
        lr: learning rate.
        momentum: heavy-ball momentum, as in `torch.optim.SGD`.
        weight_decay: L2 penalty, as in `torch.optim.SGD` and Adam; AdamW's own.
        decay_at: steps before which lr is multiplied by `decay` and the optimiser recreated (its momentum is lost), as
            the trajectory-matching family does.
        decay: the factor.
        keep_state: lr falls without the optimiser being recreated.
        optimiser: "sgd", "adam" or "adamw".
        cosine: lr follows (1 + cos(pi t / (cosine * steps))) / 2 at step t: 1 ends at zero, 2 at half; None for none.
        warmup: first steps, over which lr rises in a line from a hundredth.
        spare_vectors: no weight decay on biases and norm layers, parameters of less than two dimensions.
        criterion: of the logits.
        micro: images that go through the network together, gradients adding up to a step's; None for all.
        strategy: DSA strategy, one operation per batch; "none" for none.
        sam: (rho, alpha) for flat experts, see `dd.training.gsam`; None for plain SGD.
        factors: of the loss in the first passes; it is 1 after them.
        penalty: weight of `gradient_penalty` on the unaugmented images, beside the loss; 0 for none.
        momentum_after: momentum once lr has fallen; None for the same.
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
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    cosine: float | None = None
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
        return lr * (1 + math.cos(math.pi * done / self.cosine)) / 2

    def factor(self, done: int) -> float:
        """Of the loss in the pass after `done` passes."""
        return self.factors[done] if done < len(self.factors) else 1.0


Path = tuple[int, *tuple[str | int, ...]]
"""A root seed and names: the path under which all random draws of one network stand."""


class Keep(Protocol):
    """Where the state of one network is kept between passes, so that a killed process goes on where it was."""

    def load(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, int]:
        """Restore what is kept, in place: (passes, steps) done by then, (0, 0) where nothing is."""
        ...

    def save(self, network: nn.Module, optimiser: torch.optim.Optimizer, done: int, step: int) -> None:
        """Keep the state after `done` passes and `step` steps."""
        ...


class Trainer:
    """Trains networks of one architecture, one after another, in one module, so that compiled code is made once.

    A network's result is a function of its path alone: weights, batch order and augmentation are drawn from generators
    named after it, whichever other networks are asked for.

    Args:
        build: generator -> a module with fresh weights drawn from it.
        compile: use `torch.compile` where the work is large enough to pay for it.
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
    ) -> Iterator[nn.Module]:
        """Train one network per path.

        Args:
            paths: which networks.
            batches: the data, one shuffled pass at a time.
            fit: how to train.
            after_pass: called after every whole pass of every network.
            keeps: one per path, where its state is kept after every whole pass and taken up again; the bits are those
                of a training that was never interrupted.

        Yields:
            The trained network of each path; valid until the next is asked for.
        """
        network = self._loss.network
        for path, keep in zip(paths, keeps or [None] * len(paths), strict=True):
            network.load_state_dict(self._build(generator(*path, "weights")).state_dict())
            self._train_one(path, batches, fit, after_pass, keep)
            yield network

    def _train_one(
        self, path: Path, batches: Batches, fit: Fit, after_pass: AfterPass | None, keep: Keep | None
    ) -> None:
        network, loss_of = self._loss.network, self._loss.of(fit.steps, fit.criterion)
        network.train()
        optimiser = make_optimiser(network.parameters(), fit, 0)
        done, step = keep.load(network, optimiser) if keep else (0, 0)
        if after_pass and not done:
            after_pass(0, network)
        while step < fit.steps:
            draws = generator(*path, "augment", done)
            for images, targets in batches(generator(*path, "order", done), done):
                if step == fit.steps:
                    break
                optimiser = at_step(optimiser, network.parameters(), fit, step)
                optimiser.zero_grad(set_to_none=True)
                if fit.penalty:
                    _penalise(network, images, fit.penalty)
                images = augment(fit.strategy, images, draws)
                _backward(loss_of, images, targets, fit.factor(done), fit.micro)
                if fit.sam:
                    gsam_gradient(network, partial(loss_of, images, targets), *fit.sam)
                optimiser.step()
                step += 1
            else:
                done += 1
                if keep:
                    keep.save(network, optimiser, done, step)
                if after_pass:
                    after_pass(done, network)


def make_optimiser(parameters: Iterable[Tensor], fit: Fit, step: int) -> Optimizer:
    """The optimiser of `fit` from step `step` on, without a memory."""
    groups = _groups(list(parameters), fit)
    alone: Any = {"foreach": False, "fused": False}
    if fit.optimiser != "sgd":
        kind = AdamW if fit.optimiser == "adamw" else Adam
        return kind(groups, lr=fit.rate(step), weight_decay=fit.weight_decay, **alone)
    dropped = any(at <= step for at in fit.decay_at)
    momentum = fit.momentum if not dropped or fit.momentum_after is None else fit.momentum_after
    return SGD(groups, lr=fit.rate(step), momentum=momentum, weight_decay=fit.weight_decay, **alone)


def at_step(optimiser: Optimizer, parameters: Iterable[Tensor], fit: Fit, step: int) -> Optimizer:
    """The optimiser with the learning rate of step `step`; a new one where the fit says that its memory is lost."""
    if step in fit.decay_at and not fit.keep_state:
        return make_optimiser(parameters, fit, step)
    for group in optimiser.param_groups:
        group["lr"] = fit.rate(step)
    return optimiser


def passes(split: Split, size: int) -> Batches:
    """Shuffled passes over a split in batches of `size`."""
    return lambda rng, _: split.batches(size, rng)


def in_company(batches: Batches) -> Batches:
    """The same but batches of a single image, which has no batch statistics: what is left over of a pass."""
    return lambda rng, number: (batch for batch in batches(rng, number) if len(batch[1]) > 1)


def viewed(batches: Batches, policy: ViewPolicy, data: RealData) -> Batches:
    """Views of the batches' images; labels are mixed as their images are, and become probabilities for that."""
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
    """Sizes of the micro-batches that a batch falls into, the same for students and for teachers with batch statistics.

    A single image left over joins the piece before it, as batch statistics of one image say nothing.
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


def _backward(loss_of: Loss, images: Tensor, targets: Tensor, factor: float, micro: int | None) -> None:
    """Add the gradient of `factor` times the batch's mean loss to `.grad`, `micro` images at a time."""
    sizes = pieces(len(images), micro)
    for some, theirs in zip(images.split(sizes), targets.split(sizes), strict=True):
        loss, weight = loss_of(some, theirs), factor * len(some) / len(images)
        (loss if weight == 1 else weight * loss).backward()


def _penalise(network: nn.Module, images: Tensor, weight: float) -> None:
    """Add the gradient of the weighted penalty to `.grad`; uncompiled, for it is differentiated twice."""
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    (weight * gradient_penalty(slope)).backward(inputs=list(network.parameters()))


@torch.no_grad()
def predict(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits (n, k) and labels (n,) over one pass, in evaluation mode; the mode is restored."""
    was_training = network.training
    network.eval()
    logits, labels = zip(*((network(images), targets) for images, targets in batches), strict=True)
    network.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def accuracy(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy in percent over one pass, in evaluation mode."""
    logits, labels = predict(network, batches)
    return right(logits.argmax(1), labels)


def right(predicted: Tensor, labels: Tensor) -> float:
    """Accuracy in percent of predictions (n,) of labels (n,)."""
    return 100.0 * (predicted == labels).double().mean().item()


def recall(predicted: Tensor, labels: Tensor, classes: int) -> tuple[list[float | None], float]:
    """Accuracy in percent on the images of each class, None where it has none, and the mean of the others.

    Args:
        predicted: (n,) int64.
        labels: (n,) int64.
        classes: how many there are.
    """
    counts = torch.bincount(labels, minlength=classes).tolist()
    hits = torch.bincount(labels[predicted == labels], minlength=classes).tolist()
    each = [100.0 * hit / count if count else None for hit, count in zip(hits, counts, strict=True)]
    known = [share for share in each if share is not None]
    return each, sum(known) / len(known)
