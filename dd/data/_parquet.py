"""Images in parquet files, as the Hugging Face hub and its libraries lay them out."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dd.data._content import Encoded, Listing, Part, file_identity, with_test_part
from dd.data._rows import Rows
from dd.errors import UsageError, in_one_line

if TYPE_CHECKING:
    import pyarrow as pa

_SPLIT = re.compile(r"(train|test|validation|valid|val)(?![A-Za-z])")
_TEST_ORDER = ("test", "validation", "valid", "val")
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label", "labels", "class")


@dataclass(frozen=True)
class Files:
    """Parquet files of one data set; `test` is empty when it has no test part."""

    root: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...] = ()


def find(folder: Path, test: tuple[str, ...] = ()) -> Files | None:
    """The training and test files of a known data set, in its folder or up to two folders deeper; None without them.

    Args:
        folder: of the data set.
        test: names of the test part, the preferred first; () takes the usual ones.
    """
    paths = [*folder.glob("*.parquet"), *folder.glob("*/*.parquet"), *folder.glob("*/*/*.parquet")]
    found = _grouped(paths, folder, test or _TEST_ORDER)
    return next((files for _, files in sorted(found.items()) if files.test), None)


def at(path: Path) -> Files:
    """The files that a user names: one file, or a folder.

    Raises:
        UsageError: there is nothing there, or several configurations of a data set.
    """
    if path.is_file():
        return Files(path.parent, (path,))
    paths = sorted(path.rglob("*.parquet")) if path.is_dir() else []
    if not paths:
        raise UsageError(f"there is no parquet file at {path}")
    found = _grouped(paths, path)
    if not found:
        return Files(path, tuple(paths))
    if len(found) > 1:
        raise UsageError(
            f"{path} holds several data sets: {', '.join(map(str, sorted(found)))}; name one of these folders"
        )
    return next(iter(found.values()))


def read(
    files: Files,
    classes: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
) -> Encoded:
    """The images of parquet files.

    Args:
        files: where they are.
        classes: names in label order where they are known, used unless the files hold another number of them, or the
            same ones in an order of their own.
        notes: what a user should know, added to what is found.
        only: the classes to take, in label order; None: all of them.
    """

    @cache
    def listing() -> Listing:
        tables = [_Table.of(paths) for paths in (files.train, files.test) if paths]
        names = _class_names(tables, classes)
        parts = [table.part(names, files.root) for table in tables]
        if only is not None:
            parts = [_selected(part, names, only, table.where) for part, table in zip(parts, tables, strict=True)]
            names = only
        return Listing(parts[0], parts[1], names, notes) if files.test else with_test_part(parts[0], names, notes)

    paths = [*files.train, *files.test]
    identity = {"files": file_identity(paths, files.root), "split": bool(files.test), "classes": classes}
    return Encoded(identity if only is None else {**identity, "only": only}, listing)


@dataclass(frozen=True)
class _Table:
    """The labels of one split, where its images are, and the label names in its metadata, if any."""

    paths: Sequence[Path]
    column: str
    labels: list[Any]
    names: tuple[str, ...] | None

    @property
    def where(self) -> str:
        return str(self.paths[0])

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "_Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        where = str(paths[0])
        try:
            schema = pq.read_schema(paths[0])
            image, label = _columns(schema, where)
            labels = [value for path in paths for value in pq.read_table(path, columns=[label])[label].to_pylist()]
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{where} cannot be read as parquet: {in_one_line(error)}") from error
        return cls(paths, image, labels, _metadata_names(schema, label))

    def part(self, classes: tuple[str, ...], root: Path) -> Part:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers.get(label, -1) if isinstance(label, str) else label for label in self.labels]
        for row, label in enumerate(labels):
            if label is None or not 0 <= label < len(classes):
                raise UsageError(
                    f"{self.where}: row {row} has the label {self.labels[row]!r}, not one of {len(classes)} classes"
                )
        return Part(Rows.of(self.paths, self.column, root), torch.tensor(labels, dtype=torch.int64))


def _selected(part: Part, names: tuple[str, ...], only: tuple[str, ...], where: str) -> Part:
    """The images of some classes, labelled by their position among these."""
    if missing := [name for name in only if name not in names]:
        raise UsageError(f"{where} lacks {len(missing)} classes: {', '.join(missing[:5])}; it has {len(names)} others")
    return part.only([names.index(name) for name in only])


def _grouped(paths: Sequence[Path], root: Path, test: tuple[str, ...] = _TEST_ORDER) -> dict[Path, Files]:
    """Files by configuration, for those whose name, or whose folder's, tells their split."""
    groups: dict[Path, dict[str, list[Path]]] = {}
    for path in sorted(paths):
        if match := _SPLIT.match(path.name):
            groups.setdefault(path.parent, {}).setdefault(match[1], []).append(path)
        elif match := _SPLIT.fullmatch(path.parent.name):
            groups.setdefault(path.parent.parent, {}).setdefault(match[1], []).append(path)
    return {
        folder: Files(root, tuple(splits["train"]), tuple(next((splits[s] for s in test if s in splits), ())))
        for folder, splits in groups.items()
        if "train" in splits
    }


def _columns(schema: "pa.Schema", where: str) -> tuple[str, str]:
    import pyarrow.types as types

    def is_image(kind: "pa.DataType") -> bool:
        return types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)

    def is_label(kind: "pa.DataType") -> bool:
        return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)

    image = _pick([f.name for f in schema if is_image(f.type)], _IMAGE_COLUMNS)
    label = _pick([f.name for f in schema if is_label(f.type)], _LABEL_COLUMNS)
    if image is None or label is None:
        missing = "a column of images (image, img)" if image is None else "a column of labels (label)"
        raise UsageError(f"{where} lacks {missing}; it has {', '.join(schema.names)}")
    return image, label


def _pick(names: list[str], known: tuple[str, ...]) -> str | None:
    return next((name for name in known if name in names), names[0] if len(names) == 1 else None)


def _metadata_names(schema: "pa.Schema", label: str) -> tuple[str, ...] | None:
    """Names that the Hugging Face libraries keep in the file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _class_names(tables: Sequence[_Table], known: tuple[str, ...] | None) -> tuple[str, ...]:
    found = next((table.names for table in tables if table.names), None)
    if known and (found is None or len(found) == len(known)) and set(found or ()) != set(known):
        return known  # the published spelling; copies write "T - shirt / top"
    if found:
        return found
    labels = {label for table in tables for label in table.labels if label is not None}
    if all(isinstance(label, str) for label in labels):
        return tuple(sorted(labels))
    return tuple(str(number) for number in range(max(labels) + 1))
