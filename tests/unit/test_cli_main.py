"""How calls end: help at once, exit codes, one line for what a user can mend, a traceback for what only we can."""

import json
import subprocess
import sys

import pytest

from dd.cli.main import VERBS, run_command_line
from dd.engine import registry

FAILING = '''
from dataclasses import dataclass

from dd.engine.method import Method
from dd.engine.registry import register
from dd.errors import Interrupted, RunError, UsageError


@register("failing")
@dataclass(frozen=True)
class Failing(Method):
    """Fails in the way it is told to."""

    way: str = ""

    def prepare(self, task, got):
        raise {
            "usage": UsageError("ask otherwise"),
            "run": RunError("the disk is gone"),
            "signal": Interrupted("saved; the same command resumes", 75),
            "keyboard": KeyboardInterrupt(),
            "bug": ZeroDivisionError("a slip"),
        }[self.way]
'''


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name, cls in registry._registered.items() if cls.__module__.startswith("dd_method_")]:
        del registry._registered[name]  # the methods of these tests stay in them


def test_help_imports_nothing_slow():
    code = (
        "import sys, time\n"
        "from dd.cli.main import run_command_line\n"
        "assert run_command_line(['--help']) == 0\n"
        "slow = {'torch', 'numpy', 'pydantic', 'rich', 'pyarrow', 'timm', 'wandb', 'matplotlib'}\n"
        "print(time.process_time(), *(slow & set(sys.modules)), file=sys.stderr)\n"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60) for _ in range(3)]
    assert all(verb in runs[0].stdout for verb in VERBS)
    # seconds of work, which other processes on the machine do not change, and nothing after them
    assert min(float(run.stderr) for run in runs) < 0.5


@pytest.mark.parametrize("verb", [*VERBS, "data check"])
def test_every_verb_has_help_with_two_examples(verb, capsys):
    assert run_command_line([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count(f"  dd {verb}") >= 2
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rnu"], "did you mean run?"),
        (["list"], "methods or recipes or protocols or data"),
        (["method=datm", "ipc=1"], "write the verb first: dd run method=datm ipc=1"),
        (["--nonsense"], "--nonsense"),
        (["run"], "say which method"),
        (["run", "datm"], "'datm': settings are written key=value"),
        (["run", "method=datmm"], "did you mean 'datm'"),
        (["run", "method=/no/such/file.py"], "/no/such/file.py"),
        (["show", "method=datm", "iterationz=3"], "did you mean 'iterations'"),
        (["eval"], "FILE"),
        (["eval", "eval.students=2"], "dd eval FILE eval.students=2"),
        (["eval", "/no/such/set"], "no set at /no/such/set"),
        (["methods", "foo"], "foo"),
        (["recipes", "datmm"], "did you mean 'datm'"),
        (["data", "cifar10"], "dd data check cifar10"),
        (["data", "check", "cifar11"], "cifar10"),
        (["data", "check", "imagenette"], "dataset=folder:PATH like=imagenette.ipc10"),
    ],
    ids=str,
)
def test_wrong_use_is_one_line_and_exit_code_2(args, words, capsys, tmp_path):
    assert run_command_line(args) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("dd: ")
    assert words in told.err
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_all_problems_at_once_and_nothing_written(capsys, tmp_path):
    args = ["run", "method=datm", "iterationz=3", "ipc=-1", "lr_img=abc", "eval.student=2", "--dry-run"]
    assert run_command_line(args) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dd: 4 problems"
    assert len(lines) == 5
    assert list(tmp_path.iterdir()) == []


def test_errors_as_json(capsys):
    assert run_command_line(["run", "method=datm", "iterationz=3", "ipc=-1", "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    error = json.loads(told.err)
    assert error["exit_code"] == 2
    assert len(error["problems"]) == 2


@pytest.mark.parametrize(
    ("way", "code", "words"),
    [
        ("usage", 2, "dd: ask otherwise"),
        ("run", 1, "dd: the disk is gone"),
        ("signal", 75, "dd: saved; the same command resumes"),
        ("keyboard", 130, "dd: interrupted"),
    ],
)
def test_exit_codes_of_runs(way, code, words, capsys, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    args = ["run", "method=failing.py", f"way={way}", "ipc=1", "compile=false", "device=cpu"]
    assert run_command_line(args) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert "Traceback" not in told.err


def test_our_own_faults_show_a_traceback_and_ask_for_a_report(capsys, monkeypatch):
    from dd.cli import doctor

    def slip():
        raise ZeroDivisionError("a slip")

    monkeypatch.setattr(doctor, "_devices", slip)
    args = ["doctor"]
    assert run_command_line(args) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("Traceback") for line in lines)
    assert "ZeroDivisionError: a slip" in lines[-1]
    assert "dd doctor" in lines[-1]
    assert run_command_line([*args, "--json"]) == 1
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["exit_code"] == 1


def test_a_fault_of_a_method_names_its_file(capsys, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    assert run_command_line(["run", "method=failing.py", "way=bug", "ipc=1", "compile=false", "device=cpu"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("Traceback") for line in lines)
    assert "ZeroDivisionError: a slip; the error is in" in lines[-1]
    assert "failing.py, line" in lines[-1]


def test_a_plug_in_that_cannot_be_imported_is_a_failed_run(capsys, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    assert run_command_line(["run", "method=broken.py"]) == 1
    assert "no_such_module" in capsys.readouterr().err


def test_version_and_bare_call(capsys):
    assert run_command_line(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dd-workbench ")
    assert run_command_line([]) == 0
    assert "Usage: dd" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error():
    code = "from dd.cli.main import run_command_line; import sys; sys.exit(run_command_line(['recipes', '--json']))"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    assert writer.stderr.read() == ""
    writer.stderr.close()
    assert writer.wait(60) in (0, 1)
