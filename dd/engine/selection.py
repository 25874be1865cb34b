"""The interface of a selection method (coresets): real images are chosen, and the set holds their indices."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from dd.engine.method import Method, Synthetic, Task
from dd.errors import RunError
from dd.sets import DistilledSet
from dd.sets.distilled import LabelKind

P = TypeVar("P")

Fact: TypeAlias = str | int | float | bool | None
SELECTION = "selection"  # key of a set's provenance with the facts of `Selection.facts`


class Chosen(Synthetic):
    """The chosen images, as the outer variables of a method that optimises none.

    Args:
        index: (n,) int64 on the CPU, the indices of the images in `task.data.train`; or (e, n), those of each epoch.
        targets: (n,) int64, the class of every image; of a schedule, of those of its first epoch.
        chosen_labels: the labels of the set, see `Selection.label`.
        kind: their kind.
    """

    index: Tensor
    chosen_labels: Tensor

    def __init__(self, index: Tensor, targets: Tensor, chosen_labels: Tensor, kind: LabelKind) -> None:
        super().__init__(torch.empty(len(targets), 0), targets)
        self.register_buffer("index", index)
        self.register_buffer("chosen_labels", chosen_labels)
        self.kind: LabelKind = kind


@dataclass(frozen=True)
class Selection(Method[P]):
    """Base class of methods that choose real images.  A subclass implements `choose`.

    The finished set is one of indices, or a schedule; students are trained on the images that the data set has there.
    """

    balanced: bool = True
    """Choose as many images of each class as requested; false: choose the same total over all classes together."""
    copy: bool = False
    """Store copies of the chosen images instead of their indices, so that the set can be used without the data set."""

    def choose(self, task: Task, prepared: P) -> Tensor:
        """Return the indices of the chosen images in `task.data.train`, int64.

        Returns:
            (n,), where n is the number of `task.targets`: grouped by class in ascending order, and in order of
            selection within a class.  If `balanced`, each class has as many as in `task.targets`.  For a schedule,
            (e, n): the images of each epoch, in any order.

        Raises:
            UsageError: the data or the settings allow no such choice.
        """
        raise NotImplementedError

    def facts(self, task: Task, prepared: P, index: Tensor) -> Mapping[str, Fact]:
        """Return what a reader must know of the choice: score, mode, epochs, direction, ties.

        They are stored in the set's provenance.
        """
        return {}

    def label(self, task: Task, prepared: P, index: Tensor) -> tuple[Tensor, LabelKind]:
        """Return the labels of the chosen images, and their kind (see `DistilledSet`); the real classes by default."""
        return task.data.train.labels.cpu()[index], "hard"

    def start(self, task: Task, prepared: P) -> Chosen:
        """Choose, and check the choice."""
        index = self.choose(task, prepared).cpu()
        self._require_valid(index, task)
        first = index if index.dim() == 1 else index[0]
        targets = task.data.train.labels.cpu()[first].to(task.device)
        labels, kind = self.label(task, prepared, index)
        return Chosen(index, targets, labels.cpu(), kind)

    def finish(self, syn: Synthetic, task: Task, prepared: P) -> DistilledSet:
        """Return the set of indices, or of copies of the images."""
        chosen = cast(Chosen, syn)
        index = chosen.index.clone()
        facts = {"balanced": self.balanced, **self.facts(task, prepared, index)}
        made = DistilledSet(
            images=index,
            labels=chosen.chosen_labels.clone(),
            label_kind=chosen.kind,
            image_kind="indices" if index.dim() == 1 else "schedule",
            classes=task.data.classes,
            source=task.data.name,
            source_fingerprint=task.data.fingerprint,
            space=task.data.preprocess.spec(),
            augment=task.data.augment,
            provenance={SELECTION: facts},
        )
        if not self.copy or index.dim() > 1:
            return made
        return replace(made, images=made.images_in(task.data).cpu(), image_kind="pixels")

    def _require_valid(self, index: Tensor, task: Task) -> None:
        """Raise `RunError` if `choose` returned something else than its contract says."""
        train, n = task.data.train, len(task.targets)
        wrong = ""
        if index.dtype != torch.int64 or index.dim() not in (1, 2) or index.shape[-1] != n or not index.numel():
            wrong = f"{index.dtype} of shape {tuple(index.shape)}, not int64 with {n} columns"
        elif int(index.min()) < 0 or int(index.max()) >= len(train):
            wrong = f"indices from {int(index.min())} to {int(index.max())}, but there are {len(train)} images"
        elif bool((index.sort(-1).values.diff(dim=-1) == 0).any()):
            wrong = "the same image twice"
        elif index.dim() == 1:
            wrong = self._unordered(train.labels.cpu()[index], task)
        if wrong:
            raise RunError(f"method {self.name}: `choose` returned {wrong}")

    def _unordered(self, classes: Tensor, task: Task) -> str:
        if self.balanced and not torch.equal(classes, task.targets.cpu()):
            return "other numbers of images per class than requested, or images not grouped by class"
        if bool((classes.diff() < 0).any()):
            return "images that are not grouped by class"
        return ""
