"""`dd run ... on=slurm jobs=3` on a cluster of two nodes."""

import json
import os
import re
import signal
import subprocess

import pytest

from dd import load
from dd.io import sha256_tensors

from ..e2e.test_jobs import ONE_THREAD, made, processes, run_until
from .conftest import squeue, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.usefixtures("emptied")]

ON_SLURM = ("on=slurm", "jobs=3", "slurm.partition=main", "slurm.cpus=1", "slurm.time=0:10", "slurm.memory=300M")


@pytest.fixture
def words(long):
    """Words of a run that can be stopped."""
    return ["run", *long, *ON_SLURM, "--json"]


def scancel(*how):
    subprocess.run(["scancel", *how], check=True)


def lead(place):
    """The number of the run's lead, from what the driver said."""
    return re.findall(r"submitted the run as job (\d+)", (place.path / "err").read_text())[-1]


def test_jobs_of_a_cluster_share_a_run_and_its_bits_are_those_of_one_process(place, several, alone):
    ended = place.process("run", *several, *ON_SLURM, "slurm.setup=echo set up", "--json", **ONE_THREAD)
    assert ended.code == 0, ended.err
    there, report, kept = alone
    assert made(place) == kept  # and so nothing twice
    assert re.search(r"prepare: 2 helpers for 5 pieces \(job \d+_0, job \d+_1\)", ended.err)
    (script,) = (place.folder() / "jobs").glob(f"{lead(place)}_submission.sh")
    options = script.read_text()
    for option in ("partition=main", "cpus-per-task=1", "time=10", "mem=300M", "signal=TERM@120", "no-requeue"):
        assert f"#SBATCH --{option}\n" in options
    assert "\necho set up\n" in options
    assert re.search("^srun .* --cpus-per-task=1 ", options, re.MULTILINE)
    for arm in ("accuracy", "control", "start"):
        assert ended.report[arm] == report[arm], arm
    one, two = load(place.folder() / "set.safetensors"), load(there.folder() / "set.safetensors")
    assert sha256_tensors({"images": one.images}) == sha256_tensors({"images": two.images})


def test_jobs_of_a_cluster_fill_a_pool_of_experts(place, several, alone):
    ended = place.process("experts", "make", *several, *ON_SLURM, "--json", **ONE_THREAD)
    assert ended.code == 0, ended.err
    assert (ended.report["missing"], len(ended.report["holdout"])) == (5, 5)
    assert [what for what in made(place) if what.startswith("expert")] == [
        what for what in alone[2] if what.startswith("expert")
    ]


def test_a_killed_helper_costs_nothing_but_its_unit(place, several, alone):
    def helpers():
        return [job for job, state in squeue() if "_" in job and state == "RUNNING"]

    words = ["run", *several, *ON_SLURM, "--json"]
    ended = run_until(place, words, helpers, lambda _: scancel("--signal=KILL", helpers()[0]))
    assert ended.code == 0, ended.err
    assert ended.report["accuracy"] == alone[1]["accuracy"]


def test_a_preempted_lead_is_submitted_again_and_resumes(place, words, undisturbed):
    ended = run_until(place, words, lambda: place.logged() >= 15, lambda _: scancel(lead(place)))
    assert ended.code == 0, ended.err
    assert re.search(r"submitted the run as job \d+; job \d+ was stopped, and it resumes", ended.err)
    assert int(re.findall(r"synthesis resumes at iteration (\d+) of 60", ended.err)[0]) >= 10
    assert ended.report["accuracy"] == undisturbed["accuracy"]


def test_a_killed_lead_is_submitted_again_and_resumes(place, words, undisturbed):
    def kill(_):  # scancel --signal=KILL ends the step, whose process may receive SIGTERM first and save
        for job in processes("submitit.core._submit"):
            os.kill(job, signal.SIGKILL)

    ended = run_until(place, words, lambda: place.logged() >= 15, kill)
    assert ended.code == 0, ended.err
    assert re.search(r"submitted the run as job \d+; job \d+ was lost, and it resumes", ended.err)
    assert int(re.findall(r"synthesis resumes at iteration (\d+) of 60", ended.err)[0]) >= 10
    assert ended.report["accuracy"] == undisturbed["accuracy"]


def test_ctrl_c_cancels_the_jobs_and_the_same_command_resumes(place, words, undisturbed):
    ended = run_until(
        place, words, lambda: place.logged() >= 15, lambda running: running._process.send_signal(signal.SIGINT)
    )
    assert ended.code == 130
    (error,) = [line for line in ended.err.splitlines() if "SIGINT" in line]
    assert "the jobs are cancelled and everything finished is kept" in json.loads(error)["error"]
    wait_until(lambda: not squeue(), "no jobs are left")
    again = place.process(*words, **ONE_THREAD)
    assert again.code == 0, again.err
    assert int(re.findall(r"synthesis resumes at iteration (\d+) of 60", again.err)[0]) >= 10
    assert again.report["accuracy"] == undisturbed["accuracy"]


def test_a_lead_that_lost_its_driver_is_waited_for(place, words):
    words = [*words, "iterations=4000"]  # longer than a command takes to begin
    lost = place.start(*words, **ONE_THREAD)
    lost.signal_when(signal.SIGKILL, lambda: place.logged() >= 5)
    ended = place.process(*words, **ONE_THREAD)
    assert ended.code == 0, ended.err
    assert "another process is executing the run" in ended.err
    assert "submitted the run" not in ended.err
    assert len(ended.report["accuracy"]["values"]) == 3


def test_doctor_says_what_slurm_answers(place, monkeypatch, tmp_path):
    assert place.dd("doctor", "--json").report["tools"]["Slurm"] == "2 nodes in partition main*, up"
    with monkeypatch.context() as patch:  # the fixtures that empty the queue afterwards need the real one
        patch.setenv("SLURM_CONF", str(tmp_path / "no.conf"))
        assert place.dd("doctor", "--json").report["tools"]["Slurm"].startswith("does not answer: ")


def test_what_slurm_refuses_is_said_in_one_line(place, words):
    ended = place.process(*words, "slurm.partition=gpu", **ONE_THREAD)
    assert ended.code == 2
    assert "on=slurm: the jobs were refused: " in ended.err.splitlines()[-1]
    assert "partition" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
