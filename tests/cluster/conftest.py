"""A Slurm cluster of two nodes on this machine, for the tests that submit jobs."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from tempfile import mkdtemp

import pytest

from ..e2e.conftest import SMALL, long, pictures, place
from ..e2e.test_jobs import alone, undisturbed

__all__ = ["alone", "long", "pictures", "place", "undisturbed"]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
PATIENCE = 60  # seconds for the daemons
CONF = """
ClusterName=dd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=30
MinJobAge=300
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={first} CPUs=2 RealMemory=1000
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={second} CPUs=2 RealMemory=1000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Why there can be no cluster here; "" if there can."""
    if lacking := [name for name in PROGRAMS if shutil.which(name, path=found()) is None]:
        return f"Slurm is not installed: no {lacking[0]} (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root to start jobs"


def found():
    """The PATH, with the folders of the daemons."""
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])


def ports(count):
    """Free ports."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until(happened, what, patience=PATIENCE):
    """Wait for something to happen."""
    deadline = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster():
    """A cluster; SLURM_CONF in the environment leads to it."""
    if why := missing():
        pytest.skip(why)
    folder = Path(mkdtemp(prefix="dd-slurm-"))  # a socket's path must be short
    controller, first, second = ports(3)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(host=socket.gethostname(), folder=folder, controller=controller, first=first, second=second)
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    files = ("key-file", "pid-file", "log-file", "seed-file")
    munge = [f"--{what}={folder}/munge.{what.partition('-')[0]}" for what in files]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-N", "n1", "-f", str(conf)],
        ["slurmd", "-D", "-N", "n2", "-f", str(conf)],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", found())
        started = []
        try:
            for command in commands:
                with (folder / f"{command[0]}-{len(started)}.out").open("wb") as log:
                    started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
                if command[0] == "munged":
                    wait_until((folder / "munge.socket").exists, "munged listens")
            wait_until(lambda: idle() == 2, f"two idle nodes; see {folder}")
            yield folder
        finally:
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                subprocess.run(["scancel", "--me"], capture_output=True, timeout=10)
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def idle():
    """How many nodes are idle."""
    said = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%t"], capture_output=True, text=True)
    return said.stdout.split().count("idle")


def squeue(*how):
    """What Slurm has of our jobs, one row for each: number and state."""
    said = subprocess.run(
        ["squeue", "--me", "--array", "--noheader", "--format=%i %T", *how], capture_output=True, text=True
    )
    return [line.split() for line in said.stdout.splitlines()]


@pytest.fixture(scope="session")
def several(pictures):
    """Settings of a run whose experts and students can be divided; a piece takes longer than a look at the queue."""
    return (*SMALL, pictures, "experts.count=5", "experts.epochs=300", "eval.students=4", "eval.steps=200")


@pytest.fixture
def emptied(cluster):
    """The cluster, without jobs before and after."""
    wait_until(lambda: not squeue(), "no jobs before")
    yield cluster
    subprocess.run(["scancel", "--me"], capture_output=True)
    wait_until(lambda: not squeue(), "no jobs after")
