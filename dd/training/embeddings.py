"""Features of the training images: the input of a trained network's last linear layer, stored class by class."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd.engine.method import Task
from dd.engine.needs import Got, Need
from dd.errors import UsageError
from dd.io import load_tensors
from dd.networks import embed
from dd.networks.adapted import Adapted
from dd.networks.features import last_linear
from dd.runs.store import Payload, Wanted
from dd.training.teachers import Teacher, Teachers

KIND = "features"
VERSION = 1  # of how they are computed; part of every key
BLOCK = 100  # classes per artefact, which are in memory while it is made
_CHUNK = 256  # images per forward pass; each class is split from its first image on, so that nothing else counts


@dataclass(frozen=True, eq=False)
class Embedded:
    """Features of all training images, read from the store one class at a time.

    Attributes:
        teacher: the network that they are of.
        files: one per block of classes, with a float32 (m, d) tensor of the images sorted by class.
        counts: training images per class.
        head: weights (classes, d) and biases (classes,) of the last layer, float64; None if not requested.
    """

    teacher: Teacher
    files: tuple[Path, ...]
    counts: tuple[int, ...]
    head: tuple[Tensor, Tensor] | None = None

    def of_class(self, c: int) -> Tensor:
        """Features, float32 (n, d), of the images of a class in the order of `Split.of_class`; memory-mapped."""
        block, at = divmod(c, BLOCK)
        first = sum(self.counts[block * BLOCK : c])
        return load_tensors(self.files[block])["features"][first : first + self.counts[block * BLOCK + at]]

    def errors(self, features: Tensor, c: int) -> Tensor:
        """Softmax minus one-hot, float64 (n, classes), of images of class `c` with these features (n, d).

        It is the gradient of the cross-entropy with respect to the logits.
        """
        assert self.head is not None, "requested"
        errors = F.linear(features.double(), *self.head).softmax(1)
        errors[:, c] -= 1
        return errors


@dataclass(frozen=True, eq=False)
class Embeddings(Need[Embedded]):
    """The need for features of the training images, with one artefact per 100 classes.

    They are of whole images, not augmented, in eval mode, and stored as float32: with float16 the distances of
    neighbours would tie.

    Attributes:
        task: the run.
        staff: the need for a single teacher, the network; listed before this one.
        head: whether the network's last layer is used too, see `Embedded.errors`.
    """

    task: Task
    staff: Teachers
    head: bool = False
    name = "features"

    def artefacts(self) -> list[Wanted]:
        """One per block of classes."""
        task, (key,) = self.task, self.staff.keys()
        name, wanted = task.data.name, []
        for block in self._blocks():
            spec: dict[str, Any] = {
                "version": VERSION,
                "data": task.data.fingerprint,
                "network": key,
                "classes": [block.start, block.stop],
                "device": task.device.type,
            }
            wanted.append(Wanted(KIND, spec, f"features of classes {block.start} to {block.stop - 1} of {name}"))
        return wanted

    def fetch(self, got: Got) -> Embedded:
        """Return the features, computed if they are not in the store.

        Raises:
            UsageError: the network has no linear layer; or `head` is requested, and its logits are not those of its
                last linear layer.
        """
        (teacher,) = got[self.staff]
        head = self._head(teacher) if self.head else None
        blocks, wanted, store = self._blocks(), self.artefacts(), self.task.store

        def fetched(at: int) -> Path:
            kind, spec, words = wanted[at]
            return store.tensors(kind, spec, partial(self._made, teacher.network, blocks[at]), words).path

        files = store.each(wanted, fetched)
        counts = torch.bincount(self.task.data.train.labels, minlength=self.task.classes).tolist()
        return Embedded(teacher, tuple(files), tuple(counts), head)

    @torch.no_grad()
    def _made(self, network: nn.Module, block: range) -> Payload:
        train = self.task.data.train
        index = torch.cat([train.of_class(c) for c in block])
        chunks = [chunk for c in block for chunk in train.of_class(c).split(_CHUNK) if len(chunk)]
        features, at = torch.empty(0), 0
        for chunk in chunks:
            some = embed(network, train.images(chunk)).float()
            if not at:
                features = torch.empty(len(index), some.shape[1])
            features[at : at + len(chunk)] = some
            at += len(chunk)
        return {"features": features}, {"images": len(index)}

    @torch.no_grad()
    def _head(self, teacher: Teacher) -> tuple[Tensor, Tensor]:
        """The last layer's weights and biases, after a test on a few images that the logits are its output."""
        network, train = teacher.network, self.task.data.train
        images = train.images(torch.arange(min(8, len(train))))
        weight, bias = head_of(network)
        logits, ours = network(images), F.linear(embed(network, images), weight, bias)
        if logits.shape != ours.shape or not torch.allclose(logits.float(), ours.float(), rtol=1e-3, atol=1e-3):
            raise UsageError(
                f"{self.staff.field}={teacher.name}: its logits are not those of its last linear layer, whose "
                "gradients are needed: name another network, or set gradients=false"
            )
        return weight.double().cpu(), bias.double().cpu()

    def _blocks(self) -> list[range]:
        classes = self.task.classes
        return [range(first, min(first + BLOCK, classes)) for first in range(0, classes, BLOCK)]


def head_of(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Weights (classes, d) and biases (classes,) of a network's last linear layer, in the class order of the data.

    Raises:
        UsageError: the network has no linear layer.
    """
    layer = last_linear(network)
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if isinstance(network, Adapted) and network.outputs is not None:
        return weight[network.outputs], bias[network.outputs]
    return weight, bias
