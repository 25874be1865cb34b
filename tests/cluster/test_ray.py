"""`dd run ... on=ray jobs=3` on a Ray cluster of two nodes."""

import contextlib
import json
import os
import re
import signal
import sys

import pytest

from dd import load
from dd.io import sha256_tensors

from ..e2e.test_jobs import ONE_THREAD, made, processes, run_until
from .conftest import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STORE = 80_000_000  # bytes, the least that Ray takes; no object of ours is in it


@contextlib.contextmanager
def two_nodes():
    """A cluster of a head and a node, each with one core; RAY_ADDRESS in the environment leads to it."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dd-workbench[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all nodes are at the loopback address
        head = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": STORE})
        try:
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
            cluster.wait_for_nodes()
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def nodes():
    """A cluster."""
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def words(long, nodes):
    """Words of a run that can be stopped."""
    return ["run", *long, "on=ray", "jobs=2", "--json"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_without_a_cluster_the_way_out_is_said(place, long, address):  # before there is one: Ray looks for processes
    pytest.importorskip("ray")
    given = () if address == "auto" else (f"ray.address={address}",)
    ended = place.process("run", *long, "on=ray", *given)
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"dd: on=ray: no cluster {'here' if address == 'auto' else f'at {address}'} (")
    assert last.endswith("); start one with ray start --head, or give ray.address=HOST:PORT")


def test_tasks_of_a_cluster_share_a_run_and_its_bits_are_those_of_one_process(place, several, alone, nodes):
    given = ("on=ray", "jobs=2", "ray.cpus=1", f"ray.address={nodes.address}")
    ended = place.process("run", *several, *given, "--json", **ONE_THREAD)
    assert ended.code == 0, ended.err
    there, report, kept = alone
    assert made(place) == kept  # and so nothing twice
    assert re.search(r"prepare: 1 helper for 5 pieces \(task 2\)", ended.err)
    for arm in ("accuracy", "control", "start"):
        assert ended.report[arm] == report[arm], arm
    one, two = load(place.folder() / "set.safetensors"), load(there.folder() / "set.safetensors")
    assert sha256_tensors({"images": one.images}) == sha256_tensors({"images": two.images})


def test_a_killed_helper_costs_nothing_but_its_unit(place, several, alone, nodes):
    words = ["run", *several, "on=ray", "jobs=2", f"out={place.runs}", "--json"]

    def helpers():
        return processes(f"out={place.runs}", "--helper")

    ended = run_until(place, words, helpers, lambda _: os.kill(helpers()[0], signal.SIGKILL))
    assert ended.code == 0, ended.err
    assert ended.report["accuracy"] == alone[1]["accuracy"]
    assert re.search(r"helper task \d+ was lost; others make what it left", ended.err)


def test_ctrl_c_cancels_the_tasks_and_the_same_command_resumes(place, words):
    words = [*words, "iterations=4000", f"out={place.runs}"]  # longer than it takes to cancel
    ended = run_until(
        place, words, lambda: place.logged() >= 15, lambda running: running._process.send_signal(signal.SIGINT)
    )
    assert ended.code == 130
    (error,) = [line for line in ended.err.splitlines() if "SIGINT" in line]
    assert "the jobs are cancelled and everything finished is kept" in json.loads(error)["error"]
    assert processes(f"out={place.runs}", "--lead") == []
    again = place.process(*words, **ONE_THREAD)
    assert again.code == 0, again.err
    assert int(re.findall(r"synthesis resumes at iteration (\d+) of 4000", again.err)[0]) >= 10


def test_a_lead_whose_node_is_lost_is_submitted_again_and_resumes(place, long, undisturbed, nodes):
    cluster = nodes
    node = cluster.add_node(num_cpus=3, object_store_memory=STORE)  # the only one that has three
    words = ["run", *long, "on=ray", "jobs=1", "ray.cpus=3", f"out={place.runs}", "--json"]

    def lose(_):
        cluster.remove_node(node, allow_graceful=False)
        for process in processes(f"out={place.runs}", "--lead"):  # which is on that node, and dies with it
            os.kill(process, signal.SIGKILL)
        wait_until(lambda: not processes(f"out={place.runs}", "--lead"), "the lead is dead")
        cluster.add_node(num_cpus=3, object_store_memory=STORE)

    ended = run_until(place, words, lambda: place.logged() >= 15, lose)
    assert ended.code == 0, ended.err
    assert re.search(r"submitted the run as task 2; task 1 was lost, and it resumes", ended.err)
    assert int(re.findall(r"synthesis resumes at iteration (\d+) of 60", ended.err)[0]) >= 10
    assert ended.report["accuracy"] == undisturbed["accuracy"]


def test_doctor_says_what_ray_answers(place, nodes):
    assert re.fullmatch(r"\d nodes", place.dd("doctor", "--json").report["tools"]["Ray"])


def test_a_task_that_fits_nowhere_waits_and_that_is_said(place, words):
    running = place.start(*words, "ray.gpus=64", **ONE_THREAD)
    try:
        wait_until(lambda: "no node of the cluster has 64 GPU and 1 CPU: the jobs wait" in running.err, "the warning")
    finally:
        running._process.send_signal(signal.SIGINT)
    assert running.end().code == 130


def test_without_ray_the_way_out_is_said(place, long, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = place.dd("run", *long, "on=ray")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "dd: on=ray: ray is not installed; pip install 'dd-workbench[ray]'"
