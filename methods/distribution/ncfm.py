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
from dd.networks import Functional, NetworkSpec, embed, in_closed_form
from dd.sets import DistilledSet
from dd.sets.tiles import decode, decoded, decoded_labels, mosaic
from dd.training import Experts, ExpertSettings, Trajectories, stack_size
from dd.views.dsa import draw_sequence

from ._classes import augment_by_class, chunk_size, chunks, class_means, features_of, first_of_class, real_images
from ._ncfd import Sampler, characteristic, discrepancy
from ._plateau import Plateau

_PER_COMPONENT = 16  # frequencies per scale (section 5.1 of the paper: T / 16 components)


@dataclass(frozen=True)
class Features:
    """The features of some classes in one iteration.

    Attributes:
        real: (sum of real_sizes, D), normalised features of real images.
        ours: (sum of sizes, D), normalised features of decoded images, differentiable.
        images: the decoded images, augmented, in model space.
        real_sizes: number of real images per class.
        sizes: number of decoded images per class.
    """

    real: Tensor
    ours: Tensor
    images: Tensor
    real_sizes: list[int]
    sizes: list[int]


@dataclass(frozen=True)
class Pool:
    """Pretrained networks, and two modules to run them in: one with blended weights, one with trained weights."""

    experts: Trajectories
    template: Functional
    network: nn.Module
    trained: nn.Module


