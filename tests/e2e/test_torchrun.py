"""`torchrun -m dd run ...`: several processes, one run; and on again with another number of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dd import load

from .conftest import PATIENCE


@pytest.fixture
def words(small):
    """Settings of a short distribution-matching run."""
    shared = [
        word for word in small if word.startswith(("ipc=", "device=", "compile=", "student.", "eval.", "dataset="))
    ]
    return ["run", "method=dm", *shared, "iterations=6", "batch_real=8", "--json"]


def trajectory_words(method, small):
    """Settings of a short run of a trajectory method, with three images in one step and two in the next."""
    others = [word for word in small if not word.startswith("method=")]
    return ["run", f"method={method}", *others, "experts.kind=sgd", "batch=3", "lr_img=100", "--json"]


def killed(place, processes, words, happened, kill):
    """Start several processes and, once something happened, kill; returns the exit code and what they said."""
    said = place.path / "err"
    with said.open("w") as err:
        running = subprocess.Popen(
            place.torchrun_command(processes, words),
            env=place.environment | {"OMP_NUM_THREADS": "1"},
            cwd=place.path,
            stdout=err,
            stderr=err,
        )
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < deadline
            assert running.poll() is None, said.read_text()
            time.sleep(0.01)
        kill()
        code = running.wait(PATIENCE)
    return code, said.read_text()


def kill_all_with(word):
    """SIGKILL to every process that has `word` on its command line."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in cmdline.read_bytes():
                os.kill(int(cmdline.parent.name), signal.SIGKILL)


def test_two_processes_do_one_run(place, words, tmp_path):
    alone = place.dd(*words).report
    other = type(place)(tmp_path / "other")
    done = other.torchrun(2, words)
    report = json.loads(done.stdout)  # one report, by one process
    assert done.stderr.count("made set dm") == 1
    one, two = load(alone["files"]["set"]), load(report["files"]["set"])
    assert (one.images - two.images).abs().max() < 1e-3
    assert not torch.equal(two.images, load(report["files"]["start"]).images)
    again = other.torchrun(2, words)
    assert "already finished" in again.stderr
    assert json.loads(again.stdout)["accuracy"] == report["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mtt", "datm"])
def test_two_processes_share_the_inner_steps_of_a_run(place, small, method, tmp_path):
    words = trajectory_words(method, small)
    alone = place.dd(*words).report
    report = json.loads(type(place)(tmp_path / "other").torchrun(2, words).stdout)
    one, two, start = load(alone["files"]["set"]), load(report["files"]["set"]), load(report["files"]["start"])
    assert (one.images - two.images).abs().max() < 1e-3
    assert (one.images - start.images).abs().max() > 1e-2
    if method == "datm":
        assert (one.labels - two.labels).abs().max() < 1e-3
        assert not torch.equal(two.labels, start.labels)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found by /proc")
@pytest.mark.parametrize(("method", "iterations"), [pytest.param("dm", 400, marks=pytest.mark.slow), ("datm", 100)])
def test_a_killed_run_goes_on_with_another_number_of_processes(place, words, small, method, iterations):
    mark = f"out={place.runs}"  # by which its processes are known, wherever torchrun puts them
    longer = [*(words if method == "dm" else trajectory_words(method, small)), f"iterations={iterations}", mark]
    killed(place, 2, longer, lambda: place.logged() >= 15, lambda: kill_all_with(mark))
    done = place.dd(*longer)
    assert done.code == 0, done.err
    first = int(re.findall(rf"synthesis resumes at iteration (\d+) of {iterations}", done.err)[0])
    assert first >= 10


def made(err):
    """What processes say they made, in order of the names, without the time that it took and what it reached."""
    return sorted(re.findall(r"^made (.+?) in [0-9.]+ s", err, re.MULTILINE))


@pytest.fixture(params=[*(pytest.param(name, marks=pytest.mark.slow) for name in ("datm", "mtt", "cda")), "rded"])
def staged(request, pictures):
    """Settings of a short run with several experts or teachers, stored labels of several epochs, and students."""
    shared = ("ipc=2", "device=cpu", "compile=false", "eval.full=false", "eval.students=3", "eval.steps=12", "--json")
    network = ("student.arch=convnet", "student.depth=1", "student.width=4", "student.norm=batch")
    squeeze = ("squeeze.epochs=20", "squeeze.batch=16", "squeeze.lr=0.05")
    teachers = ("teachers=student,convnet:depth=1:width=6:norm=batch",)
    trajectory = (
        *network[:3],
        *("experts.count=4", "experts.epochs=3", "experts.batch=16", "start_max=2", "iterations=4", "steps=2"),
        *("eval.protocol=smoke", "eval.probe_steps=5"),
    )
    own = {
        "datm": trajectory,
        "mtt": trajectory,
        "cda": (*network, *squeeze, "iterations=12", "batch=2", "roll=2", "crop=0.5", "eval.protocol=quick-soft"),
        "rded": (*network, *squeeze, *teachers, "crops.candidates=12", "eval.protocol=quick-soft", "labels.mode=store"),
    }[request.param]
    return ("run", f"method={request.param}", pictures, *own, *shared)


SHARED = ("expert", "teacher", "student", "patches", "part")


def labelled(err):
    """How many epochs of labels processes say they made."""
    return sum(int(count) for count in re.findall(r"made the labels of (\d+) of \d+ epochs", err))


def assert_same(staged, one, two):
    """Two reports are those of one run, up to the order of sums."""
    first, second = load(one["files"]["set"]), load(two["files"]["set"])
    if "method=datm" in staged or "method=mtt" in staged:  # sums over images, in another order
        assert (first.images - second.images).abs().max() < 1e-4
    else:
        assert first.digest() == second.digest()
        assert one["accuracy"]["values"] == two["accuracy"]["values"]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_share_every_stage_and_make_nothing_twice(place, staged, processes, tmp_path):
    alone = place.dd(*staged)
    assert alone.code == 0, alone.err
    other = type(place)(tmp_path / "other")
    done = other.torchrun(processes, staged)
    together = made(done.stderr)
    assert together == sorted(set(together))
    assert {what for what in together if what.startswith(SHARED)} == {
        what for what in made(alone.err) if what.startswith(SHARED)
    }
    assert labelled(done.stderr) == labelled(alone.err)
    assert_same(staged, alone.report, json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a process is found by /proc")
def test_of_four_processes_one_is_killed_and_three_go_on(place, staged, tmp_path):
    alone = place.dd(*staged)
    other = type(place)(tmp_path / "other")
    words = [*staged, f"out={other.runs}"]
    said = other.path / "err"
    code, before = killed(
        other,
        4,
        words,
        lambda: len(made(said.read_text())) >= 3,
        lambda: os.kill(the_last_of_four(words[-1]), signal.SIGKILL),
    )
    assert code != 0
    done = other.torchrun(3, words)
    together = made(before) + made(done.stderr)
    assert len(together) == len(set(together))
    assert labelled(done.stderr) == labelled(alone.err)
    assert_same(staged, alone.report, json.loads(done.stdout))


def the_last_of_four(word):
    """The process with the highest rank that has `word` on its command line."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (place / "cmdline").read_bytes() and b"\0RANK=3\0" in (place / "environ").read_bytes():
                return int(place.name)
    raise AssertionError("it does not run")
