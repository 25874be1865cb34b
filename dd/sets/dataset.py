"""Distilled sets as torch `Dataset`s: images with labels, or the labelled views on which students are trained."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dd.errors import UsageError
from dd.sets.tiles import decode, decoded_labels

if TYPE_CHECKING:
    from dd.data import Preprocess
    from dd.labels import LabelStore
    from dd.sets.distilled import DistilledSet

Example = tuple[Tensor, Tensor]


class SetImages(Dataset[Example]):
    """The images of a set, tiles decoded, with their labels.

    An item is (image, label): float32 (c, h, w) in model space, and int64, or float32 (k,) if labels are soft.
    """

    def __init__(self, distilled: "DistilledSet", preprocess: "Preprocess | None" = None) -> None:
        """`preprocess` applies to uint8 images; see `DistilledSet.as_dataset`."""
        hard = distilled.label_kind == "hard"
        factor, labels = distilled.decode_factor, distilled.labels if hard else distilled.targets()
        self._load, self._stored, self._factor = _loader(distilled, preprocess), distilled.n, factor
        self._labels = decoded_labels(labels, factor, distilled.n)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: int) -> Example:
        place = range(len(self))[place]  # raises IndexError past the end, which ends a for loop
        tile, image = divmod(place, self._stored)
        return decode(self._load(torch.tensor([image])), self._factor)[tile], self._labels[place]


class SetViews(Dataset[Example]):
    """The stored views of a set in training order, epoch after epoch; an item is (view (c, h, w), probabilities (k,)).

    Views are generated and mixed one batch at a time, and only the last batch is cached.  Sequential access is
    therefore fast; shuffled access generates a whole batch for every view.
    """

    def __init__(
        self,
        store: "LabelStore",
        distilled: "DistilledSet",
        epochs: range,
        temperature: float = 1.0,
        preprocess: "Preprocess | None" = None,
    ) -> None:
        """See `DistilledSet.as_dataset`."""
        self._store, self._epochs, self._temperature = store, epochs, temperature
        self._load = _loader(distilled, preprocess)
        self._last: tuple[tuple[int, int], Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._epochs) * self._store.spec.n

    def __getitem__(self, place: int) -> Example:
        spec = self._store.spec
        epoch, place = divmod(range(len(self))[place], spec.n)
        number, place = divmod(place, spec.batch)
        views, labels = self._batch(self._epochs[epoch], number)
        return views[place], labels[place]

    def _batch(self, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] != (epoch, number):
            batch = self._store.batch(epoch, number)
            views = batch.view(self._load(batch.images))
            self._last = (epoch, number), views, self._store.probabilities(batch, self._temperature, views.device)
        return self._last[1:]


def dataset(
    distilled: "DistilledSet", epoch: int | None, temperature: float | None, preprocess: "Preprocess | None"
) -> Dataset[Example]:
    """See `DistilledSet.as_dataset`."""
    if distilled.label_kind != "views":
        if epoch is not None or temperature is not None:
            raise UsageError("epoch and temperature apply to labelled views, but this set has one label per image")
        return SetImages(distilled, preprocess)
    store = distilled.label_store()
    every = range(store.spec.epochs)
    if epoch is not None and epoch not in every:
        raise UsageError(
            f"{store.path} holds the labels of {len(every)} epochs, counted from 0, but not of epoch {epoch}"
        )
    epochs = every if epoch is None else range(epoch, epoch + 1)
    return SetViews(store, distilled, epochs, 1.0 if temperature is None else temperature, preprocess)


def _loader(distilled: "DistilledSet", preprocess: "Preprocess | None") -> Callable[[Tensor], Tensor]:
    """A function from int64 positions (b,) to images in model space."""
    if distilled.images.is_floating_point():  # already in model space; ZCA could not be rebuilt without the data
        return partial(torch.Tensor.__getitem__, distilled.images)
    from dd.data.preprocess import from_state

    return partial(distilled.pixels, from_state(distilled.space) if preprocess is None else preprocess)
