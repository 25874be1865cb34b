"""`DistilledSet`: the self-describing result of distillation and input of evaluation."""

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
from dd.io import digest, sha256_tensors
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
_AT_ONCE = 1 << 20  # values converted back to pixels at a time


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A distilled set: images, labels, and everything needed to evaluate them as intended.

    The leading dimensions of `images` and `labels` agree; they are called *lead* below: (n,), or (e, n) for a schedule.
    Tiles may instead have one label per decoded image, in the order of `dd.sets.tiles.decode`.

    Attributes:
        images: by `image_kind`: *pixels*, (n, c, h, w), float32 in model space or uint8 before preprocessing; *tiles*,
            the same, with `decode_factor`² smaller images in each; *indices*, int64 (n,), into the training part of
            `source`; *schedule*, int64 (e, n), the indices of each epoch.
        labels: by `label_kind`: *hard*, int64 lead; *probabilities*, *logits* and *representations*, float32 lead +
            (k,), where k is the number of classes (any number for representations); *views*, int64 lead, the class of
            each image, whose soft labels are in the store that `views` describes.
        classes: names in label order.
        source: name of the data set it was distilled from, for example "fashion-mini".
        source_fingerprint: fingerprint of that data set; indices are valid only for data with the same fingerprint.
        space: value space of float32 images, and the transform of uint8 images, as returned by `Preprocess.spec()`.
        decode_factor: tiles per side of each image; 1 for every kind but *tiles*.
        lr: student learning rate, if the method learned one.
        protocol: the intended evaluation protocol, with its name.
        student: the intended network, as the fields of a `NetworkSpec`.
        augment: DSA strategy of the protocol's augmentation; "none" for none.
        views: describes the labels of augmented views, stored beside the set's file, if `label_kind` is "views".
        provenance: how it was made: method, recipe hash, seed, version, command, ...; not part of its identity.
        path: the file it was read from, which a label store may accompany; None if it was never a file.  Not saved.
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
        kind = "images each" if self.image_kind == "schedule" else f"{self.image_kind}{f' of {size}' if size else ''}"
        epochs = f"{len(self.images)} epochs of " if self.image_kind == "schedule" else ""
        what = f"{epochs}{self.n} {kind}, {self.label_kind} labels"
        return f"<DistilledSet {name}: {what}, {len(self.classes)} classes>"

    def _repr_png_(self) -> bytes | None:
        """Its images as a PNG, for notebooks; None if it holds no images."""
        from dd.sets.picture import png

        return png(self)

    @property
    def n(self) -> int:
        """Number of stored images; for a schedule, images per epoch."""
        return self.images.shape[-1] if self.image_kind == "schedule" else self.images.shape[0]

    @property
    def ipc(self) -> int | None:
        """Images per class; None if classes differ in their number of images."""
        each, rest = divmod(self.n, len(self.classes))
        if rest or self.image_kind == "schedule" or self.label_kind == "representations":
            return None if rest else each
        counts = torch.bincount(self.own_classes(), minlength=len(self.classes))
        return each if bool((counts == each).all()) else None

    def bytes(self) -> dict[str, int]:
        """Storage cost in bytes, as {"images": …, "labels": …, "total": …}; includes the label store.

        If some patches of the images were dropped and completed again (DQ), it also states what is needed instead of
        the images: the kept "patches", their "mask" and the "decoder", which may serve other sets too; and the sum of
        these and the labels, "as patches".
        """
        images, labels = (t.numel() * t.element_size() for t in (self.images, self.labels))
        labels += 0 if self.views is None else self.views.bytes
        found = {"images": images, "labels": labels, "total": images + labels}
        facts = self.provenance.get("selection")
        names = {"patches": "patch_bytes", "mask": "mask_bytes", "decoder": "decoder_bytes"}
        if not isinstance(facts, Mapping) or not all(isinstance(facts.get(key), int) for key in names.values()):
            return found
        parts = {name: int(facts[key]) for name, key in names.items()}
        return found | parts | {"as patches": labels + sum(parts.values())}

    def facts(self) -> dict[str, Any]:
        """All fields but the tensors, as plain JSON values; the manifest of a saved set."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NO_FACTS}
        values["views"] = None if self.views is None else asdict(self.views)
        return json.loads(json.dumps({k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}))

    def digest(self) -> str:
        """SHA-256 of everything that determines how the set evaluates: tensors and facts, without the provenance."""
        facts = {name: value for name, value in self.facts().items() if name != "provenance"}
        return digest([{name: self.sha256(name) for name in TENSORS}, facts], length=64)

    def sha256(self, name: Literal["images", "labels"]) -> str:
        """SHA-256 of one of its tensors: name, shape, dtype and bytes."""
        return _hashes.sha256(name, getattr(self, name))

    def labelled_sha256(self) -> str:
        """SHA-256 of images and classes, by which labels of views know what they are of; see `LabelSpec.images`."""
        return digest([self.sha256("images"), sha256_tensors({"classes": self.own_classes().cpu()})], length=64)

    def targets(self) -> Tensor:
        """Class probabilities, float32 lead + (k,); hard labels become one-hot, logits pass through a softmax.

        Rows sum to one.  For labels of views the result is the mean over all stored views of an image, including the
        partner's share in mixed views.  It shows what the teachers see in an image, but students are trained on the
        views themselves (`as_dataset`).

        Raises:
            UsageError: the labels are representations, or the label store is missing (see `label_store`).
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
        """The store with the labels of its views, beside its file.

        Raises:
            UsageError: the set holds its labels itself; it was not read from a file; or the store is damaged, holds
                other labels, or was not moved together with the set.
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
        """A torch `Dataset` of (image, label) pairs; images are float32 (c, h, w) in model space, tiles decoded.

        A label is int64, or float32 (k,) if labels are soft.  If the labels belong to views, the items are all stored
        views with their probabilities, in training order, `n` per epoch.  Read them in order
        (`DataLoader(set.as_dataset(epoch=e), batch_size=…)`), because views are generated and mixed batch by batch.

        Args:
            epoch: for views, only this epoch, from 0; None for all.
            temperature: of the probabilities of views; default 1; other values need stored logits.
                `protocol["temperature"]` is the intended one.
            preprocess: the data's transform, needed only for uint8 images in a ZCA space.

        Raises:
            UsageError: the set holds no images itself, or its labels are not available (see `targets`).
        """
        from dd.sets.dataset import dataset

        if self.image_kind not in ("pixels", "tiles"):
            raise self._no_images()
        return dataset(self, epoch, temperature, preprocess)

    def save(self, path: Path | str) -> None:
        """Write it to one file, and its label store, if any, beside it; see `dd.sets.formats.save`."""
        from dd.sets.formats import save

        save(self, path)

    def own_classes(self) -> Tensor:
        """The class of every image, int64 lead: its label, or the most probable class.

        If tiles have one label per decoded image, the label of the first tile is used: all tiles of an image share its
        class.

        Raises:
            UsageError: the labels are representations, which name no class.
        """
        labels = self.labels[: self.n] if self.image_kind == "tiles" else self.labels
        if self.label_kind in ("hard", "views"):
            return labels
        if self.label_kind == "representations":
            raise UsageError("labels of kind 'representations' do not name a class; this needs a set whose labels do")
        return labels.argmax(-1)

    def pixels(self, preprocess: "Preprocess", index: Tensor | None = None) -> Tensor:
        """The stored images in model space, float32 (n, c, h, w), on the device of `preprocess`.

        Args:
            preprocess: the transform of data that the set matches (`require_match`).
            index: int64 positions on the CPU; None for all.

        Raises:
            UsageError: the set holds indices, not images.
        """
        if self.image_kind not in ("pixels", "tiles"):
            raise self._no_images()
        images = (self.images if index is None else self.images[index]).to(preprocess.device)
        return preprocess(images) if images.dtype == torch.uint8 else images

    def _no_images(self) -> UsageError:
        kind = "a schedule" if self.image_kind == "schedule" else f"a set of {self.image_kind}"
        return UsageError(f"{kind} does not hold the images themselves; this needs a set that does")

    def images_in(self, data: "RealData", index: Tensor | None = None) -> Tensor:
        """The images in model space, float32 (n, c, h, w): those stored, or the training images at the stored indices.

        Args:
            data: real data that the set matches (`require_match`).
            index: int64 positions on the CPU; None for all.

        Raises:
            UsageError: the set is a schedule.
        """
        if self.image_kind == "indices":
            return data.train.images(self.images if index is None else self.images[index])
        return self.pixels(data.preprocess, index)

    def outside(self, preprocess: "Preprocess") -> float | None:
        """Share in [0, 1] of pixel values that are darker than black or brighter than white.

        A margin of half a grey level, which rounding removes, is not counted.  None if the set holds no images itself.

        Args:
            preprocess: the transform of data that the set matches (`require_match`).
        """
        if self.image_kind not in ("pixels", "tiles"):
            return None
        if self.images.dtype == torch.uint8:
            return 0.0
        found = 0
        for index in torch.arange(self.n).split(max(1, _AT_ONCE // self.images[0].numel())):
            found += int(is_outside(preprocess.invert(self.pixels(preprocess, index))).sum())
        return found / self.images.numel()

    def check(self) -> None:
        """Validate the set: kinds, shapes, dtypes, finite values, label range.

        Raises:
            UsageError: the set is invalid; the message names the field.
        """
        _checks.facts(self)
        _checks.images(self)
        _checks.labels(self)
        if self.lr is not None and not math.isfinite(self.lr):
            raise UsageError(f"distilled set: lr is {self.lr}, not a finite number")

    def require_match(self, data: "RealData") -> None:
        """Check that the set matches real data: classes in order, channels, size, value space.

        Raises:
            UsageError: they differ; the message names the field and both values.
        """
        _match.classes(self.classes, data.classes)
        if self.image_kind in ("pixels", "tiles"):
            _match.shape(tuple(self.images.shape[1:]), (data.channels, data.size, data.size))
        else:
            _match.source(self, data)
        _match.space(self.space, data.preprocess.spec())


def is_outside(pixels: Tensor) -> Tensor:
    """Return which pixel values (0 black, 1 white) are darker than black or brighter than white, see `outside`."""
    return (pixels < -_ROUNDING) | (pixels > 1 + _ROUNDING)
