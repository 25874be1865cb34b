"""KRR-ST: self-supervised dataset distillation for transfer learning (Lee et al., ICLR 2024, arXiv:2310.06511)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.networks import NetworkSpec, build_network, embed
from dd.sets import DistilledSet
from dd.training.encoders import Encoder, Encoders, EncoderSettings
from dd.training.ridge import kernel_prediction, with_bias
from dd.views import ViewPolicy, draw_view

from ._pool import NetworkPool, PoolSettings


class Represented(Synthetic):
    """Images and representations, with the pool of networks trained on them and the number of updates so far.

    Args:
        images: (m, c, h, w).
        targets: (m,) int64, the classes of the initial images.
        encoder: gives other initial images their representations.
        representations: (m, d).
        pool: the networks.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, encoder: Encoder, representations: Tensor, pool: NetworkPool
    ) -> None:
        super().__init__(images, targets, representations)
        self.pool = pool
        self._encoder = encoder

    @torch.no_grad()
    def take(self, images: Tensor, labels: Tensor | None = None, lr: float | None = None) -> None:
        """Overwrite the images, and the representations with given ones or with the encoder's."""
        assert self.labels is not None
        self.images.copy_(images)
        fits = labels is not None and labels.shape == self.labels.shape
        self.labels.copy_(labels if fits and labels is not None else self._encoder.of(self.images))


@register("krrst")
@dataclass(frozen=True)
class KRRST(Method[Encoder]):
    """Kernel ridge regression on self-trained representations: images X_s with representations Y_s, both learned.

        L = mean || K_rs (K_ss + lambda I)⁻¹ Y_s - g(A(x_r)) ||²,   K = φφᵀ,  φ = [ω, 1],  lambda = ridge tr(K_ss)

    with g a frozen self-supervised encoder, ω the features of a network of a pool, and A a random crop and flip.  A
    network trained to regress Y_s from X_s is meant to be a good start for other tasks.

    1. Train the encoder without labels, and the networks of the pool on the initial images, for different times.
    2. Every iteration, draw a network and a batch of real images; take one AdamW step on X_s and Y_s.
    3. Train this network for one step on the updated set, or replace it by a fresh one if it has all its steps.

    The paper's ConvNet doubles its channels from block to block; ours has the same number in all.
    """

    paper = "https://arxiv.org/abs/2310.06511"

    iterations: Annotated[int, Field(ge=0)] = 160_000
    """Updates of images and representations."""
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(name="barlow"))
    """The encoder whose representations are regressed."""
    lr_img: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of AdamW on the images."""
    lr_label: Annotated[float, Field(ge=0)] = 1e-4
    """Learning rate of AdamW on the representations; 0 keeps those of the encoder."""
    final_rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Factor of both learning rates at the end of their linear decay."""
    batch_real: Annotated[int, Field(ge=1)] = 1024
    """Real images per iteration."""
    views: ViewPolicy = field(default_factory=lambda: ViewPolicy(pad=4, flip=True))
    """How views of real images are drawn."""
    ridge: Annotated[float, Field(gt=0)] = 1e-6
    """Penalty of the regression, as a share of the trace of the kernel."""
    start_from: Literal["real", "raw", "noise"] = "real"
    """Initial images: random "real" ones of each class in model space; "raw", the same with values from 0 to 1, as in
    the released code; or "noise" N(0, 1) in model space. Representations are those of the real images (of the noise).
    """
    pool: PoolSettings = field(default_factory=PoolSettings)
    """The networks, and how they are trained."""

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """Digest of the encoder if it is a file."""
        return self.encoder.digests(student)

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The encoder."""
        return [Encoders(task, self.encoder)]

    def prepare(self, task: Task, got: Got) -> Encoder:
        """The encoder."""
        return got[Encoders(task, self.encoder)]

    def start(self, task: Task, prepared: Encoder) -> Synthetic:
        """Initial images with their representations, and a pool trained on them."""
        images = task.first_images("noise" if self.start_from == "noise" else "real")
        representations = prepared.of(images)
        if self.start_from == "raw":
            images = task.data.preprocess.invert(images)
        pool = NetworkPool([self._network(task, prepared, n, 0) for n in range(self.pool.count)], self.pool)
        pool.start(images, representations, task.generator("ages"))
        return Represented(images, task.targets, prepared, representations, pool)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """AdamW without weight decay."""
        assert syn.labels is not None
        groups = [{"params": [syn.images], "lr": self.lr_img}]
        if self.lr_label:
            groups.append({"params": [syn.labels], "lr": self.lr_label})
        return [AdamW(groups, weight_decay=0.0, foreach=False)]

    def rate(self, it: int) -> float:
        """Linear decay from 1 to `final_rate`."""
        return 1 - (1 - self.final_rate) * it / self.iterations

    def loss(self, syn: Synthetic, task: Task, prepared: Encoder, it: int) -> Objective:
        """The error of the ridge regression; trains the network of the previous iteration first."""
        assert isinstance(syn, Represented)
        assert syn.labels is not None
        if it:
            last = self._drawn(task, it - 1)
            syn.pool.visit(last, syn.images, syn.labels, lambda: self._network(task, prepared, last, it))
        network = syn.pool.networks[self._drawn(task, it)].eval()
        with torch.no_grad():
            views = self._real(task, it)
            targets = prepared.of(views)
            real = with_bias(embed(network, views))
        ours = with_bias(embed(network, syn.images))
        return F.mse_loss(kernel_prediction(real, ours, syn.labels, self.ridge), targets)

    def finish(self, syn: Synthetic, task: Task, prepared: Encoder) -> DistilledSet:
        """Images and representations, with the encoder recorded."""
        made = super().finish(syn, task, prepared)
        return replace(made, label_kind="representations", provenance={**made.provenance, "encoder": prepared.origin})

    def _drawn(self, task: Task, it: int) -> int:
        """The network of iteration `it`."""
        return int(torch.randint(self.pool.count, (), generator=task.generator("network of", it)))

    def _real(self, task: Task, it: int) -> Tensor:
        """Views of a batch of real images."""
        data, rng = task.data, task.generator("real", it)
        index = torch.randperm(len(data.train), generator=rng)[: self.batch_real]
        black = data.black if self.views.pad else None
        return draw_view(self.views, len(index), data.shape, rng, data.augment, black)(data.train.images(index))

    def _network(self, task: Task, prepared: Encoder, number: int, it: int) -> nn.Module:
        """A fresh network with one output per number of a representation."""
        data, rng = task.data, task.generator("pool", number, it)
        shape = {"channels": data.channels, "size": data.size, "classes": prepared.features}
        return build_network(task.student, **shape, generator=rng, device=task.device)
