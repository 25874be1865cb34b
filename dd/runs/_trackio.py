"""The only module that uses Trackio, which stores runs on this machine; imported only if requested."""

import contextlib
import io
import math
import os
from collections.abc import Iterator

import trackio
from trackio import context_vars

from dd.runs.trackers import LogRow, Results, Subject


class TrackioRun:
    """A Trackio run; TRACKIO_DIR, TRACKIO_PROJECT, TRACKIO_SPACE_ID etc. apply."""

    def __init__(self, subject: Subject) -> None:
        """Start a run, or continue the one from before an interruption."""
        known = None if subject.fresh else subject.known("trackio")
        plain = f"{subject.name}/{subject.folder.name}".replace("/", "-")  # it becomes part of paths
        with _silence():
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT") or "dd-workbench",
                name=known or plain,
                config=dict(subject.config),
                resume="allow" if known else "never",
                embed=False,
            )
        subject.remember("trackio", self._run.name)

    def log(self, row: LogRow) -> None:
        """See `Tracker`."""
        it = row["it"]
        assert isinstance(it, int)
        self._run.log({name: value for name, value in row.items() if name != "it" and _is_shown(value)}, step=it)

    def results(self, results: Results) -> None:
        """See `Tracker`."""
        table = trackio.Table(columns=list(results.columns), data=[list(row) for row in results.rows])
        pictures = {name: trackio.Image(path) for name, path in results.pictures.items()}
        with _silence():
            self._run.log({**results.metrics, "report": table, **pictures})
            artifact = trackio.Artifact(results.name, type="dataset", metadata=dict(results.facts))
            for path in results.files:
                artifact.add_file(path)
            self._run.log_artifact(artifact, aliases=list(results.aliases))

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        with _silence():
            self._run.finish()
            context_vars.current_run.set(None)  # else Trackio finishes it once more, and prints, when Python exits


def _is_shown(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Trackio from printing to stdout, which is for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
