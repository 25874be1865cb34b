"""Whole runs as a user makes them: each place has a home, a folder of runs and a working directory of its own."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dd.cli.main import run_command_line

PATIENCE = 240  # seconds until something that hangs has failed
POLL = 0.003  # seconds
# what a terminal or a user's shell may set, and what would find data or a tracker that a test did not ask for
FOREIGN = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "DD_DATA", "WANDB_SWEEP_ID", "PYTHONPATH")

ALIKE = ("ipc=1", "device=cpu", "compile=false", "student.depth=1", "student.width=4", "eval.protocol=smoke")
# on `pictures`: three seconds of work in all stages; learned labels, momentum and random augmentation are carried along
LONG = (
    "method=datm",
    *ALIKE,
    "experts.kind=sgd",
    "experts.count=6",
    "experts.epochs=3",
    "experts.batch=16",
    "start_max=2",
    "iterations=60",
    "steps=4",
    "eval.students=3",
    "eval.steps=40",
    "eval.full=false",
    "eval.probe_steps=5",
)
# on `pictures`: half a second of work in all stages
SMALL = (
    "method=mtt",
    *ALIKE,
    "experts.count=2",
    "experts.epochs=2",
    "start_max=1",
    "iterations=4",
    "lr_lr=1e-6",
    "steps=2",
    "eval.steps=3",
    "eval.full=false",
    "eval.probe_steps=3",
)
# on the embedded data set: a second of work, most of it for looking at all its images
SHORT = ("method=random", *ALIKE, "eval.steps=3", "eval.full=false")


@dataclass(frozen=True)
class Ended:
    """What a call leaves: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict:
        """What `--json` printed."""
        return json.loads(self.out)


class Place:
    """Somewhere that `dd` is called, with nothing from elsewhere."""

    def __init__(self, path: Path) -> None:
        self.path, self.home, self.runs = path, path / "home", path / "runs"
        path.mkdir(exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """The shell's, with its wishes left out."""
        own = {"DD_HOME": str(self.home), "DD_RUNS": str(self.runs)}
        return {name: value for name, value in os.environ.items() if name not in FOREIGN} | own

    @contextlib.contextmanager
    def entered(self, **environment: str) -> Iterator[None]:
        """Be here, in this process."""
        with pytest.MonkeyPatch.context() as patch:
            for name in FOREIGN:
                patch.delenv(name, raising=False)
            for name, value in (self.environment | environment).items():
                patch.setenv(name, value)
            patch.chdir(self.path)
            yield

    def dd(self, *args: str, **environment: str) -> Ended:
        """Call it in this process, which spares the seconds that importing torch takes."""
        out, err = io.StringIO(), io.StringIO()
        with self.entered(**environment), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command_line(args)
        return Ended(code, out.getvalue(), err.getvalue())

    def process(self, *args: str, **environment: str) -> Ended:
        """Call it in a process of its own, and wait."""
        return self.start(*args, **environment).end()

    def start(self, *args: str, **environment: str) -> "Running":
        """Call it in a process of its own, and watch."""
        return Running(self, [sys.executable, "-m", "dd", *args], environment)

    def torchrun(self, processes: int, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Call it in several processes that share the work, and wait."""
        done = subprocess.run(
            self.torchrun_command(processes, words),
            env=self.environment | {"OMP_NUM_THREADS": "1"},
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done

    def torchrun_command(self, processes: int, words: Sequence[str]) -> list[str]:
        """How it is called in several processes."""
        place = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={self.path / 'torchrun'}"]
        return [sys.executable, "-m", "torch.distributed.run", *place, "-m", "dd", *words]

    def folder(self) -> Path:
        """The folder of the only run."""
        (folder,) = self.runs.glob("*/*/*/*")
        return folder

    def logged(self) -> int:
        """Iterations in the log of the only run."""
        logs = list(self.runs.glob("*/*/*/*/log.csv"))
        return logs[0].read_bytes().count(b"\n") - 1 if logs else 0

    def files(self) -> set[str]:
        """Every file below here, but those that hold what a process said."""
        return {str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file()} - {"out", "err"}

    def half_written(self) -> list[str]:
        """Temporary files."""
        return [file for file in self.files() if Path(file).name.startswith(".") and not file.endswith(".lock")]


class Running:
    """A process of `dd`; what it says goes to files, so that it never waits for a reader."""

    def __init__(self, place: Place, command: list[str], environment: dict[str, str]) -> None:
        self._out, self._err = place.path / "out", place.path / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            environment = place.environment | environment
            self._process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=place.path)

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def signal_when(self, number: signal.Signals, happened: Callable[[], bool]) -> Ended:
        """Send a signal as soon as something has happened, and wait for the end."""
        deadline = time.monotonic() + PATIENCE
        try:
            while not happened():
                assert self._process.poll() is None, f"it ended before it could be stopped:\n{self.err}"
                assert time.monotonic() < deadline, f"it does not come to it:\n{self.err}"
                time.sleep(POLL)
            self._process.send_signal(number)
        except BaseException:
            self._process.kill()
            raise
        return self.end()

    def end(self) -> Ended:
        """Wait for the end."""
        try:
            code = self._process.wait(PATIENCE)
        finally:
            self._process.kill()
        return Ended(code, self._out.read_text(encoding="utf-8"), self.err)


@pytest.fixture
def place(tmp_path):
    """Where nothing was run before."""
    return Place(tmp_path / "place")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The setting for a data set of small pictures, five classes of 40 + 20, in folders."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for label in range(5):
        prototype = rng.uniform(0, 255, (12, 12))
        for part, count in (("train", 40), ("test", 20)):
            folder = root / part / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = prototype + rng.normal(0, 60, (12, 12))
                Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{number}.png")
    return f"dataset=folder:{root}"


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """The setting for a data set of three classes of few pictures of 8 x 8."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("few")
    for label in range(3):
        prototype = rng.uniform(0, 255, (8, 8))
        for part, count in (("train", 20), ("test", 8)):
            folder = root / part / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = prototype + rng.normal(0, 40, (8, 8))
                Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{number}.png")
    return f"dataset=folder:{root}"


@pytest.fixture(scope="session")
def long(pictures):
    """Settings of a run that can be stopped in every stage."""
    return (*LONG, pictures)


@pytest.fixture(scope="session")
def small(pictures):
    """Settings of a short run that has every stage."""
    return (*SMALL, pictures)


@pytest.fixture(scope="session")
def short():
    """Settings of the shortest run there is."""
    return SHORT


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, long):
    """Where the long run went through in one go, and its report."""
    place = Place(tmp_path_factory.mktemp("uninterrupted"))
    ended = place.dd("run", *long, "--json")
    assert ended.code == 0, ended.err
    return place, ended.report


@pytest.fixture(scope="session")
def finished(tmp_path_factory, short):
    """Where the shortest run was finished; to be read, not written to."""
    place = Place(tmp_path_factory.mktemp("finished"))
    ended = place.dd("run", *short)
    assert ended.code == 0, ended.err
    return place


@pytest.fixture(scope="session")
def same_run():
    """Asserts that a run here ended as the one there did: set, start and log to the bit, and every accuracy."""

    def check(here: Place, report: dict, there: Place, other: dict) -> None:
        for name in ("set.safetensors", "start.safetensors", "log.csv"):
            assert (here.folder() / name).read_bytes() == (there.folder() / name).read_bytes(), name
        for arm in ("accuracy", "control", "start"):
            assert report[arm] == other[arm], arm

    return check
