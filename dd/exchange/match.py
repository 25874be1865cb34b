"""Check a `Draft` against the real images that it stands for, and convert it to a `DistilledSet`."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dd.data import DataSettings, RealData, kind_of, open_data
from dd.data.positions import by_class
from dd.errors import UsageError, printable, unknown
from dd.evaluation.protocols import PROTOCOLS, Protocol, default_protocol
from dd.exchange import spaces
from dd.exchange.draft import Asked, Draft
from dd.exchange.fkd import image_order, with_labels
from dd.exchange.order import OrderCheck, order_of, require_order
from dd.exchange.pixels import in_our_space
from dd.exchange.shapes import laid_out, likely_side, named_set
from dd.exchange.targets import Targets, targets
from dd.io import digest, sha256_file
from dd.labels import LabelSettings
from dd.sets import DistilledSet, is_finite
from dd.sets.origin import KEY, Imported, OriginFile
from dd.sets.tiles import decode
from dd.training.teachers import SqueezeSettings

_TRIED, _AT_ONCE = 5000, 250  # maximum number of images of a set compared with real ones; of these in memory
_SQUASHED = "mtt"  # the family that resizes images to squares regardless of their aspect ratio
_TAUGHT = {"rethinkdc-hard": "rethinkdc-soft"}  # protocols, and their variants with a teacher's labels
_UNSAID = ("mtt",)  # families with a learned lr of students, which some of their files lack


class Matched(NamedTuple):
    """The result of matching a draft.

    Attributes:
        set: the distilled set.
        remark: one line on how well it fits the real images; "" if that was not checked.
        labels: given the folder of the set's file, writes the label store of views there and returns the set with it;
            None if the files have no labels of views.
    """

    set: DistilledSet
    remark: str
    labels: Callable[[Path], DistilledSet] | None = None


class Match:
    """Matches drafts with real images, which are opened once for all drafts.

    Args:
        asked: the user's options; `dataset` is required.
    """

    def __init__(self, asked: Asked) -> None:
        if not asked.dataset:
            raise UsageError("say which real images the set stands for: dataset=cifar10, or dataset=folder:PATH")
        if asked.protocol is not None and asked.protocol not in PROTOCOLS:
            raise unknown("protocol", asked.protocol, PROTOCOLS)
        self.asked = asked
        self._opened: dict[DataSettings, tuple[DataSettings, RealData]] = {}  # the final settings, and the data

    def set_of(self, draft: Draft) -> Matched:
        """Convert a draft to a distilled set in our value space.

        Raises:
            UsageError: the draft does not match these images, or needs a further option; the message names the file.
        """
        if draft.images.dim() < 3:
            return self._positions(draft)
        draft = self._shaped(draft)
        if draft.label_kind == "representations":
            return self._represented(draft)
        space = spaces.settle(draft, self.asked.dataset, self.asked.value_space)
        data = self._data(draft, self.asked.preprocess or ("zca" if space.word == "zca" else "standard"))
        labels = targets(draft, len(data.classes), self.asked.labels)
        order, why = order_of(draft, data, self.asked.class_order)
        views = None if draft.views is None else image_order(draft.views, labels.values)
        labels = _reordered(labels, order)
        images, note = in_our_space(draft.images, space, data, lambda kind: self._whole(draft, kind))
        assumed = [space.assumed, *labels.assumed, why, note, "" if views is None else str(views)]
        assumed += _unlike_its_name(draft, self.asked.dataset, labels)
        made = self._set(draft, images, labels, data, assumed)
        made.check()
        made.require_match(data)
        _require_counts(made, draft, self.asked.uneven)
        later = None if views is None else partial(with_labels, made, views, order)
        return Matched(made, self._require_order(draft, made, data), later)

    def _shaped(self, draft: Draft) -> Draft:
        """Bring images to the shape of the real ones, (n, c, h, w), float32 or uint8; all values must be finite."""
        images = draft.images
        if not images.numel() or not is_finite(images):
            raise UsageError(f"{draft.files[0]}: its images are empty, or some values are NaN or infinite")
        known = kind_of(self.asked.dataset)
        if known is not None and known.side is not None and self.asked.size is None:
            shape = known.channels, known.side, known.side
        else:
            shape = self._data(draft, "standard").shape
        images = laid_out(draft, shape, self.asked.dataset)
        images = images if images.dtype == torch.uint8 else images.float()
        return replace(draft, images=images.contiguous(), factor=self.asked.factor or draft.factor)

    def _settings(self, draft: Draft, preprocess: str) -> DataSettings:
        known, size = kind_of(self.asked.dataset), self.asked.size
        if size is None and known is not None and known.side is None:
            size = likely_side(draft.images)
        further = {"size": size, "augment": self.asked.augment or draft.augment, "preprocess": preprocess}
        if size is not None and draft.family == _SQUASHED:
            further["resize"] = "squash"
        return DataSettings(**{**further, **draft.data})

    def _data(self, draft: Draft, preprocess: str) -> RealData:
        return self._open(self._settings(draft, preprocess), draft)

    def _whole(self, draft: Draft, preprocess: str) -> RealData:
        """Open all training images without a held-out part, as the authors of the formats use them."""
        return self._open(replace(self._settings(draft, preprocess), holdout=0.0), draft)

    def _open(self, settings: DataSettings, draft: Draft) -> RealData:
        device = torch.device(self.asked.device or "cpu")
        if settings not in self._opened:
            try:
                self._opened[settings] = settings, open_data(self.asked.dataset, settings, device)
            except UsageError as error:
                side = likely_side(draft.images)
                if settings.size is not None or side is None or "data.size" not in str(error):
                    raise
                sized = replace(settings, size=side)
                self._opened[settings] = sized, open_data(self.asked.dataset, sized, device)
        return self._opened[settings][1]

    def _set(
        self, draft: Draft, images: Tensor, labels: Targets, data: RealData, assumed: Iterable[str]
    ) -> DistilledSet:
        protocol, more = self._protocol(draft)
        lines = [*draft.assumed, *assumed, *more]
        settings = next(settled for settled, opened in self._opened.values() if opened is data)
        tiles = draft.factor > 1 and draft.images.dim() == 4
        return DistilledSet(
            images=images,
            labels=labels.values,
            classes=data.classes,
            source=data.name,
            source_fingerprint=data.fingerprint,
            space=data.preprocess.spec(),
            image_kind="tiles" if tiles else "pixels",
            label_kind=labels.kind,
            decode_factor=draft.factor if tiles else 1,
            lr=self.asked.lr or draft.lr,
            protocol=asdict(protocol),
            augment=data.augment if protocol.augment else "none",
            provenance=self._provenance(draft, settings, [line for line in lines if line]),
            **draft.settings,
        )

    def _protocol(self, draft: Draft) -> tuple[Protocol, list[str]]:
        """Return the protocol of the set, and the assumptions made for it."""
        name = self.asked.protocol or (_TAUGHT.get(draft.protocol) if self.asked.teachers else "") or draft.protocol
        protocol = PROTOCOLS[name] if name else default_protocol(self.asked.dataset)
        if self.asked.augment not in (None, "none") and not protocol.augment:
            protocol = replace(protocol, augment=True)
        assumed = []
        if not name:
            assumed.append(f"scored as {protocol.protocol}, as other sets of these images (protocol= says otherwise)")
        if draft.family in _UNSAID and draft.lr is None and self.asked.lr is None:
            assumed.append(
                f"the file holds no learning rate: students use the protocol's {protocol.lr:g} (lr= says otherwise)"
            )
        return protocol, assumed

    def _provenance(self, draft: Draft, settings: DataSettings, assumed: list[str]) -> dict[str, object]:
        origin = Imported(
            format=draft.format,
            files=tuple(_origin_file(path) for path in draft.files),
            entry=draft.entry,
            evidence=tuple(map(_short, draft.evidence)),
            assumed=tuple(map(_short, assumed)),
            stated=draft.stated,
        )
        name = printable(draft.files[0].stem or draft.files[0].name, keep="")[:100]
        entry = f", set {draft.entry}" if draft.entry else ""
        return {
            "method": draft.format,
            "name": f"{name}{entry}",
            "data": asdict(settings),
            "version": version("dd-workbench"),
            KEY: asdict(origin),
            **({} if self.asked.teachers is None else {"labeller": _labeller(self.asked.teachers)}),
        }

    def _positions(self, draft: Draft) -> Matched:
        """Convert positions in the original training order, (n,), or (e, n) with one selection per epoch."""
        data = self._whole(draft, self.asked.preprocess or "standard")
        index, n = draft.images.long(), len(data.train)
        if not index.numel() or int(index.min()) < 0 or int(index.max()) >= n:
            raise UsageError(f"{draft.files[0]}: its positions do not fit the {n:,} training images of {data.name}")
        if any(len(row.unique()) < len(row) for row in index.view(-1, index.shape[-1])):
            raise UsageError(f"{draft.files[0]}: the same position occurs twice")
        labels = Targets("hard", data.train.labels.cpu()[index])
        made = replace(
            self._set(draft, index, labels, data, []), image_kind="indices" if index.dim() == 1 else "schedule"
        )
        made.check()
        made.require_match(data)
        return Matched(made, "")

    def _represented(self, draft: Draft) -> Matched:
        """Convert images with representations, which name no class: nothing is known of the order of classes."""
        for key in ("class_order", "labels"):
            if getattr(self.asked, key) is not None:
                raise UsageError(f"{draft.files[0]}: {key}= does not apply to representations, which name no class")
        space = spaces.settle(draft, self.asked.dataset, self.asked.value_space)
        data = self._data(draft, self.asked.preprocess or "standard")
        images, note = in_our_space(draft.images, space, data, lambda kind: self._whole(draft, kind))
        assert draft.labels is not None, "they were recognised by their representations"
        labels = Targets("representations", draft.labels.float())
        made = self._set(draft, images, labels, data, [space.assumed, note])
        made.check()
        made.require_match(data)
        return Matched(made, "")

    @cached_property
    def _checks(self) -> dict[int, OrderCheck]:
        return {}

    def _require_order(self, draft: Draft, made: DistilledSet, data: RealData) -> str:
        if data.size not in self._checks:
            self._checks[data.size] = OrderCheck(data)
        labels = made.own_classes()
        each = max(1, _TRIED // len(made.classes))
        index = torch.cat([members[:each] for members in by_class(labels, len(made.classes))])
        factor = made.decode_factor

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for some in index.split(_AT_ONCE):
                pixels = data.preprocess.invert(made.pixels(data.preprocess, some)).cpu()
                yield decode(pixels, factor), labels[some].repeat(factor**2)

        return require_order(draft, self._checks[data.size](parts()), data, self.asked.class_order)


def _labeller(teachers: str) -> dict[str, object]:
    """Return the provenance entry for teachers that label views while students train."""
    names = [name.strip() for name in teachers.split(",")]
    live = LabelSettings(mode="live")
    return {"teachers": names, "squeeze": asdict(SqueezeSettings()), "labels": asdict(live), "weights": None}


def _unlike_its_name(draft: Draft, dataset: str, labels: Targets) -> list[str]:
    """Return a line for each contradiction between a file's name and its contents, which take precedence."""
    name, found = draft.files[0].name, list[str]()
    said = named_set(name)
    if said and not dataset.startswith(said.split("-")[0]):
        found.append(f"the file's name speaks of {said}, but the images fit {dataset}")
    each = re.search(r"(?<!\d)(\d+)ipc|ipc[_-]?(\d+)", name, re.IGNORECASE)
    if each and labels.values.dim() == 1 and draft.files[0].is_file():
        ipc, rest = divmod(len(draft.images), len(labels.values.unique()))
        if rest or ipc != int(each[1] or each[2]):
            found.append(f"the file's name speaks of {each[1] or each[2]} images per class, but it holds {ipc}")
    return found


