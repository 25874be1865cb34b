"""What the distribution-matching methods share: images class by class, siamese augmentation, class means, chunks.

Classes are independent of one another, so each has generators of its own, and neither how many share a forward pass
nor which others there are changes what a class is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dd.engine import parallel
from dd.engine.method import Synthetic, Task
from dd.networks import products, saved_bytes
from dd.views.dsa import Draw, apply, draw, siamese

FORWARD_SHARE = 0.125  # of the device's total memory that the activations of one chunk of classes may take
ENOUGH = 1024  # images of a chunk: more keep no device busier, and memory shall not grow with the number of classes
# of a chunk on a CPU: as many as of ENOUGH images of 28 pixels in a ConvNet of width 32.  A class that is as much work
# by itself gains little by company and costs memory: at width 128 ten classes of 64 real images take 0.92 of the time
# and 4.6 times the memory of one after another (one core)
PRODUCTS = ENOUGH * 3_249_152


@dataclass(frozen=True)
class Group:
    """Some classes of an iteration, augmented and ready for a network.

    Attributes:
        classes: their labels, in the order of the images.
        real: (sum of real_sizes, c, h, w), without a graph.
        real_sizes: real images of each class.
        synthetic: (sum of sizes, c, h, w), differentiable.
        sizes: synthetic images of each class.
    """

    classes: Sequence[int]
    real: Tensor
    real_sizes: Sequence[int]
    synthetic: Tensor
    sizes: Sequence[int]


def group(syn: Synthetic, task: Task, it: int, classes: Sequence[int], batch_real: int, strategy: str) -> Group:
    """Real and synthetic images of some classes in iteration `it`, each class under one siamese draw.

    Args:
        syn: the variables.
        task: what to distil.
        it: names all draws.
        classes: which.
        batch_real: real images per class, drawn without replacement; all of a smaller class.
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
    """`count` real images of each class, without replacement, class after class, and how many of each there are.

    A smaller class gives all that it has.  Where they are not drawn they are the first ones, in every iteration.
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
    """(n,) indices of the first real training images of every class, one for every target."""
    return torch.stack([task.data.train.of_class(int(c))[r] for c, r in zip(task.targets, task.ranks, strict=True)])


def augment_by_class(draws: Sequence[Draw], images: Tensor, sizes: Sequence[int]) -> Tensor:
    """Augment every class with its own draw, shared by all its images; classes with the same operation go together.

    Args:
        draws: one per class; the parameters of its first image count.
        images: (sum of sizes, c, h, w), class after class.
        sizes: images of each class.
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


def class_means(features: Tensor, sizes: Sequence[int]) -> Tensor:
    """(classes, d) means of (sum of sizes, d) features, class after class."""
    if len(set(sizes)) == 1:
        return features.view(len(sizes), sizes[0], -1).mean(1)
    counts = torch.tensor(sizes, device=features.device)
    owner = torch.arange(len(sizes), device=features.device).repeat_interleave(counts)
    sums = features.new_zeros(len(sizes), features.shape[1]).index_add(0, owner, features)
    return sums / counts[:, None]


def has_batch_norm(network: nn.Module) -> bool:
    """Whether what one image gives depends on the others in its batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def chunk_size(task: Task, batch_real: int) -> int:
    """How many classes go into one forward pass, from shapes and the device's total memory.

    About a thousand images, or what an eighth of the device's total memory holds, and on a CPU as few as keep it busy.

    Args:
        task: what to distil.
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
    """This process's classes of every forward pass.

    Args:
        task: what to distil.
        network: that they go through.
        chunk: classes in one forward pass, where the network lets them share one; None for one at a time.
        batchnorm: with batch norm the classes of a forward pass see one another: "class" gives each a pass of its own,
            "all" puts all of them into one.
    """
    classes, each = list(range(task.classes)), chunk or 1
    if not has_batch_norm(network):
        classes = parallel.share(classes)
    elif batchnorm == "class":
        classes, each = parallel.share(classes), 1
    else:  # they cannot be shared out
        classes, each = classes if parallel.is_first() else [], task.classes
    return [classes[first : first + each] for first in range(0, len(classes), each)]
