"""Files of recorded results: `experiments/results/*.csv`, rows sorted by command."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dd.io import write_text

RESULTS = Path(__file__).parent / "results"


def record(file: str, fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file of results, in place of its rows of the same commands.

    Args:
        file: name of the file.
        fields: names of the columns; older rows are empty in new ones, and keep columns of theirs that are not named.
        rows: by name of column; "command" is one of them.
    """
    path, commands = RESULTS / file, {row["command"] for row in rows}
    kept: list[Mapping[str, Any]] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as lines:
            kept = [row for row in csv.DictReader(lines) if row["command"] not in commands]
    text = io.StringIO()
    columns = dict.fromkeys([*fields, *(name for row in kept for name in row)])
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted([*kept, *rows], key=lambda row: row["command"]))
    write_text(path, text.getvalue())
