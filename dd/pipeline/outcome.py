"""The result of a run, for Python and notebooks."""

from base64 import b64encode
from dataclasses import dataclass

from dd.errors import RunError
from dd.evaluation.read import read_report
from dd.evaluation.report import Report
from dd.evaluation.table import html
from dd.runs import RunFolder
from dd.sets import DistilledSet, load


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        report: the accuracy, and everything needed to interpret it.
        folder: the folder with the set, the log and the pictures.
        fresh: False if the run had finished earlier and was only loaded.
    """

    report: Report
    folder: RunFolder
    fresh: bool

    @property
    def set(self) -> DistilledSet:
        """The distilled set."""
        return load(self.folder.set)

    def __repr__(self) -> str:
        return f"<Outcome in {self.folder.path}: {self.report!r}>"

    def _repr_html_(self) -> str:
        """Return the report's table and the images, for a notebook."""
        table, file = html(self.report), self.folder.images_png
        if not file.is_file():
            return table
        return f'{table}<img src="data:image/png;base64,{b64encode(file.read_bytes()).decode()}">'


def folder_of(distilled: DistilledSet) -> RunFolder | None:
    """Return the folder of the run whose result a set's file is, by its name; None if it is elsewhere."""
    if distilled.path is None:
        return None
    folder = RunFolder(distilled.path.parent)
    return folder if distilled.path == folder.set else None


def finished(folder: RunFolder) -> Outcome:
    """Return the outcome of a run that finished earlier.

    Raises:
        RunError: its report cannot be read.
    """
    try:
        report = read_report(folder.report)
    except RunError as error:
        raise RunError(f"{error}; force=true makes it again") from error
    return Outcome(report, folder, fresh=False)
