"""Training arms: what students are trained on, the set itself and the references it is compared with."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dd.data import Preprocess, RealData
from dd.engine.method import Task
from dd.errors import UsageError
from dd.evaluation.protocols import Protocol
from dd.labels import Labeller, LabelStore
from dd.sets import DistilledSet
from dd.sets.tiles import decoded, decoded_labels, mosaic
from dd.training.loop import in_company, passes
from dd.views import Batches

Images = Tensor | Callable[[Tensor], Tensor]
"""All images (n, c, h, w); or, if they do not fit in memory, a function of int64 indices (b,) on the CPU."""
_MEASURED = 256  # images that a teacher labels at a time, and that noise is measured on
AT_ONCE = 2 << 30  # bytes of images up to which one tensor holds them; depends on shapes only
BYTES_AT_ONCE = 64 << 20  # the same on a CPU, for images that are stored as bytes of a quarter of this size


@dataclass(frozen=True)
class Arm:
    """One training arm: `load(j)` returns images (n, c, h, w) and targets for student j.

    Attributes:
        name: name in logs.
        key: j -> everything that determines the images and labels of student j.
        load: j -> (images, targets), targets (n,) int64 or (n, k) probabilities.
        n: number of images.
        batches: replaces `load` if the images do not fit in one tensor.
        temperature: temperature of the labels, if they are a teacher's; None for other labels, and for labels that a
            teacher is still to give.
        viewed: whether `batches` yields views; if not, they are still to be drawn.
    """

    name: str
    key: Callable[[int], Any]
    load: Callable[[int], tuple[Images, Tensor]]
    n: int
    batches: Batches | None = None
    temperature: float | None = None
    viewed: bool = False


def set_arm(name: str, distilled: DistilledSet, preprocess: Preprocess) -> Arm:
    """Return the arm of a set's images, as pixels in the model space of `preprocess`, with tiles decoded."""
    distilled.check()
    if distilled.label_kind == "views":
        raise UsageError("this set has labels of views: students need its label store as well as its images")
    # exclude the intended use: a student's key already says how it is actually trained
    digest = replace(distilled, protocol=None, student=None).digest()

    factor = distilled.decode_factor

    def load(_: int) -> tuple[Images, Tensor]:
        targets = _targets(distilled)
        if factor == 1 and _in_pieces(distilled, preprocess):
            return partial(distilled.pixels, preprocess), targets.to(preprocess.device)
        images = decoded(distilled.pixels(preprocess), factor, preprocess)
        return images, decoded_labels(targets, factor, distilled.n).to(images.device)

    return Arm(name, lambda _: digest, load, distilled.n * factor**2)


def _in_pieces(distilled: DistilledSet, preprocess: Preprocess) -> bool:
    """Return whether a set's images are brought into model space batch by batch, not all at once.

    As floats, bytes would take four times their memory; a GPU has room, and copying every batch to it takes time.
    Whitening stays whole up to `AT_ONCE`, because its products depend on which images are whitened together.
    """
    size = distilled.images.numel() * 4
    in_bytes = distilled.images.dtype == torch.uint8 and preprocess.kind == "standard"
    if in_bytes and preprocess.device.type == "cpu":
        return size > BYTES_AT_ONCE
    return size > AT_ONCE


def selection_arm(name: str, distilled: DistilledSet, data: RealData) -> Arm:
    """Return the arm of the real images at a set's indices, with the labels of the set."""
    distilled.check()
    index, digest = distilled.images, replace(distilled, protocol=None, student=None).digest()

    def load(_: int) -> tuple[Images, Tensor]:
        return _real(data, index), _targets(distilled).to(data.train.labels.device)

    return Arm(name, lambda _: digest, load, distilled.n)


