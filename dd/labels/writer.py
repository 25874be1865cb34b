"""Making a store of soft labels, an epoch at a time, also while students train on it."""

import contextlib
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dd.errors import UsageError
from dd.io import atomic_path, locked, sha256_file, writable
from dd.labels import _rows
from dd.labels.forms import INT16, LabelForm
from dd.labels.spec import (
    CLASSES,
    MANIFEST,
    Batch,
    DamagedManifest,
    Files,
    StoreSpec,
    file_of,
    read_manifest,
    salvaged,
    write_manifest,
)
from dd.labels.store import LabelStore, Load
from dd.sizes import readable_size
from dd.views import View, ViewPolicy

log = logging.getLogger(__name__)

Label = Callable[[Tensor, View, Tensor], Tensor]
"""Views (b, c, h, w), what made them, and the positions (b,) of their images -> logits (b, k).

It labels one whole batch: with `StoreSpec.micro` in the pieces that `dd.training.loop.pieces` gives.
"""


class LabelWriter:
    """Writes the epochs of a store; `writing` opens one.

    A file of an epoch appears whole or not at all, and is listed in the manifest after that: whenever the process ends,
    every finished epoch stays, and the next one to write is the first that is missing.

    Attributes:
        store: reads what is there.
    """

    def __init__(self, store: LabelStore) -> None:
        self.store = store

    def missing_epochs(self) -> list[int]:
        """Epochs that are not there, or damaged, which the log says."""
        return [epoch for epoch in range(self.store.spec.epochs) if not self._is_whole(epoch)]

    def write_epoch(self, epoch: int, load: Load, label: Label) -> None:
        """Label the views of one epoch; does nothing when it is there.

        Args:
            epoch: 0 to the store's epochs - 1.
            load: gives images.
            label: gives the logits of their views.

        Raises:
            RunError: the disk is full, or the logits are not finite; finished epochs stay.
        """
        if not self._is_whole(epoch):
            for _ in self._labelled(epoch, load, label):
                pass

    def labelled_batches(
        self, epoch: int, load: Load, label: Label, temperature: float = 1.0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What `LabelStore.batches` yields, labelled on the way and stored at the end where it is not there yet.

        Probabilities are those of the stored form, as later replays see them.  An epoch that is left early is not kept.
        """
        if self._is_whole(epoch):
            yield from self.store.batches(epoch, load, temperature)
            return
        for views, batch in self._labelled(epoch, load, label):
            yield views, self.store.probabilities(batch, temperature, views.device)

    def _is_whole(self, epoch: int) -> bool:
        if not 0 <= epoch < self.store.spec.epochs:
            epochs = self.store.spec.epochs
            raise UsageError(f"{self.store.path} is for {epochs} epochs, and epoch {epoch + 1} is asked for")
        damage = self.store.damage(epoch)
        if damage:
            log.warning("%s is damaged (%s); labelling it anew", self.store.path / file_of(epoch), damage)
        return damage == ""

    def _labelled(self, epoch: int, load: Load, label: Label) -> Iterator[tuple[Tensor, Batch]]:
        store, spec = self.store, self.store.spec
        with atomic_path(store.path / file_of(epoch)) as temporary, temporary.open("r+b") as file:
            rows = _rows.RowFile(file, spec)
            for number, images in enumerate(spec.order(epoch).split(spec.batch)):
                view = spec.view(epoch, number)
                views = view(load(images))
                own, partner = store.pairs(images, view)
                logits = label(views, view, images)
                encoded = spec.form.encode(logits, own.to(logits.device), partner.to(logits.device))
                batch = Batch(images, view, {name: values.cpu() for name, values in encoded.items()})
                rows.write(number * spec.batch, batch)
                yield views, batch
        try:
            self._list(epoch)
        except BaseException:
            (store.path / file_of(epoch)).unlink()  # it would take room without being known
            raise

    def _list(self, epoch: int) -> None:
        """Enter a file that was just written into the manifest."""
        spec, path = self.store.spec, self.store.path / file_of(epoch)
        facts: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_file(path), "of": spec.digest()}
        if spec.replay == "seed":
            facts["views"] = _rows.fingerprint(spec, epoch)
        files = {**read_manifest(self.store.path)[1], path.name: facts}
        write_manifest(self.store.path, spec, files)
        self.store.refresh()


@contextlib.contextmanager
def writing(folder: Path | str, spec: StoreSpec, own: Tensor) -> Iterator[LabelWriter]:
    """Begin a store, or go on with one; another process that does the same waits until this one is through.

    Args:
        folder: where it is, or is to be.
        spec: what it holds.
        own: int64 (n,), the class of every image.

    Raises:
        UsageError: the folder holds other labels, named by the first field that differs, or cannot be written to.
        RunError: the disk is full.
    """
    folder = writable(Path(folder), "name another folder for the labels")
    if own.shape != (spec.n,) or not 0 <= int(own.min()) <= int(own.max()) < len(spec.classes):
        raise UsageError(f"soft labels need the class of each of {spec.n} images, from 0 to {len(spec.classes) - 1}")
    with locked(folder / ".lock", f"the labels in {folder}"):
        for stale in folder.glob(".*.*"):  # what a killed process left; we hold the lock, so nobody is writing
            stale.unlink(missing_ok=True)
        _begin(folder, spec, _class_file(spec, own))
        yield LabelWriter(LabelStore(folder))


def size_on_disk(
    n: int,
    epochs: int,
    form: LabelForm,
    replay: Literal["seed", "records"] = "seed",
    policy: ViewPolicy | None = None,
) -> int:
    """Bytes that the labels of `n` images over `epochs` take, to the byte; the manifest comes on top.

    Args:
        n: number of images.
        epochs: how many are stored.
        form: what a label is stored as, for a number of classes.
        replay: see `StoreSpec`.
        policy: how views are drawn, which decides what records hold; None for views as the images are.
    """
    names = tuple(str(c) for c in range(form.classes))
    spec = StoreSpec(
        n, names, epochs, batch=1, form=form, policy=policy or ViewPolicy(), shape=(1, 1, 1), replay=replay
    )
    return epochs * (_rows.write_header(io.BytesIO(), spec) + n * _rows.row_type(spec).itemsize)


def size_of(folder: Path) -> int:
    """Bytes of the labels that a folder holds already; 0 where it is not there."""
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())


def require_room(folder: Path | str, needed: int) -> str:
    """See that `needed` bytes fit on the disk of a folder that need not be there yet; returns a line for the log.

    Raises:
        UsageError: they do not fit.
    """
    there = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    line = f"labels take {readable_size(needed)} in {folder}, where {readable_size(free)} are free"
    if needed > free:
        raise UsageError(
            f"{line}; keep less of them (labels.form=topk or distances), or ask "
            "the teachers while students train (labels.mode=live)"
        )
    return line


def _begin(folder: Path, spec: StoreSpec, classes: bytes) -> None:
    """See that the folder holds this store: as far as it is there, the same one."""
    facts = {"bytes": len(classes), "sha256": hashlib.sha256(classes).hexdigest()}
    fresh = not (folder / MANIFEST).exists()
    if not fresh:
        there, files = _mended(folder, spec, facts)
        have, want = there.to_json(), spec.to_json()
        for name in want:
            if have.get(name) != want[name]:
                raise _others(folder, f"{name}={_short(have.get(name))}, not {_short(want[name])}")
        if files[CLASSES] != facts:
            raise _others(folder, "other classes of the images")
    if fresh or not (folder / CLASSES).is_file() or (folder / CLASSES).read_bytes() != classes:
        with atomic_path(folder / CLASSES) as temporary:
            temporary.write_bytes(classes)
    if fresh:
        write_manifest(folder, spec, {CLASSES: facts})


def _mended(folder: Path, spec: StoreSpec, classes: dict[str, Any]) -> tuple[StoreSpec, Files]:
    """What the manifest says; a damaged one is written anew with the epochs that it lists and that are of `spec`."""
    try:
        return read_manifest(folder)
    except DamagedManifest as damage:
        listed, files = salvaged(folder, spec), Files()
        for epoch in range(spec.epochs):
            facts = listed.get(file_of(epoch))
            if facts and (spec.replay == "records" or facts["views"] == _rows.fingerprint(spec, epoch)):
                files[file_of(epoch)] = facts
        log.warning("%s; writing it anew: it lists %d of %d epochs in full", damage, len(files), spec.epochs)
        files[CLASSES] = classes
        write_manifest(folder, spec, files)
        return spec, files


def _others(folder: Path, difference: str) -> UsageError:
    return UsageError(f"{folder} holds labels with {difference}; name another folder, or delete this one")


def _class_file(spec: StoreSpec, own: Tensor) -> bytes:
    kind, buffer = np.int16 if len(spec.classes) <= INT16 else np.int32, io.BytesIO()
    np.save(buffer, own.cpu().numpy().astype(kind), allow_pickle=False)
    return buffer.getvalue()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
