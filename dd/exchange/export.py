"""Write a distilled set as a folder of PNG files, parquet, `.pt` or `.npz` for other programs, or as its own file.

folder       CLASS/00000.png, with folder names that sort in label order, because readers of class folders such as
             torchvision's ImageFolder number them so; `dd-export.json` has the rest
parquet      columns "image" and "label" as Hugging Face `datasets` writes them, soft labels in a column of their own
pt           the format of dataset condensation's loaders: {"data": [[images, labels]], "accs_all_exps": {}}, normalised
npz          images (n, h, w, c) from 0 to 1, labels, names of the classes, soft labels
safetensors  the set itself, next to its labels of views
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dd.data import Preprocess
from dd.data.preprocess import from_state
from dd.data.sources.decoding import pool
from dd.errors import UsageError
from dd.exchange.contents import Contents
from dd.io import atomic_folder, atomic_path, writable, write_json
from dd.sets import DistilledSet, save

if TYPE_CHECKING:
    import pyarrow as pa

Form = Literal["safetensors", "folder", "parquet", "pt", "npz"]
SUFFIXES: Mapping[Form, str] = {
    "safetensors": ".safetensors",
    "folder": "",
    "parquet": ".parquet",
    "pt": ".pt",
    "npz": ".npz",
}
MARK = "dd-export.json"
"""The description file in an exported folder; readers of class folders ignore it."""
SOFT = "soft_label"
_ROWS = 128  # of a row group
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        path: the file or folder.
        form: its format.
        images: number of images.
        bytes: size on disk.
        lost: the parts of the set that it lacks, one line each.
    """

    path: Path
    form: Form
    images: int
    bytes: int
    lost: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {**asdict(self), "path": str(self.path), "lost": list(self.lost)}


def export_set(
    contents: Contents, path: Path, form: Form, *, normalised: Preprocess | None = None, force: bool = False
) -> Exported:
    """Write a set in another format; the file or folder is complete or does not appear.

    Args:
        contents: the set, with its real data if needed.
        path: the file or folder to write, which must not exist.
        form: a format of this module; `export_own` writes the set's own file.
        normalised: for "pt", the normalisation of the data set's pixels, if `is_normalised` returns False for the set.
        force: replace an existing file, or a folder that an export wrote.

    Raises:
        UsageError: the format cannot represent the set, or the path exists or is not writable.
        RunError: the disk is full.
    """
    if form not in SUFFIXES or form == "safetensors":
        raise ValueError(f"{form!r} is no form for other programs")
    require_free(path, form, force=force)
    if form == "folder":
        lost = contents.losses(eight_bits=True, soft="")
        _write_folder(contents, path, lost)
    elif form == "parquet":
        lost = contents.losses(eight_bits=True, soft=f"the column {SOFT}")
        with atomic_path(path) as temporary:
            _write_parquet(contents, temporary)
    elif form == "pt":
        lost = contents.losses(eight_bits=False, soft="")
        _write_pt(contents, path, normalised)
    else:
        lost = contents.losses(eight_bits=False, soft=f"the array {SOFT}")
        _write_npz(contents, path)
    size = sum(file.stat().st_size for file in (path.rglob("*") if form == "folder" else [path]) if file.is_file())
    return Exported(path, form, contents.n, size, tuple(lost))


def export_own(distilled: DistilledSet, path: Path, *, force: bool = False) -> Exported:
    """Write a set's own file next to its labels of views, without loss. Raises the same errors as `export_set`."""
    require_free(path, "safetensors", force=force)
    save(distilled, path)
    return Exported(path, "safetensors", distilled.n, path.stat().st_size)


def require_free(path: Path, form: Form, *, force: bool) -> None:
    """Check that an export may write to a path, see `export_set`.

    Raises:
        UsageError: the path exists and may not be replaced, or is not writable.
    """
    writable(path.parent, "choose another place with out=PATH")
    if not path.exists() and not path.is_symlink():
        return
    if form == "folder" and not (path / MARK).is_file():
        raise UsageError(f"{path} exists and is no exported folder; choose another name with out=PATH")
    if form != "folder" and not path.is_file():
        raise UsageError(f"{path} is not a file; choose another name with out=PATH")
    if not force:
        raise UsageError(f"{path} exists; force=true replaces it, out=PATH writes elsewhere")


def is_normalised(distilled: DistilledSet) -> bool:
    """Return whether the set's value space is the one of `.pt` files: pixels normalised by mean and deviation."""
    space = distilled.space
    return space.get("kind") == "standard" and not (set(space["mean"]) == {0.0} and set(space["std"]) == {1.0})


