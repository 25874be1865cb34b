"""What a finished run recorded: its settings and its report."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd.errors import RunError, UsageError
from dd.evaluation.report import Report
from dd.io import SEAL, user_path
from dd.pipeline.outcome import finished
from dd.recipes import SETTLED
from dd.runs import RunFolder


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: its files.
        report: its report.
        settings: the settings of its recipe.toml by dotted key, with the method's decisions.
        written: the parsed recipe.toml.
    """

    folder: RunFolder
    report: Report
    settings: Mapping[str, Any]
    written: Mapping[str, Any]


def recorded(place: str) -> FinishedRun:
    """Return the record of a finished run.

    Args:
        place: the folder of the run, or any of its files.

    Raises:
        UsageError: there is no finished run.
        RunError: its report or its recipe cannot be read.
    """
    folder = _folder(place)
    if not folder.report.is_file():
        if folder.recipe_toml.is_file():
            raise UsageError(f"the run in {place} is not finished; dd run recipe={folder.path} finishes it")
        raise UsageError(f"no finished run in {place}: name the folder of a run, such as runs/dm/fashion-mini/ipc1/…")
    report = finished(folder).report
    try:
        written = tomllib.loads(folder.recipe_toml.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder.recipe_toml} cannot be read: {error}") from error
    return FinishedRun(folder, report, settings_in(written), written)


def settings_in(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parsed recipe by dotted key; values that the method decided replace "auto"."""
    decided = written.get(SETTLED, {})
    own = flat({key: value for key, value in written.items() if key != SETTLED})
    return own | {key: value for key, value in flat(decided).items() if key != SEAL}


def _folder(place: str) -> RunFolder:
    path = user_path(place)
    if not path.exists():
        raise UsageError(f"no run at {place}")
    return RunFolder(path if path.is_dir() else Path(path).parent)


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables by dotted key, each with `prefix`; a null of a recipe file is None."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = None if value == "null" else value
    return found
