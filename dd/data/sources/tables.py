"""The columns of parquet files: find those with images, labels and splits, and the class names of the labels."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch

from dd.data.sources.content import EncodedSplit
from dd.data.sources.rows import Rows
from dd.data.sources.split_names import TEST_ORDER, TRAIN, split_of
from dd.data.sources.walk import some
from dd.errors import UsageError, in_one_line

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("img", "image")
RowLabel = str | int | None
"""A label as stored in a row; None and negative numbers mean unknown."""
_LABEL_COLUMNS = ("label", "fine_label", "labels", "class")


@dataclass(frozen=True)
class Labels:
    """Class names in label order, and the number of every possible label value."""

    names: tuple[str, ...]
    numbers: dict[str | int, int]

    @classmethod
    def of(cls, tables: "Sequence[Table]", known: tuple[str, ...] | None) -> "Labels":
        """Use the names in the files' metadata, or the known ones, or else the sorted label values.

        Raises:
            UsageError: some labels are text and others are numbers.
        """
        found = next((table.names for table in tables if table.names), None)
        if known and (found is None or len(found) == len(known)) and set(found or ()) != set(known):
            found = known  # prefer the published spelling; copies write "T - shirt / top"
        if found:
            return cls(found, {name: i for i, name in enumerate(found)} | {i: i for i in range(len(found))})
        values = {label for table in tables for label in table.labels if _is_label(label)}
        if len({isinstance(value, str) for value in values}) > 1:
            raise UsageError(f"the labels of {tables[0].where} are partly text and partly numbers; write them as one")
        ordered = sorted(values)
        return cls(tuple(map(str, ordered)), {value: i for i, value in enumerate(ordered)})


@dataclass(frozen=True)
class Table:
    """The labels of one part and the location of its images.

    Attributes:
        paths: of the files.
        column: name of the image column.
        labels: one per row.
        names: class names from the files' metadata, if any.
        splits: values of the column "split", one per row, if there is one.
        rows: int64 row numbers of this part, counted across all files; None: all rows.
    """

    paths: Sequence[Path]
    column: str
    labels: list[RowLabel]
    names: tuple[str, ...] | None
    splits: list[RowLabel] | None = None
    rows: torch.Tensor | None = None

    @property
    def where(self) -> str:
        """Its name in messages."""
        return str(self.paths[0])

    @property
    def unlabelled(self) -> bool:
        """Whether no row has a label."""
        return not any(map(_is_label, self.labels))

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Table":
        """Read the labels of some files.

        Raises:
            UsageError: a file cannot be read, lacks a column or has one of the wrong type, or there are no rows.
        """
        image, label, split = "", "", None
        labels: list[RowLabel] = []
        splits: list[RowLabel] = []
        names = None
        for path in paths:
            schema, read = _opened(path)
            columns = _columns(schema, str(path))
            if path == paths[0]:
                (image, label), split, names = columns, _split_name(schema), _metadata_names(schema, columns[1])
            elif columns != (image, label):
                raise UsageError(f"{path} has the columns {' and '.join(columns)}, {paths[0].name} {image} and {label}")
            labels += read(label)
            splits += read(split) if split and split in schema.names else []
        if not labels:
            raise UsageError(f"{paths[0]} holds no rows")
        return cls(paths, image, labels, names, splits if len(splits) == len(labels) else None)

    def by_column(self) -> "tuple[Table, Table | None, list[str]]":
        """Training rows and test rows by the column "split", and notes on what is not used."""
        if self.splits is None:
            return self, None, []
        parts = [split_of(value) if isinstance(value, str) else None for value in self.splits]
        if TRAIN not in parts:
            shown = some(sorted({str(value) for value in self.splits}))
            return self, None, [f"the column split tells no training part ({shown}) and is not used"]
        notes, test, used = [], None, {TRAIN}
        for split in TEST_ORDER:
            if split in parts and test is None:
                found = self._of_split(parts, split)
                if not found.unlabelled:
                    test, used = found, {TRAIN, split}
        left = Counter(str(value) for value, part in zip(self.splits, parts, strict=True) if part not in used)
        if left:
            notes.append("not used: " + ", ".join(f"{count:,} rows of split {name}" for name, count in left.items()))
        return self._of_split(parts, TRAIN), test, notes

    def part(self, classes: Labels, root: Path) -> EncodedSplit:
        """The images and their numeric labels.

        Raises:
            UsageError: a row has no label, or an unknown one.
        """
        numbers = [classes.numbers.get(label, -1) if _is_label(label) else -1 for label in self.labels]
        if -1 in numbers:
            at = numbers.index(-1)
            row = at if self.rows is None else int(self.rows[at])
            raise UsageError(
                f"{self.where}: row {row} has the label {self.labels[at]!r}, not one of {len(classes.names)} classes"
            )
        items = Rows.of(self.paths, self.column, root)
        return EncodedSplit(
            items if self.rows is None else items.take(self.rows.tolist()), torch.tensor(numbers, dtype=torch.int64)
        )

    def _of_split(self, parts: Sequence[str | None], split: str) -> "Table":
        rows = [row for row, part in enumerate(parts) if part == split]
        return replace(self, labels=[self.labels[row] for row in rows], rows=torch.tensor(rows))


def split_column(path: Path) -> str | None:
    """The name of a file's column "split"; None if there is none or the file cannot be read."""
    try:
        return _split_name(_opened(path)[0])
    except UsageError:
        return None  # reading the file reports the error