def schedule_arm(name: str, distilled: DistilledSet, data: RealData, protocol: Protocol) -> Arm:
    """Return the arm of a schedule: pass t of a student is over the real images at row t of the indices, shuffled.

    Raises:
        UsageError: the schedule has fewer rows than the protocol has passes.
    """
    distilled.check()
    require_rounds(distilled, protocol)
    digest = replace(distilled, protocol=None, student=None).digest()
    targets = _targets(distilled).to(data.train.labels.device)

    def batches(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return shuffled(_real(data, distilled.images[number]), targets[number], protocol.batch, rng, number)

    def load(_: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("read in batches")

    return Arm(name, lambda _: digest, load, distilled.n, batches)


def require_rounds(
    distilled: DistilledSet, protocol: Protocol, way_out: str = "lower eval.epochs (or eval.steps)"
) -> None:
    """Raise `UsageError`, with a way out, if a set is a schedule with fewer rows than the protocol has passes."""
    if distilled.image_kind != "schedule":
        return
    rows, passes_ = len(distilled.images), protocol.passes(distilled.n)
    if passes_ > rows:
        raise UsageError(
            f"the set says which images to train on in {rows} passes, but {passes_} are needed: {way_out}, or "
            "select with more rounds"
        )


def _targets(distilled: DistilledSet) -> Tensor:
    """Return what students are trained on: classes, representations, or class probabilities."""
    return distilled.labels if distilled.label_kind in ("hard", "representations") else distilled.targets()


def _real(data: RealData, index: Tensor) -> Images:
    """Return the training images at (n,) indices, or a function of positions if they do not fit in one tensor."""
    if len(index) * math.prod(data.shape) * 4 > AT_ONCE:
        return lambda some: data.train.images(index[some])
    return data.train.images(index)


def stored_arm(name: str, distilled: DistilledSet, store: LabelStore, task: Task, protocol: Protocol) -> Arm:
    """Return the arm of a set's images under the views of its label store, the same views for every student.

    Raises:
        UsageError: the stored labels are for other batches, for fewer passes, or at another temperature.
    """
    passes_, spec = protocol.passes(distilled.n), store.spec
    if passes_ > spec.epochs:
        raise UsageError(
            f"{store.path} holds the labels of {spec.epochs} epochs, but {passes_} are needed: lower eval.epochs"
        )
    if spec.policy != protocol.views:
        raise UsageError(
            f"{store.path} holds labels of other views ({spec.policy}); evaluate with the original eval.views.*, or "
            "label again with `dd run`"
        )
    temperature = spec.settings.temperature(protocol.temperature)
    preprocess = task.data.preprocess

    def batches(_: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return store.batches(number, partial(distilled.pixels, preprocess), temperature)

    def load(_: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("read in batches")

    digest = replace(distilled, protocol=None, student=None, views=store.stated()).digest()
    return Arm(name, lambda _: digest, load, distilled.n, batches, temperature, viewed=True)


def control_arm(task: Task) -> Arm:
    """Return the arm of random real images with hard labels, as many per class as in the set, redrawn per student."""
    counts = torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()

    def load(j: int) -> tuple[Images, Tensor]:
        index = task.real_indices("control", j)
        return _real(task.data, index), task.data.train.labels[index.to(task.device)]

    return Arm("random real images", lambda j: {"random": counts, "draw": j}, load, len(task.targets))


def noise_arm(task: Task) -> Arm:
    """Return the arm of Gaussian noise with the mean and deviation of random real images per channel, and their labels.

    It is redrawn per student: the floor that shows what the labels transfer without any image.
    """
    counts = torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()

    def load(j: int) -> tuple[Tensor, Tensor]:
        real = task.data.train.images(task.real_indices("control", j)[:_MEASURED])
        std, mean = torch.std_mean(real, dim=(0, 2, 3), keepdim=True)
        noise = torch.randn(len(task.targets), *task.data.shape, generator=task.generator("noise", j))
        return mean + std * noise.to(real.device), task.targets

    return Arm("noise", lambda j: {"noise": counts, "draw": j}, load, len(task.targets))


def equal_bytes_arm(task: Task, size: int) -> Arm | None:
    """Return the arm of as many random real images with hard labels as fit into `size` bytes, redrawn per student.

    An image takes a byte per value and its class eight, as in the files of a set.  Classes have as many images as each
    other, or all that there are.

    Args:
        task: the real images.
        size: bytes of a set's images and labels, and of the teacher that its students ask.

    Returns:
        None if there is no room for one image.
    """
    held = torch.bincount(task.data.train.labels.cpu(), minlength=task.classes)
    room = size // (math.prod(task.data.shape) + torch.int64.itemsize)
    if not room:
        return None
    counts = shared_out(room, held)
    more = replace(task, targets=torch.arange(task.classes).repeat_interleave(counts).to(task.device))

    def load(j: int) -> tuple[Images, Tensor]:
        index = more.real_indices("equal bytes", j)
        return _real(task.data, index), more.targets

    def key(j: int) -> dict[str, Any]:
        return {"equal bytes": counts.tolist(), "draw": j}

    return Arm("real images of equal bytes", key, load, len(more.targets))


def shared_out(n: int, held: Tensor) -> Tensor:
    """Return how many of n images each class has, (k,) int64: as evenly as the images `held` (k,) allow, or all."""
    counts = torch.zeros_like(held)
    while left := min(n, int(held.sum())) - int(counts.sum()):
        free = (counts < held).nonzero().flatten()
        counts += torch.bincount(free[spread(left, len(free))], minlength=len(held))
        counts = counts.minimum(held)
    return counts


def spread(n: int, classes: int) -> Tensor:
    """Return (n,) int64, sorted: n images divided among the classes as evenly as possible."""
    return torch.arange(n) * classes // n


def fixed_arm(arm: Arm, labeller: Labeller, temperature: float, hard: float = 0.0) -> Arm:
    """Return an arm with one soft label for each image: the labeller's probabilities for the image as it is.

    Args:
        arm: its labels are classes; its images are pixels, not views.
        labeller: gives the labels, independently of other images.
        temperature: of the probabilities, and of the students' loss.
        hard: weight in [0, 1] of the class in each label; the probabilities have the rest.
    """

    def soft(images: Tensor, own: Tensor) -> Tensor:
        given = (labeller.logits(images, own, None) / temperature).softmax(1)
        return given if not hard else (1 - hard) * given + hard * F.one_hot(own, given.shape[1])

    def load(j: int) -> tuple[Images, Tensor]:
        images, own = arm.load(j)
        parts = [
            soft(images[index] if isinstance(images, Tensor) else images(index), own[index.to(own.device)])
            for index in torch.arange(len(own)).split(_MEASURED)
        ]
        return images, torch.cat(parts)

    def batches(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert arm.batches is not None, "read in batches"
        return ((images, soft(images, own)) for images, own in arm.batches(rng, number))

    def key(j: int) -> dict[str, Any]:
        mixed = {"hard": hard} if hard else {}
        return {"images": arm.key(j), "labels": labeller.facts, "fixed": temperature, **mixed}

    return replace(arm, key=key, load=load, batches=batches if arm.batches else None, temperature=temperature)


def decoded_arm(task: Task, factor: int) -> Arm:
    """Return the arm of decoded mosaics of random real images, as many as the set has images, redrawn per student."""
    counts = torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()

    def load(j: int) -> tuple[Tensor, Tensor]:
        more = replace(task, targets=task.targets.repeat_interleave(factor**2))
        index = more.real_indices("decoded control", j)
        images = mosaic(task.data.train.images(index), factor)
        return decoded(images, factor, task.data.preprocess), decoded_labels(task.targets, factor, len(images))

    def key(j: int) -> dict[str, Any]:
        return {"mosaics": counts, "factor": factor, "draw": j}

    return Arm("decoded random real images", key, load, len(task.targets) * factor**2)


def full_arm(data: RealData, batch: int) -> Arm:
    """Return the arm of all real training images; a final batch of one image, without batch statistics, is dropped."""
    whole = passes(data.train, batch)

    def load(_: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("read in batches")

    return Arm("all real images", lambda _: "full", load, len(data.train), whole if batch == 1 else in_company(whole))


def shuffled(
    images: Images, targets: Tensor, batch: int, rng: torch.Generator, _: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one shuffled pass over the images."""
    for index in torch.randperm(len(targets), generator=rng).split(batch):
        there = index.to(targets.device)
        yield images[there] if isinstance(images, Tensor) else images(index), targets[there]
