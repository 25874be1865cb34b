"""Evaluate sets for a downstream task and record the tables.

    python experiments/downstream.py continual.csv "datadam/fashion-mini-ipc1 task=continual eval.students=3" …

Tables of one file have the same columns.  Students that exist are read, not trained again, so the command goes on where
it was stopped.  Rows of other commands in the file are kept.
"""

import sys
from collections.abc import Iterator
from typing import Any

from recorded import record

import dd
from dd.evaluation.downstream import DownstreamReport
from dd.recipes import parse_overrides

BEFORE = ("command", "set")
AFTER = ("protocol", "fingerprint", "device", "torch")


def table(words: str) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Evaluate a set; returns the headings of its table, and the rows.

    Args:
        words: the set, then the settings, as on the command line.
    """
    name, *settings = words.split()
    report = dd.evaluate(dd.load(name), **dict(parse_overrides(settings)))
    assert isinstance(report, DownstreamReport), "a task is named"
    conditions = {
        "protocol": report.protocol["protocol"],
        "fingerprint": report.fingerprint,
        "device": report.device,
        "torch": report.versions["torch"],
    }
    head = {"command": f"dd eval {words}", "set": name}
    heads = report.headings()
    return heads, (head | dict(zip(heads, cells, strict=True)) | conditions for cells in report.rows())


def main(file: str, *commands: str) -> None:
    """Run the commands and write their rows, each as soon as it is complete."""
    for words in commands:
        headings, rows = table(words)
        record(file, [*BEFORE, *headings, *AFTER], list(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
