import logging
import math
import os
import subprocess
import sys
import time

import pytest

from dd.errors import RunError, UsageError
from dd.recipes import parse_overrides, run_options
from dd.runs import trackers
from dd.runs.track import replayed
from dd.runs.trackers import Results, Subject, Trackers, chosen, within

NOTHING = Results({}, ["a"], [], {}, "set-x", [], [], {})


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("WANDB", "TRACKIO")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("word", "alone", "in_agent"),
    [
        ([], (), ("wandb",)),
        (["track=null"], (), ("wandb",)),
        (["track=none"], (), ()),
        (["track=csv"], (), ()),
        (["track=trackio"], ("trackio",), ("trackio",)),
        (["track=csv,wandb,trackio"], ("wandb", "trackio"), ("wandb", "trackio")),
        (["--track", "[wandb, wandb]"], ("wandb",), ("wandb",)),
        (["track=['csv', 'trackio']"], ("trackio",), ("trackio",)),
    ],
)
def test_who_follows_a_run(word, alone, in_agent, monkeypatch):
    track = run_options(parse_overrides(word)).track
    assert chosen(track) == alone
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert chosen(track) == in_agent


def test_an_unknown_tracker_is_refused_by_name():
    with pytest.raises(UsageError, match="unknown tracker 'wandd'; did you mean 'wandb'"):
        run_options({"track": "csv,wandd"})


def test_a_tracker_that_is_not_installed_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setitem(trackers._KNOWN, "trackio", "dd.runs._no_such:X")
    with pytest.raises(UsageError, match=r"track=trackio: .*pip install 'dd-workbench\[track\]'"):
        Trackers(["trackio"], Subject(os.curdir, "x"))


class Frail:
    """Fails at one of its calls, and counts them."""

    calls: list

    def __init__(self, subject):
        self._call("begin")

    def log(self, row):
        self._call("log")

    def results(self, results):
        self._call("results")

    def close(self, failed):
        self._call("failed" if failed else "close")

    def _call(self, name):
        self.calls.append(name)
        if name == self.breaks:
            raise ConnectionError("nobody\nanswers")


class Sound(Frail):
    breaks = ""


