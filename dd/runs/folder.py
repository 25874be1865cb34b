"""The folder of one run: <root>/<method>/<dataset>/<ipcN>/<hash8>-seed<S>."""

import contextlib
import json
import logging
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd.errors import printable
from dd.io import (
    SEAL,
    digest,
    holds,
    locked,
    previous,
    remove_state,
    sealed,
    sha256_file,
    user_path,
    writable,
    write_json,
    write_text,
)
from dd.runs.store import Store

log = logging.getLogger(__name__)

_LONGEST = 200  # maximum length of a folder name in bytes
_HELD = "holds"  # report key: size and hash of every other file of a finished run
_LOOKED_THROUGH = 1e9  # bytes of labels up to which every check reads all of them; larger ones are verified by training
_WAY_OUT = "choose another folder with out=FOLDER or DD_RUNS"


def runs_root(out: Path | str | None = None) -> Path:
    """Return the folder that holds all runs: `out`, else `$DD_RUNS`, else ./runs."""
    named, what = (out, "out") if out is not None else (os.environ.get("DD_RUNS") or "runs", "DD_RUNS")
    return user_path(named, what, absolute=False)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, by name.  Constructing it does not touch the disk.

    Attributes:
        path: the folder; it need not exist.
    """

    path: Path

    @classmethod
    def locate(cls, root: Path, *, method: str, dataset: str, budget: str, recipe_hash: str, seed: int) -> "RunFolder":
        """Return the folder of a run.

        Args:
            root: see `runs_root`.
            method: name of the method.
            dataset: name of the data set; ':' and '/' become '-'.
            budget: size of the set, as in recipes: "ipc10", "fraction0.1".
            recipe_hash: hash of the resolved recipe; its first 8 characters are used.
            seed: root seed of the run.
        """
        return cls(root / _plain(method) / _plain(dataset) / budget / f"{recipe_hash[:8]}-seed{seed}")

    @property
    def recipe_toml(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def set(self) -> Path:
        """The distilled set."""
        return self.path / "set.safetensors"

    @property
    def start(self) -> Path:
        """The set at iteration 0."""
        return self.path / "start.safetensors"

    @property
    def report(self) -> Path:
        """The report of the evaluation, written last; see `finish`."""
        return self.path / "report.json"

    @property
    def log_csv(self) -> Path:
        """The log written by `Track`."""
        return self.path / "log.csv"

    @property
    def progress_png(self) -> Path:
        """The log as curves."""
        return self.path / "progress.png"

    @property
    def images_png(self) -> Path:
        """Synthetic beside real images."""
        return self.path / "images.png"

    @property
    def page(self) -> Path:
        """The run as one page, if `dd report` wrote it here."""
        return self.path / "report.html"

    @property
    def checkpoint(self) -> Path:
        """The state from which an interrupted synthesis resumes."""
        return self.path / "checkpoint.safetensors"

    @property
    def parts(self) -> Path:
        """Folders of unfinished parts, if the set is made in parts."""
        return self.path / "parts"

    @property
    def labels(self) -> Path:
        """The soft labels, if teachers label views of the set."""
        return self.path / "labels"

    @property
    def lock_file(self) -> Path:
        """Held by the process that executes the run."""
        return self.path / ".lock"

    @property
    def jobs(self) -> Path:
        """What the jobs say that share the run."""
        return self.path / "jobs"

    @property
    def offer(self) -> Path:
        """What other processes can help with at the moment, see `dd.runs.sharing`."""
        return self.jobs / "offer.json"

    @property
    def experts(self) -> Path:
        """What the lead of `dd experts make` with jobs says of the experts that it made."""
        return self.jobs / "experts.json"

    def write_recipe(self, text: str) -> None:
        """Create the folder and write the resolved recipe to it.

        Raises:
            UsageError: the folder cannot be created or written to.
        """
        writable(self.path, _WAY_OUT)
        write_text(self.recipe_toml, text)

    def settings(self) -> dict[str, Any]:
        """Return the parsed recipe file of the folder; empty if it is missing or damaged."""
        if not self.recipe_toml.is_file():
            return {}
        try:
            return tomllib.loads(self.recipe_toml.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s); its [settled] table is decided again", self.recipe_toml, error)
            return {}

    def finish(self, report: Mapping[str, object]) -> None:
        """Write the report, with the hashes of all other files; its presence marks the run as finished."""
        # for labels only the manifests, which contain the hashes of the label files
        files = (*self._held(), *sorted(self.labels.glob("[!.]*.json")))
        held = {path.relative_to(self.path).as_posix(): _facts(path) for path in files}
        write_json(self.report, sealed({**report, _HELD: held}))

    def damage(self) -> dict[str, str] | None:
        """Return what is wrong with a finished run, by file; empty if it is intact, None if it is not finished."""
        if not self.report.is_file():
            return None
        try:
            report = json.loads(self.report.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return {self.report.name: str(error)}
        if not isinstance(report, dict) or (SEAL in report and not holds(report)):
            return {self.report.name: "its hash is wrong"}
        held = report.get(_HELD, {})  # older reports lack it
        found = {name: _damage(self.path / name, facts) for name, facts in held.items()}
        manifests = [self.path / name for name in held if name.startswith(f"{self.labels.name}/") and not found[name]]
        return {name: damage for name, damage in found.items() if damage} | self._lost_labels(manifests)

    def is_finished(self) -> bool:
        """Return whether the run is finished and all its files are present and intact."""
        return self.damage() == {}

    def clear(self) -> None:
        """Delete the files of an earlier run; keep other files."""
        for file in self._files():
            file.unlink(missing_ok=True)
        remove_state(self.checkpoint)
        for folder in (self.parts, self.labels):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other processes; if it is locked, log a message and wait.

        Raises:
            UsageError: the folder cannot be created or written to.
        """
        writable(self.path, _WAY_OUT)
        with locked(self.lock_file, f"the run in {self.path}"):
            # remove partial files of a killed process; we hold the lock, so nobody is writing now
            names = [file.name for file in (*self._files(), previous(self.checkpoint))]
            for name in (*names, "*-id", "*-told"):  # of trackers
                for stale in self.path.glob(f".{name}.*"):
                    stale.unlink(missing_ok=True)
            yield

    def _lost_labels(self, manifests: Sequence[Path]) -> dict[str, str]:
        """Return what is wrong with the labels that intact manifests describe, by file."""
        labels, facts = Store(self.path), [json.loads(path.read_text(encoding="utf-8")) for path in manifests]
        small = sum(each["bytes"] for each in facts) <= _LOOKED_THROUGH
        found = {}
        for path, spec in zip(manifests, (each["spec"] for each in facts), strict=True):
            if small:
                damage = labels.damage(self.labels.name, spec)
            else:
                damage = None if labels.has(self.labels.name, spec) else "it is missing or has another size"
            if damage:
                found[f"{self.labels.name}/{path.stem}.safetensors"] = damage
        return found

    def _files(self) -> tuple[Path, ...]:
        pictures = (self.progress_png, self.images_png, self.page)
        return (self.report, self.set, self.start, self.checkpoint, self.log_csv, *pictures, self.recipe_toml)

    def _held(self) -> list[Path]:
        files = (self.recipe_toml, self.set, self.start, self.log_csv)
        return [file for file in files if file.is_file()]


def _facts(path: Path) -> dict[str, str | int]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _damage(path: Path, facts: Mapping[str, object]) -> str:
    if not path.is_file():
        return "it is missing"
    if path.stat().st_size != facts["bytes"]:
        return f"it has {path.stat().st_size} bytes, not {facts['bytes']}"
    return "its hash is wrong" if sha256_file(path) != facts["sha256"] else ""


def _plain(name: str) -> str:
    """Return a name that is a safe path component: no special characters, and not too long."""
    plain = printable(re.sub(r"[:/\\]", "-", name), keep="").replace("\\", "-").lstrip(".") or "-"
    if len(os.fsencode(plain)) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST // 4]}…{digest(name)[:16]}"  # too long for a file system
