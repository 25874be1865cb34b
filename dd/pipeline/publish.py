"""`dd.push`: what `dd push` does."""

import json
import logging
from pathlib import Path

from dd.engine import registry
from dd.errors import RunError, UsageError
from dd.evaluation.report import Report
from dd.exchange.contents import Contents, needs_data
from dd.io import user_path
from dd.pipeline.evaluation import load
from dd.pipeline.exports import named, real_data
from dd.pipeline.outcome import Outcome
from dd.released.card import NOT_STATED, CardFacts
from dd.released.hub import PREFIX, hub_place
from dd.released.push import Publication, publish_folder, publish_to_hub
from dd.runs import RunFolder
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
    """Publish a set: into a folder, or as a dataset of the Hugging Face Hub.

    `dd.push(outcome, "hf:USER/NAME", licence="mit")`.  With the set go its labels of views, a card that says how it was
    made, what it scores beside its control and what it may leak, a preview, and a parquet file that the Hub shows.

    Args:
        made: a set, its file, the folder of its run, or what `dd.run` returned; the scores are those of its run.
        to: a folder, or "hf:USER/NAME[/PATH]"; the token is the Hub client's own, of `HF_TOKEN` or its login.
        licence: of the set.
        dataset: where the data set of a set that was made elsewhere is on this machine.
        private: whether a new repository is open to its owner alone.
        force: replace another set that is there.

    Raises:
        UsageError: something else is there, or there is no token.
        RunError: the Hub cannot be asked.
    """
    distilled = made if isinstance(made, DistilledSet) else load(made)
    report = made.report if isinstance(made, Outcome) else _report(distilled)
    if report is None:
        log.warning("the card says nothing of what the set scores, as no report of its run is beside it")
    if imported(distilled.provenance) is not None:
        log.warning("others made this set: see that its licence lets you publish it")
    facts = CardFacts(
        name=named(distilled),
        place=str(to) if str(to).startswith(PREFIX) else "FOLDER",  # nobody else has this folder
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
    """The report of the run that a set lies in; None where there is none, or the set is not as it was scored."""
    if distilled.path is None:
        return None
    folder = RunFolder(distilled.path.parent)
    if folder.set != distilled.path or not folder.is_finished():
        return None
    try:
        return Report.from_dict(json.loads(folder.report.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _paper(distilled: DistilledSet) -> str:
    try:
        return registry.get(str(distilled.provenance.get("method", ""))).paper
    except (UsageError, RunError):  # of a method that is not here
        return ""


def _contents(distilled: DistilledSet, dataset: str, *, own: bool) -> Contents | None:
    """The images of a set for its parquet file; None where no such file can hold them, which is said."""
    try:
        data = real_data(distilled, dataset, own=own) if needs_data(distilled) else None
        contents = Contents(distilled, data)
        _ = contents.labels
    except UsageError as error:
        log.warning("no parquet file: %s", error)
        return None
    return contents
