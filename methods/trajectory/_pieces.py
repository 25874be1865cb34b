"""The two derivatives of an inner step, a fixed number of images at a time, eager or through `torch.compile`.

A student without batch statistics treats every image alone, so the loss of a batch is a weighted sum over its images:
gradient and products are sums over chunks.  All chunks have one shape (the last is filled up with images of weight 0),
so that nothing is compiled twice, and memory depends on the chunk, not on the batch.  Augmentation is outside, where
its draws are replayed; the derivatives reach the images through its own backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value, jvp

from dd.engine.unroll import Pieces, Products
from dd.networks import Functional
from dd.rng import generator
from dd.training.compiled import compiled

DerivativeOrder = Literal["reverse", "forward"]
CHUNK = 25  # images; 20 to 50 were measured to be equally fast, and less needs less memory


def per_image_losses(network: Functional, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (n,) of each image; targets are classes, int64 (n,), or label logits (n, k)."""
    logits = network(theta, images)
    if targets.is_floating_point():
        return soft_losses(logits, targets)
    return F.cross_entropy(logits, targets, reduction="none")


def soft_losses(logits: Tensor, label_logits: Tensor) -> Tensor:
    """-sum_k softmax(label_logits_i)_k log softmax(logits_i)_k of each image (n,), at temperature 1; both (n, k)."""
    return -(label_logits.softmax(1) * logits.log_softmax(1)).sum(1)


class ImagesLoss(Protocol):
    """Interface: the sum of `per_image_losses` over images of a step, each times the `weight` of the step."""

    def weight(self, step: int) -> float:
        """Return the weight of an image in step `step`."""
        ...

    def inputs(self, step: int, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the augmented images (b, c, h, w) of step `step`, and their targets as for `per_image_losses`."""
        ...


class StepFunctions:
    """Gradient and products of the weighted loss of some images, as pure functions of tensors.

    Args:
        network: the student.
        order: how s = <u, gradient> is differentiated.  "reverse": the gradient of s; "forward": all gradients, in the
            direction u.  Forward has an eighth fewer operations, reverse fewer passes over the maps.
        compile: run both through `torch.compile`: one compilation per shape, and per choice of derivatives.
    """

    def __init__(self, network: Functional, order: DerivativeOrder = "reverse", compile: bool = False) -> None:
        self.network, self.order, self.compile = network, order, compile
        self._fast = compiled if compile else lambda function: function
        self._made: dict[tuple[int, ...], Callable[..., tuple[Tensor, tuple[Tensor, ...]]]] = {}

    @cached_property
    def gradient(self) -> Callable[..., Tensor]:
        """(theta (P,), images, targets, weights (n,)) -> (P,)."""

        def of(theta: Tensor, images: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            return grad(self._loss)(theta, images, targets, weights)

        return self._fast(of)

    def products(self, wrt: tuple[int, ...]) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
        """(direction (P,), theta, images, targets, weights) -> (s, its derivatives with respect to `wrt`).

        Args:
            wrt: positions in (theta, images, targets), ascending.
        """
        if wrt not in self._made:
            self._made[wrt] = self._fast(self._reverse(wrt) if self.order == "reverse" else self._forward(wrt))
        return self._made[wrt]

    def _loss(self, theta: Tensor, images: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return torch.dot(weights, per_image_losses(self.network, theta, images, targets))

    def _reverse(self, wrt: tuple[int, ...]) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
        def reverse(direction: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            def slope(*inputs: Tensor) -> Tensor:
                return torch.dot(direction, grad(self._loss)(*inputs))

            found, value = grad_and_value(slope, argnums=wrt)(*inputs)
            return value, found

        return reverse

    def _forward(self, wrt: tuple[int, ...]) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
        def forward(direction: Tensor, theta: Tensor, *others: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            def gradients(theta: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
                return grad_and_value(self._loss, argnums=wrt)(theta, *others)

            found, slope = jvp(gradients, (theta,), (direction,))[1]
            return slope, found

        return forward


@dataclass(frozen=True, eq=False)
class InChunks:
    """Makes the `Pieces` of a student's loss.

    Attributes:
        functions: the functions of a chunk, shared by all steps and iterations.
        chunk: images of a chunk; None for whole batches, if images interact.
    """

    functions: StepFunctions
    chunk: int | None

    def __call__(self, loss: ImagesLoss) -> Pieces:
        """The pieces of one outer iteration's loss."""
        return _Chunked(self.functions, self.chunk, loss)


@dataclass(frozen=True)
class _Chunked:
    functions: StepFunctions
    chunk: int | None
    loss: ImagesLoss

    def gradient(self, theta: Tensor, step: int, variables: Sequence[Tensor]) -> Tensor:
        first, *others = self._chunks(step, *self.loss.inputs(step, *variables))
        total = self.functions.gradient(theta, *first)
        for chunk in others:
            total = total + self.functions.gradient(theta, *chunk)
        return total

    def products(
        self,
        theta: Tensor,
        step: int,
        variables: Sequence[Tensor],
        direction: Tensor,
        needs: Sequence[bool],
        curvature: bool,
    ) -> Products:
        wrt = tuple(position for position, needed in enumerate((curvature, *needs)) if needed)
        if not wrt:
            return Products(torch.dot(direction, self.gradient(theta, step, variables)), None, [None] * len(needs))
        leaves = [v.detach().requires_grad_(need) for v, need in zip(variables, needs, strict=True)]
        with torch.enable_grad():
            inputs = self.loss.inputs(step, *leaves)
        function = self.functions.products(wrt)
        slopes, parts = zip(
            *(function(direction, theta, *chunk) for chunk in self._chunks(step, *(x.detach() for x in inputs))),
            strict=True,
        )
        parts = list(zip(*parts, strict=True))
        of_theta = torch.stack(parts.pop(0)).sum(0) if curvature else None
        # from the images that the student sees back to the variables
        outputs = [inputs[position - 1] for position in wrt if position]
        seen = [torch.cat(part)[: len(inputs[0])] for part in parts]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, seen) if wanted else ())
        return Products(torch.stack(slopes).sum(), of_theta, [next(found) if need else None for need in needs])

    def _chunks(self, step: int, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = self.chunk or len(images)
        weights = images.new_full((len(images),), self.loss.weight(step))
        for some, theirs, own in zip(images.split(size), targets.split(size), weights.split(size), strict=True):
            missing = size - len(some)
            if missing:  # repeat images, with weight 0
                again = torch.arange(size, device=some.device) % len(some)
                some, theirs, own = some[again], theirs[again], F.pad(own, (0, missing))
            yield some, theirs, own


def chunk_of(network: Functional, images: Tensor) -> int | None:
    """Images per chunk for batches like `images` (b, c, h, w): as equal as possible, at most `CHUNK`.

    None, for whole batches, if `images_interact`.
    """
    if images_interact(network, images):
        return None
    return -(-len(images) // -(-len(images) // CHUNK))


def images_interact(network: Functional, images: Tensor) -> bool:
    """Whether one of two images like `images` changes the logits of the other, as with batch statistics."""
    pair = torch.randn(2, *images.shape[1:], generator=generator(0, "pair")).to(images)
    theta = network.flatten(network.module).to(images)
    with torch.no_grad():
        together, beside_another = network(theta, pair), network(theta, torch.stack([pair[0], -pair[1]]))
    return not torch.allclose(together[0], beside_another[0], rtol=1e-4, atol=1e-5)
