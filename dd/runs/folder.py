"""The folder of one run, and where it is: <root>/<method>/<dataset>/<ipcN>/<hash8>-seed<S>."""

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

_LONGEST = 200  # bytes of a folder's name
_HELD = "holds"  # in the report: size and hash of every other file of a finished run
_LOOKED_THROUGH = 1e9  # bytes of labels up to which all are read at every look; of more, who trains on them reads them
_WAY_OUT = "choose another folder with out=FOLDER or DD_RUNS"


def runs_root(out: Path | str | None = None) -> Path:
    """Where run folders are: `out`, else `$DD_RUNS`, else ./runs."""
    named, what = (out, "out") if out else (os.environ.get("DD_RUNS") or "runs", "DD_RUNS")
    return user_path(named, what, absolute=False)


@dataclass(frozen=True)
class RunFolder:
    """What one run keeps, by name.  Constructing it touches nothing on disk.

    Attributes:
        path: the folder; it need not exist.
    """

    path: Path

    @classmethod
    def locate(cls, root: Path, *, method: str, dataset: str, budget: str, recipe_hash: str, seed: int) -> "RunFolder":
        """The folder of a run.

        Args:
            root: see `runs_root`.
            method: name of the method.
            dataset: name of the data set; ':' and '/' become '-'.
            budget: how many images, as in recipes: "ipc10", "fraction0.1".
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
        """What `Track` logs."""
        return self.path / "log.csv"

    @property
    def progress_png(self) -> Path:
        """The log as a picture."""
        return self.path / "progress.png"

    @property
    def images_png(self) -> Path:
        """Synthetic beside real images."""
        return self.path / "images.png"

    @property
    def checkpoint(self) -> Path:
        """The state that an interrupted synthesis resumes from."""
        return self.path / "checkpoint.safetensors"

    @property
    def parts(self) -> Path:
        """Folders of parts that are being made, where the set is made in several."""
        return self.path / "parts"

    @property
    def labels(self) -> Path:
        """The soft labels, where teachers label views of the set."""
        return self.path / "labels"

    def write_recipe(self, text: str) -> None:
        """Make the folder and write the resolved recipe into it.

        Raises:
            UsageError: the folder cannot be made or written to.
        """
        writable(self.path, _WAY_OUT)
        write_text(self.recipe_toml, text)

    def settings(self) -> dict[str, Any]:
        """The recipe that was written here, as its file has it; nothing where there is none, or no recipe."""
        if not self.recipe_toml.is_file():
            return {}
        try:
            return tomllib.loads(self.recipe_toml.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s); its [settled] table is decided again", self.recipe_toml, error)
            return {}

    def finish(self, report: Mapping[str, object]) -> None:
        """Write the report, and with it the hashes of all that a finished run holds: its last file."""
        # of labels the manifests, which hold the hash of what they describe
        files = (*self._held(), *sorted(self.labels.glob("[!.]*.json")))
        held = {path.relative_to(self.path).as_posix(): _facts(path) for path in files}
        write_json(self.report, sealed({**report, _HELD: held}))

    def damage(self) -> dict[str, str] | None:
        """What is wrong with a finished run, by file; empty where nothing is, None where none was finished."""
        if not self.report.is_file():
            return None
        try:
            report = json.loads(self.report.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return {self.report.name: str(error)}
        if not isinstance(report, dict) or (SEAL in report and not holds(report)):
            return {self.report.name: "its hash is wrong"}
        held = report.get(_HELD, {})  # of an earlier dd it has none
        found = {name: _damage(self.path / name, facts) for name, facts in held.items()}
        manifests = [self.path / name for name in held if name.startswith(f"{self.labels.name}/") and not found[name]]
        return {name: damage for name, damage in found.items() if damage} | self._lost_labels(manifests)

    def is_finished(self) -> bool:
        """Whether a run ended here, and all that it must hold is there and whole."""
        return self.damage() == {}

    def clear(self) -> None:
        """Delete what an earlier run left, so that nothing of it is taken for this one's; other files stay."""
        for file in self._files():
            file.unlink(missing_ok=True)
        remove_state(self.checkpoint)
        for folder in (self.parts, self.labels):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, so that no second process runs in it; waits, and says so, while another one does.

        Raises:
            UsageError: the folder cannot be made or written to.
        """
        writable(self.path, _WAY_OUT)
        with locked(self.path / ".lock", f"the run in {self.path}"):
            # what a killed process left half-written; we hold the lock, so nobody is writing now
            for file in (*self._files(), previous(self.checkpoint)):
                for stale in self.path.glob(f".{file.name}.*"):
                    stale.unlink(missing_ok=True)
            yield

    def _lost_labels(self, manifests: Sequence[Path]) -> dict[str, str]:
        """What is wrong with the labels that whole manifests describe, by file."""
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
        pictures = (self.progress_png, self.images_png)
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
    """A name as a part of a path: nothing that a file system or a terminal acts on, and no longer than one may be."""
    plain = printable(re.sub(r"[:/\\]", "-", name), keep="").replace("\\", "-").lstrip(".") or "-"
    if len(os.fsencode(plain)) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST // 4]}…{digest(name)[:16]}"  # no file system takes it whole
