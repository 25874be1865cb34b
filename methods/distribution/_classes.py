"""Helpers of the distribution-matching methods: images by class, siamese augmentation, class means, chunks.

Classes are independent: each has its own generators, so its random draws do not depend on which classes exist or share
a forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dd.engine import parallel
from dd.engine.method import Synthetic, Task
from dd.networks import embed, portions, products, saved_bytes
from dd.views.dsa import Draw, apply, draw, siamese

FORWARD_SHARE = 0.125  # share of the device's total memory for the activations of one chunk of classes
ENOUGH = 1024  # images per chunk: enough to saturate any device, and a bound on memory for many classes
# multiply-accumulates per chunk on a CPU: those of ENOUGH images of 28 pixels in a ConvNet of width 32.  Beyond that,
# combining classes gains little and costs memory: at width 128, ten classes of 64 real images together take 0.92 of
# the time and 4.6 times the memory of one class after another (one core)
PRODUCTS = ENOUGH * 3_249_152


@dataclass(frozen=True)
class Group:
    """The augmented images of some classes in one iteration.

    Attributes:
        classes: the labels, in the order of the images.
        real: (sum of real_sizes, c, h, w), without a graph.
        real_sizes: number of real images per class.
        synthetic: (sum of sizes, c, h, w), differentiable.
        sizes: number of synthetic images per class.
    """

    classes: Sequence[int]
    real: Tensor
    real_sizes: Sequence[int]
    synthetic: Tensor
    sizes: Sequence[int]


def group(syn: Synthetic, task: Task, it: int, classes: Sequence[int], batch_real: int, strategy: str) -> Group:
    """Real and synthetic images of some classes in iteration `it`; each class has one siamese draw.

    Args:
        syn: the variables.
        task: the run.
        it: the iteration, which seeds all draws.
        classes: labels of the classes.
        batch_real: real images per class, drawn without replacement; all images of a smaller class.
        strategy: DSA strategy.
    """
    shape = (task.data.channels, task.data.size, task.data.size)
    draws = [draw(strategy, 1, shape, task.generator("siamese", it, c)) for c in classes]
    slots = [(syn.targets == c).nonzero().flatten() for c in classes]
    images, real_sizes = real_images(task, it, classes, batch_real)
    sizes = [len(s) for s in slots]
    real = augment_by_class(draws, images, real_sizes)
    synthetic = augment_by_class(draws, syn.images[torch.cat(slots)], sizes)
    return Group(classes, real, real_sizes, synthetic, sizes)


def real_images(
    task: Task, it: int, classes: Sequence[int], count: int, drawn: bool = True
) -> tuple[Tensor, list[int]]:
    """`count` real images of each class, ordered by class, and the number of images per class.

    Images are drawn without replacement, or, with `drawn=False`, always the first ones.  A smaller class contributes
    all its images.
    """
    pools = [task.data.train.of_class(c) for c in classes]
    if not drawn:
        index = [pool[:count] for pool in pools]
        return task.data.train.images(torch.cat(index)), [len(i) for i in index]
    orders = [
        torch.randperm(len(p), generator=task.generator("real", it, c)) for p, c in zip(pools, classes, strict=True)
    ]
    index = [pool[order[:count]] for pool, order in zip(pools, orders, strict=True)]
    return task.data.train.images(torch.cat(index)), [len(i) for i in index]


def first_of_class(task: Task) -> Tensor:
    """Indices (n,) of the first real training images of every class, one per target."""
    return torch.stack([task.data.train.of_class(int(c))[r] for c, r in zip(task.targets, task.ranks, strict=True)])


def augment_by_class(draws: Sequence[Draw], images: Tensor, sizes: Sequence[int]) -> Tensor:
    """Augment every class with its own draw, shared by all its images; batches classes with the same operation.

    Args:
        draws: one per class; the parameters of its first image are used.
        images: (sum of sizes, c, h, w), ordered by class.
        sizes: number of images per class.
    """
    if all(d.op == "none" for d in draws):
        return images
    starts = torch.tensor([0, *sizes]).cumsum(0)
    done, order = [], []
    for op in sorted({d.op for d in draws}):
        members = [i for i, d in enumerate(draws) if d.op == op]
        index = torch.cat([torch.arange(int(starts[i]), int(starts[i + 1])) for i in members])
        whole = [siamese(draws[i], sizes[i]) for i in members]
        params = {name: torch.cat([d.params[name] for d in whole]) for name in whole[0].params}
        done.append(apply(Draw(op, params), images[index.to(images.device)]))
        order.append(index)
    if len(done) == 1:
        return done[0]
    return torch.cat(done)[torch.cat(order).argsort().to(images.device)]


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """Features (n, d) of real images (n, c, h, w), without a graph and in the memory of a portion of them."""
    return torch.cat([embed(network, part) for part in portions(network, images)])


def class_means(features: Tensor, sizes: Sequence[int]) -> Tensor:
    """Class means (classes, d) of features (sum of sizes, d), ordered by class."""
    if len(set(sizes)) == 1:
        return features.view(len(sizes), sizes[0], -1).mean(1)
    counts = torch.tensor(sizes, device=features.device)
    owner = torch.arange(len(sizes), device=features.device).repeat_interleave(counts)
    sums = features.new_zeros(len(sizes), features.shape[1]).index_add(0, owner, features)
    return sums / counts[:, None]


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network has batch norm, so that an image's output depends on its batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def chunk_size(task: Task, batch_real: int) -> int:
    """Number of classes per forward pass, from shapes and the device's total memory.

    That is about a thousand images, at most what fits into an eighth of the device's total memory, and on a CPU no more
    than needed to keep it busy.

    Args:
        task: the run.
        batch_real: real images per class.
    """
    network = task.network("skeleton")
    images = torch.zeros(2, task.data.channels, task.data.size, task.data.size, device=task.device)
    with saved_bytes() as seen:
        network(images.requires_grad_())
    per_class = batch_real + -(-len(task.targets) // task.classes)
    one = sum(seen.values()) * per_class // 2
    limits = [task.classes, int(FORWARD_SHARE * task.total_memory()) // one, ENOUGH // per_class]
    if task.device.type == "cpu":
        limits.append(PRODUCTS // (max(1, products(network, images[:1])) * per_class))
    return max(1, min(limits))


def chunks(task: Task, network: nn.Module, chunk: int | None, batchnorm: Literal["class", "all"]) -> list[list[int]]:
    """The classes of each forward pass of this process.

    Args:
        task: the run.
        network: the network that is matched on.
        chunk: classes per forward pass, if the network has no batch norm; None for one.
        batchnorm: with batch norm, the classes of a forward pass affect each other: "class" gives each class its own
            pass, "all" puts all classes into one.
    """
    classes, each = list(range(task.classes)), chunk or 1
    if not has_batch_norm(network):
        classes = parallel.share(classes)
    elif batchnorm == "class":
        classes, each = parallel.share(classes), 1
    else:  # one pass cannot be distributed over processes
        classes, each = classes if parallel.is_first() else [], task.classes
    return [classes[first : first + each] for first in range(0, len(classes), each)]
