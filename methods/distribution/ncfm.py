"""NCFM: distillation with neural characteristic function matching (Wang et al., CVPR 2025, arXiv:2502.20653)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dd.engine import parallel
from dd.engine.accumulate import Terms, accumulated
from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.networks import Functional, NetworkSpec, embed
from dd.sets import DistilledSet
from dd.sets.tiles import decode, decoded, decoded_labels, mosaic
from dd.training import Experts, ExpertSettings, Trajectories, stack_size
from dd.views.dsa import draw_sequence

from ._classes import augment_by_class, chunk_size, chunks, class_means, first_of_class, real_images
from ._ncfd import Sampler, characteristic, discrepancy
from ._plateau import Plateau

_PER_COMPONENT = 16  # frequencies that share a scale (the paper's section 5.1: T / 16 components)


@dataclass(frozen=True)
class Features:
    """What some classes look like in an iteration.

    Attributes:
        real: (sum of real_sizes, D) unit features of real images.
        ours: (sum of sizes, D) unit features of decoded images, differentiable.
        images: those decoded images, augmented, in model space.
        real_sizes: real images of each class.
        sizes: decoded images of each class.
    """

    real: Tensor
    ours: Tensor
    images: Tensor
    real_sizes: list[int]
    sizes: list[int]


@dataclass(frozen=True)
class Pool:
    """Pretrained networks, and two modules to run them in: blended, and as they were trained."""

    experts: Trajectories
    template: Functional
    network: nn.Module
    trained: nn.Module


class Mosaics(Synthetic):
    """Images in [0, 1] that are decoded, and the sampler that plays against them.

    Attributes:
        features: D of the network that is matched on.
        sampler: None for Gaussian frequencies.
        plateau: what is left of the learning rate; None for other schedules.
        velocity: the sampler's momentum, flat.
    """

    velocity: Tensor

    def __init__(
        self, images: Tensor, task: Task, features: int, sampler: Sampler | None, plateau: Plateau | None
    ) -> None:
        super().__init__(images, task.targets)
        self.features, self.sampler, self.plateau = features, sampler, plateau
        size = sum(p.numel() for p in sampler.parameters()) if sampler else 0
        self.register_buffer("velocity", images.new_zeros(size))
        self._invert = task.data.preprocess.invert

    def take(self, images: Tensor, labels: Tensor | None = None, lr: float | None = None) -> None:
        """Sets are in model space."""
        super().take(self._invert(images.to(self.images.device)).clamp(0, 1), labels, lr)


@register("ncfm")
@dataclass(frozen=True)
class NCFM(Method[Pool]):
    """Characteristic functions of features, matched where a sampling network finds them furthest apart.

    Every iteration blends one network of a pretrained pool between its first and its last weights, and minimises over
    images, with frequencies that maximise over a sampling network,

        scale * sum over classes of NCFD(f(A(real)), f(A(decoded)); t) + weight * CE of the trained one on A(decoded).

    Features are of unit norm, each sample's.  Images are mosaics of factor x factor tiles.  The released code never
    trains the sampling network: `sampler=gaussian` is what it does, and `preset=code` is that code.  What it does not
    copy: there the optimiser steps once per class and phase, here once an iteration (`lr_per=class` moves as far), and
    there the pool is trained with IDC's augmentation and CutMix, here with DSA.
    """

    paper = "https://arxiv.org/abs/2502.20653"

    iterations: Annotated[int, Field(ge=0)] = 20_000
    """Updates of the images."""
    lr_img: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the pixels in [0, 1]."""
    batch_real: Annotated[int, Field(ge=1)] = 1024
    """Real images per class and iteration."""
    lr_per: Literal["iteration", "class"] = "iteration"
    """The step that `lr_img` and `weight_decay` are for: that of an iteration, or the released code's steps, one per
    class for the discrepancy and one for the calibration. Of P such steps AdamW moves an image, which has a gradient in
    one or two of them, about sqrt(P) times as far as one step would, and decays it P times; SGD moves it as far as one
    step, and decays it P times.
    """
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """Optimiser of the pixels: AdamW, or SGD with momentum."""
    sgd_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of the pixels, AdamW's own or SGD's."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """How lr falls: "cosine" to zero over the iterations; "plateau" halves it where the loss has not fallen by a
    ten-thousandth for more than 500 iterations; or "constant".
    """
    factor: Annotated[int, Field(ge=1)] = 2
    """Tiles per side of a stored image."""
    frequencies: Annotated[int, Field(ge=32, multiple_of=_PER_COMPONENT)] = 1024
    """Frequencies T, a multiple of 16."""
    sampler: Literal["learned", "gaussian"] = "learned"
    """How frequencies are drawn: "learned" by minimax, or "gaussian", t ~ N(0, I)."""
    shared: bool = True
    """Show all classes of an iteration the same frequencies; otherwise each has its own."""
    order: Literal["drawn", "file"] = "drawn"
    """Which real images a class shows: "drawn", new every iteration; "file", always its first `batch_real`, with which
    the mosaics begin too.
    """
    lr_sampler: Annotated[float, Field(gt=0)] = 1e-3
    """SGD learning rate of the sampling network."""
    momentum_sampler: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the sampling network's optimiser."""
    amplitude: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the amplitudes [alpha]."""
    phase: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the phases; the paper's 1 - alpha."""
    scale: Annotated[float, Field(gt=0)] = 300.0
    """Factor of the discrepancy."""
    calibration: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the trained network's cross entropy."""
    strategy: str | None = "color_crop_cutout"
    """IDC's augmentation of both sides, one draw per class; None for none."""
    refine: bool = False
    """Label every decoded image by the pool's first network, with the class itself where that network is wrong. (In the
    released code a wrong one gives nearly uniform labels: its one-hot vector is taken for logits.)
    """
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Classes in one forward pass; None for as many as DM takes."""
    batchnorm: Literal["class", "all"] = "class"
    """As in DM."""
    experts: ExpertSettings = field(
        default_factory=lambda: ExpertSettings(count=20, epochs=60, momentum=0.9, weight_decay=5e-4, batch=128)
    )
    """The pool; only first and last weights are used."""

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """Of the files that the pool is read from."""
        return self.experts.digests()

    def settle(self, task: Task) -> Self:
        """Chunks as DM's, and how many experts to train at once."""
        experts = replace(self.experts, stack=stack_size(task, self.experts))
        return replace(self, chunk=self.chunk or chunk_size(task, self.batch_real), experts=experts)

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The pool of networks."""
        return [Experts(task, self.experts)]

    def prepare(self, task: Task, got: Got) -> Pool:
        """The pool, and modules to run its networks in."""
        blended, trained = (task.network("skeleton").requires_grad_(False) for _ in range(2))
        return Pool(got[Experts(task, self.experts)], task.functional(), blended, trained)

    def start(self, task: Task, prepared: Pool) -> Synthetic:
        """Mosaics of real images, each made smaller; a sampler whose weights are drawn from the run's seed."""
        more = replace(task, targets=task.targets.repeat_interleave(self.factor**2))
        index = more.real_indices("start") if self.order == "drawn" else first_of_class(more)
        images = mosaic(task.data.train.raw(index).float() / 255, self.factor)
        features, sampler = embed(prepared.network, task.data.train.images(torch.tensor([0]))).shape[1], None
        if self.sampler == "learned":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=task.generator("sampler"))))
                sampler = Sampler(features, self.frequencies // _PER_COMPONENT, _PER_COMPONENT).to(task.device)
        plateau = Plateau(task.device) if self.schedule == "plateau" else None
        return Mosaics(images, task, features, sampler, plateau)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """AdamW or SGD on the pixels, its state pixel by pixel, at the rate that the plateaus have left."""
        assert isinstance(syn, Mosaics)
        steps = len(syn.targets.unique()) * (2 if self.calibration else 1) if self.lr_per == "class" else 1
        if self.optimiser == "adamw":
            far = math.sqrt(steps)  # and decay is lr times weight_decay
            optimiser = AdamW([syn.images], lr=far * self.lr_img, weight_decay=far * self.weight_decay, foreach=False)
        else:
            decay = steps * self.weight_decay
            optimiser = SGD([syn.images], lr=self.lr_img, momentum=self.sgd_momentum, weight_decay=decay)
        if (plateau := syn.plateau) is not None:
            # the engine sets the rate again before every step
            optimiser.register_step_pre_hook(lambda *_: plateau.slow(optimiser))
        return [optimiser]

    def rate(self, it: int) -> float:
        """Cosine from 1 to 0, unless another schedule is asked for."""
        return (1 + math.cos(math.pi * it / self.iterations)) / 2 if self.schedule == "cosine" else 1.0

    def loss(self, syn: Synthetic, task: Task, prepared: Pool, it: int) -> Objective:
        """The scaled discrepancy and the calibration, summed over classes."""
        assert isinstance(syn, Mosaics)
        rng = task.generator("network", it)
        member = int(torch.randint(len(prepared.experts), (), generator=rng))
        blend = float(torch.rand((), generator=rng))
        first, last = (prepared.experts.snapshot(member, epoch, task.device) for epoch in (0, -1))
        blended = blend * first + (1 - blend) * last
        groups = chunks(task, prepared.network, self.chunk, self.batchnorm)
        # the classes that the sampler's step sees, first to have their turn
        leading = groups.pop(it % len(groups)) if groups else []
        # in two modules: each one's graph needs its weights until it is differentiated
        prepared.template.load(prepared.network, blended)
        prepared.template.load(prepared.trained, last)
        held = self._features(syn, task, prepared, it, leading) if leading else None
        frequencies = self._frequencies(syn, task, prepared, it, held)

        def of(classes: Sequence[int]) -> Terms:
            mine = held if classes is leading and held else self._features(syn, task, prepared, it, classes)
            own = frequencies if self.shared else [self._of_class(syn, task, it, c) for c in classes]
            terms = {"discrepancy": self.scale * self._discrepancy(mine, mine.ours, own)}
            if self.calibration:
                terms["calibration"] = self.calibration * self._calibrate(prepared, mine, classes)
            return terms

        names = ("discrepancy", "calibration") if self.calibration else ("discrepancy",)
        terms = accumulated([partial(of, c) for c in (leading, *groups) if c], syn.images, names)
        if syn.plateau is not None:
            syn.plateau.see(torch.stack([term.detach() for term in terms.values()]).sum() / task.classes, self.lr_img)
        return terms

    def _features(self, syn: Mosaics, task: Task, prepared: Pool, it: int, classes: Sequence[int]) -> Features:
        """Features of real (no graph) and of decoded images of some classes, under one sequence of draws per class."""
        slots = [(syn.targets == c).nonzero().flatten() for c in classes]
        shown = torch.cat([decode(syn.images[s], self.factor) for s in slots])
        images, sizes = task.data.preprocess.encode(shown), [len(s) * self.factor**2 for s in slots]
        chosen, real_sizes = real_images(task, it, classes, self.batch_real, self.order == "drawn")
        shape = (task.data.channels, task.data.size, task.data.size)
        strategy = self.strategy or "none"
        draws = [draw_sequence(strategy, 1, shape, task.generator("siamese", it, c)) for c in classes]
        for layer in zip(*draws, strict=True):
            images, chosen = augment_by_class(layer, images, sizes), augment_by_class(layer, chosen, real_sizes)
        with torch.no_grad():
            real = F.normalize(embed(prepared.network, chosen), dim=1)
        return Features(real, F.normalize(embed(prepared.network, images), dim=1), images, real_sizes, sizes)

    def _calibrate(self, prepared: Pool, held: Features, classes: Sequence[int]) -> Tensor:
        """Cross entropy of the trained network on decoded images, a mean per class, summed over classes."""
        logits = prepared.trained(held.images)
        counts = torch.tensor(held.sizes, device=logits.device)
        owner = torch.tensor(list(classes), device=logits.device).repeat_interleave(counts)
        each = F.cross_entropy(logits, owner, reduction="none")
        return class_means(each[:, None], held.sizes).sum()

    def _discrepancy(self, held: Features, ours: Tensor, frequencies: Tensor | Sequence[Tensor]) -> Tensor:
        """Summed over the classes that are held, with frequencies for all of them or for each."""
        if isinstance(frequencies, Tensor):
            phi = characteristic(ours, frequencies, held.sizes), characteristic(held.real, frequencies, held.real_sizes)
            return discrepancy(*phi, self.amplitude, self.phase).sum()
        parts = zip(ours.split(held.sizes), held.real.split(held.real_sizes), frequencies, strict=True)
        each = [(characteristic(x, t, [len(x)]), characteristic(real, t, [len(real)])) for x, real, t in parts]
        return torch.cat([discrepancy(*phi, self.amplitude, self.phase) for phi in each]).sum()

    def _of_class(self, syn: Mosaics, task: Task, it: int, c: int) -> Tensor:
        """(T, D) frequencies of one class in an iteration, from the sampler as it stands."""
        rng = task.generator("frequencies", it, c)
        if syn.sampler is None:
            return torch.randn(self.frequencies, syn.features, generator=rng).to(task.device)
        with torch.no_grad():
            return syn.sampler(*syn.sampler.draw(rng))

    def _frequencies(self, syn: Mosaics, task: Task, prepared: Pool, it: int, held: Features | None) -> Tensor:
        """(T, D) frequencies of the iteration, after the sampler's own step on the features that are held.

        With several processes it is one step on the features that all of them hold.
        """
        rng = task.generator("frequencies", it)
        if syn.sampler is None:
            return torch.randn(self.frequencies, syn.features, generator=rng).to(task.device)
        noise, normals = syn.sampler.draw(rng)
        parameters = list(syn.sampler.parameters())
        gradient = torch.zeros_like(syn.velocity)
        if held is not None:
            found = self._discrepancy(held, held.ours.detach(), syn.sampler(noise, normals))
            gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(found, parameters)])
        syn.velocity.mul_(self.momentum_sampler).add_(parallel.summed(gradient))
        with torch.no_grad():
            for parameter, step in zip(parameters, syn.velocity.split([p.numel() for p in parameters]), strict=True):
                parameter.add_(self.lr_sampler * step.view_as(parameter))  # uphill
            return syn.sampler(noise, normals)

    def project(self, syn: Synthetic, task: Task) -> None:
        """Pixels stay in [0, 1]."""
        with torch.no_grad():
            syn.images.clamp_(0, 1)

    def finish(self, syn: Synthetic, task: Task, prepared: Pool) -> DistilledSet:
        """Mosaics in model space, that say how they are decoded, with a label of each or of each decoded image."""
        made = super().finish(syn, task, prepared)
        images = task.data.preprocess.encode(syn.images.detach())
        tiles: dict[str, Any] = {"image_kind": "tiles", "decode_factor": self.factor} if self.factor > 1 else {}
        if self.refine:
            shown = decoded(images, self.factor, task.data.preprocess)
            logits = prepared.template.predict(prepared.experts.last(0, task.device), shown)
            labels = refined(logits, decoded_labels(syn.targets, self.factor, len(images)))
            tiles |= {"labels": labels, "label_kind": "probabilities"}
        return replace(made, images=images, **tiles)


def refined(logits: Tensor, classes: Tensor) -> Tensor:
    """(n, k) a teacher's probabilities, and the class itself where the teacher would choose another.

    Args:
        logits: (n, k), the teacher's.
        classes: (n,) the true ones.
    """
    right = (logits.argmax(1) == classes)[:, None]
    return torch.where(right, logits.softmax(1), F.one_hot(classes, logits.shape[1]).to(logits.dtype))