@pytest.mark.parametrize("breaks", ["begin", "log", "results", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_line_and_takes_nobody_along(breaks, monkeypatch, caplog, tmp_path):
    calls = {Frail: [], Sound: []}
    monkeypatch.setattr(Frail, "breaks", breaks, raising=False)
    monkeypatch.setattr(Frail, "calls", calls[Frail], raising=False)
    monkeypatch.setattr(Sound, "calls", calls[Sound], raising=False)
    monkeypatch.setattr(trackers, "tracker_class", {"a": Frail, "b": Sound}.__getitem__)
    with caplog.at_level(logging.WARNING, "dd"):
        both = Trackers(["a", "b"], Subject(tmp_path, "x"))
        for it in range(2):
            both.log({"it": it})
        both.results(NOTHING)
        both.close()
    whole = ["begin", "log", "log", "results", "close"]
    assert calls[Sound] == whole
    ended = [] if breaks in ("begin", "close") else ["close"]
    assert calls[Frail] == whole[: whole.index(breaks) + 1] + ended
    assert [record.getMessage() for record in caplog.records] == [
        "a no longer follows this run (nobody); the run goes on"
    ]


def test_who_watches_may_end_a_run():
    def watch(row):
        raise KeyError(row["it"])

    with pytest.raises(KeyError):
        Trackers(watch=watch).log({"it": 3})


def test_somebody_who_does_not_answer_is_not_waited_for():
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        within(0.05, lambda: time.sleep(20))
    assert time.monotonic() - began < 5
    assert within(20, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(20, lambda: 1 / 0)


def test_rows_are_replayed_as_they_were_logged():
    (row,) = replayed([{"it": "3", "loss": "0.5", "probe": "", "note": "a b", "bad": "nan"}])
    assert math.isnan(row.pop("bad"))
    assert row == {"it": 3, "loss": 0.5, "probe": None, "note": "a b"}


PLUG_IN = """
class Lines:
    def __init__(self, subject):
        self.file = open(subject.folder / "lines", "w")
        print(subject.name, file=self.file)

    def log(self, row):
        print(row["loss"], file=self.file)

    def results(self, results):
        print(results.name, file=self.file)

    def close(self, failed):
        self.file.close()


class Wrong:
    pass
"""


def test_a_tracker_of_an_installed_package_follows_a_run(tmp_path, monkeypatch):
    facts = tmp_path / "mine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[dd.trackers]\ntheirs = their_tracker:Lines\nwrong = their_tracker:Wrong\n"
    )
    (tmp_path / "their_tracker.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(tmp_path)
    assert chosen(["theirs"]) == ("theirs",)
    both = Trackers(["theirs"], Subject(tmp_path, "x"))
    both.log({"it": 0, "loss": 0.5})
    both.results(NOTHING)
    both.close()
    assert (tmp_path / "lines").read_text() == "x\n0.5\nset-x\n"
    with pytest.raises(RunError, match=r"tracker 'wrong' of the package mine .* is not a class with log"):
        Trackers(["wrong"], Subject(tmp_path, "x"))


SCRIPT = """
import sys
from pathlib import Path
from dd.runs.trackers import Subject, Trackers, chosen
both = Trackers(chosen(sys.argv[2:]), Subject(Path(sys.argv[1]), "x/y", {"m": "datm"}))
both.log({"it": 0, "loss": 0.5, "note": None})
both.close()
print("wandb" in sys.modules, "trackio" in sys.modules)
"""


def run_script(folder, *arguments, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "TRACKIO"))}
    home = {"HOME": str(folder.parent), "XDG_CACHE_HOME": str(folder.parent / "cache")}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, folder, *arguments]
    return subprocess.run(command, env={**clean, **home, **env}, capture_output=True, text=True, timeout=120)


def test_no_tracker_is_even_imported_unless_it_is_asked_for(tmp_path):
    done = run_script(tmp_path / "run")
    assert (done.stdout, done.stderr) == ("False False\n", "")


@pytest.mark.slow
def test_no_key_is_written(tmp_path):
    folder, key = tmp_path / "run", ("5ec2e7" * 7)[:40]
    done = run_script(folder, "wandb", WANDB_MODE="offline", WANDB_API_KEY=key)
    assert done.returncode == 0, done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if key.encode() in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"WANDB_MODE": "nonsense"}, {"WANDB_API_KEY": "x"}, {"WANDB_MODE": "online"}])
def test_wandb_that_cannot_start_keeps_the_run_on_the_disk(wrong, tmp_path):
    folder = tmp_path / "run"
    done = run_script(folder, "wandb", WANDB_BASE_URL="http://127.0.0.1:9", **wrong)
    assert done.returncode == 0, done.stderr
    assert "W&B could not start" in done.stderr
    assert "Traceback" not in done.stderr
    (kept,) = (folder / "wandb").glob("offline-run-*")
    assert kept.name.endswith((folder / "wandb-id").read_text().strip())


@pytest.mark.slow
def test_a_sweep_agent_switches_wandb_on_and_its_environment_is_respected(tmp_path):
    (tmp_path / "w").mkdir()
    env = {"WANDB_DIR": str(tmp_path / "w"), "WANDB_RUN_ID": "mine", "WANDB_MODE": "offline"}
    done = run_script(tmp_path / "run", WANDB_SWEEP_ID="abc", **env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True False\n"
    assert "WARNING" not in done.stderr
    kept = [path.name for path in (tmp_path / "w" / "wandb").glob("offline-run-*")]
    assert kept
    assert all("-mine" in path for path in kept)
    assert not (tmp_path / "run").exists()
