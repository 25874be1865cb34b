"""One epoch of a label store: which views it has, and the file that holds their labels, one row for every image."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dd.io import digest, sha256_tensors
from dd.labels.spec import Batch, StoreSpec
from dd.views import View

_NONE = -1  # stands for "nothing is mixed in" where a record holds a partner or a patch


def row_type(spec: StoreSpec) -> np.dtype:
    """What is kept of one view: its label, and with replay="records" what the view was made by."""
    kept: list[Any] = [(name, kind, shape) for name, (kind, shape) in spec.form.layout().items()]
    if spec.replay == "records":
        policy = spec.policy
        kept.append(("place", "<i4"))  # in the epoch's order
        kept += [("box", "<i2", (4,))] * (policy.crop is not None) + [("flip", "u1")] * policy.flip
        # CutMix's weight follows from its patch
        mixed = {"none": [], "cutmix": [("patch", "<i2", (4,))], "mixup": [("weight", "<f8")]}[policy.mix]
        kept += [("partner", "<i4"), *mixed] if mixed else []
    return np.dtype(kept)


def write_header(file: IO[bytes], spec: StoreSpec) -> int:
    """Write the head of an epoch's file, a .npy of one row per image; returns its length in bytes."""
    descr = np.lib.format.dtype_to_descr(row_type(spec))
    head = {"descr": descr, "fortran_order": False, "shape": (spec.n,)}
    np.lib.format.write_array_header_1_0(file, head)
    return file.tell()


class RowFile:
    """Fills an epoch's file a batch at a time, so that a large one is never in memory."""

    def __init__(self, file: IO[bytes], spec: StoreSpec) -> None:
        self._file, self._spec = file, spec
        self._begin = write_header(file, spec)

    def write(self, start: int, batch: Batch) -> None:
        """Write the rows of a batch that begins at place `start` of the epoch, each where its image is."""
        # not through a memory map: a full disk would end the process instead of raising an error
        for image, row in zip(batch.images.tolist(), rows_of(self._spec, start, batch), strict=True):
            self._file.seek(self._begin + image * row.nbytes)
            self._file.write(row.tobytes())


def read_rows(path: Path, spec: StoreSpec) -> np.memmap:
    """The rows of an epoch (n,), memory-mapped.

    Raises:
        ValueError, OSError: it is not such a file.
    """
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.dtype != row_type(spec) or rows.shape != (spec.n,):
        raise ValueError(f"it holds {rows.shape} of {rows.dtype}")
    return rows


def rows_of(spec: StoreSpec, start: int, batch: Batch) -> np.ndarray:
    """The rows of one batch, in its order; the batch begins at place `start` of the epoch."""
    images, view, labels = batch
    rows = np.zeros(len(images), row_type(spec))
    for name, values in labels.items():
        rows[name] = values.numpy()
    names = rows.dtype.names or ()
    if "place" in names:
        rows["place"] = np.arange(start, start + len(images))
    if "box" in names and view.boxes is not None:
        rows["box"] = view.boxes.numpy()
    if "flip" in names and view.flips is not None:
        rows["flip"] = view.flips.numpy()
    if "partner" in names:
        rows["partner"] = _NONE if view.partner is None else images[view.partner].numpy()
    if "patch" in names:
        rows["patch"] = _NONE if view.patch is None else view.patch
    if "weight" in names:
        rows["weight"] = view.weight
    return rows


def labels_of(rows: np.ndarray, spec: StoreSpec) -> dict[str, Tensor]:
    """The encoded labels of some rows, as fresh tensors."""
    return {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in spec.form.layout()}


def recorded_view(rows: np.ndarray, spec: StoreSpec, images: Tensor) -> View:
    """The view of a batch from the records in its rows."""
    names = rows.dtype.names or ()
    boxes = torch.from_numpy(rows["box"].astype(np.int64)) if "box" in names else None
    flips = torch.from_numpy(rows["flip"].astype(bool)) if "flip" in names else None
    view = View(boxes=boxes, flips=flips)
    if "partner" not in names or rows["partner"][0] == _NONE:
        return view
    ordered, places = images.sort()
    partner = places[torch.searchsorted(ordered, torch.from_numpy(rows["partner"].astype(np.int64)))]
    if "weight" in names:
        return replace(view, partner=partner, weight=float(rows["weight"][0]))
    top, left, height, width = (int(v) for v in rows["patch"][0])
    weight = 1 - height * width / (spec.shape[1] * spec.shape[2])
    return replace(view, partner=partner, weight=weight, patch=(top, left, height, width))


def fingerprint(spec: StoreSpec, epoch: int) -> str:
    """Hash of an epoch's order and of its first and last view, which shows whether a seed still draws the same ones."""
    order, last = spec.order(epoch), spec.batches - 1
    views = [_facts(spec.view(epoch, number)) for number in dict.fromkeys((0, last))]
    return digest([sha256_tensors({"order": order}), views])


def _facts(view: View) -> list[Any]:
    return [sha256_tensors(dict(_tensors(view))), view.weight, view.patch, [draw.op for draw in view.draws]]


def _tensors(view: View) -> Iterator[tuple[str, Tensor]]:
    for name in ("tiles", "boxes", "flips", "partner"):
        value = getattr(view, name)
        if value is not None:
            yield name, value
    for number, draw in enumerate(view.draws):
        for name, value in draw.params.items():
            yield f"{number}.{name}", value
