"""Scalars of a run: always logged to a CSV file, and forwarded to trackers."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsFloat

from dd.io import write_text
from dd.runs.folder import RunFolder
from dd.runs.trackers import LogRow, Trackers

Scalar = SupportsFloat | str | None


class Track:
    """Appends rows of named scalars to the run's log.csv, whole rows only, so that a kill at any time leaves it valid.

    The first column is `it`, the outer iteration; a name that appears later becomes a further column.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        resume_at: int = 0,
        history: str | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        """Open the log.

        Args:
            folder: the run's folder.
            resume_at: the next iteration; its row and later ones are dropped, since they will be logged again.
            history: the log before that iteration; None for the contents of the file.
            trackers: receive every new row, too.
        """
        self._trackers = Trackers() if trackers is None else trackers
        self._path = folder.log_csv
        self._columns, rows = read_log(self._path) if history is None else parse_log(history)
        self._columns = self._columns or ["it"]
        self._rewrite([row for row in rows if int(row["it"]) < resume_at])

    def log(self, it: int, **scalars: Scalar) -> None:
        """Append one row; one-element tensors and arrays are accepted, and None leaves a cell empty.

        Args:
            it: the outer iteration.
            scalars: values by column name.
        """
        row = {"it": int(it), **{name: _number(value) for name, value in scalars.items()}}
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite(read_log(self._path)[1])
        self._file.write(_line([row.get(name) for name in self._columns]))
        self._file.flush()
        self._trackers.log(row)

    def text(self) -> str:
        """Return the log so far, as in its file."""
        return self._path.read_text(encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        lines = [_line(self._columns), *(_line([row.get(name) for name in self._columns]) for row in rows)]
        write_text(self._path, "".join(lines))
        self._file = self._path.open("a", encoding="utf-8", newline="")


def read_log(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read columns and rows of a log.csv, without a torn last line and invalid rows.

    Returns:
        Column names and one mapping per row, empty cells included as ""; both empty if there is no log.
    """
    try:
        return parse_log(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return [], []


def parse_log(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Parse the text of a log.csv, see `read_log`."""
    whole = text[: text.rfind("\n") + 1].replace("\0", "")
    table = list(csv.reader(io.StringIO(whole)))
    if not table or table[0][:1] != ["it"]:
        return [], []
    columns = table[0]
    good = (cells for cells in table[1:] if len(cells) == len(columns) and cells[0].isdecimal())
    return columns, [dict(zip(columns, cells, strict=True)) for cells in good]


def replayed(rows: Sequence[Mapping[str, str]]) -> Iterator[LogRow]:
    """Yield the rows of a log as they were logged, for trackers that start later."""
    for row in rows:
        yield {"it": int(row["it"]), **{name: _read(cell) for name, cell in row.items() if name != "it"}}


def _read(cell: str) -> str | float | None:
    try:
        return float(cell)
    except ValueError:
        return cell or None


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def _number(value: Scalar) -> str | int | float | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    return float(value)