def class_folders_of(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return a folder name for each class, such that the names sort in label order.

    Class names are used unchanged if they sort so already and are valid in every file system; else the label comes
    first.
    """
    if sorted(classes) == list(classes) and all(map(_is_plain, classes)) and _differ(classes):
        return classes
    digits = len(str(len(classes) - 1))
    return tuple(f"{label:0{digits}}_{_plain(name)}".rstrip("_") for label, name in enumerate(classes))


def _is_plain(name: str) -> bool:
    stem = name.split(".")[0].lower()
    return bool(re.fullmatch(r"\w[\w .-]{0,98}(?<![ .])", name, re.ASCII)) and stem not in _DEVICES


def _differ(names: tuple[str, ...]) -> bool:
    """Return whether names differ, and keep their order, on a file system that ignores case."""
    lower = [name.lower() for name in names]
    return len(set(lower)) == len(lower) and sorted(lower) == lower


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-. ")[:80]


def _write_folder(contents: Contents, path: Path, lost: list[str]) -> None:
    names = class_folders_of(contents.distilled.classes)
    labels, digits = contents.labels.tolist(), max(5, len(str(contents.n - 1)))
    with atomic_folder(path) as folder:
        for name in names:
            (folder / name).mkdir()
        start = 0
        for piece in contents.bytes():
            places = range(start, start + len(piece))
            files = [folder / names[labels[place]] / f"{place:0{digits}}.png" for place in places]
            list(pool().map(lambda file, pixels: file.write_bytes(_png(pixels)), files, piece))
            start += len(piece)
        write_json(folder / MARK, {**_facts(contents), "folders": names, "lost": lost})


def _write_parquet(contents: Contents, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, start = _schema(contents), 0
    with pq.ParquetWriter(path, schema) as writer:
        for piece in contents.bytes():
            rows = slice(start, start + len(piece))
            cells = [
                {"bytes": data, "path": f"{place:05d}.png"} for place, data in enumerate(pool().map(_png, piece), start)
            ]
            columns: dict[str, Any] = {"image": cells, "label": contents.labels[rows].numpy()}
            if contents.soft is not None:
                columns[SOFT] = list(contents.soft[rows].numpy())
            arrays = [pa.array(values, schema.field(name).type) for name, values in columns.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=_ROWS)
            start += len(piece)


def _schema(contents: Contents) -> "pa.Schema":
    """Return the schema that `datasets` writes, with the types of the columns in its metadata."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: list[tuple[str, pa.DataType]] = [("image", image), ("label", pa.int64())]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(contents.distilled.classes), "_type": "ClassLabel"},
    }
    if contents.soft is not None:
        columns.append((SOFT, pa.list_(pa.float32())))
        features[SOFT] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    metadata = {"huggingface": {"info": {"features": features}}, "dd": _facts(contents)}
    return pa.schema(columns, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})


def _write_pt(contents: Contents, path: Path, normalised: Preprocess | None) -> None:
    distilled = contents.distilled
    if normalised is None and contents.factor == 1 and distilled.images.is_floating_point():
        images = distilled.images  # bit for bit
    else:
        normalise = from_state(distilled.space) if normalised is None else normalised
        images = torch.cat([_encoded(piece, normalise) for piece in contents.pixels()])
    whole = {"data": [[images.contiguous(), contents.labels.clone()]], "accs_all_exps": {}}
    with atomic_path(path) as temporary:
        torch.save(whole, temporary)


def _encoded(pixels: Tensor, normalise: Preprocess) -> Tensor:
    pixels = pixels.to(normalise.device)
    return (normalise(pixels) if pixels.dtype == torch.uint8 else normalise.encode(pixels)).cpu()


def _write_npz(contents: Contents, path: Path) -> None:
    pieces = [piece.permute(0, 2, 3, 1).numpy() for piece in contents.pixels()]
    arrays = {"images": np.concatenate(pieces), "labels": contents.labels.numpy()}
    if contents.soft is not None:
        arrays[SOFT] = contents.soft.numpy()
    arrays["classes"] = np.array(contents.distilled.classes)
    arrays["facts"] = np.array(json.dumps(_facts(contents), ensure_ascii=False))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _facts(contents: Contents) -> dict[str, Any]:
    """Return what images and labels do not tell, as JSON-able values."""
    distilled = contents.distilled
    kept = replace(distilled, views=None, label_kind="hard" if distilled.views else distilled.label_kind)
    names = ("source", "label_kind", "space", "lr", "protocol", "student", "augment")
    facts = {name: value for name, value in kept.facts().items() if name in names}
    factor = distilled.decode_factor // contents.factor
    return {"made_by": "dd export", "classes": list(distilled.classes), "decode_factor": factor, **facts}


def _png(pixels: Tensor) -> bytes:
    """Encode uint8 (c, h, w) as a PNG file."""
    from PIL import Image

    rows = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    out = BytesIO()
    Image.fromarray(rows.contiguous().numpy()).save(out, "PNG")
    return out.getvalue()
