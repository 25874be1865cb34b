"""DC: dataset condensation with gradient matching (Zhao et al., ICLR 2021, arXiv:2006.05929)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dd.engine import parallel
from dd.engine.accumulate import Terms, accumulated
from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.needs import Got
from dd.engine.registry import register
from dd.errors import UsageError
from dd.networks import Functional, in_closed_form, portions
from dd.views.dsa import augment

from ._classes import ENOUGH, group, has_batch_norm

NETWORKS = 1000
# bytes of the largest map of a portion of real images whose gradients are summed: 256 of 32 pixels at width 32
GRADIENT_PORTION = 32 << 20
# ipc -> (outer, inner): `get_loops` of the official code; for 100 its author's advice (issue 2 of that repository)
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10), 100: (100, 2)}


def gradient_distance(ours: Iterable[Tensor], real: Iterable[Tensor]) -> Tensor:
    """Gradient distance: sum over layers and outputs o of 1 - <A_o, B_o> / (||A_o|| ||B_o|| + 1e-6).

    One-dimensional parameters (biases and norm layers) are skipped.

    Args:
        ours: gradients A on synthetic images, one per parameter; the first axis indexes the outputs.
        real: gradients B on real images.
    """
    distance = []
    for a, b in zip(ours, real, strict=True):
        if a.dim() < 2:
            continue  # biases and norms
        # flatten all but the first axis; LayerNorm scales (c, h, w) become matrices over channels
        a, b = (g.reshape(g.shape[0], -1) for g in (a, b))
        cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
        distance.append((1 - cosine).sum())
    return torch.stack(distance).sum()


class Condensed(Synthetic):
    """Synthetic images with the current state of the network that is matched on.

    Attributes:
        theta: (P,), its parameters; unused if the next iteration starts a new network.
        done: int64 (), iterations done.
    """

    theta: Tensor
    done: Tensor

    def __init__(self, images: Tensor, targets: Tensor, size: int) -> None:
        super().__init__(images, targets)
        self.register_buffer("theta", images.new_zeros(size))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))


@register("dc")
@dataclass(frozen=True)
class DC(Method[Functional]):
    """Gradient matching: synthetic images give a network's weights the same gradients as real images.

        L = sum over classes c of D( grad_theta CE(real images of c), grad_theta CE(synthetic images of c) )

    with D of `gradient_distance`.

    1. Every `outer` iterations, draw a new random network.
    2. Match the gradients of all classes, and take one SGD step on the synthetic images.
    3. Train the network on the synthetic images for `inner` passes, then repeat step 2.

    By default `outer`, `inner` and `iterations` depend on ipc, as in the official code.
    """

    paper = "https://arxiv.org/abs/2006.05929"

    iterations: Annotated[int, Field(ge=0)] = 1000
    """Updates of the images: the paper's 1,000 networks times `outer`."""
    lr_img: Annotated[float, Field(gt=0)] = 0.1
    """SGD learning rate of the pixels, in model space."""
    momentum_img: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the pixels' optimiser."""
    batch_real: Annotated[int, Field(ge=1)] = 256
    """Real images per class and iteration."""
    start_from: Literal["real", "noise"] = "noise"
    """Initial images: random "real" ones of each class, or "noise" N(0, 1) in model space."""
    augment: bool = False
    """Whether to use siamese DSA: one draw per class and iteration, with the data set's strategy."""
    outer: Annotated[int, Field(ge=1)] = 1
    """Image updates per network."""
    inner: Annotated[int, Field(ge=1)] = 1
    """Training passes of the network on the synthetic images between two image updates."""
    lr_net: Annotated[float, Field(gt=0)] = 0.01
    """SGD learning rate of the network."""
    batch_net: Annotated[int, Field(ge=1)] = 256
    """Synthetic images per step of the network."""

    @classmethod
    def by_ipc(cls, ipc: int) -> Mapping[str, Any]:
        """The official code's loops, with 1,000 networks; for other ipc, those of the nearest known ipc by ratio."""
        outer, inner = LOOPS[min(LOOPS, key=lambda known: abs(math.log(known / ipc)))]
        return {"outer": outer, "inner": inner, "iterations": NETWORKS * outer}

    def settle(self, task: Task) -> Self:
        """Refuse a network with batch norm; nothing else to resolve.

        Raises:
            UsageError: the student has batch norm.
        """
        if has_batch_norm(task.network("skeleton")):
            raise UsageError(
                f"{self.name} needs gradients class by class; the authors freeze batch norm's statistics for that, "
                f"we do not, and student.arch={task.student.arch} has batch norm: use one without, such as "
                "student.arch=convnet student.norm=instance"
            )
        return self

    def prepare(self, task: Task, got: Got) -> Functional:
        """The student as a function; its module receives the weights of each iteration."""
        return task.functional()

    def start(self, task: Task, prepared: Functional) -> Synthetic:
        """Real images or noise, with hard labels."""
        return Condensed(task.first_images(self.start_from), task.targets, prepared.size)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """Momentum SGD on the pixels; its state is elementwise, so classes stay independent."""
        return [SGD([syn.images], lr=self.lr_img, momentum=self.momentum_img)]

    def loss(self, syn: Synthetic, task: Task, prepared: Functional, it: int) -> Objective:
        """The distance between the gradients on real and on synthetic images, class by class."""
        assert isinstance(syn, Condensed)
        if it % self.outer == 0:
            syn.theta.copy_(prepared.flatten(task.network("matching", it // self.outer)))
        network = prepared.module.to(syn.theta.dtype)
        prepared.load(network, syn.theta)

        def distance(c: int, real: Tensor, synthetic: Tensor) -> Terms:
            with in_closed_form(network, task.compile):
                target, ours = _real_gradients(network, real, c), _gradients(network, synthetic, c, create_graph=True)
            return {"distance": gradient_distance(ours, target)}

        def of(classes: Sequence[int]) -> Terms:
            batch = group(syn, task, it, classes, self.batch_real, task.data.augment if self.augment else "none")
            images = zip(classes, batch.real.split(batch.real_sizes), batch.synthetic.split(batch.sizes), strict=True)
            # gradients need one class at a time; only the augmentation is batched
            losses = [partial(distance, *of_class) for of_class in images]
            return accumulated(losses, batch.synthetic, ("distance",), shared=False)

        classes = parallel.share(range(task.classes))
        together = max(1, ENOUGH // self.batch_real)
        chunks = [classes[first : first + together] for first in range(0, len(classes), together)]
        return accumulated([partial(of, chunk) for chunk in chunks], syn.images, ("distance",))

    def project(self, syn: Synthetic, task: Task) -> None:
        """Train the network on the synthetic images, unless the next iteration starts a new one."""
        assert isinstance(syn, Condensed)
        it = int(syn.done)
        syn.done += 1
        if (it + 1) % self.outer == 0:
            return
        template = task.functional()
        network, parameters = template.module.to(syn.theta.dtype), list(template.module.parameters())
        template.load(network, syn.theta)
        images, rng = syn.images.detach(), task.generator("inner", it)
        for _ in range(self.inner):
            for index in torch.randperm(len(images), generator=rng).split(self.batch_net):
                batch = images[index.to(images.device)]
                if self.augment:
                    batch = augment(task.data.augment, batch, rng)
                loss = F.cross_entropy(network(batch), syn.targets[index.to(images.device)])
                steps = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    for parameter, step in zip(parameters, steps, strict=True):
                        parameter -= self.lr_net * step
        syn.theta.copy_(template.flatten(network))


def _real_gradients(network: nn.Module, images: Tensor, c: int) -> Sequence[Tensor]:
    """The `_gradients` of real images, in the memory of a portion of them."""
    total: Sequence[Tensor] = ()
    for some in portions(network, images, GRADIENT_PORTION):
        found = [len(some) / len(images) * gradient for gradient in _gradients(network, some, c)]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total


def _gradients(network: nn.Module, images: Tensor, c: int, create_graph: bool = False) -> Sequence[Any]:
    """Gradients of the mean cross-entropy of images of class `c` with respect to every parameter."""
    targets = torch.full((len(images),), c, device=images.device)
    loss = F.cross_entropy(network(images), targets)
    return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)
