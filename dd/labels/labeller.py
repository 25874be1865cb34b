"""The interface of a labeller of views, and live labelling while students train."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dd.labels.settings import LabelSettings
from dd.views import Batches, ViewPolicy, draw_view

if TYPE_CHECKING:
    from dd.data import RealData


class Labeller(Protocol):
    """Computes the logits of views; `dd.training.relabel` implements it with teachers."""

    @property
    def settings(self) -> LabelSettings:
        """How it labels, and how its labels are stored."""
        ...

    @property
    def origin(self) -> Mapping[str, Any]:
        """JSON-serialisable description from which it can be rebuilt."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON-serialisable: everything that determines the labels of given views."""
        ...

    @property
    def accuracies(self) -> Sequence[float | None]:
        """Accuracy of each teacher on held-out images in percent; None if unknown."""
        ...

    @property
    def bytes(self) -> int:
        """Size of the teachers' weights and buffers."""
        ...

    def logits(self, views: Tensor, own: Tensor, micro: int | None, seed: int = 0) -> Tensor:
        """Logits (b, classes) of a batch of views; if labels are calibrated, the log-probabilities.

        Args:
            views: (b, c, h, w).
            own: (b,) classes of their images.
            micro: images per micro-batch; matters if teachers use batch statistics.
            seed: of random numbers drawn while labelling.
        """
        ...


def live(
    labeller: Labeller, batches: Batches, policy: ViewPolicy, data: "RealData", temperature: float, micro: int | None
) -> Batches:
    """Views of the batches' images with class probabilities, exactly as a label store of the same form returns them.

    Args:
        labeller: labels every view.
        batches: yields images and their classes, int64 (b,) or one-hot.
        policy: how views are drawn, from each pass's generator.
        data: the real data, for image shape, augmentation and value space.
        temperature: of the probabilities.
        micro: images per micro-batch.
    """
    black = data.black if policy.pad else None

    def passes(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in batches(rng, number):
            view = draw_view(policy, len(images), data.shape, rng, data.augment, black)
            views = view(images)
            own = targets if targets.dim() == 1 else targets.argmax(1)
            partner = own if view.partner is None else own[view.partner.to(own.device)]
            drops = labeller.settings.teacher_mode == "train"  # only dropout needs a seed
            seed = int(torch.randint(2**62, (), generator=rng)) if drops else 0
            found = labeller.logits(views, own, micro, seed)
            form = labeller.settings.stored_as(found.shape[1])
            yield views, form.decode(form.encode(found, own, partner), own, partner, temperature)

    return passes
