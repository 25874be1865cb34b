"""Two finished runs: which settings, circumstances and numbers differ."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dd.errors import UsageError
from dd.evaluation.difference import Change, Difference, changes, difference
from dd.pipeline.recorded import recorded


@dataclass(frozen=True)
class RunDifference:
    """What differs between two runs.

    Attributes:
        settings: settings that differ, by dotted key, with both values; None where a run has no such setting.
        reports: everything else.
    """

    settings: Mapping[str, Change]
    reports: Difference

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        found = asdict(self.reports)
        for pair, held in zip(self.reports.scores, found["scores"], strict=True):
            held["scores"] = [score.to_dict() for score in pair.scores]
            held["controls"] = [None if score is None else score.to_dict() for score in pair.controls]
            held |= {"comparable": pair.gap is not None, "in_words": pair.in_words()}
        return {"settings": dict(self.settings), **found}


def diff(one: str, other: str) -> RunDifference:
    """Return what differs between two finished runs.

    Args:
        one: the folder of a run, or one of its files.
        other: the same of another run.

    Raises:
        UsageError: one of them is no finished run, or both are the same.
        RunError: a report or a recipe cannot be read.
    """
    first, second = recorded(one), recorded(other)
    if first.folder.path.resolve() == second.folder.path.resolve():
        raise UsageError(f"{one} and {other} are the same run")
    return RunDifference(changes(first.settings, second.settings), difference(first.report, second.report))
