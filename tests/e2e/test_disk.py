"""A disk that is full, or that cannot be written to."""

import contextlib
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = 5000  # bytes that a file may have; an expert takes more
# in a namespace of its own: a disk of this size, the same command twice, with more room the second time
TWICE = """
mount -t tmpfs -o size=200k tmpfs "$PLACE" || exit 99
"$@"; echo "ended with $?"
find "$PLACE" -type f
mount -o remount,size=20m "$PLACE" || exit 99
"$@"; echo "ended with $?"
"""
FILLS_THE_DISK = '''
from dataclasses import dataclass
from dd.engine.method import Method
from dd.engine.registry import register


@register("fills-the-disk")
@dataclass(frozen=True)
class FillsTheDisk(Method):
    """Writes a file of its own."""

    def prepare(self, task, got):
        with open("/dev/full", "w") as file:
            file.write("x")
'''


@contextlib.contextmanager
def file_size_limited(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_may_not_grow(place, small):
    place.dd("run", *small, "experts.count=1", "iterations=0")
    with file_size_limited(ROOM):
        ended = place.dd("run", *small)
    assert ended.code == 1
    assert ended.out == ""
    line = ended.err.splitlines()[-1]
    assert line.startswith(f"dd: file too large while writing {place.home / 'experts'}")
    assert "Traceback" not in ended.err
    assert place.half_written() == []
    again = place.dd("run", *small)
    assert again.code == 0
    assert "kept expert 1 of 2" in again.err
    assert "made expert 2 of 2" in again.err


@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare")
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk(place, small, jobs):
    words = (*small, f"jobs={jobs}")
    command = ["unshare", "-rm", "sh", "-c", TWICE, "sh", sys.executable, "-m", "dd", "run", *words]
    environment = place.environment | {"PLACE": str(place.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    if "ended with" not in done.stdout:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    assert done.stdout.startswith("ended with 1\n"), done.stderr
    assert done.stdout.endswith("ended with 0\n"), done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dd: ")]
    assert f"no space left while writing {place.path}" in line  # whichever file it was
    assert "run the same command" in line
    assert "Traceback" not in done.stderr
    listed = [file for file in done.stdout.splitlines() if file.startswith(str(place.path))]
    assert "kept expert 2 of 2" in done.stderr
    assert [file for file in listed if "/." in file and not file.endswith(".lock")] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_method_that_fills_the_disk(place):
    (place.path / "fills.py").write_text(FILLS_THE_DISK)
    ended = place.dd("run", "method=fills.py", "ipc=1", "device=cpu", "compile=false")
    assert ended.code == 1
    assert "no space left" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("where", ["out", "DD_RUNS", "DD_HOME"])
def test_nowhere_to_write_to(place, small, where):
    (place.path / "file").touch()
    folder = str(place.path / "file" / "folder")
    if where == "out":
        ended = place.dd("run", *small, f"out={folder}")
    else:
        ended = place.dd("run", *small, **{where: folder})
    assert ended.code == 2
    line = ended.err.splitlines()[-1]
    assert line.startswith(f"dd: cannot write to {folder}")
    assert ("DD_HOME" if where == "DD_HOME" else "out=FOLDER or DD_RUNS") in line
    assert "Traceback" not in ended.err
    assert "made expert" not in ended.err
