"""`DD_HOME=s3://…`: machines that share nothing but an address, with an S3 server on this machine."""

import logging
import os
import re
import signal
import time

import pytest

from dd import load
from dd.io import sha256_tensors

from ..e2e.conftest import Place
from ..e2e.test_jobs import MADE, ONE_THREAD, processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BUCKET = "sets"


@pytest.fixture(scope="module")
def server():
    """Where an S3 server listens, with an empty bucket."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'dd-workbench[s3]'")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: make .venv/.cluster")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line for every request
    listening = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    listening.start()
    host, port = listening.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        listening.stop()


@pytest.fixture
def environment(server, monkeypatch):
    """Variables of a machine that uses the server."""
    found = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "DD_HOME": f"s3://{BUCKET}/{os.urandom(4).hex()}",
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs(BUCKET, exist_ok=True)
    return found | ONE_THREAD


@pytest.fixture
def machine(tmp_path):
    """Makes machines, each with folders of its own."""

    def make(name):
        (tmp_path / name).mkdir()
        return Place(tmp_path / name)

    return make


def own(place, environment):
    """The variables of one machine: its copies are its own."""
    return {**environment, "XDG_CACHE_HOME": str(place.path / "cache")}


def made(*said):
    """What machines say they made, but for the decoded images, which each of them has."""
    return sorted(what for err in said for what in MADE.findall(err) if "decoded images" not in what)


def digests(place):
    return sha256_tensors({"images": load(place.folder() / "set.safetensors").images})


def test_a_run_on_one_machine_is_there_on_another(machine, several, alone, environment):
    one, two = machine("one"), machine("two")
    first = one.process("run", *several, "--json", **own(one, environment))
    assert first.code == 0, first.err
    again = two.process("run", *several, "--json", **own(two, environment))
    assert again.code == 0, again.err
    assert made(again.err) == []
    there, report, kept = alone
    assert sorted(MADE.findall(first.err)) == kept
    assert first.report["accuracy"] == again.report["accuracy"] == report["accuracy"]
    assert digests(one) == digests(two) == digests(there)


def test_a_machine_helps_another_and_nothing_is_made_twice(machine, several, alone, environment):
    one, two = machine("one"), machine("two")
    leading = one.start("run", *several, "--json", **own(one, environment))
    helping = two.start("run", *several, "--helper", **own(two, environment))
    helped, led = helping.end(), leading.end()
    assert (led.code, helped.code) == (0, 0), led.err + helped.err
    assert made(helped.err)
    assert made(led.err, helped.err) == [what for what in alone[2] if "decoded images" not in what]
    assert led.report["accuracy"] == alone[1]["accuracy"]


def test_what_a_killed_machine_was_making_another_takes_over(machine, several, alone, environment):
    one, two = machine("one"), machine("two")
    mark = f"out={two.runs}"
    words = ["run", *several, mark, "--helper"]
    lost = two.start(*words, **own(two, environment))

    def in_the_middle():
        if "made expert 1" not in lost.err:
            return False
        time.sleep(0.4)  # of the next one, which takes a second
        return True

    lost.signal_when(signal.SIGKILL, in_the_middle)
    assert processes(mark) == []
    ended = one.process("run", *several, "--json", **own(one, environment))
    assert ended.code == 0, ended.err
    assert re.search(r"waiting for process \d+ of .+, which is making expert", ended.err)
    assert ended.report["accuracy"] == alone[1]["accuracy"]


def test_a_run_of_ray_goes_on_with_helpers_that_share_an_address(machine, several, alone, environment, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dd-workbench[ray]'")
    from .test_ray import two_nodes

    one = machine("one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(one.path / "of-the-nodes"))
    with two_nodes() as cluster:
        given = ("on=ray", "jobs=2", "ray.cpus=1", f"ray.address={cluster.address}")
        ended = one.process("run", *several, *given, "--json", **own(one, environment))
    assert ended.code == 0, ended.err
    assert re.search(r"submitted the run as process \d+", ended.err)
    assert re.search(r"prepare: 1 helper for 5 pieces \(task 1\)", ended.err)
    assert ended.report["accuracy"] == alone[1]["accuracy"]
    logs = [file.read_text() for file in (one.folder() / "jobs").glob("*.log")]
    assert made(*logs) == [what for what in alone[2] if "decoded images" not in what]


def test_doctor_says_whether_the_address_can_be_used(machine, environment):
    one = machine("one")
    found = one.dd("doctor", "--json", **own(one, environment)).report["tools"]["address of the store"]
    assert found == f"{environment['DD_HOME']}, locks work"
    lost = one.dd("doctor", "--json", **{**own(one, environment), "DD_HOME": "s3://nowhere/dd"})
    assert lost.report["tools"]["address of the store"].startswith("cannot use DD_HOME=s3://nowhere/dd (")


def test_a_bucket_that_does_not_exist_is_said_in_one_line(machine, several, environment):
    one = machine("one")
    ended = one.process("run", *several, **{**own(one, environment), "DD_HOME": "s3://nowhere/dd"})
    assert ended.code == 2
    assert re.fullmatch(
        r"dd: cannot use DD_HOME=s3://nowhere/dd \(.*bucket does not exist.*\); give another address, or a folder",
        ended.err.splitlines()[-1],
    )


def test_a_server_that_is_gone_costs_nothing_that_is_finished(machine, several, alone, environment):
    moto = pytest.importorskip("moto.server")
    listening = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    listening.start()
    host, port = listening.get_host_and_port()
    address = {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    import s3fs

    s3fs.S3FileSystem(endpoint_url=address["AWS_ENDPOINT_URL"], skip_instance_cache=True).makedirs(
        BUCKET, exist_ok=True
    )
    one = machine("one")
    words = ["run", *several, f"out={one.runs}", "--json"]
    given = {**own(one, environment), **address}
    running = one.start(*words, **given)
    while "made expert" not in running.err:
        assert running._process.poll() is None, running.err
    listening.stop()
    ended = running.end()
    assert ended.code == 1
    assert "what is finished is kept, and the same command goes on" in ended.err.splitlines()[-1]
    again = one.process(*words, **own(one, environment))  # the server is back, at another port
    assert again.code == 0, again.err
    assert again.report["accuracy"] == alone[1]["accuracy"]
