"""The store of the labels of a set's views, beside the set, with exact replay of the labelled views.

Each epoch is one artefact of a `dd.runs.Store` rooted in the set's folder, so all epochs are in its subfolder
`labels/`.  An artefact holds one row per image, in the order of the images, and is memory-mapped for reading.  Views
are regenerated from the seed (replay="seed"), or the rows also hold their crop boxes, flips, partners and patches
(replay="records"); both give bit-identical views.  `dd.labels.spec` defines what determines an epoch, `dd.labels.forms`
how a label is stored.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dd.errors import UsageError, in_one_line
from dd.io import ObjectStore, digest, load_tensors, save_tensors
from dd.io.typed import typed
from dd.labels import _records
from dd.labels.spec import LabelSpec, StoredLabels
from dd.runs import sampling
from dd.runs.store import Payload, Store, Wanted
from dd.views import View

KIND = "labels"
_WAY_OUT = "choose another folder: out=FOLDER for a run, another path for a set"
_DRAWN = "drawn"  # key of an epoch's view fingerprint, with replay="seed"
_PACK = "dd-labels-1"
_PACKED = 1 << 30  # bytes of labels in one packed file
_LONGEST = 16 << 20  # characters of a packed file's metadata

Load = Callable[[Tensor], Tensor]
"""int64 positions (b,) on the CPU -> images, float (b, c, h, w), in model space on the training device."""
Label = Callable[[Tensor, View, Tensor], Tensor]
"""(views (b, c, h, w) of one whole batch, their `View`, positions (b,) of their images) -> logits (b, k)."""


@dataclass(frozen=True)
class _PackedInfo:
    info: dict[str, dict[str, str]]


Labelled = tuple[Tensor, View, Tensor]
"""A batch: positions (b,) of its images, what made its views, and their logits (b, k)."""


class Batch(NamedTuple):
    """One batch of an epoch, on the CPU: `images`, int64 (b,), their `view`, and the encoded `labels`."""

    images: Tensor
    view: View
    labels: dict[str, Tensor]


@dataclass(frozen=True)
class _Epoch:
    number: int
    rows: Mapping[str, Tensor]
    order: Tensor


class LabelStore:
    """Makes and reads the labels of a set's views; safe to use from several processes at once.

    Attributes:
        path: the folder of the labels.
        spec: what determines them.
        own: int64 (n,), the class of every image.
    """

    def __init__(self, beside: Path, spec: LabelSpec, own: Tensor, remote: ObjectStore | None = None) -> None:
        """Open the folder `labels/` in the folder `beside`; neither need exist yet.

        Args:
            beside: the folder of the set.
            spec: what determines the labels.
            own: int64 (n,), the class of every image.
            remote: the address that other machines put labels to, and take them from; see `dd.runs.store`.

        Raises:
            UsageError: `own` has the wrong shape, or a class out of range.
        """
        if own.shape != (spec.n,) or not 0 <= int(own.min()) <= int(own.max()) < spec.classes:
            raise UsageError(f"soft labels need a class for each of {spec.n} images, from 0 to {spec.classes - 1}")
        self.path, self.spec, self.own = Path(beside) / KIND, spec, own
        # not one log line per epoch: there may be hundreds
        self._store = Store(Path(beside), way_out=_WAY_OUT, level=logging.DEBUG, remote=remote)
        self._epoch: _Epoch | None = None
        self._sound: set[int] = set()  # epochs whose values this process has checked

    def __repr__(self) -> str:
        spec = self.spec
        return f"<LabelStore {self.path}: {spec.form.name} of {spec.n} images in {spec.epochs} epochs>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epoch": None}  # pickling would copy the memory map

    def missing(self) -> list[int]:
        """Epochs that are missing or damaged."""
        return [epoch for epoch in range(self.spec.epochs) if self._store.peek(KIND, self.spec.key(epoch)) is None]

    def make(self, epoch: int, load: Load, label: Label) -> bool:
        """Label the views of one epoch, if it does not exist intact; return whether this call did.

        Args:
            epoch: 0 to the spec's epochs - 1.
            load: loads images.
            label: computes the logits of their views; with `LabelSpec.micro`, in the pieces of
                `dd.training.loop.pieces`.

        Raises:
            RunError: the disk is full, or logits are not finite; finished epochs are kept.
        """
        self._require(epoch)
        words = f"labels of epoch {epoch + 1} in {self.path}"
        return self._store.tensors(KIND, self.spec.key(epoch), partial(self._labelled, epoch, load, label), words).made

    def each(self, epochs: Sequence[int], make: Callable[[int], bool]) -> list[bool]:
        """Return `make(epoch)` of every epoch; what another process is making comes last."""
        wanted = [Wanted(KIND, self.spec.key(epoch), f"labels of epoch {epoch + 1}") for epoch in epochs]
        return self._store.each(wanted, lambda at: make(epochs[at]))

    def keep(self, epoch: int, batches: Callable[[], Iterable[Labelled]]) -> None:
        """Keep an epoch that others labelled, with the views that they labelled; does nothing when it is there.

        Args:
            epoch: 0 to the spec's epochs - 1.
            batches: gives its batches in order, of the spec's size but the last: the positions of their images, each
                once, the views, and the logits.

        Raises:
            ValueError: views of this spec are drawn from its seed, not recorded.
            RunError: the disk is full, or the logits are not finite; finished epochs stay.
        """
        self._require(epoch)
        if self.spec.settings.replay != "records":
            raise ValueError("views of others cannot be drawn again: this needs replay='records'")
        words = f"labels of epoch {epoch + 1} in {self.path}"
        self._store.tensors(KIND, self.spec.key(epoch), lambda: (self._rows(batches()), {}), words)

    def remove(self, epochs: Iterable[int]) -> None:
        """Delete some epochs, and the folder if nothing else is in it."""
        for epoch in epochs:
            self._store.remove(KIND, self.spec.key(epoch))
            (self.path / f"{digest(self.spec.key(epoch))}.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def remove_others(self) -> None:
        """Delete the labels of any other spec from the folder, whole or partial."""
        self._store.remove_others(KIND, (self.spec.key(epoch) for epoch in range(self.spec.epochs)))

    def bytes(self) -> int:
        """Size of the labels on disk."""
        return sum(facts["bytes"] for facts in self._manifests())

    def digest(self) -> str:
        """SHA-256 of the spec and of all stored labels.

        Raises:
            UsageError: an epoch is missing.
        """
        kept = [facts["sha256"] for facts in self._manifests()]
        return digest([asdict(self.spec), kept], length=64)

    def stated(self, labeller: Mapping[str, Any] | None = None) -> StoredLabels:
        """The reference to these labels for the set's file."""
        return StoredLabels(self.spec, self.digest(), self.bytes(), labeller)

    def verify(self) -> dict[int, str]:
        """Reread everything and compare hashes; returns the fault by epoch, empty if there is none."""
        found = {epoch: self._store.damage(KIND, self.spec.key(epoch)) for epoch in range(self.spec.epochs)}
        return {epoch: damage for epoch, damage in found.items() if damage}

    def require(self, batch: int, micro: int, images: str) -> None:
        """Check that students can be trained on these labels.

        Args:
            batch: the students' batch size.
            micro: the students' micro-batch size; matters only for labels that depend on micro-batches.
            images: SHA-256 of the images and their classes; see `LabelSpec.images`.

        Raises:
            UsageError: the labels belong to other batches or images; the message says which.
        """
        spec = self.spec
        if batch != spec.batch:
            raise UsageError(
                f"{self.path} holds labels for batches of {spec.batch}, not {batch}: mixed images and "
                "batch statistics depend on the batch; train with "
                f"eval.batch={spec.batch}, or label again with `dd run`"
            )
        if spec.micro is not None and micro != spec.micro:
            raise UsageError(
                f"{self.path} holds labels that depend on micro-batches of {spec.micro}, not {micro}: the teachers "
                f"used the statistics of each micro-batch; train with eval.micro={spec.micro}, "
                "or label again with `dd run`"
            )
        if images != spec.images:
            raise UsageError(
                f"{self.path} holds labels of other images ({spec.images[:12]}, not {images[:12]}); label these images"
            )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, in order.

        Raises:
            UsageError: the epoch is missing or damaged, or its views cannot be regenerated.
        """
        for number in range(self.spec.batches):
            yield self.batch(epoch, number)

    def batch(self, epoch: int, number: int) -> Batch:
        """One batch of an epoch; raises as `epoch` does."""
        spec, opened = self.spec, self._open(epoch)
        images = opened.order[number * spec.batch : (number + 1) * spec.batch]
        rows = {name: values[images] for name, values in opened.rows.items()}
        recorded = spec.settings.replay == "records"
        view = _records.view_of(rows, images, spec.shape) if recorded else spec.view(epoch, number)
        return Batch(images, view, {name: rows[name] for name in spec.form.layout()})

    def batches(self, epoch: int, load: Load, temperature: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """The views (b, c, h, w) of an epoch and their class probabilities (b, k), batch by batch.

        Args:
            epoch: its number, from 0.
            load: loads images; views and probabilities are on the same device.
            temperature: of the probabilities; values other than 1 need stored logits.
        """
        if sampling.active() is not None:
            epoch %= sum(1 for _ in self._manifests())  # a sample has labelled the first epochs alone
        for batch in self.epoch(epoch):
            views = batch.view(load(batch.images))
            yield views, self.probabilities(batch, temperature, views.device)

    def probabilities(self, batch: Batch, temperature: float = 1.0, device: torch.device | str = "cpu") -> Tensor:
        """Class probabilities (b, k) of a batch at a temperature."""
        own, partner = (classes.to(device) for classes in self.pairs(batch.images, batch.view))
        labels = {name: values.to(device) for name, values in batch.labels.items()}
        return self.spec.form.decode(labels, own, partner, temperature)

    def mean(self) -> Tensor:
        """Class probabilities (n, k) of the images, averaged over their stored views, mixed ones included."""
        total = torch.zeros(self.spec.n, self.spec.classes)
        for epoch in range(self.spec.epochs):
            for batch in self.epoch(epoch):
                total[batch.images] += self.probabilities(batch)
        return total / total.sum(1, keepdim=True)

    def pairs(self, images: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Classes (b,) of a batch's images and of the images mixed into them; equal if nothing is mixed in."""
        own = self.own[images]
        return own, own if view.partner is None else own[view.partner]

    def at(self, epoch: int, image: int) -> dict[str, Any]:
        """Label and view of one image in one epoch, for inspection: "batch", "place" in the batch, "partner", ..."""
        if not 0 <= image < self.spec.n:
            raise UsageError(f"{self.path} holds labels of {self.spec.n} images, but not of image {image}")
        number, place = divmod(int((self._open(epoch).order == image).nonzero()), self.spec.batch)
        images, view, labels = self.batch(epoch, number)
        return {
            "batch": number,
            "place": place,
            "box": None if view.boxes is None else view.boxes[place].tolist(),
            "flip": view.flips is not None and bool(view.flips[place]),
            "partner": None if view.partner is None else int(images[view.partner[place]]),
            "weight": view.weight,
            "patch": view.patch,
            "label": {name: values[place] for name, values in labels.items()},
        }

    def copy(self, beside: Path) -> None:
        """Copy the labels into the subfolder `labels/` of another folder, without overwriting.

        Raises:
            UsageError: the target holds other labels of the same spec, or some labels here are damaged or missing.
            RunError: the disk is full.
        """
        there = LabelStore(beside, self.spec, self.own)
        for epoch in range(self.spec.epochs):
            there._store.tensors(KIND, self.spec.key(epoch), partial(self._payload, epoch))
        if there.digest() != self.digest():
            raise UsageError(f"{there.path} holds other labels than {self.path}; save the set into another folder")

    def pack(self, folder: Path) -> list[Path]:
        """Pack the labels into a few large files in `folder`, from which `unpack` restores them bit for bit.

        The store has two files per epoch, which suits reading; for transfer, fewer files are better.

        Returns:
            The files, `labels-00001-of-0000N.safetensors`, none much larger than a gigabyte.

        Raises:
            UsageError: an epoch is missing or damaged.
            RunError: the disk is full.
        """
        each = max(1, _PACKED // max(1, -(-self.spec.bytes() // self.spec.epochs)))
        pieces = [range(begin, min(begin + each, self.spec.epochs)) for begin in range(0, self.spec.epochs, each)]
        written = []
        for number, piece in enumerate(pieces, 1):
            payloads = {epoch: self._payload(epoch) for epoch in piece}
            tensors = {f"{epoch}/{name}": rows for epoch, (held, _) in payloads.items() for name, rows in held.items()}
            info = json.dumps({str(epoch): info for epoch, (_, info) in payloads.items()}, sort_keys=True)
            path = folder / f"{KIND}-{number:05d}-of-{len(pieces):05d}.safetensors"
            save_tensors(path, tensors, {"format": _PACK, "info": info})
            written.append(path)
        return written

    def unpack(self, files: Sequence[Path]) -> None:
        """Restore the labels from the files that `pack` wrote, without overwriting.

        Raises:
            UsageError: a file holds labels that do not match the spec; nothing from it is written.
            RunError: the disk is full.
        """
        wanted = {name: (kind, (self.spec.n, *shape)) for name, (kind, shape) in self.spec.layout().items()}
        for path in files:
            for epoch, payload in _packed(path).items():
                if {name: (v.dtype, tuple(v.shape)) for name, v in payload[0].items()} != wanted:
                    raise UsageError(f"{path} is damaged: its labels of epoch {epoch + 1} are not those of the set")
                self._require(epoch)
                self._store.tensors(KIND, self.spec.key(epoch), lambda payload=payload: payload)

    def _labelled(self, epoch: int, load: Load, label: Label) -> Payload:
        rows = self._rows(self._seen(epoch, load, label))
        return rows, {} if self.spec.settings.replay == "records" else {_DRAWN: self.spec.fingerprint(epoch)}

    def _seen(self, epoch: int, load: Load, label: Label) -> Iterator[Labelled]:
        """The views of an epoch as the spec draws them, with their logits."""
        for number, images in enumerate(self.spec.order(epoch).split(self.spec.batch)):
            view = self.spec.view(epoch, number)
            yield images, view, label(view(load(images)), view, images)

    def _rows(self, batches: Iterable[Labelled]) -> dict[str, Tensor]:
        """What is kept of the batches of an epoch, in the images' order."""
        spec, form, start = self.spec, self.spec.form, 0
        rows = {name: torch.zeros(spec.n, *shape, dtype=kind) for name, (kind, shape) in spec.layout().items()}
        for images, view, logits in batches:
            own, partner = (classes.to(logits.device) for classes in self.pairs(images, view))
            kept = form.encode(logits, own, partner)
            if spec.settings.replay == "records":
                kept |= _records.record(view, images, start)
            for name, values in rows.items():
                values[images] = kept[name].to(values)
            start += len(images)
        return rows

    def _open(self, epoch: int) -> _Epoch:
        self._require(epoch)
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = self._opened(epoch)
        return self._epoch

    def _opened(self, epoch: int) -> _Epoch:
        spec, (rows, facts) = self.spec, self._payload(epoch)
        if epoch not in self._sound:
            if damage := self._wrong(rows):
                raise self._lost(epoch, damage)
            self._sound.add(epoch)
        if spec.settings.replay == "records":
            return _Epoch(epoch, rows, rows["place"].argsort())
        if facts.get(_DRAWN) != spec.fingerprint(epoch):
            raise UsageError(
                f"{self.path}: seed {spec.seed} draws other views than when the labels were made, with other versions "
                "of torch or dd; use those versions, or make the labels again"
            )
        return _Epoch(epoch, rows, spec.order(epoch))

    def _payload(self, epoch: int) -> Payload:
        kept = self._store.peek(KIND, self.spec.key(epoch))
        if kept is None or kept.tensors is None:
            raise self._lost(epoch)
        return kept.tensors, kept.info

    def _wrong(self, rows: Mapping[str, Tensor]) -> str:
        """Check the rows of an epoch whose hash is right; returns the fault, or ""."""
        spec, form = self.spec, self.spec.form
        wanted = {name: (kind, (spec.n, *shape)) for name, (kind, shape) in spec.layout().items()}
        if {name: (values.dtype, tuple(values.shape)) for name, values in rows.items()} != wanted:
            return "its arrays have the wrong names, types or shapes"
        found = form.damage({name: rows[name] for name in form.layout()})
        recorded = spec.settings.replay == "records"
        return found or (_records.damage(rows, spec.batch, spec.shape) if recorded else "")

    def _manifests(self) -> Iterator[dict[str, Any]]:
        for epoch in range(self.spec.epochs):
            facts = self._store.manifest(KIND, self.spec.key(epoch))
            if facts is None and sampling.active() is not None:
                continue  # a sample labels the first epochs alone
            if facts is None or "bytes" not in facts:
                raise self._lost(epoch)
            yield facts

    def _require(self, epoch: int) -> None:
        if not 0 <= epoch < self.spec.epochs:
            raise UsageError(f"{self.path} holds the labels of {self.spec.epochs} epochs, but not of epoch {epoch + 1}")

    def _lost(self, epoch: int, damage: str = "") -> UsageError:
        key = self.spec.key(epoch)
        file = self._store.path(KIND, key)
        if not file.exists():
            return UsageError(
                f"no soft labels in {self.path} of epoch {epoch + 1} ({file.name}: no such file); "
                f"copy the folder {KIND}/ beside the set that it was made for"
            )
        damage = damage or self._store.damage(KIND, key) or "it holds no labels"
        return UsageError(
            f"the labels of epoch {epoch + 1} are damaged ({file}: {damage}); delete the report.json beside {KIND}/, "
            "then repeat the command that made them"
        )


def _packed(path: Path) -> dict[int, Payload]:
    """The labels in a file that `LabelStore.pack` wrote, by epoch.

    Raises:
        UsageError: the file is damaged, or `pack` did not write it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != _PACK or len(metadata.get("info", "")) > _LONGEST:
            raise ValueError("its metadata are not those of packed labels")
        infos = typed(_PackedInfo, {"info": json.loads(metadata["info"])}, "").info
        rows_of: dict[int, dict[str, Tensor]] = {int(epoch): {} for epoch in infos}
        for name, rows in load_tensors(path).items():
            epoch, _, kind = name.partition("/")
            rows_of[int(epoch)][kind] = rows
    except (OSError, ValueError, KeyError, SafetensorError, RecursionError, UsageError) as error:
        raise UsageError(f"{path} holds no labels as dd packs them ({in_one_line(error)})") from error
    return {int(epoch): (rows_of[int(epoch)], info) for epoch, info in infos.items()}
