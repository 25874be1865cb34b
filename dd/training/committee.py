"""Committees of teachers: vote weights, label modes, and ensembling of logits.

Priors and votes follow Cui et al., "Dataset Distillation via Committee Voting" (CV-DD, arXiv:2501.07575).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from dd.errors import UsageError, unknown
from dd.labels.settings import Ensemble, TeacherMode
from dd.training.loop import pieces
from dd.training.teachers import Teacher

_CHUNK = 256

# Accuracy in percent of a student trained on images distilled from one member alone; constants of the official code.
PRIORS: dict[str, dict[str, float]] = {
    data: dict(zip(("resnet18", "resnet50", "shufflenetv2", "mobilenetv2", "densenet121"), row, strict=True))
    for data, row in {
        "cifar10": (63.0, 65.3, 68.5, 67.6, 67.4),
        "cifar100": (64.0, 60.6, 51.6, 59.4, 56.4),
        "tiny-imagenet": (46.5, 28.3, 43.6, 44.8, 41.5),
        "imagenette": (62.4, 52.0, 57.2, 54.0, 60.8),
        "imagenet-1k": (56.4, 42.3, 52.5, 44.2, 40.6),
    }.items()
}


def published_prior(data: str, arch: str) -> float | None:
    """CV-DD's prior for a data set and an architecture, in any of our spellings; None if there is none.

    Args:
        data: name of the data set.
        arch: for example "resnet18:width=64" or "torchvision:shufflenet_v2_x0_5.IMAGENET1K_V1".
    """
    library, _, rest = arch.partition(":")
    name = (rest if library in ("timm", "torchvision") else library).partition(".")[0].lower().replace("_", "")
    if name.startswith(("shufflenetv2", "mobilenetv2")):  # strip the width from the name
        name = name[: len("shufflenetv2")] if name.startswith("shuffle") else name[: len("mobilenetv2")]
    return PRIORS.get(data, {}).get(name)


def votes(prior: Sequence[float], temperature: float) -> Tensor:
    """Vote weights of the members, softmax(p / tau), float32 (members,).

    Args:
        prior: p, accuracies in percent.
        temperature: tau > 0; CV-DD recovers with 5 and labels with 10.
    """
    if temperature <= 0:
        raise UsageError(f"the temperature of votes must be above 0, not {temperature}")
    return (torch.tensor(prior, dtype=torch.float64) / temperature).softmax(0).float()


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Make batch norm use batch statistics inside the block; its buffers are neither read nor changed.

    All other layers keep their mode; dropout stays off.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, (training, tracked) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracked


@contextmanager
def live_dropout(network: nn.Module, seed: int) -> Iterator[None]:
    """Enable dropout inside the block, seeded by `seed`; other layers and the global generator are not affected."""
    layers = [layer for layer in network.modules() if isinstance(layer, _DropoutNd)]
    devices = {value.device for value in network.parameters() if value.device.type == "cuda"}
    with torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
        torch.manual_seed(seed)
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer in layers:
                layer.training = False


@torch.no_grad()
def logits(
    teacher: Teacher, images: Tensor, mode: TeacherMode = "eval", micro: int | None = None, seed: int = 0
) -> Tensor:
    """A teacher's logits (n, classes) for images (n, c, h, w) in model space, without a graph.

    Args:
        teacher: the teacher; its state does not change.
        images: the views to label.
        mode: "eval" labels every image independently.  "batch" normalises each micro-batch with its own statistics
            (CV-DD's batch-specific soft labels), so a label depends on the other images of its micro-batch.  "train"
            follows CV-DD's code: dropout is on, and every batch is labelled in two halves, regardless of `micro`.
        micro: images per micro-batch, see `dd.training.loop.pieces`; None for the whole batch.
        seed: of dropout in mode "train".

    Raises:
        UsageError: a micro-batch of a single image in mode "batch", or a half of one in mode "train".
    """
    if mode == "eval":
        return torch.cat([teacher.network(part) for part in images.split(micro or _CHUNK)])
    if mode not in get_args(TeacherMode):
        raise unknown("mode of a teacher", mode, get_args(TeacherMode))
    half = len(images) // 2
    parts = images.split(pieces(len(images), micro) if mode == "batch" else [half, len(images) - half])
    if min(map(len, parts)) < 2:
        raise UsageError(
            "a single image has no batch statistics; label with teacher_mode=eval, or label more images at a time"
        )
    drops = live_dropout(teacher.network, seed) if mode == "train" else nullcontext()
    with batch_statistics(teacher.network), drops:
        return torch.cat([teacher.network(part) for part in parts])


def ensemble(logits: Tensor, how: Ensemble = "logit_mean", weights: Tensor | None = None) -> Tensor:
    """Combine the logits of several teachers: (teachers, n, k) to (n, k).

    Args:
        logits: of all teachers.
        how: "logit_mean", the mean (G-VBSM, EDC); "logit_weighted", sum_j w_j z_j (CV-DD); or "prob_mean", the log of
            the mean probabilities (MEAL V2), so that a softmax at temperature 1 recovers the mean.
        weights: w, (teachers,), summing to 1; for "logit_weighted" only.
    """
    if (how == "logit_weighted") != (weights is not None):
        raise UsageError(f"labels by {how} {'need' if weights is None else 'take no'} weights of the teachers")
    if weights is not None:
        return torch.einsum("t,tnk->nk", weights.to(logits), logits)
    if how == "logit_mean":
        return logits.mean(0)
    if how == "prob_mean":
        return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
    raise unknown("ensemble", how, get_args(Ensemble))