def _reordered(labels: Targets, order: Tensor) -> Targets:
    """Renumber labels of the file by classes of the data set: the file's label i is class `order[i]`."""
    if labels.values.dim() == 1:
        return replace(labels, values=order[labels.values])
    return replace(labels, values=labels.values[:, order.argsort()].contiguous())


def _require_counts(made: DistilledSet, draft: Draft, uneven: bool) -> None:
    counts = torch.bincount(made.own_classes(), minlength=len(made.classes))
    learned = draft.labels is not None and draft.labels.dim() == 2  # the largest value may be in any class
    if uneven or learned or int(counts.min()) == int(counts.max()):
        return
    absent = [made.classes[c] for c in (counts == 0).nonzero().flatten().tolist()]
    what = f"none of {', '.join(absent[:5])}" if absent else f"{int(counts.min())} to {int(counts.max())} per class"
    raise UsageError(f"{draft.files[0]}: it holds {what}; if that is so, say uneven=true")


def _origin_file(path: Path) -> OriginFile:
    name = printable(path.name, keep="")[:500]
    if not os.path.isdir(path):
        return OriginFile(name, path.stat().st_size, sha256_file(path))
    sizes = sorted((str(one.relative_to(path)), one.stat().st_size) for one in path.rglob("*") if one.is_file())
    return OriginFile(name, sum(size for _, size in sizes), digest(sizes, length=64))


def _short(line: str) -> str:
    return printable(line, keep="")[:2000]
