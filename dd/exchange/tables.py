"""Parquet files of images as on the Hugging Face Hub: rethinkdc's (`image`, `class_id`) and others.

A data set's own code is never run, and only images embedded in the file are read: paths in it are ignored.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dd.data.sources.rows import Rows
from dd.data.sources.split_names import TRAIN, split_of
from dd.errors import UsageError, in_one_line, printable
from dd.exchange.draft import Asked, Draft
from dd.exchange.encoded import decoded
from dd.exchange.export import SOFT
from dd.exchange.folders import exported, require_ipc
from dd.exchange.reader import Reader, Recognised, files_in_words
from dd.exchange.source import ForeignFiles
from dd.sizes import readable_size

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGES = ("image", "img", "pixel_values", "jpg", "png")
_LABELS = ("label", "labels", "class_id", "class", "target", "fine_label", "cls")
_COARSE = re.compile("coarse|super", re.IGNORECASE)
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)\.parquet", re.ASCII)
_IMAGE_BYTES = 32  # minimum size of an encoded image
_METADATA = 64 << 20  # characters


@dataclass(frozen=True, eq=False)
class TableFiles:
    """The parquet files of one set, and the roles of their columns.

    Attributes:
        paths: in order.
        image: name of the column of images.
        label: name of the column of labels.
        names: class names in label order, if stored in the files; else ().
        facts: the facts recorded by `dd export`; empty for other files.
    """

    paths: tuple[Path, ...]
    image: str
    label: str
    names: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _OwnBytes:
    """The images embedded in rows; rows with only a path are refused."""

    rows: Rows
    run: int = 100

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, i: int) -> bytes:
        found = self.rows.load(i)
        if isinstance(found, Path):
            raise ValueError("its bytes are not in the file, only a path")
        return found

    def name(self, i: int) -> str:
        return self.rows.name(i)

    def take(self, index: Sequence[int]) -> "_OwnBytes":
        return _OwnBytes(self.rows.take(index))


class TableReader(Reader):
    """Parquet files with a column of images and one of labels."""

    formats: ClassVar[dict[str, str]] = {"parquet": "parquet with images and labels, as on the Hugging Face hub"}
    keys: ClassVar[tuple[str, ...]] = ("label",)

    def recognise(self, source: ForeignFiles) -> Sequence[Recognised]:
        """See `Reader`."""
        paths = _paths(source)
        if not paths:
            return ()
        kinds = ", ".join(f"{field.name} ({field.type})" for field in list(_schema(paths[0]))[:4])
        return (Recognised("parquet", (f"{files_in_words(paths)}: columns {kinds}"[:300],)),)

    def read(self, source: ForeignFiles, recognised: Recognised, asked: Asked) -> Sequence[Draft]:
        """See `Reader`."""
        found = table_files(_paths(source), asked.label)
        _require_plausible(found.paths)
        labels, names = _labels(found)
        named = source.paths[0]
        items = _OwnBytes(Rows.of(found.paths, found.image, Path()))
        if len(items) != len(labels):
            raise UsageError(f"{named}: it has {len(items):,} images, and {len(labels):,} labels")
        if not asked.uneven:
            require_ipc(named, len(labels), len(names) or len(labels.unique()))
        draft = Draft(
            format=recognised.format,
            images=decoded(items, str(named), asked),
            labels=labels,
            files=found.paths,
            family="folder",
            evidence=(*recognised.evidence, f"images are in {found.image!r}, labels in {found.label!r}"),
            classes=names,
            protocol="rethinkdc-hard" if found.label == "class_id" else "",
        )
        if not found.facts:
            return [draft]
        return [exported(_softened(draft, found), found.facts)]


def table_files(paths: Sequence[Path], label: str | None = None) -> TableFiles:
    """Find the columns of images and labels in parquet files.

    Images: the column declared as images in the metadata, else the only struct with bytes, else one with a known name.
    Labels: the column declared as a class label, else a column of integers with a known name; fine labels are preferred
    to coarse ones.

    Args:
        paths: the files, all with the same columns.
        label: the column of labels, if given by the user.

    Raises:
        UsageError: there is no such column, or there are several; the message names the choices.
    """
    schema = _schema(paths[0])
    for path in paths[1:]:
        if _schema(path).names != schema.names:
            raise UsageError(f"{path} has other columns than {paths[0].name}")
    _require_all_shards(paths)
    features = _features(schema)
    image = _one(_image_columns(schema, features), paths[0], "images", "")
    if label is not None and label not in schema.names:
        raise UsageError(f"{paths[0]}: there is no column {label!r}; it has {', '.join(schema.names)}")
    column = label or _one(_label_columns(schema, features), paths[0], "labels", "label=")
    names = features.get(column, {}).get("names") or ()
    return TableFiles(tuple(paths), image, column, tuple(map(str, names)), _json(schema, b"dd"))


def _paths(source: ForeignFiles) -> tuple[Path, ...]:
    """Return the named parquet files, or those of the training split in a folder."""
    if source.folder is None:
        every = source.paths
        return every if all(source.container(path) == "parquet" for path in every) else ()
    inside = sorted(path for path in source.folder.rglob("*.parquet") if not path.name.startswith("."))
    train = [path for path in inside if split_of(path.stem) == TRAIN or split_of(path.parent.name) == TRAIN]
    chosen = tuple(train or inside)
    return chosen if all(path.is_file() and source.container(path) == "parquet" for path in chosen) else ()


def _schema(path: Path) -> "pa.Schema":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read as parquet: {in_one_line(error)}") from error


def _require_plausible(paths: Sequence[Path]) -> None:
    """Check that encoded images can account for the number of rows: a few bytes can declare billions of rows."""
    import pyarrow.parquet as pq

    for path in paths:
        rows, size = pq.read_metadata(path).num_rows, path.stat().st_size
        if rows > size // _IMAGE_BYTES:
            raise UsageError(f"{path} is refused: it declares {rows:,} rows, but is a file of {readable_size(size)}")


def _require_all_shards(paths: Sequence[Path]) -> None:
    """Check that no shard is missing, if the file names state their number."""
    found: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        if match := _SHARD.fullmatch(path.name):
            found.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (name, total), numbers in found.items():
        if missing := set(range(int(total))) - numbers:
            raise UsageError(
                f"{paths[0].parent}: of {int(total)} files {name}-…-of-{total} {len(missing)} are missing "
                f"({min(missing):05d} is the first); name all of them, or their folder"
            )


def _json(schema: "pa.Schema", key: bytes) -> dict[str, Any]:
    text = (schema.metadata or {}).get(key, b"")
    if len(text) > _METADATA:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _features(schema: "pa.Schema") -> dict[str, dict[str, Any]]:
    """Return the features of each column from the metadata of Hugging Face `datasets`."""
    info = _json(schema, b"huggingface").get("info")
    found = info.get("features") if isinstance(info, dict) else None
    return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


def _image_columns(schema: "pa.Schema", features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    import pyarrow.types as types

    called = [field.name for field in schema if features.get(field.name, {}).get("_type") == "Image"]
    structs = [
        field.name for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    binary = [field.name for field in schema if types.is_binary(field.type) or types.is_large_binary(field.type)]
    named = [name for name in _IMAGES if name in (*structs, *binary)]
    return called or (structs if len(structs) == 1 else named[:1]) or structs or binary


def _label_columns(schema: "pa.Schema", features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    import pyarrow.types as types

    called = [field.name for field in schema if features.get(field.name, {}).get("_type") == "ClassLabel"]
    whole = [field.name for field in schema if types.is_integer(field.type)]
    named = [name for name in _LABELS if name in whole]
    words = [field.name for field in schema if field.name in _LABELS and types.is_string(field.type)]
    found = called or named or whole or words
    return [name for name in found if not _COARSE.search(name)] or found


def _one(found: Sequence[str], path: Path, what: str, key: str) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{path}: no column of it holds {what}")
    listed = " or ".join(f"{key}{name}" for name in found)
    say = f"; say which: {listed}" if key else f" ({listed})"
    raise UsageError(f"{path}: {len(found)} columns may hold {what}{say}")


def _labels(found: TableFiles) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels, and the class names if known."""
    values = _column(found, found.label)
    if all(isinstance(value, int) and not isinstance(value, bool) and -1 < value < 2**31 for value in values):
        return torch.tensor(values), found.names
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
        ranks = {name: rank for rank, name in enumerate(names)}
        return torch.tensor([ranks[value] for value in values]), names
    odd = next(value for value in values if not isinstance(value, int) or isinstance(value, bool) or value < 0)
    raise UsageError(
        f"{found.paths[0]}: the column {found.label!r} holds {printable(repr(odd), keep='')[:40]}, no class"
    )


def _column(found: TableFiles, name: str) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = list[Any]()
    try:
        for path in found.paths:
            with pq.ParquetFile(path) as file:
                values += file.read(columns=[name])[name].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UsageError(f"{found.paths[0]} cannot be read as parquet: {in_one_line(error)}") from error
    if not values:
        raise UsageError(f"{found.paths[0]} holds no rows")
    return values


def _softened(draft: Draft, found: TableFiles) -> Draft:
    """Replace the labels by the soft labels that `dd export` wrote."""
    if SOFT not in _schema(found.paths[0]).names:
        return draft
    rows = _column(found, SOFT)
    try:
        soft = torch.tensor(rows, dtype=torch.float32)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{found.paths[0]}: the column {SOFT!r} does not hold rows of numbers") from error
    kind = found.facts.get("label_kind")
    return replace(draft, labels=soft, label_kind=kind if kind in ("probabilities", "logits") else None)


READERS = [TableReader()]
