"""Self-supervised representations: Barlow Twins (Zbontar et al., ICML 2021, arXiv:2103.03230) on the real images."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dd.data import RealData
from dd.engine.method import Task
from dd.errors import RunError
from dd.io import digest
from dd.networks import NetworkSpec, embed
from dd.runs.store import Artefact, Wanted
from dd.training.loop import Fit, Trainer
from dd.training.passes import PassFile
from dd.training.squeeze import build_teacher
from dd.views import Batches, ViewPolicy, draw_view

KIND = "encoders"
VERSION = 1  # of the training procedure; part of every key, raised when results change
_EPS = 1e-5  # of the standardisation of embeddings, as in BatchNorm


@dataclass(frozen=True)
class BarlowSettings:
    """How an encoder is trained without labels.

    Lambda is the paper's; its LARS is Adam here, its colour jitter and blur are the colour operation of DSA, and the
    projector is narrower (8,192 there).
    """

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 200
    """Passes over the real training images."""
    batch: Annotated[int, Field(ge=4, le=10**6)] = 256
    """Real images per step; each gives two views."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 1e-3
    """Learning rate of Adam; it decays to zero along a cosine."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-6
    """L2 penalty."""
    redundancy: Annotated[float, Field(ge=0)] = 5e-3
    """Weight of the off-diagonal correlations [lambda]."""
    width: Annotated[int, Field(ge=1, le=2**16)] = 2048
    """Units of both layers of the projector."""
    views: ViewPolicy = field(default_factory=lambda: ViewPolicy(crop=0.2, flip=True, strategy="color"))
    """How the two views of an image are drawn."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the encoder; independent of the run's seed, so that runs with different seeds share it."""


@dataclass(frozen=True)
class BarlowTwins:
    """The criterion of Barlow Twins, equation 1.

        L = sum_i (1 - C_ii)² + lambda sum_{i≠j} C_ij²,   C = correlations of the two views' embeddings over the batch.

    Attributes:
        redundancy: lambda.
    """

    redundancy: float

    def __call__(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Scalar for embeddings (2b, p), the first views and then the second; `targets` are ignored."""
        one, other = (
            (half - half.mean(0)) / (half.var(0, unbiased=False) + _EPS).sqrt() for half in embeddings.chunk(2)
        )
        squared = (one.T @ other / len(one)).square()
        diagonal = squared.diagonal()
        kept = (one * other).mean(0)
        return (1 - kept).square().sum() + self.redundancy * (squared.sum() - diagonal.sum())


class _Projected(nn.Module):
    """An encoder with the projector that its criterion sees."""

    def __init__(self, network: nn.Module, features: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.projector = nn.Sequential(
            nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.projector(embed(self.network, images))


def barlow_spec(task: Task, network: NetworkSpec, settings: BarlowSettings) -> dict[str, Any]:
    """Everything that determines an encoder trained here: the key of its artefact."""
    return {
        "version": VERSION,
        "kind": "barlow",
        "data": task.data.fingerprint,
        "network": asdict(network),
        "settings": asdict(settings),
        "strategy": settings.views.operations(task.data.augment),
        "precision": task.precision,
        "compile": task.compile,
        "device": task.device.type,
    }


def barlow_wanted(task: Task, network: NetworkSpec, settings: BarlowSettings) -> Wanted:
    """The artefact of an encoder trained here."""
    words = f"encoder {network.arch} ({task.data.name}, {settings.epochs} epochs of Barlow Twins)"
    return Wanted(KIND, barlow_spec(task, network, settings), words)


def self_trained(task: Task, network: NetworkSpec, settings: BarlowSettings) -> Artefact:
    """The weights and buffers of an encoder, trained without labels if they are not in the store.

    The state is saved after every pass: a killed training resumes with the next one, with bit-identical results.

    Args:
        task: the run.
        network: the resolved architecture; its last linear layer is not trained.
        settings: how it is trained.

    Raises:
        RunError: it diverged.
    """
    kind, spec, what = barlow_wanted(task, network, settings)
    keep = PassFile(task.store.unfinished(kind, spec), digest(spec), what)
    kept = task.store.tensors(kind, spec, partial(_train, task, network, settings, keep), what)
    keep.remove()  # only after the network is in the store
    return kept


def _train(
    task: Task, network: NetworkSpec, settings: BarlowSettings, keep: PassFile
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    def build(rng: torch.Generator) -> nn.Module:
        encoder = build_teacher(task, network, task.classes, rng)
        with torch.no_grad():
            features = embed(encoder.eval(), torch.zeros(1, *task.data.shape, device=task.device)).shape[1]
        seed = int(torch.randint(2**63 - 1, (), generator=rng))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return _Projected(encoder.train(), features, settings.width).to(task.device)

    steps = max(1, len(task.data.train) // settings.batch) * settings.epochs
    fit = Fit(
        steps=steps,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        optimiser="adam",
        cosine=1.0,
        criterion=BarlowTwins(settings.redundancy),
    )
    trainer = Trainer(build, task.compile, task.precision)
    trained = next(trainer.train([(settings.seed, "barlow")], _pairs(task.data, settings), fit, keeps=[keep]))
    assert isinstance(trained, _Projected)
    state = {name: value.cpu() for name, value in trained.network.state_dict().items()}
    if not all(value.isfinite().all() for value in state.values()):
        keep.remove()
        raise RunError(f"{keep.what} diverged: its weights are not finite; lower encoder.barlow.lr={settings.lr}")
    facts = {"network": asdict(network), "preprocess": task.data.preprocess.spec(), "data": task.data.name}
    return state, facts


def _pairs(data: RealData, settings: BarlowSettings) -> Batches:
    """Passes over pairs of views (2b, c, h, w); an incomplete last batch, whose correlations are noise, is dropped."""
    size = min(settings.batch, len(data.train))
    black = data.black if settings.views.pad else None

    def passes(rng: torch.Generator, _: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in data.train.batches(size, rng):
            if len(images) == size:
                views = [
                    draw_view(settings.views, size, data.shape, rng, data.augment, black)(images) for _ in range(2)
                ]
                yield torch.cat(views), labels.repeat(2)

    return passes