class Mosaics(Synthetic):
    """Mosaics in [0, 1], and the adversarial sampling network.

    Attributes:
        features: feature dimension D of the network that is matched on.
        sampler: the sampling network; None for Gaussian frequencies.
        plateau: state of the plateau schedule; None for other schedules.
        velocity: momentum buffer of the sampling network, flat.
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
        """Load images from a set, which is in model space."""
        super().take(self._invert(images.to(self.images.device)).clamp(0, 1), labels, lr)


@register("ncfm")
@dataclass(frozen=True)
class NCFM(Method[Pool]):
    """Characteristic functions of features, matched at the frequencies where a sampling network finds them most apart.

        min over images, max over psi:  scale * sum over classes of NCFD( f(A(real)), f(A(decoded)); t ~ psi )
        min over images:                calibration * sum over classes of CE( f_trained(A(decoded)) )

    with the NCFD of Wang et al., equations 7 and 8: characteristic functions at frequencies t, compared by amplitude
    and phase.  Features are L2-normalised per sample.  Images are mosaics of factor x factor tiles.

    1. Draw a network of a pretrained pool; f has weights blended at random between its initial and trained ones.
    2. Decode the mosaics, augment, and compute the features of real and decoded images.
    3. Take a gradient ascent step on the sampling network psi, and draw frequencies from it.
    4. Take one optimiser step on the images.

    The released code never trains the sampling network; `sampler=gaussian` does the same, and `preset=code` follows
    that code with two differences: its optimiser steps once per class and phase, ours once per iteration
    (`lr_per=class` moves the images as far), and its pool is trained with IDC's augmentation and CutMix, ours with DSA.
    """

    paper = "https://arxiv.org/abs/2502.20653"

    iterations: Annotated[int, Field(ge=0)] = 20_000
    """Updates of the images."""
    lr_img: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the pixels, which are in [0, 1]."""
    batch_real: Annotated[int, Field(ge=1)] = 1024
    """Real images per class and iteration."""
    lr_per: Literal["iteration", "class"] = "iteration"
    """What `lr_img` and `weight_decay` refer to: one step per "iteration", or the P steps per iteration of the released
    code, one per "class" for the discrepancy and one for the calibration. An image has a gradient in one or two of
    these P steps: AdamW then moves it about sqrt(P) times as far as a single step, SGD as far as a single step, and
    both decay it P times. "class" scales the two settings accordingly.
    """
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """Optimiser of the pixels: AdamW, or SGD with momentum."""
    sgd_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of the pixels (decoupled for AdamW, an L2 penalty for SGD)."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Learning-rate schedule: "cosine" decay to zero; "plateau", halved whenever the loss has not fallen by a relative
    1e-4 for more than 500 iterations; or "constant".
    """
    factor: Annotated[int, Field(ge=1)] = 2
    """Tiles per side of a stored image."""
    frequencies: Annotated[int, Field(ge=32, multiple_of=_PER_COMPONENT)] = 1024
    """Frequencies T, a multiple of 16."""
    sampler: Literal["learned", "gaussian"] = "learned"
    """How frequencies are drawn: "learned" by minimax, or "gaussian", t ~ N(0, I)."""
    shared: bool = True
    """Whether all classes of an iteration share the same frequencies; otherwise each class has its own."""
    order: Literal["drawn", "file"] = "drawn"
    """Real images of a class: "drawn" at random in every iteration, or always its first `batch_real` in "file" order,
    from which the mosaics are initialised too.
    """
    lr_sampler: Annotated[float, Field(gt=0)] = 1e-3
    """SGD learning rate of the sampling network."""
    momentum_sampler: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the sampling network's optimiser."""
    amplitude: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the amplitude term [alpha]."""
    phase: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the phase term; 1 - alpha in the paper."""
    scale: Annotated[float, Field(gt=0)] = 300.0
    """Factor of the discrepancy."""
    calibration: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the trained network's cross-entropy."""
    strategy: str | None = "color_crop_cutout"
    """IDC's augmentation of real and decoded images, one draw per class; None for none."""
    refine: bool = False
    """Label every decoded image with the probabilities of the pool's first network, or with its class if that network
    is wrong. (In the released code, a wrong network gives nearly uniform labels, because a one-hot vector is used as
    logits.)
    """
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Classes per forward pass; None as for DM."""
    batchnorm: Literal["class", "all"] = "class"
    """Forward passes of networks with batch norm, as for DM: one per "class", or one for "all"."""
    experts: ExpertSettings = field(
        default_factory=lambda: ExpertSettings(count=20, epochs=60, momentum=0.9, weight_decay=5e-4, batch=128)
    )
    """The pool; only initial and final weights are used."""

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """Digests of the files that the pool is read from."""
        return self.experts.digests()

    def settle(self, task: Task) -> Self:
        """Resolve the number of classes per forward pass, and of experts trained together."""
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
        """Mosaics of downsampled real images, and a sampling network with weights drawn from the run's seed."""
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
        """AdamW or SGD on the pixels; both are elementwise.  The plateau schedule scales their learning rate."""
        assert isinstance(syn, Mosaics)
        steps = len(syn.targets.unique()) * (2 if self.calibration else 1) if self.lr_per == "class" else 1
        if self.optimiser == "adamw":
            far = math.sqrt(steps)  # AdamW decays by lr * weight_decay, so both factors together give P
            optimiser = AdamW([syn.images], lr=far * self.lr_img, weight_decay=far * self.weight_decay, foreach=False)
        else:
            decay = steps * self.weight_decay
            optimiser = SGD([syn.images], lr=self.lr_img, momentum=self.sgd_momentum, weight_decay=decay)
        if (plateau := syn.plateau) is not None:
            # the engine resets the rate before every step
            optimiser.register_step_pre_hook(lambda *_: plateau.slow(optimiser))
        return [optimiser]

    def rate(self, it: int) -> float:
        """Cosine decay from 1 to 0; 1 for the other schedules."""
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
        # the sampler's step uses one chunk of classes, which is processed first
        leading = groups.pop(it % len(groups)) if groups else []
        # two modules, because each graph needs its weights until the backward pass
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
        """Features of real (no graph) and decoded images of some classes, with one augmentation sequence per class."""
        slots = [(syn.targets == c).nonzero().flatten() for c in classes]
        shown = torch.cat([decode(syn.images[s], self.factor) for s in slots])
        images, sizes = task.data.preprocess.encode(shown), [len(s) * self.factor**2 for s in slots]
        chosen, real_sizes = real_images(task, it, classes, self.batch_real, self.order == "drawn")
        shape = (task.data.channels, task.data.size, task.data.size)
        strategy = self.strategy or "none"
        draws = [draw_sequence(strategy, 1, shape, task.generator("siamese", it, c)) for c in classes]
        for layer in zip(*draws, strict=True):
            images, chosen = augment_by_class(layer, images, sizes), augment_by_class(layer, chosen, real_sizes)
        with in_closed_form(prepared.network, task.compile):
            with torch.no_grad():
                real = F.normalize(features_of(prepared.network, chosen), dim=1)
            ours = F.normalize(embed(prepared.network, images), dim=1)
        return Features(real, ours, images, real_sizes, sizes)

    def _calibrate(self, prepared: Pool, held: Features, classes: Sequence[int]) -> Tensor:
        """Cross-entropy of the trained network on decoded images: mean per class, summed over classes."""
        logits = prepared.trained(held.images)
        counts = torch.tensor(held.sizes, device=logits.device)
        owner = torch.tensor(list(classes), device=logits.device).repeat_interleave(counts)
        each = F.cross_entropy(logits, owner, reduction="none")
        return class_means(each[:, None], held.sizes).sum()

    def _discrepancy(self, held: Features, ours: Tensor, frequencies: Tensor | Sequence[Tensor]) -> Tensor:
        """The NCFD summed over the classes in `held`, with shared frequencies or one tensor per class."""
        if isinstance(frequencies, Tensor):
            phi = characteristic(ours, frequencies, held.sizes), characteristic(held.real, frequencies, held.real_sizes)
            return discrepancy(*phi, self.amplitude, self.phase).sum()
        parts = zip(ours.split(held.sizes), held.real.split(held.real_sizes), frequencies, strict=True)
        each = [(characteristic(x, t, [len(x)]), characteristic(real, t, [len(real)])) for x, real, t in parts]
        return torch.cat([discrepancy(*phi, self.amplitude, self.phase) for phi in each]).sum()

    def _of_class(self, syn: Mosaics, task: Task, it: int, c: int) -> Tensor:
        """Frequencies (T, D) of one class in an iteration, from the current sampler."""
        rng = task.generator("frequencies", it, c)
        if syn.sampler is None:
            return torch.randn(self.frequencies, syn.features, generator=rng).to(task.device)
        with torch.no_grad():
            return syn.sampler(*syn.sampler.draw(rng))

    def _frequencies(self, syn: Mosaics, task: Task, prepared: Pool, it: int, held: Features | None) -> Tensor:
        """Frequencies (T, D) of the iteration, after a gradient ascent step of the sampler on the features in `held`.

        With several processes, they take one step together, on the features of all of them.
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
                parameter.add_(self.lr_sampler * step.view_as(parameter))  # gradient ascent
            return syn.sampler(noise, normals)

    def project(self, syn: Synthetic, task: Task) -> None:
        """Clamp pixels to [0, 1]."""
        with torch.no_grad():
            syn.images.clamp_(0, 1)

    def finish(self, syn: Synthetic, task: Task, prepared: Pool) -> DistilledSet:
        """The mosaics in model space, with their decode factor and one label per mosaic or per decoded image."""
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
    """A teacher's probabilities (n, k), replaced by the one-hot class if the teacher is wrong.

    Args:
        logits: (n, k), of the teacher.
        classes: (n,), the true classes.
    """
    right = (logits.argmax(1) == classes)[:, None]
    return torch.where(right, logits.softmax(1), F.one_hot(classes, logits.shape[1]).to(logits.dtype))
