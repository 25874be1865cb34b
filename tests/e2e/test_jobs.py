"""`dd run ... jobs=3`: a process that leads, others that help, and what becomes of a run when one of them is lost."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from dd.io import locked
from dd.recipes import parse_overrides, resolve
from dd.runs import Store

from .conftest import PATIENCE, SMALL, Place

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # sums in another order differ in the last bits
MADE = re.compile(r"^made (.+?) in [0-9.]+ s", re.MULTILINE)
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found by /proc")


@pytest.fixture(scope="session")
def several(pictures):
    """Settings of a run whose experts and students can be divided; a piece takes longer than a look at the jobs."""
    return (*SMALL, pictures, "experts.count=5", "experts.epochs=60", "eval.students=3", "eval.steps=80")


@pytest.fixture(scope="session")
def alone(tmp_path_factory, several):
    """Where one process did that run, its report, and what it made."""
    place = Place(tmp_path_factory.mktemp("alone"))
    ended = place.process("run", *several, "--json", **ONE_THREAD)
    assert ended.code == 0, ended.err
    return place, ended.report, sorted(MADE.findall(ended.err))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, long):
    """The report of the long run by one process with one thread."""
    ended = Place(tmp_path_factory.mktemp("undisturbed")).process("run", *long, "--json", **ONE_THREAD)
    assert ended.code == 0, ended.err
    return ended.report


@pytest.fixture
def marked(place, long):
    """Words of a run that can be stopped, and a word by which its processes are found."""
    mark = f"out={place.runs}"
    return ["run", *long, mark, "--json"], mark


def made(place):
    """What the jobs of the only run say they made."""
    logs = [log.read_text() for log in sorted((place.folder() / "jobs").glob("*")) if log.suffix in (".log", ".err")]
    return sorted(MADE.findall("".join(logs)))


def processes(*words):
    """The processes that have all these words on their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if set(words) <= set(file.read_bytes().decode(errors="replace").split("\0")):
                found.append(int(file.parent.name))
    return found


def run_until(place, words, happened, act):
    """Start a run; once something happened, act; return how the run ended."""
    running = place.start(*words, **ONE_THREAD)
    deadline = time.monotonic() + PATIENCE
    try:
        while not happened():
            assert running._process.poll() is None, running.err
            assert time.monotonic() < deadline, running.err
            time.sleep(0.01)
        act(running)
    except BaseException:
        running._process.kill()
        raise
    return running.end()


def test_jobs_share_a_run_and_its_bits_are_those_of_one_process(place, several, alone, same_run):
    ended = place.process("run", *several, "on=local", "jobs=3", "--json", **ONE_THREAD)
    assert ended.code == 0, ended.err
    there, report, kept = alone
    same_run(place, ended.report, there, report)
    assert ended.report["fresh"] is True
    assert made(place) == kept  # and so nothing twice
    assert "submitted the run as process" in ended.err
    assert re.search(r"prepare: 2 helpers for 5 pieces \(process \d+, process \d+\)", ended.err)
    assert not (place.folder() / "jobs" / "offer.json").exists()
    again = place.dd("run", *several, "jobs=3", "--json")
    assert (again.code, again.report["fresh"]) == (0, False)
    assert "already finished" in again.err


def test_a_helper_makes_what_is_free_waits_for_nobody_and_ends(place, several):
    with place.entered():
        recipe, store = resolve(parse_overrides(several)), Store()
        from dd.pipeline.task import make_task

        task = make_task(recipe)
        needs = [wanted for need in recipe.method.needs(task) for wanted in need.artefacts()]
        taken = store.path(needs[2].kind, needs[2].spec).with_suffix(".lock")
        with locked(taken, "another process"):
            ended = place.dd("run", *several, "--helper")
        assert ended.code == 0, ended.err
        assert [store.has(one.kind, one.spec) for one in needs] == [True, True, False, True, True]
    assert not place.runs.exists()  # the run's folder is the lead's
    assert place.dd("run", *several, "--lead").code == 0
    # not one of those that only drew the curve of the held-out accuracy
    (student, *_) = [file for file in (place.home / "students").glob("*.json") if '"test":' in file.read_text()]
    student.unlink()
    ended = place.dd("run", *several, "--helper")
    assert (ended.code, len(re.findall("^made student", ended.err, re.MULTILINE))) == (0, 1)


@pytest.mark.slow
def test_jobs_fill_a_pool_of_experts(place, several):
    ended = place.process("experts", "make", *several, "jobs=3", "--json", **ONE_THREAD)
    assert ended.code == 0, ended.err
    assert (ended.report["experts"], ended.report["missing"]) == (5, 5)
    assert len(ended.report["holdout"]) == 5
    assert re.search(r"prepare: 2 helpers for 5 pieces \(process \d+, process \d+\)", ended.err)
    experts = [what for what in made(place) if what.startswith("expert")]
    assert len(experts) == len(set(experts)) == 5
    assert not (place.folder() / "jobs" / "offer.json").exists()
    again = place.process("experts", "make", *several, "jobs=3", "--json", **ONE_THREAD)
    assert (again.report["missing"], again.report["holdout"]) == (0, ended.report["holdout"])


@needs_proc
@pytest.mark.slow
def test_a_killed_helper_costs_nothing_but_its_unit(place, several, alone):
    mark = f"out={place.runs}"

    def kill(_):
        os.kill(processes(mark, "--helper")[0], signal.SIGKILL)

    words = ["run", *several, mark, "jobs=2", "--json"]
    ended = run_until(place, words, lambda: processes(mark, "--helper"), kill)
    assert ended.code == 0, ended.err
    assert ended.report["accuracy"] == alone[1]["accuracy"]
    assert re.search(r"helper process \d+ was lost; others make what it left", ended.err)


