"""What a run leaves, for Python and for notebooks."""

import json
from base64 import b64encode
from dataclasses import dataclass

from dd.errors import RunError
from dd.evaluation.report import Report
from dd.evaluation.table import html
from dd.runs import RunFolder
from dd.sets import DistilledSet, load


@dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        report: accuracy and all it must be read with.
        folder: where set, log and pictures are.
        fresh: False when the run had been finished before and was only reported.
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
        """Its table and its images, for a notebook."""
        table, file = html(self.report), self.folder.images_png
        if not file.is_file():
            return table
        return f'{table}<img src="data:image/png;base64,{b64encode(file.read_bytes()).decode()}">'


def finished(folder: RunFolder) -> Outcome:
    """The outcome of a run that ended before.

    Raises:
        RunError: its report cannot be read.
    """
    try:
        report = Report.from_dict(json.loads(folder.report.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder.report} cannot be read ({error}); force=true makes it again") from error
    return Outcome(report, folder, fresh=False)
