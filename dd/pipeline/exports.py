"""Export of distilled sets for other programs: the library function behind `dd export`."""

import re
from dataclasses import replace
from pathlib import Path

from dd.data import DataSettings, Preprocess, RealData, open_data
from dd.errors import unknown
from dd.exchange.contents import Contents, Tiles, needs_data
from dd.exchange.export import SUFFIXES, Exported, Form, export_own, export_set, is_normalised, require_free
from dd.io import user_path
from dd.pipeline.evaluation import load
from dd.pipeline.foreign import is_foreign, require_no_path
from dd.pipeline.meant import meant_for
from dd.pipeline.outcome import Outcome
from dd.sets import DistilledSet


def export(
    made: DistilledSet | Outcome | str | Path,
    form: Form,
    out: str | Path | None = None,
    *,
    tiles: Tiles = "decoded",
    dataset: str = "",
    force: bool = False,
) -> Exported:
    """Write a set in a format of other programs, and report what the format cannot represent.

    `dd.export("set.safetensors", "folder")`, `dd.export(outcome, "parquet", "set.parquet")`; see `dd.exchange.export`.

    Args:
        made: a set, its file, the folder of its run, or the result of `dd.run`.
        form: "safetensors", "folder", "parquet", "pt" or "npz".
        out: the file or folder to write; None for one in the current folder, named after the set.
        tiles: whether mosaics of tiles are "decoded" into the images that students see, or "kept".
        dataset: path of the data set on this machine, for a set made elsewhere.
        force: replace an earlier export.

    Raises:
        UsageError: the format cannot represent the set, or the target exists.
        RunError: the disk is full.
    """
    if form not in SUFFIXES:
        raise unknown("form", str(form), SUFFIXES)
    distilled = made if isinstance(made, DistilledSet) else load(made)
    path = user_path(named(distilled) + SUFFIXES[form] if out is None else out, "out")
    require_free(path, form, force=force)  # before slow work
    if form == "safetensors":
        return export_own(distilled, path, force=force)
    other = form == "pt" and not is_normalised(distilled)
    needed = other or needs_data(distilled)
    data = real_data(distilled, dataset, own=isinstance(made, Outcome)) if needed else None
    normalised = _constants(data, distilled) if other and data is not None else None
    return export_set(Contents(distilled, data, tiles), path, form, normalised=normalised, force=force)


def named(distilled: DistilledSet, uneven: str = "") -> str:
    """Return a name for files derived from a set: data set, method, images per class or, without one, `uneven`."""
    made, ipc = distilled.provenance, distilled.ipc
    parts = [Path(distilled.source).name, str(made.get("method", "")), uneven if ipc is None else f"ipc{ipc}"]
    return "-".join(re.sub(r"[^\w.-]+", "-", part).strip("-.") for part in parts if part) or "set"


def real_data(distilled: DistilledSet, dataset: str, *, own: bool, download: bool = True) -> RealData:
    """Open the data set of a distilled set, with the settings recorded in the set."""
    if not dataset and not own and is_foreign(distilled):
        require_no_path(distilled)
    return open_data(dataset or distilled.source, _settings(distilled), "cpu", download=download)


def _constants(data: RealData, distilled: DistilledSet) -> Preprocess:
    """Return the normalisation of the data set's pixels, regardless of the set's own model space."""
    plain = replace(_settings(distilled), preprocess="standard")
    return open_data(data.name, plain, "cpu").preprocess


def _settings(distilled: DistilledSet) -> DataSettings:
    return meant_for(distilled).data
