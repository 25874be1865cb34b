"""Who labels views: what is asked of it, whatever it is, and labels made while students train on them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dd.labels.settings import LabelSettings
from dd.views import Batches, ViewPolicy, draw_view

if TYPE_CHECKING:
    from dd.data import RealData


class Labeller(Protocol):
    """Gives the logits of views; `dd.training.relabel` has the one that asks teachers."""

    @property
    def settings(self) -> LabelSettings:
        """How it labels, and how its labels are kept."""
        ...

    @property
    def origin(self) -> Mapping[str, Any]:
        """JSON-able: what it can be made again from."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON-able: everything that determines a label of given views."""
        ...

    @property
    def accuracies(self) -> Sequence[float | None]:
        """Per teacher in percent on held-out images; None where it is not known."""
        ...

    def logits(self, views: Tensor, own: Tensor, micro: int | None, seed: int = 0) -> Tensor:
        """(b, classes) for a batch of views (b, c, h, w); where labels are calibrated, their logarithms.

        Args:
            views: the views.
            own: (b,) the classes of their images.
            micro: images of a micro-batch, which count where teachers use batch statistics.
            seed: of what is drawn while it labels.
        """
        ...


def live(
    labeller: Labeller, batches: Batches, policy: ViewPolicy, data: "RealData", temperature: float, micro: int | None
) -> Batches:
    """Views of the batches' images with class probabilities, as a store of the same form would give them.

    Args:
        labeller: asked about every view.
        batches: images and their classes, (b,) int64 or one-hot.
        policy: how views are drawn, from each pass's generator.
        data: the real images, whose shape, augmentation and value space views go by.
        temperature: of the probabilities.
        micro: images of a micro-batch.
    """
    black = data.black if policy.pad else None

    def passes(rng: torch.Generator, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in batches(rng, number):
            view = draw_view(policy, len(images), data.shape, rng, data.augment, black)
            views = view(images)
            own = targets if targets.dim() == 1 else targets.argmax(1)
            partner = own if view.partner is None else own[view.partner.to(own.device)]
            drops = labeller.settings.teacher_mode == "train"  # nothing else draws a seed
            seed = int(torch.randint(2**62, (), generator=rng)) if drops else 0
            found = labeller.logits(views, own, micro, seed)
            form = labeller.settings.stored_as(found.shape[1])
            yield views, form.decode(form.encode(found, own, partner), own, partner, temperature)

    return passes