def class_names(path: Path) -> tuple[str, ...] | None:
    """The class names in a file's metadata, if any; reads no rows."""
    try:
        schema = _opened(path)[0]
        return _metadata_names(schema, _columns(schema, str(path))[1])
    except UsageError:
        return None


def _is_label(value: RowLabel) -> TypeGuard[str | int]:
    """Whether the label is known."""
    return value is not None and (isinstance(value, str) or value >= 0)


def _opened(path: Path) -> "tuple[pa.Schema, Callable[[str], list[RowLabel]]]":
    """The schema of a file, and a function that reads the values of one column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def fail(error: Exception) -> UsageError:
        return UsageError(f"{path} cannot be read as parquet: {in_one_line(error)}")

    def read(column: str) -> list[RowLabel]:
        try:
            with pq.ParquetFile(path) as file:  # not read_table, which turns folders named key=value into columns
                return file.read(columns=[column])[column].to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise fail(error) from error

    try:
        return pq.read_schema(path), read
    except (pa.ArrowException, OSError) as error:
        raise fail(error) from error


def _columns(schema: "pa.Schema", where: str) -> tuple[str, str]:
    """The names of the image column and the label column."""
    image = _pick(schema, _IMAGE_COLUMNS, _is_image)
    label = _pick(schema, _LABEL_COLUMNS, _is_label_type)
    for found, known, wanted in (
        (image, _IMAGE_COLUMNS, "encoded images (bytes, or a struct of bytes and path)"),
        (label, _LABEL_COLUMNS, "whole numbers, text, categories or booleans, one for every image"),
    ):
        if found is None and (name := next((name for name in known if name in schema.names), None)):
            what = _in_words(schema.field(name).type)
            raise UsageError(f"the column {name} of {where} holds {what}; it must hold {wanted}")
    if image is None or label is None:
        missing = "a column of images (image, img)" if image is None else "a column of labels (label)"
        raise UsageError(f"{where} lacks {missing}; it has {', '.join(schema.names)}")
    return image, label


def _pick(schema: "pa.Schema", known: tuple[str, ...], fits: "Callable[[pa.DataType], bool]") -> str | None:
    """The column with a known name and a fitting type; if no column has a known name, the only one that fits."""
    names = [field.name for field in schema if fits(field.type)]
    if named := next((name for name in known if name in names), None):
        return named
    others = [name for name in names if name.lower() != "split"]
    return others[0] if len(others) == 1 and not set(known) & set(schema.names) else None


def _is_image(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _is_label_type(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_label_type(kind.value_type)
    return any(fits(kind) for fits in (types.is_integer, _is_text, types.is_boolean, types.is_null))


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind)


def _in_words(kind: "pa.DataType") -> str:
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"lists ({kind})"
    if types.is_floating(kind) or types.is_decimal(kind):
        return f"numbers with fractions ({kind})"
    return "text" if _is_text(kind) else f"values of the type {kind}"


def _split_name(schema: "pa.Schema") -> str | None:
    """The name of the column "split", in any case, if its values are text."""
    import pyarrow.types as types

    def is_text(kind: "pa.DataType") -> bool:
        return _is_text(kind.value_type) if types.is_dictionary(kind) else _is_text(kind)

    return next((field.name for field in schema if field.name.lower() == "split" and is_text(field.type)), None)


def _metadata_names(schema: "pa.Schema", label: str) -> tuple[str, ...] | None:
    """Class names that the Hugging Face libraries store in a file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
