"""The folder of one run, and where it is: <root>/<method>/<dataset>/<ipcN>/<hash8>-seed<S>."""

import contextlib
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd.io import digest, locked, user_path, writable, write_text

_LONGEST = 200  # bytes of a folder's name
_WAY_OUT = "choose another place with out=FOLDER or DD_RUNS"


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
        """The report of the evaluation; the run is finished when it is there."""
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
        """The state that an interrupted synthesis goes on from."""
        return self.path / "checkpoint.safetensors"

    @property
    def parts(self) -> Path:
        """Folders of parts that are being made, where the set is made in several."""
        return self.path / "parts"

    @property
    def labels(self) -> Path:
        """The store of soft labels, where teachers label views of the set."""
        return self.path / "labels"

    def write_recipe(self, text: str) -> None:
        """Make the folder and write the resolved recipe into it.

        Raises:
            UsageError: the folder cannot be made or written to.
        """
        writable(self.path, _WAY_OUT)
        write_text(self.recipe_toml, text)

    def settings(self) -> dict[str, Any]:
        """Bare keys of the recipe that was written here; none where there is none."""
        try:
            return tomllib.loads(self.recipe_toml.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def is_finished(self) -> bool:
        """Whether the report is there and can be read."""
        try:
            return isinstance(json.loads(self.report.read_text(encoding="utf-8")), dict)
        except (OSError, ValueError):
            return False

    def clear(self) -> None:
        """Delete what an earlier run left, so that nothing of it is taken for this one's; other files stay."""
        for file in self._files():
            file.unlink(missing_ok=True)
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
            for file in self._files():
                for stale in self.path.glob(f".{file.name}.*"):
                    stale.unlink(missing_ok=True)
            yield

    def _files(self) -> tuple[Path, ...]:
        pictures = (self.progress_png, self.images_png)
        return (self.report, self.set, self.start, self.checkpoint, self.log_csv, *pictures, self.recipe_toml)


def _plain(name: str) -> str:
    plain = re.sub(r"[:/\\]", "-", name)
    if len(os.fsencode(plain)) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST // 4]}…{digest(name)[:16]}"  # no file system takes it whole
