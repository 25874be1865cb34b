"""Calls meant for the system's `dd` reach it; calls meant for us do not."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dd.cli.handoff import is_block_copy, next_dd

SCRIPT = (
    f"#!{sys.executable}\nimport sys\nfrom dd.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
)
FAKE = '#!/bin/sh\necho "fake: $*"\n'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def call(program: Path, *args: str, path: list[Path | str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PATH": os.pathsep.join(map(str, path))}
    return subprocess.run([str(program), *args], input=stdin, capture_output=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("argv", "stdin", "foreign"),
    [
        (["/env/bin/dd", "if=a", "of=b"], Terminal(), True),
        (["/env/bin/dd", "of=b", "if=a"], io.StringIO(), True),
        (["/env/bin/dd", "bs=1M", "count=1"], io.StringIO(), True),
        (["/env/bin/dd", "--", "if=a"], io.StringIO(), True),
        (["/env/bin/dd", "status=none"], io.StringIO(), True),
        (["/env/dd/__main__.py", "if=a"], io.StringIO(), True),
        (["/env/bin/dd"], io.StringIO(), True),
        (["/env/bin/dd"], Terminal(), False),
        (["/env/bin/dd"], None, False),
        (["/env/dd/__main__.py"], io.StringIO(), False),
        (["/env/bin/dd-workbench"], io.StringIO(), False),
        (["/env/bin/dd", "run", "if=a"], io.StringIO(), False),
        (["/env/bin/dd", "run", "count=3"], io.StringIO(), False),
        (["/env/bin/dd", "--help"], io.StringIO(), False),
        (["/env/bin/dd", "--version"], io.StringIO(), False),
        (["/env/bin/dd", "method=datm"], io.StringIO(), False),
        (["/env/bin/dd", "counts=3"], io.StringIO(), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else type(value).__name__,
)
def test_whose_call_it_is(argv, stdin, foreign):
    assert is_block_copy(argv, stdin) is foreign


def test_the_next_dd_is_neither_ours_nor_another_of_ours(tmp_path):
    ours = put(tmp_path / "a" / "dd", SCRIPT)
    other_environment = put(tmp_path / "b" / "dd", SCRIPT.replace("main()", "main( )"))
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "dd").symlink_to(ours)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "dd").write_text(FAKE)  # not executable
    (tmp_path / "folder" / "dd").mkdir(parents=True)
    theirs = put(tmp_path / "c" / "dd", FAKE)
    folders = ["a", "link", "b", "plain", "folder", "missing", "c"]
    assert next_dd(str(ours), os.pathsep.join(str(tmp_path / f) for f in folders)) == str(theirs)
    assert next_dd(str(other_environment), os.pathsep.join(str(tmp_path / f) for f in folders[:-1])) is None


def test_a_call_with_operands_runs_the_next_dd(tmp_path):
    ours, theirs = put(tmp_path / "ours" / "dd", SCRIPT), put(tmp_path / "theirs" / "dd", FAKE)
    done = call(ours, "if=a b", "of=c", "bs=1", path=[ours.parent, theirs.parent, "/usr/bin", "/bin"])
    assert (done.returncode, done.stdout) == (0, b"fake: if=a b of=c bs=1\n")
    bare = call(ours, path=[ours.parent, theirs.parent, "/usr/bin", "/bin"], stdin=b"data")
    assert bare.stdout == b"fake: \n"


@pytest.mark.skipif(not Path("/usr/bin/dd").exists(), reason="no system dd")
def test_the_real_one_copies(tmp_path):
    ours = put(tmp_path / "ours" / "dd", SCRIPT)
    content = os.urandom(70_000)
    (tmp_path / "from").write_bytes(content)
    operands = [f"if={tmp_path / 'from'}", f"of={tmp_path / 'to'}", "bs=4096", "status=none"]
    done = call(ours, *operands, path=[ours.parent, "/usr/bin"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "to").read_bytes() == content
    piped = call(ours, path=[ours.parent, "/usr/bin"], stdin=content)
    assert piped.stdout == content
    failed = call(ours, f"if={tmp_path / 'missing'}", path=[ours.parent, "/usr/bin"])
    assert failed.returncode == 1  # the other dd's own exit code


def test_without_another_dd_one_line_says_so(tmp_path):
    ours = put(tmp_path / "ours" / "dd", SCRIPT)
    done = call(ours, "if=a", "of=b", path=[ours.parent])
    assert done.returncode == 2
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert "if=a of=b" in lines[0]
    assert "PATH" in lines[0]


def test_module_call_hands_over_too(tmp_path):
    theirs = put(tmp_path / "theirs" / "dd", FAKE)
    environment = os.environ | {"PATH": f"{theirs.parent}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    command = [sys.executable, "-m", "dd", "if=a"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "fake: if=a\n"


def test_handing_over_imports_nothing_slow(tmp_path):
    theirs = put(tmp_path / "theirs" / "dd", FAKE)
    code = (
        "import os, sys\n"
        "slow = {'click', 'torch', 'pydantic', 'rich', 'numpy'}\n"
        "os.execv = lambda *_: print(*sorted(slow & set(sys.modules)))\n"
        "sys.argv = ['dd', 'if=a', '--help']\n"
        "from dd.cli.handoff import hand_off\n"
        "hand_off(sys.argv)\n"
    )
    environment = os.environ | {"PATH": str(theirs.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "\n", done.stderr
    assert shutil.which("dd", path=str(theirs.parent))
