"""Run outputs: artefacts, run folders, logs, progress bars, pictures."""

from dd.runs.folder import RunFolder, runs_root
from dd.runs.progress import bar
from dd.runs.store import Artefact, Store
from dd.runs.track import Track, read_log

__all__ = ["Artefact", "RunFolder", "Store", "Track", "bar", "read_log", "runs_root"]
