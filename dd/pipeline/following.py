"""What the trackers of a run receive: its settings and its results."""

import contextlib
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dd.engine.method import Method
from dd.errors import UsageError
from dd.evaluation.report import Report, Score
from dd.evaluation.table import ARMS
from dd.io import digest
from dd.pipeline.outcome import Outcome
from dd.pipeline.task import Run
from dd.recipes import Recipe
from dd.runs import RunFolder, read_log
from dd.runs.track import replayed
from dd.runs.trackers import MadeFrom, Results, Subject, Trackers, chosen, in_agent

HOLDOUT, TEST = "eval/holdout", "eval/test"
_COLUMNS = ("trained on", "students", "held-out %", "test %", "test std", "lr")


@contextlib.contextmanager
def followed(run: Run, track: tuple[str, ...]) -> Iterator[Run]:
    """Attach trackers to a run for the duration of the block."""
    names = chosen(track)
    trackers = Trackers(names, _subject(run.recipe, run.folder, run.force)) if names else run.trackers
    try:
        yield replace(run, trackers=trackers)
    except BaseException:
        trackers.close(failed=True)
        raise
    trackers.close()


def tell(run: Run, method: Method[Any], report: Report) -> None:
    """Send the results of a run to its trackers."""
    if run.trackers.listening:
        run.trackers.results(_results(run.recipe, run.folder, report, origins(run, method)))


def tell_again(recipe: Recipe, outcome: Outcome, track: tuple[str, ...]) -> None:
    """Send a run that was finished before to trackers that have not received it yet.

    A W&B agent always does: for W&B every trial is a new run, even if its settings are not.
    """
    subject = _subject(recipe, outcome.folder)
    names = [name for name in chosen(track) if not subject.told(name) or (in_agent() and name == "wandb")]
    if not names:
        return
    trackers = Trackers(names, subject)
    for row in replayed(read_log(outcome.folder.log_csv)[1]):
        trackers.log(row)
    trackers.results(_results(recipe, outcome.folder, outcome.report, ()))
    trackers.close()


def require_holdout(recipe: Recipe) -> None:
    """Raise `UsageError` if a recipe holds nothing out."""
    if recipe.data.holdout == 0:
        raise UsageError(
            "data.holdout=0 leaves a sweep without held-out images to choose by, and test images choose nothing: "
            "leave it out, or give data.holdout=0.1"
        )


def metrics(report: Report) -> dict[str, float]:
    """Return accuracies in percent by name: `eval/holdout`, `eval/test`, and the same for each reference."""
    found: dict[str, float] = {}
    for arm in ARMS:
        score: Score | None = getattr(report, arm)
        if score is None:
            continue
        suffix = "" if arm == "accuracy" else f"_{arm}"
        found |= _measured(f"{HOLDOUT}{suffix}", score.holdout) | _measured(f"{TEST}{suffix}", score.values)
    if report.gap is not None:
        found[f"{TEST}_gap"] = report.gap
    return found


def origins(run: Run, method: Method[Any]) -> list[MadeFrom]:
    """Return the inputs of the synthesis, one per need of the method."""
    found = []
    for need in method.needs(run.task):
        wanted = [{"kind": kind, "spec": dict(spec), "what": words} for kind, spec, words in need.artefacts()]
        if wanted:
            key = digest(wanted)
            found.append(MadeFrom(need.name, plain_name(f"{need.name}-{key[:12]}"), {"key": key, "artefacts": wanted}))
    return found


def plain_name(text: str) -> str:
    """Convert a text to a name that every tracker accepts for an artifact."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:100]


def _subject(recipe: Recipe, folder: RunFolder, fresh: bool = False) -> Subject:
    return Subject(folder.path, recipe.name, {**recipe.flat(), "recipe_hash": recipe.hash}, fresh)


def _results(recipe: Recipe, folder: RunFolder, report: Report, made_with: "list[MadeFrom] | tuple[()]") -> Results:
    pictures = {"images": folder.images_png, "progress": folder.progress_png}
    return Results(
        metrics=metrics(report),
        columns=_COLUMNS,
        rows=[_row(words, score) for arm, words in ARMS.items() if (score := getattr(report, arm)) is not None],
        pictures={name: path for name, path in pictures.items() if path.is_file()},
        name=plain_name(f"set-{recipe.name}"),
        aliases=(recipe.hash, f"seed{recipe.seed}"),
        files=[path for path in (folder.set, folder.recipe_toml, folder.report) if path.is_file()],
        facts=_facts(recipe, report),
        origins=made_with,
    )


def _facts(recipe: Recipe, report: Report) -> Mapping[str, object]:
    return {
        "recipe": recipe.hash,
        "method": recipe.method.name,
        "dataset": recipe.dataset,
        "size": recipe.size,
        "bytes": dict(report.bytes),
        "protocol": report.protocol.get("protocol"),
        "fingerprint": report.fingerprint,
        **metrics(report),
    }


def _row(words: str, score: Score) -> list[str | int | float | None]:
    held_out = statistics.fmean(score.holdout) if score.holdout else None
    return [words, score.n, held_out, score.mean, score.std, score.lr]


def _measured(name: str, values: tuple[float, ...]) -> dict[str, float]:
    """Return the mean and, for several values, the standard deviation."""
    if not values:
        return {}
    spread = {f"{name}_std": statistics.stdev(values)} if len(values) > 1 else {}
    return {name: statistics.fmean(values)} | spread
