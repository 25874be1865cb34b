"""One damaged byte, wherever it is: the same command ends in the same bits, or names the file; it never ends elsewhere.

Every file that a run leaves, or would resume from, is damaged one byte at a time at random places.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from dd.engine.checkpoint import Checkpoint
from dd.labels import LabelStore
from dd.training.passes import PassFile

from .conftest import ALIKE, Place

SAMPLED = 6  # damages of each state, every time
THOROUGH = 350  # and in `make test-slow`
HEAD = 4000  # bytes; half of the damages are there, where a file says what it is
KEPT = ("set.safetensors", "start.safetensors", "log.csv", "labels/*.safetensors")

MATCHING = (
    "method=mtt",
    *ALIKE,
    *("experts.count=2", "experts.epochs=2", "experts.batch=16", "start_max=1", "iterations=25", "steps=1"),
    *("lr_lr=1e-6", "eval.steps=3", "eval.full=false", "eval.probes=1", "eval.probe_steps=2"),
)
TAUGHT = (
    "method=cda",
    *("ipc=2", "device=cpu", "compile=false", "student.depth=1", "student.width=4", "student.norm=batch"),
    *("squeeze.epochs=4", "squeeze.batch=8", "squeeze.lr=0.05", "iterations=25", "lr_img=0.1", "batch=3", "roll=1"),
    *("crop=0.5", "eval.protocol=quick-soft", "eval.epochs=4", "eval.batch=3", "eval.students=2", "eval.full=false"),
    "eval.probes=0",
)
# what is run, and the call, counted from the first, at which the machine is lost; None for a run that went through
STATES = {
    "finished": (MATCHING, None, 0),
    "synthesis": (MATCHING, (Checkpoint, "save"), 2),
    "taught": (TAUGHT, None, 0),
    "teacher": (TAUGHT, (PassFile, "save"), 3),
    "part": (TAUGHT, (Checkpoint, "save"), 4),
    "labels": (TAUGHT, (LabelStore, "make"), 3),
}


@dataclass(frozen=True)
class State:
    """Files as a run left them, the command that left them, and what it ends in."""

    folder: Path
    command: tuple[str, ...]
    bits: dict[str, bytes]
    scores: list

    def put(self, place: Place) -> None:
        for name in ("home", "runs"):
            shutil.rmtree(place.path / name, ignore_errors=True)
            shutil.copytree(self.folder / name, place.path / name)

    def files(self) -> list[Path]:
        found = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return sorted(path for path in found if path.suffix != ".lock" and path.name != ".lock")


def bits_of(place: Place) -> dict[str, bytes]:
    folder = place.folder()
    return {str(path.relative_to(folder)): path.read_bytes() for name in KEPT for path in folder.glob(name)}


def scores_of(report: dict) -> list:
    return [report[arm] for arm in ("accuracy", "control", "start")]


def lost_at(owner: type, name: str, calls: int):
    """The process ends as a killed one does, right after so many calls."""
    real, seen = getattr(owner, name), []

    def mortal(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        seen.append(1)
        if len(seen) == calls:
            raise KeyboardInterrupt
        return result

    return patch.object(owner, name, mortal)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Where files are damaged."""
    return Place(tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module", params=STATES)
def state(request, tmp_path_factory, few, damaged) -> State:
    settings, lost, calls = STATES[request.param]
    command = ("run", *settings, few, "--json")
    for name in ("home", "runs"):
        shutil.rmtree(damaged.path / name, ignore_errors=True)
    whole = damaged.dd(*command)
    assert whole.code == 0, whole.err
    bits, scores = bits_of(damaged), scores_of(whole.report)
    folder = tmp_path_factory.mktemp("state")
    if lost:
        for name in ("home", "runs"):
            shutil.rmtree(damaged.path / name)
        with lost_at(*lost, calls):
            assert damaged.dd(*command).code == 130
    for name in ("home", "runs"):
        shutil.copytree(damaged.path / name, folder / name)
    return State(folder, command, bits, scores)


def flip(path: Path, rng: random.Random) -> str:
    """Another byte at a random place, of a text half of the time a digit for a digit; says which."""
    content = bytearray(path.read_bytes())
    digits = [at for at, byte in enumerate(content[:HEAD]) if byte in b"0123456789"]
    if digits and rng.random() < 0.5:
        at = rng.choice(digits)
        byte = rng.choice([digit for digit in b"0123456789" if digit != content[at]])
    else:
        at = rng.randrange(min(len(content), HEAD) if rng.random() < 0.5 else len(content))
        byte = content[at] ^ rng.randrange(1, 256)
    before, content[at] = content[at], byte
    path.write_bytes(content)
    return f"{path.name}: byte {at} of {len(content)}, {bytes([before])!r} to {bytes([byte])!r}"


def check(state: State, place: Place, what: str, name: str) -> None:
    """The same bits, or one refusal that names the file and after which the same command resumes."""
    ended = place.dd(*state.command)
    assert "Traceback" not in ended.err, f"{what}\n{ended.err}"
    if ended.code:
        assert name in ended.err.splitlines()[-1], f"{what}\n{ended.err}"
        ended = place.dd(*state.command)
    assert ended.code == 0, f"{what}: refused again\n{ended.err}"
    assert bits_of(place) == state.bits, f"{what}\n{ended.err}"
    assert scores_of(ended.report) == state.scores, f"{what}\n{ended.err}"


def damage(state: State, place: Place, count: int) -> None:
    rng = random.Random(0)
    files = [file for file in state.files() if (state.folder / file).stat().st_size]
    for number in range(count):
        file = files[number % len(files)] if number < len(files) else rng.choice(files)
        state.put(place)
        check(state, place, f"{number}: {flip(place.path / file, rng)}", file.name)


def test_a_damaged_byte_is_healed_or_named(state, damaged):
    damage(state, damaged, SAMPLED)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_damaged_bytes_are_healed_or_named(state, damaged):
    damage(state, damaged, THOROUGH)


def test_without_damage_every_state_ends_in_the_same(state, damaged):
    state.put(damaged)
    ended = damaged.dd(*state.command)
    assert ended.code == 0
    assert (bits_of(damaged), scores_of(ended.report)) == (state.bits, state.scores)
    assert " is damaged" not in ended.err
