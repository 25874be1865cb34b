"""Publishing of sets: the library function behind `dd push`."""

import logging
from pathlib import Path

from dd.engine import registry
from dd.errors import RunError, UsageError
from dd.evaluation.report import Report
from dd.exchange.contents import Contents, needs_data
from dd.io import user_path
from dd.licences import NOT_STATED
from dd.pipeline.evaluation import load
from dd.pipeline.exports import named, real_data
from dd.pipeline.outcome import Outcome, finished, folder_of
from dd.released.card import CardFacts
from dd.released.hub import PREFIX, hub_place
from dd.released.push import Publication, publish_folder, publish_to_hub
from dd.sets import DistilledSet
from dd.sets.origin import imported

log = logging.getLogger(__name__)


def push(
    made: DistilledSet | Outcome | str | Path,
    to: str | Path,
    *,
    licence: str = NOT_STATED,
    dataset: str = "",
    private: bool = False,
    force: bool = False,
) -> Publication:
    """Publish a set to a folder, or as a dataset on the Hugging Face Hub.

    `dd.push(outcome, "hf:USER/NAME", licence="mit")`.  The publication includes the labels of views, a preview, a
    parquet file for the Hub's viewer, and a card with provenance, scores next to the control, and possible leaks of
    data.

    Args:
        made: a set, its file, the folder of its run, or the result of `dd.run`; scores are those of the run.
        to: a folder, or "hf:USER/NAME[/PATH]"; the token is that of the Hub's client (`HF_TOKEN` or its login).
        licence: licence of the set.
        dataset: local path of the data set, for a set made elsewhere.
        private: whether to make a new repository private.
        force: replace another set at the target.

    Raises:
        UsageError: the target has other content, or there is no token.
        RunError: the Hub cannot be reached.
    """
    distilled = made if isinstance(made, DistilledSet) else load(made)
    report = made.report if isinstance(made, Outcome) else _report(distilled)
    if report is None:
        log.warning("the card states no scores, because there is no report of a run beside the set")
    if imported(distilled.provenance) is not None:
        log.warning("others made this set: check that its licence allows publishing it")
    facts = CardFacts(
        name=named(distilled),
        place=str(to) if str(to).startswith(PREFIX) else "FOLDER",  # the local path is meaningless to others
        licence=licence or NOT_STATED,
        data_licence=str(report.dataset.get("licence") or NOT_STATED) if report else NOT_STATED,
        paper=_paper(distilled),
        report=report,
    )
    contents = _contents(distilled, dataset, own=isinstance(made, Outcome))
    if str(to).startswith(PREFIX):
        return publish_to_hub(distilled, facts, hub_place(str(to)), contents, private=private, force=force)
    return publish_folder(distilled, facts, user_path(to), contents, force=force)


def _report(distilled: DistilledSet) -> Report | None:
    """Return the report from the folder of a set; None if there is none, or the set has changed since."""
    folder = folder_of(distilled)
    if folder is None or not folder.is_finished():
        return None
    try:
        return finished(folder).report
    except RunError:
        return None


def _paper(distilled: DistilledSet) -> str:
    try:
        return registry.get(str(distilled.provenance.get("method", ""))).paper
    except (UsageError, RunError):  # the method is not installed
        return ""


def _contents(distilled: DistilledSet, dataset: str, *, own: bool) -> Contents | None:
    """Return the contents for the parquet file; None, with a message, if parquet cannot represent the set."""
    try:
        data = real_data(distilled, dataset, own=own) if needs_data(distilled) else None
        contents = Contents(distilled, data)
        _ = contents.labels
    except UsageError as error:
        log.warning("no parquet file: %s", error)
        return None
    return contents
