"""A run that loses its machine, whenever that is, resumes with the same command and ends in the same bits.

A process can be killed between any two changes that it makes to the disk, or while it writes a file: between two
changes nothing is different for who comes after, so these are all the moments there are.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from signal import SIGKILL

import pytest

from dd.engine.synthesise import CHECKPOINT_EVERY
from dd.io import SEAL

from .conftest import ALIKE, Ended, Place
from .mortal import Change, Wish

QUICK = ("eval.steps=2", "eval.students=2", "eval.full=false", "eval.probes=1", "eval.probe_steps=2")
# a method of each family on `few`: second checkpoints, parts and stored labels among them
FAMILIES = {
    "mtt": (
        "method=mtt",
        *ALIKE,
        *("experts.count=2", "experts.epochs=2", "experts.batch=32", "start_max=1", "iterations=21", "steps=1"),
        *("lr_lr=1e-6", *QUICK),
    ),
    "dm": ("method=dm", *ALIKE, "iterations=21", *QUICK),
    "cda": (
        "method=cda",
        *("ipc=2", "device=cpu", "compile=false", "student.depth=1", "student.width=4", "student.norm=batch"),
        *(
            "squeeze.epochs=3",
            "squeeze.batch=16",
            "squeeze.lr=0.05",
            "iterations=11",
            "lr_img=0.1",
            "batch=3",
            "roll=1",
        ),
        *("crop=0.5", "eval.protocol=quick-soft", "eval.epochs=2", "eval.batch=3", "eval.students=2"),
        *("eval.full=false", "eval.probes=0"),
    ),
    "random": ("method=random", *ALIKE, *QUICK),
}
# what a stage writes, by the end of the path
STAGES = {
    "mtt": ("/experts/*.safetensors", "/checkpoint.safetensors", "/sets/*.safetensors", "/students/*.json"),
    "cda": ("/teachers/*.unfinished.safetensors", "/parts/*.json", "/labels/*.safetensors", "/report.json"),
}
TIMES = {"seconds", "created", "cost", SEAL}  # what two runs need not have in common, and the hash over it


class Mortals:
    """Calls `dd run` in processes that may be killed at a change of the disk, see `mortal`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("mortal.py"))]
        self._seen = folder / "seen"
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, place: Place, words: tuple[str, ...], at: int = -1, half: bool = False) -> Ended:
        """Call it; see `Wish`."""
        environment = place.environment | {"OMP_NUM_THREADS": "1"}
        wish = Wish(["run", *words, "--json"], str(place.path), environment, str(self._seen), at, half)
        asked, answered = self._process.stdin, self._process.stdout
        asked.write(json.dumps(wish._asdict()) + "\n")
        asked.flush()
        code = int(answered.readline())
        return Ended(code, *((place.path / name).read_text(encoding="utf-8") for name in ("out", "err")))

    def changes(self) -> list[Change]:
        """What the last call that went through changed."""
        return [Change(*json.loads(line)) for line in self._seen.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        """End the process that they are forked from."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def mortals(tmp_path_factory) -> Iterator[Mortals]:
    """`Mortals`."""
    made = Mortals(tmp_path_factory.mktemp("mortals"))
    yield made
    made.close()


@dataclass(frozen=True)
class Whole:
    """A run that nothing stopped.

    Attributes:
        place: where it was; the same run is killed there.
        settings: the run's.
        changes: what it does to the disk.
        left: what it leaves, see `left`.
    """

    place: Place
    settings: tuple[str, ...]
    changes: list[Change]
    left: dict[str, object]

    def moments(self, number: int) -> list[bool]:
        """When a process can be killed at a change: before it, and with half of the file written (True)."""
        return [False, True] if self.changes[number].kind in ("rename", "append") else [False]


@pytest.fixture(scope="module")
def wholes(mortals, tmp_path_factory, few):
    """A function that gives the run of a family, uninterrupted."""
    known: dict[str, Whole] = {}

    def whole(family: str) -> Whole:
        if family not in known:
            place, settings = Place(tmp_path_factory.mktemp(family)), (*FAMILIES[family], few)
            ended = mortals.run(place, settings)
            assert ended.code == 0, ended.err
            known[family] = Whole(place, settings, mortals.changes(), left(place))
        return known[family]

    return whole


def left(place: Place) -> dict[str, object]:
    """The content of every file of home and runs, without times and costs."""
    files = [file for folder in (place.home, place.runs) for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(place.path)): _content(file) for file in files}


def _content(file: Path) -> object:
    content = file.read_bytes()
    if file.suffix != ".json" or file.name.startswith("."):  # that is half-written
        return content
    facts = json.loads(content)
    if "value" in facts:
        del facts["sha256"]  # a student's value has the seconds that it took
    for name in [name for name in facts.get("holds", ()) if name.startswith("labels/")]:
        del facts["holds"][name]  # manifests, with their seconds
    return _timeless(facts)


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in TIMES}
    return value


def kill_and_resume(mortals: Mortals, run: Whole, at: int, half: bool) -> None:
    """Kill it at a change, start the same command again, and want what the uninterrupted one left, no more, no less."""
    for folder in (run.place.home, run.place.runs):
        shutil.rmtree(folder, ignore_errors=True)
    killed = mortals.run(run.place, run.settings, at, half)
    again = mortals.run(run.place, run.settings)
    what = f"killed at {at} of {len(run.changes)}, {run.changes[at]}, {'half-written' if half else 'before it'}"
    said = "\n".join([what, *again.err.splitlines()[-20:]])
    assert (killed.code, again.code) == (-SIGKILL, 0), said
    assert "Traceback" not in again.err, said
    found = left(run.place)
    assert sorted(set(found) ^ set(run.left)) == [], said
    assert [name for name in found if found[name] != run.left[name]] == [], said


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_is_written_aside_and_renamed(wholes, family):
    run = wholes(family)
    for change in run.changes:
        assert change.path.startswith((f"{run.place.home}/", f"{run.place.runs}/")) or change.kind == "mkdir", change
        name = Path(change.path).name
        if change.kind == "open":  # nothing is written in place but the rows of a log
            assert re.fullmatch(r"\..+\.\w{8}\.\w+|.*\.lock", name), change
        elif change.kind == "rename":
            assert name.startswith(f".{Path(change.to).name}."), change
        elif change.kind == "append":
            assert name == "log.csv", change


@pytest.mark.parametrize(("family", "files"), [(family, files) for family in STAGES for files in STAGES[family]])
def test_killed_while_writing_in_each_stage(mortals, wholes, family, files):
    run = wholes(family)
    renames = [
        at for at, change in enumerate(run.changes) if change.kind == "rename" and fnmatch(change.to, f"*{files}")
    ]
    kill_and_resume(mortals, run, renames[-1], half=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_at_every_write(mortals, wholes, family):
    run, lost = wholes(family), []
    for at in range(len(run.changes)):
        for half in run.moments(at):
            try:
                kill_and_resume(mortals, run, at, half)
            except AssertionError as error:
                lost.append(str(error))
    assert not lost, "\n\n".join([f"{len(lost)} moments", *lost])


@pytest.mark.slow
def test_a_run_killed_in_every_stage(place, long, uninterrupted, same_run):
    again = ("run", *long, "--json")

    run = place.start(*again)
    assert run.signal_when(SIGKILL, lambda: "made expert 2" in run.err).code == -SIGKILL

    run = place.start(*again)
    killed = run.signal_when(SIGKILL, lambda: place.logged() > 1.5 * CHECKPOINT_EVERY)
    done = place.logged()
    assert killed.code == -SIGKILL
    assert "kept expert 2 of 6" in killed.err
    assert "made expert 1" not in killed.err
    assert "made set" not in killed.err

    run = place.start(*again)
    killed = run.signal_when(SIGKILL, lambda: "made student 1 on the distilled set" in run.err)
    assert killed.code == -SIGKILL
    assert "kept expert 4 of 6" in killed.err
    assert "made expert" not in killed.err
    first = int(re.findall(r"synthesis resumes at iteration (\d+) of 60", killed.err)[0])
    assert 0 < done - first <= CHECKPOINT_EVERY
    assert not (place.folder() / "report.json").exists()

    whole = place.dd(*again)
    assert whole.code == 0
    assert "kept set datm" in whole.err
    assert "synthesis resumes" not in whole.err
    assert "kept student 1 on the distilled set" in whole.err
    assert "made student 1 on random real images" in whole.err
    same_run(place, whole.report, *uninterrupted)
    assert place.half_written() == []
    assert not (place.folder() / "checkpoint.safetensors").exists()
