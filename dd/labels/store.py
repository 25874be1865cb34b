"""The soft labels of augmented views, kept on disk and replayed with the very views they were made for.

A store is a folder:

    manifest.json       the store's `StoreSpec`, library versions, and size and SHA-256 of every finished file
    classes.npy         the class of every image
    epoch-00000.npy     the labels of one epoch, a row for every image in the images' order, memory-mapped when read

In every epoch each image is seen once.  The order is drawn from the seed, and consecutive pieces of it are the batches;
the view of a batch is drawn from the seed too (replay="seed"), or its crop boxes, flips, partners and patches are kept
in the rows (replay="records").  Both give the same views to the bit.  What belongs to one batch is a function of seed,
epoch and number alone, so epochs can be read in any order, by any number of processes.

`dd.labels.writer` makes stores; `dd.labels.forms` says what a label is stored as.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd.errors import RunError, UsageError
from dd.io import atomic_path, digest, sha256_file
from dd.labels import _rows
from dd.labels.spec import CLASSES, MANIFEST, Batch, file_of, read_manifest
from dd.views import View

Load = Callable[[Tensor], Tensor]
"""int64 positions (b,) on the CPU -> the images there, float (b, c, h, w) in model space, on the device of training."""


@dataclass
class _Epoch:
    number: int
    rows: np.memmap
    order: Tensor


class LabelStore:
    """Reads a store, in any number of processes at once, also while it is written.

    A copy that is sent to another process opens files of its own.

    Attributes:
        path: its folder.
        spec: what it holds.
        own: int64 (n,), the class of every image.
        wrap: whether epochs beyond the last begin again with the first.
    """

    def __init__(self, path: Path | str, *, wrap: bool = False) -> None:
        """Open a store; `open_store` also sees that it is the one that is needed.

        Raises:
            UsageError: there is none, or it is damaged or of a newer version.
        """
        self.path, self.wrap = Path(path), wrap
        self.spec, self._files = read_manifest(self.path)
        self._whole: dict[str, str] = {}  # files whose hash was right, once in this process
        self._epoch: _Epoch | None = None
        self.own = torch.from_numpy(self._checked(CLASSES, np.load).astype(np.int64))

    def __repr__(self) -> str:
        spec, form = self.spec, self.spec.form.name
        return f"<LabelStore {self.path}: {form} of {spec.n} images in {len(self.finished)} of {spec.epochs} epochs>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epoch": None}  # a memory map would be sent as a copy

    @property
    def finished(self) -> list[int]:
        """Epochs that are there, as the manifest says."""
        return [epoch for epoch in range(self.spec.epochs) if file_of(epoch) in self._files]

    def bytes(self) -> int:
        """What its labels take on disk."""
        return sum(facts["bytes"] for facts in self._files.values())

    def digest(self) -> str:
        """SHA-256 of all that it says and holds."""
        return digest([self.spec.to_json(), {name: facts["sha256"] for name, facts in self._files.items()}], length=64)

    def reference(self, beside: Path) -> dict[str, Any]:
        """What a distilled set whose file is `beside` says of it, as `DistilledSet.views`."""
        place = os.path.relpath(self.path.resolve(), Path(beside).resolve().parent)
        return {"store": Path(place).as_posix(), "sha256": self.digest(), "bytes": self.bytes()}

    def verify(self) -> dict[str, str]:
        """Read everything again and compare hashes: what is wrong by file name; empty where nothing is."""
        self._whole.clear()
        found = ((name, self._damage(name)) for name in self._files)
        return {name: damage for name, damage in found if damage}

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch in order.

        Raises:
            UsageError: it is not stored, or not yet.
            RunError: its file is damaged, or its views cannot be drawn again.
        """
        for number in range(self.spec.batches):
            yield self.batch(epoch, number)

    def batch(self, epoch: int, number: int) -> Batch:
        """One batch of an epoch; errors as for `epoch`."""
        spec, opened = self.spec, self._open(epoch)
        images = opened.order[number * spec.batch : (number + 1) * spec.batch]
        rows = opened.rows[images.numpy()]
        view = _rows.recorded_view(rows, spec, images) if spec.replay == "records" else spec.view(opened.number, number)
        return Batch(images, view, _rows.labels_of(rows, spec))

    def batches(self, epoch: int, load: Load, temperature: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """The views (b, c, h, w) of an epoch and their class probabilities (b, k), batch by batch.

        Args:
            epoch: which.
            load: gives images; the views and probabilities are where they are.
            temperature: of the probabilities; other than 1 for stored logits only.
        """
        for batch in self.epoch(epoch):
            views = batch.view(load(batch.images))
            yield views, self.probabilities(batch, temperature, views.device)

    def probabilities(self, batch: Batch, temperature: float = 1.0, device: torch.device | str = "cpu") -> Tensor:
        """(b, k) class probabilities of a batch at a temperature."""
        own, partner = (classes.to(device) for classes in self.pairs(batch.images, batch.view))
        labels = {name: values.to(device) for name, values in batch.labels.items()}
        return self.spec.form.decode(labels, own, partner, temperature)

    def mean(self) -> Tensor:
        """(n, k) class probabilities of the images, the mean over their stored views; mixed ones as they are."""
        total = torch.zeros(self.spec.n, len(self.spec.classes))
        for epoch in self.finished:
            for batch in self.epoch(epoch):
                total[batch.images] += self.probabilities(batch)
        return total / total.sum(1, keepdim=True)

    def copy(self, path: Path | str) -> None:
        """Bring its files into another folder; those that are there already stay.

        Raises:
            UsageError: there are other labels.
            RunError: the disk is full.
        """
        path = Path(path)
        if (path / MANIFEST).exists():
            if LabelStore(path).digest() != self.digest():
                raise UsageError(f"{path} holds other labels than {self.path}; save the set into another folder")
            return
        for name in (*self._files, MANIFEST):  # the manifest last: what has none is no store
            with atomic_path(path / name) as temporary:
                shutil.copyfile(self.path / name, temporary)

    def pairs(self, images: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """The classes (b,) of a batch's images and of those mixed into them, the same where nothing is mixed."""
        own = self.own[images]
        return own, own if view.partner is None else own[view.partner]

    def at(self, epoch: int, image: int) -> dict[str, Any]:
        """Label and view of one image in one epoch, for inspection: "batch", "place" in it, "partner" image, ..."""
        if not 0 <= image < self.spec.n:
            raise UsageError(f"{self.path} holds labels of {self.spec.n} images, and image {image} is asked for")
        opened = self._open(epoch)
        number, place = divmod(int((opened.order == image).nonzero()), self.spec.batch)
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

    def damage(self, epoch: int) -> str | None:
        """What is wrong with the file of an epoch, "" for nothing, None where there is none; hashed once a process."""
        return self._damage(file_of(epoch)) if file_of(epoch) in self._files else None

    def _open(self, epoch: int) -> _Epoch:
        asked, epochs = epoch, self.spec.epochs
        epoch = epoch % epochs if self.wrap else epoch
        if not 0 <= epoch < epochs:
            raise UsageError(
                f"{self.path} holds the labels of {epochs} epochs, and epoch {asked + 1} is asked for; train for at "
                f"most {epochs}, label more, or begin again with wrap=True"
            )
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = self._opened(epoch)
        return self._epoch

    def _opened(self, epoch: int) -> _Epoch:
        if file_of(epoch) not in self._files:
            self.refresh()  # it may have been finished since
        if file_of(epoch) not in self._files:
            raise UsageError(f"{self.path} has no labels of epoch {epoch + 1} yet; the command that makes them goes on")
        spec = self.spec
        rows = self._checked(file_of(epoch), lambda path: _rows.read_rows(path, spec))
        if spec.replay == "records":
            return _Epoch(epoch, rows, torch.from_numpy(np.argsort(rows["place"])))
        if self._files[file_of(epoch)]["views"] != _rows.fingerprint(spec, epoch):
            raise RunError(
                f"{self.path}: seed {spec.seed} draws other views than when the labels were made, with other versions "
                "of torch or dd (its manifest names them); use those, or make the labels anew"
            )
        return _Epoch(epoch, rows, spec.order(epoch))

    def refresh(self) -> None:
        """Read again which epochs are finished."""
        self._files = read_manifest(self.path)[1]
        self._epoch = None

    def _checked(self, name: str, read: Callable[[Path], Any]) -> Any:
        try:
            damage = self._damage(name)
            if not damage:
                return read(self.path / name)
        except (OSError, ValueError) as error:
            damage = str(error)
        raise RunError(
            f"{self.path / name} is damaged: {damage}; delete the report.json beside the labels, "
            "and the command that made them makes it anew"
        )

    def _damage(self, name: str) -> str:
        facts, path = self._files[name], self.path / name
        if self._whole.get(name) == facts["sha256"]:
            return ""
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                return f"it has {size} bytes, not {facts['bytes']}"
            if sha256_file(path) != facts["sha256"]:
                return "its hash is wrong"
        except OSError as error:
            return error.strerror or str(error)
        self._whole[name] = facts["sha256"]
        return ""


def open_store(
    path: Path | str, *, batch: int, micro: int | None = None, images: str = "", wrap: bool = False
) -> LabelStore:
    """Open a store to train on.

    Args:
        path: its folder.
        batch: images per batch of the student.
        micro: its micro-batches; only for labels that depend on theirs does it matter.
        images: SHA-256 of its images; "" does not compare.
        wrap: begin again with the first epoch after the last.

    Raises:
        UsageError: there is no store, or its labels belong to other batches or images; the line says why.
    """
    store = LabelStore(path, wrap=wrap)
    spec = store.spec
    if batch != spec.batch:
        raise UsageError(
            f"{path} holds labels for batches of {spec.batch}, not {batch}: images mixed into one another, and batch "
            f"statistics, belong to the batch they were labelled in; train with eval.batch={spec.batch}, "
            "or label anew with `dd run`"
        )
    if spec.micro is not None and micro != spec.micro:
        raise UsageError(
            f"{path} holds labels that depend on micro-batches of {spec.micro}, not {micro or batch}: the teachers "
            f"normalised by the statistics of those images; train with eval.micro={spec.micro}, "
            "or label anew with `dd run`"
        )
    if images and spec.images and images != spec.images:
        raise UsageError(f"{path} holds labels of other images ({spec.images[:12]}, not {images[:12]}); label these")
    return store
