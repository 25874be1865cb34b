"""Rows of parquet files, read one row group at a time.

A row group is the smallest readable unit of a parquet file, about a hundred images in the Hub's layout.  The most
recent groups stay in memory, so a sequential pass reads each group once.  A shuffled pass over more data than that
reads a group for almost every image.
"""

import contextlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from dd.data.sources.content import regular

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT_BYTES = 1 << 30  # memory for row groups, per column reader


class ImageCell(TypedDict, total=False):
    """An encoded image in a Hugging Face `datasets` table: its bytes, or the path of its file."""

    bytes: bytes | None
    path: str | None


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    column: "pa.ChunkedArray | None" = None
    size: int = 0


class _Groups:
    """LRU cache of row groups; each group is read once, even if several threads ask for it at the same time."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._lock = threading.Lock()
        self._slots: OrderedDict[tuple[Path, int], _Slot] = OrderedDict()

    def get(self, path: Path, group: int) -> "pa.ChunkedArray":
        import pyarrow.parquet as pq

        with self._lock:
            slot = self._slots.setdefault((path, group), _Slot())
            self._slots.move_to_end((path, group))
        with slot.lock:
            if slot.column is None:
                with pq.ParquetFile(path, memory_map=True) as file:
                    column = file.read_row_group(group, columns=[self._column])[self._column]
                slot.column, slot.size = column, column.nbytes
                self._forget()
            return slot.column

    def _forget(self) -> None:
        with self._lock:
            total = sum(slot.size for slot in self._slots.values())
            while total > _KEPT_BYTES and len(self._slots) > 1:
                total -= self._slots.popitem(last=False)[1].size


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of one column of images, as `Items`.

    Attributes:
        groups: (file, row group, first row of the group within the file), in order.
        starts: number of each group's first row, counted across all files.
        positions: int64 (n,), row numbers, counted across all files.
        root: the folder that image paths inside the files are relative to.
        kept: cache of row groups.
    """

    groups: Sequence[tuple[Path, int, int]]
    starts: Sequence[int]
    positions: Tensor
    root: Path
    kept: _Groups
    run: int = 100

    @classmethod
    def of(cls, paths: Sequence[Path], column: str, root: Path) -> "Rows":
        """All rows of these files."""
        import pyarrow.parquet as pq

        groups: list[tuple[Path, int, int]] = []
        starts, total = [], 0
        for path in paths:
            metadata, begin = pq.read_metadata(path), total
            for group in range(metadata.num_row_groups):
                groups.append((path, group, total - begin))
                starts.append(total)
                total += metadata.row_group(group).num_rows
        return cls(groups, starts, torch.arange(total), root, _Groups(column))

    def __len__(self) -> int:
        return len(self.positions)

    def load(self, i: int) -> bytes | Path:
        """See `Items`."""
        value = self._value(i)
        if value is None or isinstance(value, bytes):
            return value or b""
        name = value.get("path") or ""
        return value.get("bytes") or (regular(self.root / name) if name else b"")

    def name(self, i: int) -> str:
        """See `Items`."""
        path, _, _, row = self._place(i)
        own = ""
        with contextlib.suppress(Exception):  # a damaged file cannot tell the image's own name
            value = self._value(i)
            own = value.get("path") if value and not isinstance(value, bytes) else ""
        return f"{path.name} row {row}" + (f" ({own})" if own else "")

    def take(self, index: Sequence[int]) -> "Rows":
        """See `Items`."""
        return replace(self, positions=self.positions[torch.tensor(index, dtype=torch.int64)])

    def _place(self, i: int) -> tuple[Path, int, int, int]:
        """File, row group, row within it, and row within the file."""
        position = int(self.positions[i])
        at = bisect_right(self.starts, position) - 1
        path, group, first = self.groups[at]
        row = position - self.starts[at]
        return path, group, row, first + row

    def _value(self, i: int) -> "bytes | ImageCell | None":
        path, group, row, _ = self._place(i)
        return self.kept.get(path, group)[row].as_py()
