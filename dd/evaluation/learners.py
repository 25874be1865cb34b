"""What is trained on a set and how it is scored: a classifier, a head on a frozen encoder, or a pre-trained network.

A set says itself which: one with representations as labels pre-trains networks, one that records the encoder it was
distilled for trains heads on it, and any other trains classifiers.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dd.data import RealData, Split
from dd.engine.method import Task
from dd.engine.needs import Got
from dd.errors import UsageError
from dd.evaluation.arms import Arm, Images
from dd.networks import build_network, embed
from dd.sets import DistilledSet
from dd.training.criteria import SQUARED_ERROR, Criterion
from dd.training.encoders import Encoder, Encoders, EncoderSettings
from dd.training.ridge import Sums, best_head, with_bias

HEAD_SCALE = 0.01  # standard deviation of a head's initial weights (LGM, official code)
_AT_ONCE = 512  # images per forward pass


class Learner:
    """A student that learns to classify; base class of what else a set may be for.

    Args:
        task: provides the student, the data and the device.

    Attributes:
        student: JSON-serialisable, the network: part of the key of every student and of the report.
        criterion: replaces the protocol's loss; None to keep it.
        note: what the accuracies are, if they are not those of trained classifiers.
        without: why real images cannot be labelled for it; "" if they can.
    """

    criterion: Criterion | None = None
    note: str = ""
    without: str = ""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.student: dict[str, Any] = asdict(task.student)

    def build(self, rng: Generator) -> nn.Module:
        """Return a fresh network, with weights drawn from `rng`."""
        return self.task.build(rng)

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the classifier to score, (n, c, h, w) to logits (n, classes), of a trained network."""
        return network

    def also(self, network: nn.Module, classifier: nn.Module, rng: Generator) -> dict[str, float]:
        """Return further test accuracies in percent, by name.

        Args:
            network: the trained network.
            classifier: what `classifier` made of it.
            rng: for what is drawn.
        """
        return {}

    def labelled(self, arm: Arm) -> Arm:
        """Return an arm of real images and classes with the labels that it learns from."""
        return arm


class LinearHead(Learner):
    """A linear head on a frozen encoder; see `dd.training.encoders`.

    Args:
        task: provides the data and the device.
        encoder: the encoder.
    """

    def __init__(self, task: Task, encoder: Encoder) -> None:
        super().__init__(task)
        self.encoder = encoder
        self.student = {"arch": f"a linear head on {encoder.name}", "encoder": encoder.key}
        self.note = f"accuracies of linear heads on the frozen encoder {encoder.name}"

    def build(self, rng: Generator) -> nn.Module:
        """See `Learner`; weights N(0, 0.01²), no bias at first."""
        head = HeadOn(self.encoder.network, self.encoder.features, self.task.classes)
        with torch.no_grad():
            head.linear.weight.copy_(HEAD_SCALE * torch.randn(head.linear.weight.shape, generator=rng))
            head.linear.bias.zero_()
        return head.to(self.task.device)


class HeadOn(nn.Module):
    """A linear layer on a frozen encoder, which is not one of its submodules and never in training mode."""

    def __init__(self, encoder: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self._encoder = (encoder,)
        self.linear = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) to logits (n, classes)."""
        with torch.no_grad():
            features = self._encoder[0](images)
        return self.linear(features)


class Pretrained(Learner):
    """A student pre-trained to regress representations; a ridge head on its features is scored.

    The head is fitted on all real training images, with the penalty that is best on held-out ones.

    Args:
        task: provides the student, the data and the device.
        outputs: numbers per representation.
        encoder: gives real images their representations; None if it is not known.
    """

    criterion = SQUARED_ERROR
    note = (
        "accuracies of linear heads (ridge, all real training images) on the features of students that were "
        "pre-trained on images and representations"
    )

    def __init__(self, task: Task, outputs: int, encoder: Encoder | None) -> None:
        super().__init__(task)
        self.encoder, self.outputs = encoder, outputs
        self.student |= {"outputs": outputs}
        if encoder is None:
            self.without = "the encoder that gave the representations is not known"
        elif encoder.features != outputs:
            raise UsageError(
                f"{encoder.name} gives {encoder.features} numbers, the set's representations have {outputs}"
            )

    def build(self, rng: Generator) -> nn.Module:
        """See `Learner`; one output per number of a representation."""
        data = self.task.data
        shape = {"channels": data.channels, "size": data.size, "classes": self.outputs}
        return build_network(self.task.student, **shape, generator=rng, device=self.task.device)

    def classifier(self, network: nn.Module) -> nn.Module:
        """See `Learner`."""
        return linear_probe(network, self.task.data)

    def labelled(self, arm: Arm) -> Arm:
        """See `Learner`: the images with the encoder's representations."""
        encoder = self.encoder
        assert encoder is not None, "asked for where `without` is empty"
        shared = self.task.device

        def load(j: int) -> tuple[Images, Tensor]:
            images, _ = arm.load(j)
            index = torch.arange(arm.n).split(_AT_ONCE)
            parts = [images[some.to(shared)] if isinstance(images, Tensor) else images(some) for some in index]
            return images, torch.cat([encoder.of(part) for part in parts])

        def batches(rng: Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
            assert arm.batches is not None
            for images, _ in arm.batches(rng, number):
                yield images, encoder.of(images)

        name = f"{arm.name} with representations"
        given = {"name": name, "key": lambda j: {"images": arm.key(j), "encoder": encoder.key}, "load": load}
        return replace(arm, **given, batches=None if arm.batches is None else batches)


class Probed(nn.Module):
    """A frozen network's features, with bias, times the weights of a linear head."""

    def __init__(self, network: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.network, self.weights = network, weights

    def forward(self, images: Tensor) -> Tensor:
        """(n, c, h, w) to logits (n, classes), float64."""
        return features_of(self.network, images).double() @ self.weights


def linear_probe(network: nn.Module, data: RealData) -> nn.Module:
    """Return the ridge classifier on a network's features: all training images, penalty chosen on held-out ones."""
    network.eval()
    sums, classes = Sums(), len(data.classes)
    for images, labels in data.train.batches(_AT_ONCE):
        sums.add(features_of(network, images), F.one_hot(labels, classes))
    weights, _ = best_head(sums, _features(network, data.holdout))
    return Probed(network, weights).eval()


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """Features with bias (n, d + 1) of images (n, c, h, w)."""
    return with_bias(embed(network, images))


def _features(network: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in split.batches(_AT_ONCE):
        yield features_of(network, images), labels


def learner_of(distilled: DistilledSet, task: Task, encoder: EncoderSettings | None) -> Learner:
    """Return what a set is for.

    Args:
        distilled: the set.
        task: provides the student, the data and the store.
        encoder: the encoder that the set records; trained if it is missing here.

    Raises:
        UsageError: the encoder is not available, or does not give the set's representations.
    """
    found = None if encoder is None else Encoders(task, encoder).fetch(Got())
    if distilled.label_kind == "representations":
        return Pretrained(task, distilled.labels.shape[-1], found)
    return Learner(task) if found is None else LinearHead(task, found)