@needs_proc
@pytest.mark.slow
def test_a_stopped_lead_is_started_again_and_resumes(place, marked, undisturbed):
    words, mark = marked

    def stop(_):
        os.kill(processes(mark, "--lead")[0], signal.SIGTERM)

    ended = run_until(place, [*words, "jobs=2"], lambda: place.logged() >= 15, stop)
    assert ended.code == 0, ended.err
    assert re.search(r"submitted the run as process \d+; process \d+ was stopped, and it resumes", ended.err)
    assert int(re.findall(r"synthesis resumes at iteration (\d+) of 60", ended.err)[0]) >= 10
    assert ended.report["accuracy"] == undisturbed["accuracy"]
    assert ended.err.count("stopped by SIGTERM") == 0  # the lead's own words, which are not those of the run


@pytest.mark.slow
@needs_proc
def test_ctrl_c_cancels_the_jobs_and_the_same_command_resumes(place, marked, undisturbed):
    words, mark = marked
    words = [*words, "jobs=2"]
    ended = run_until(
        place, words, lambda: place.logged() >= 15, lambda running: running._process.send_signal(signal.SIGINT)
    )
    assert ended.code == 130
    assert processes(mark, "--lead") == processes(mark, "--helper") == []
    (error,) = [line for line in ended.err.splitlines() if "SIGINT" in line]
    stopped = json.loads(error)["error"]
    assert stopped.startswith(
        "stopped by SIGINT; the jobs are cancelled and everything finished is kept; the same command resumes: dd run"
    )
    again = place.process(*words, **ONE_THREAD)
    assert again.code == 0, again.err
    assert int(re.findall(r"synthesis resumes at iteration (\d+) of 60", again.err)[0]) >= 10
    assert again.report["accuracy"] == undisturbed["accuracy"]


def test_an_error_of_the_lead_is_that_of_the_run(place, several):
    ended = place.process("run", *several, "jobs=2", "ipc=1000", **ONE_THREAD)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("dd: ipc1000 asks for 1000 images of class")
    assert ended.err.count("asks for") == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("on=slurmm",), "on='slurmm' is not a choice; expected 'local' or 'slurm' or 'ray'"),
        (("jobs=0",), "jobs=0 is out of range; expected a whole number >= 1"),
        (("slurm.partition=gpu",), "slurm.partition is an option of Slurm's jobs: add on=slurm, or leave it out"),
        (("ray.gpus=1",), "ray.gpus is an option of Ray's jobs: add on=ray, or leave it out"),
        (("on=slurm", "slurm.time=soon"), "slurm.time='soon': 'soon' is not a time; give minutes, H:MM or D-HH:MM"),
        (("on=slurm", "slurm.partitoin=gpu"), "unknown key 'slurm.partitoin'; did you mean 'slurm.partition'?"),
        (("on=slurm", "device=gpu"), "device='gpu' is not a device; use auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_wrong_keys_are_refused_in_one_line(place, several, words, why):
    ended = place.dd("run", *several, *words)
    assert (ended.code, ended.err) == (2, f"dd: {why}\n")


def test_without_submitit_or_slurm_the_way_out_is_said(place, several, tmp_path, monkeypatch):
    ended = place.dd("run", *several, "on=slurm", PATH=str(tmp_path))
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == (
        "dd: on=slurm: no sbatch on the PATH; start the command on a machine of the cluster"
    )
    monkeypatch.setitem(sys.modules, "submitit", None)
    ended = place.dd("run", *several, "on=slurm")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "dd: on=slurm: submitit is not installed; pip install 'dd-workbench[slurm]'"


def test_under_torchrun_no_jobs_are_started(place, several):
    ended = place.dd("run", *several, "jobs=2", WORLD_SIZE="2")
    assert ended.code == 2
    assert "on=local jobs=2 start processes themselves: leave out torchrun" in ended.err


@pytest.mark.slow
def test_a_second_driver_waits_for_the_first(place, several):
    with place.entered():
        from dd.pipeline import locate

        folder = locate(resolve(parse_overrides(several)))
        with locked(folder.jobs / ".lock", "the first"):
            second = place.start("run", *several, "jobs=2", "--json", **ONE_THREAD)
            deadline = time.monotonic() + PATIENCE
            while "waiting for another process" not in second.err:
                assert second._process.poll() is None, second.err
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert place.dd("run", *several).code == 0
        ended = second.end()
    assert (ended.code, ended.report["fresh"]) == (0, False)


def test_the_jobs_of_a_run_are_no_part_of_it(several):
    plain = resolve(parse_overrides(several))
    shared = resolve(parse_overrides([*several, "on=slurm", "jobs=8", "slurm.time=1:30", "slurm.gpus=1"]))
    assert (shared.hash, shared.to_toml()) == (plain.hash, plain.to_toml())


def test_nothing_is_left_of_the_words_that_are_left_out():
    from dd.recipes.given import without

    words = [
        "method=dm",
        "--on",
        "slurm",
        "--jobs=3",
        "+slurm.time=9",
        "--force",
        "ipc=1",
        '{"on": "slurm", "seed": 1}',
    ]
    kept = without(words, lambda key: key.partition(".")[0] in ("on", "jobs", "slurm"))
    assert kept == ["method=dm", "--force", "ipc=1", '{"seed": 1}']
    assert without(["--force", "ipc=1", "--seed", "-1"], lambda key: key == "seed") == ["--force", "ipc=1"]
