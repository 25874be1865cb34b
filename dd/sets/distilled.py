"""`DistilledSet`: what distillation yields and evaluation consumes, saying all about itself."""

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from dd.errors import UsageError
from dd.io import digest
from dd.labels.spec import StoredLabels
from dd.labels.store import LabelStore
from dd.sets import _checks, _hashes, _match

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from dd.data import Preprocess, RealData

ImageKind = Literal["pixels", "tiles", "indices", "schedule"]
LabelKind = Literal["hard", "probabilities", "logits", "representations", "views"]
TENSORS: tuple[Literal["images", "labels"], ...] = ("images", "labels")
NO_FACTS = (*TENSORS, "path")

_ROUNDING = 1 / 510  # half a grey level
_AT_ONCE = 256  # images brought back to pixels at a time


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A distilled set: images, labels, and what is needed to use them as they are meant.

    Labels lead with the dimensions that the images lead with, called *lead* here: (n,), and (e, n) for a schedule; of
    tiles there may also be one per decoded image, in the order of `dd.sets.tiles.decode`.

    Attributes:
        images: by `image_kind`: *pixels* (n, c, h, w), float32 in model space, or uint8 as they are before it; *tiles*
            the same, each holding `decode_factor`² smaller images; *indices* int64 (n,) into the training part of
            `source`; *schedule* int64 (e, n), the indices of each epoch.
        labels: by `label_kind`: *hard* int64 lead; *probabilities*, *logits* and *representations* float32 lead + (k,),
            k being the number of classes except for representations; *views* int64 lead, the class of each image; its
            labels are those of its place in the store that `views` describes.
        classes: names in label order.
        source: name of the data set it was distilled from, for example "fashion-mini".
        source_fingerprint: fingerprint of that data; indices are only meant for data with the same one.
        space: value space of float32 images, and what uint8 images become, as `Preprocess.spec()` states it.
        decode_factor: tiles per side of each image; 1 but for *tiles*.
        lr: learned learning rate of the students, where the method learned one.
        protocol: the evaluation protocol it is meant for, with its name.
        student: the network it is meant for, as the fields of a `NetworkSpec`.
        augment: DSA strategy that the protocol's augmentation uses; "none" for none.
        views: of the labels of augmented views, which are kept beside the set's file, when `label_kind` is "views".
        provenance: how it was made: method, recipe hash, seed, version, command, ...; no part of its identity.
        path: the file it was read from, beside which a label store is; None for one that was never a file.  No part of
            what is saved.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    _: KW_ONLY
    space: Mapping[str, Any]
    source_fingerprint: str = ""
    image_kind: ImageKind = "pixels"
    label_kind: LabelKind = "hard"
    decode_factor: int = 1
    lr: float | None = None
    protocol: Mapping[str, Any] | None = None
    student: Mapping[str, Any] | None = None
    augment: str = "none"
    views: StoredLabels | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __repr__(self) -> str:
        name, size = self.provenance.get("name", self.source), "x".join(map(str, self.images.shape[1:]))
        what = f"{self.n} {self.image_kind}{f' of {size}' if size else ''}, {self.label_kind} labels"
        return f"<DistilledSet {name}: {what}, {len(self.classes)} classes>"

    def _repr_png_(self) -> bytes | None:
        """Its images, for a notebook; None where it holds none."""
        from dd.sets.picture import png

        return png(self)

    @property
    def n(self) -> int:
        """Images stored; of a schedule, images per epoch."""
        return self.images.shape[-1] if self.image_kind == "schedule" else self.images.shape[0]

    @property
    def ipc(self) -> int | None:
        """Images per class; None where classes have different numbers of them."""
        each, rest = divmod(self.n, len(self.classes))
        if rest or self.image_kind == "schedule" or self.label_kind == "representations":
            return None if rest else each
        counts = torch.bincount(self.own_classes(), minlength=len(self.classes))
        return each if bool((counts == each).all()) else None

    def bytes(self) -> dict[str, int]:
        """What it costs to store, as {"images": bytes, "labels": bytes, "total": bytes}, a label store included."""
        images, labels = (t.numel() * t.element_size() for t in (self.images, self.labels))
        labels += 0 if self.views is None else self.views.bytes
        return {"images": images, "labels": labels, "total": images + labels}

    def facts(self) -> dict[str, Any]:
        """Everything but the tensors, as plain JSON values; the manifest of a saved set."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NO_FACTS}
        values["views"] = None if self.views is None else asdict(self.views)
        return json.loads(json.dumps({k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}))

    def digest(self) -> str:
        """SHA-256 of all that determines how the set evaluates: tensors and facts, provenance left out."""
        facts = {name: value for name, value in self.facts().items() if name != "provenance"}
        return digest([{name: self.sha256(name) for name in TENSORS}, facts], length=64)

    def sha256(self, name: Literal["images", "labels"]) -> str:
        """SHA-256 of one of its tensors: shape, type and bytes."""
        return _hashes.sha256(name, getattr(self, name))

    def targets(self) -> Tensor:
        """Class probabilities, float32 lead + (k,): hard labels one-hot, logits through a softmax, rows summing to one.

        Where labels are of views, the mean over all stored views of an image, a mixed view with its partner's share; it
        says what the teachers made of the image, but students are trained on the views (`as_dataset`).

        Raises:
            UsageError: representations are no class probabilities; or there is no label store, see `label_store`.
        """
        if self.label_kind == "hard":
            return functional.one_hot(self.labels, len(self.classes)).float()
        if self.label_kind == "logits":
            return self.labels.softmax(-1)
        if self.label_kind == "probabilities":
            return self.labels / self.labels.sum(-1, keepdim=True)
        if self.label_kind == "views":
            return self.label_store().mean()
        raise UsageError(
            f"labels of kind {self.label_kind!r} are not class probabilities; this protocol cannot use them"
        )

    def label_store(self) -> "LabelStore":
        """The store of the labels of its views, found beside its file.

        Raises:
            UsageError: the labels are the set's own, it was not read from a file, or the store there is damaged, holds
                other labels, or was left behind when the set was moved.
        """
        if self.views is None:
            raise UsageError(f"this set holds its labels itself ({self.label_kind}): it has no label store")
        if self.path is None:
            raise UsageError("the labels of this set are in a store beside its file: load the file, dd.load(FILE)")
        store = LabelStore(self.path.parent, self.views.spec, self.labels)
        if store.stated(self.views.labeller) != self.views:
            raise UsageError(
                f"{store.path} holds other labels than {self.path} was saved with; "
                "`dd run … force=true` makes both again"
            )
        return store

    def as_dataset(
        self, *, epoch: int | None = None, temperature: float | None = None, preprocess: "Preprocess | None" = None
    ) -> "Dataset[tuple[Tensor, Tensor]]":
        """A torch `Dataset` of (image, label): float32 (c, h, w) in model space, tiles decoded.

        A label is int64, or float32 (k,) where labels are soft.  Where labels are of views, the items are all stored
        views with their probabilities, in the order in which students are shown them, `n` of them an epoch: go through
        in order (`DataLoader(set.as_dataset(epoch=e), batch_size=…)`), as views are drawn and mixed in batches.

        Args:
            epoch: of views, only those of this one, from 0.
            temperature: of the probabilities of views; 1 where it is not given, and other than 1 for stored logits
                only.  `protocol["temperature"]` is the one the set is meant for.
            preprocess: of the data, for a set of bytes that ZCA is still to be applied to; others know their own.

        Raises:
            UsageError: the set holds no images of its own, or no labels that can be had (see `targets`).
        """
        from dd.sets.dataset import dataset

        if self.image_kind not in ("pixels", "tiles"):
            raise UsageError(
                f"a set of {self.image_kind} does not hold the images themselves; this needs a set that does"
            )
        return dataset(self, epoch, temperature, preprocess)

    def save(self, path: Path | str) -> None:
        """Write it to one file, with its label store beside it where it has one; see `dd.sets.formats.save`."""
        from dd.sets.formats import save

        save(self, path)

    def own_classes(self) -> Tensor:
        """The class of every image, int64 lead: its label, or the most probable one.

        Of tiles with a label for every decoded image it is that of their first tile: all tiles of an image are of its
        class.

        Raises:
            UsageError: representations name no class.
        """
        labels = self.labels[: self.n] if self.image_kind == "tiles" else self.labels
        if self.label_kind in ("hard", "views"):
            return labels
        if self.label_kind == "representations":
            raise UsageError("labels of kind 'representations' do not name a class; this needs a set whose labels do")
        return labels.argmax(-1)

    def pixels(self, preprocess: "Preprocess", index: Tensor | None = None) -> Tensor:
        """The images as networks see them, float32 (n, c, h, w) in model space, on the device of `preprocess`.

        Args:
            preprocess: of the data that the set matches (`require_match`).
            index: int64 positions on the CPU; None for all.

        Raises:
            UsageError: the set holds indices, not images.
        """
        if self.image_kind not in ("pixels", "tiles"):
            raise UsageError(
                f"a set of {self.image_kind} does not hold the images themselves; this needs a set that does"
            )
        images = (self.images if index is None else self.images[index]).to(preprocess.device)
        return preprocess(images) if images.dtype == torch.uint8 else images

    def outside(self, preprocess: "Preprocess") -> float | None:
        """Share in [0, 1] of the pixels' values that are darker than black or brighter than white.

        Half a grey level is not counted: it is what rounding takes.  None for a set that holds no images of its own.

        Args:
            preprocess: of the data that the set matches (`require_match`).
        """
        if self.image_kind not in ("pixels", "tiles"):
            return None
        if self.images.dtype == torch.uint8:
            return 0.0
        found = 0
        for index in torch.arange(self.n).split(_AT_ONCE):
            shown = preprocess.invert(self.pixels(preprocess, index))
            found += int(((shown < -_ROUNDING) | (shown > 1 + _ROUNDING)).sum())
        return found / self.images.numel()

    def check(self) -> None:
        """See that the set is whole: kinds, shapes, types, finite values, labels in range.

        Raises:
            UsageError: it is not; the message names the field.
        """
        _checks.facts(self)
        _checks.images(self)
        _checks.labels(self)
        if self.lr is not None and not math.isfinite(self.lr):
            raise UsageError(f"distilled set: lr is {self.lr}, not a finite number")

    def require_match(self, data: "RealData") -> None:
        """See that the set belongs with the real data at hand: classes in order, channels, size, value space.

        Raises:
            UsageError: it does not; the message names the field and both values.
        """
        _match.classes(self.classes, data.classes)
        if self.image_kind in ("pixels", "tiles"):
            _match.shape(tuple(self.images.shape[1:]), (data.channels, data.size, data.size))
        else:
            _match.source(self, data)
        _match.space(self.space, data.preprocess.spec())
