"""What determines the labels of views: how the views are drawn, the teachers, and the storage format."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dd.errors import UsageError
from dd.io import digest, sha256_tensors
from dd.labels import _records
from dd.labels.forms import LabelForm, RowType
from dd.labels.settings import LabelSettings, label_facts
from dd.rng import generator
from dd.views import View, ViewPolicy, draw_view
from dd.views.dsa import Shape


@dataclass(frozen=True)
class LabelSpec:
    """Everything that determines the labels of a set's views.

    Every epoch shows each image once.  Its order is drawn from the seed, and consecutive slices of it are the batches.
    The views of a batch depend only on seed, epoch and batch number, so epochs can be generated in any order.

    Attributes:
        n: number of images.
        classes: number of classes.
        epochs: number of labelled epochs.
        batch: images per batch; the last batch of an epoch may be smaller.
        shape: (channels, height, width) of an image.
        policy: how views are drawn.
        settings: how they are labelled, and how labels are stored.
        seed: seed of orders and views.
        micro: size of the micro-batches that are labelled together, for teachers with batch statistics; None if each
            view is labelled independently.
        strategy: the DSA strategy that the policy's "data" resolves to.
        black: per channel in model space, if the policy pads; else None.
        images: SHA-256 of the images and their classes.
        teachers: per teacher, as plain JSON values, what determines its logits.
        weights: of the teachers, if they are weighted; else None.
    """

    n: int
    classes: int
    epochs: int
    batch: int
    shape: Shape
    policy: ViewPolicy
    settings: LabelSettings
    seed: int = 0
    micro: int | None = None
    strategy: str = "none"
    black: tuple[float, ...] | None = None
    images: str = ""
    teachers: tuple[Mapping[str, Any], ...] = ()
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        least = {name: getattr(self, name) for name in ("n", "epochs", "batch")} | {"shape": min(self.shape)}
        for name, value in least.items():
            if value < 1:
                raise UsageError(f"soft labels: {name} is {value}, but at least 1 is needed")
        if self.micro is not None and not 1 < self.micro <= self.batch:
            raise UsageError(
                f"soft labels: eval.micro={self.micro} is out of range; expected 2 to eval.batch, {self.batch}"
            )
        if self.micro is not None and self.n % self.batch == 1:
            raise UsageError(
                f"soft labels: {self.n} images in batches of {self.batch} leave a batch of one, which has no batch "
                "statistics; choose another eval.batch"
            )
        policy, side = self.policy, min(self.shape[1:])
        if max(policy.tiles, policy.pad) > side:
            raise UsageError(f"soft labels: views of {policy.tiles} tiles and a pad of {policy.pad}, of {side} pixels")
        if self.settings.replay == "seed":
            return
        if policy.tiles > 1 or policy.pad or policy.operations(self.strategy) != "none":
            raise UsageError(
                "soft labels: replay='records' does not record tiles, pad or strategy of a view; use replay='seed'"
            )

    @property
    def batches(self) -> int:
        """Batches per epoch."""
        return -(-self.n // self.batch)

    @property
    def form(self) -> LabelForm:
        """The storage format of a label."""
        return self.settings.stored_as(self.classes)

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the labeller; see `label_facts`."""
        return label_facts(self.settings, self.teachers, self.weights)

    def order(self, epoch: int) -> Tensor:
        """The order in which an epoch shows the images: int64 (n,)."""
        return torch.randperm(self.n, generator=generator(self.seed, "views", "order", epoch))

    def view(self, epoch: int, number: int) -> View:
        """The view of one batch of an epoch, drawn from the seed."""
        images = min(self.batch, self.n - number * self.batch)
        rng = generator(self.seed, "views", epoch, number)
        return draw_view(self.policy, images, self.shape, rng, self.strategy, self.black)

    def fingerprint(self, epoch: int) -> str:
        """Hash of an epoch's order and of its first and last batch of views, to detect changed random streams."""
        views = [_hash(self.view(epoch, number)) for number in dict.fromkeys((0, self.batches - 1))]
        return digest([sha256_tensors({"order": self.order(epoch)}), views])

    def layout(self) -> RowType:
        """The arrays stored per view: its label and, with replay="records", the parameters of the view."""
        return self.form.layout() | (_records.layout(self.policy) if self.settings.replay == "records" else {})

    def bytes(self) -> int:
        """Size of the labels of all epochs on disk, without the few kB per epoch for manifest and header."""
        return self.epochs * self.n * sum(kind.itemsize * math.prod(shape) for kind, shape in self.layout().values())

    def key(self, epoch: int) -> dict[str, Any]:
        """Everything that determines the labels of one epoch, as plain JSON values."""
        values = asdict(self)
        del values["epochs"]
        return json.loads(json.dumps(values | {"epoch": epoch}))


@dataclass(frozen=True)
class StoredLabels:
    """A set's reference to the labels of its views, which are in the folder `labels/` beside its file.

    Attributes:
        spec: what determines the labels.
        sha256: of the stored labels; see `LabelStore.digest`.
        bytes: size on disk.
        labeller: description from which the labeller can be rebuilt; None if unknown.
    """

    spec: LabelSpec
    sha256: str
    bytes: int
    labeller: Mapping[str, Any] | None = None


def _hash(view: View) -> str:
    values = {field.name: getattr(view, field.name) for field in fields(view) if field.name != "draws"}
    values |= {f"{number}.{name}": value for number, one in enumerate(view.draws) for name, value in one.params.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return digest([sha256_tensors(tensors), view.weight, view.patch, [draw.op for draw in view.draws]])
