"""What reaches a terminal, a path and a shell: nothing raw from a file, no key cut, one line whatever goes wrong."""

import contextlib
import dataclasses
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dd.errors import printable
from dd.sets import load, save

from .conftest import SHORT
from .test_output import on_a_terminal

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m‮\u2028\x7f"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f‪-‮\u2028\u2029⁦-⁩]")


def code_of(*command, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dd", *command], text=True, timeout=120, **how)


# --- nothing raw ------------------------------------------------------------------------------------------------------


def test_what_is_printable_is_left_alone_and_nothing_else():
    assert printable("ordinary, é 漢字 ✓\n") == "ordinary, é 漢字 ✓\n"
    assert printable(EVIL + "\udcff") == "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e\\u2028\\x7f\\udcff"


def test_a_sets_own_words_are_shown_and_not_obeyed(place, finished, short):
    given = load(finished.folder() / "set.safetensors")
    own = {**given.provenance, "name": EVIL, "command": EVIL}
    protocol = {**dict(given.protocol or {}), "protocol": EVIL}
    file = place.path / f"{EVIL}.safetensors"
    save(dataclasses.replace(given, provenance=own, protocol=protocol), file)
    for more in ((), ("--json",)):
        ended = place.dd("eval", str(file), "eval.full=false", *more)
        assert ended.code == 0, ended.err
        assert not RAW.search(ended.out + ended.err)
        assert "owned" in ended.out
    assert json.loads(ended.out)["provenance"]["name"] == EVIL  # for programs it is what it is


@pytest.mark.parametrize(
    "words",
    [
        ("eval", f"{EVIL}.safetensors"),
        ("show", "method=mtt", f"dataset=folder:{EVIL}"),
        ("show", f"method={EVIL}"),
        ("show", "method=mtt", f"{EVIL}=3"),
        ("run", f"recipe={EVIL}"),
        ("experts", "verify", EVIL),
        (EVIL,),
    ],
    ids=lambda words: words[0] if words[0].isalpha() else "verb",
)
def test_no_error_repeats_what_it_was_given_raw(place, words):
    ended = place.dd(*words)
    assert ended.code == 2
    assert not RAW.search(ended.out + ended.err)
    assert "Traceback" not in ended.err


def test_names_of_classes_and_folders_are_shown_and_not_obeyed(place, pictures):
    root = place.path / f"pics{EVIL}"
    shutil.copytree(pictures.partition(":")[2], root)
    for part in ("train", "test"):
        (root / part / "class-0").rename(root / part / f"class{EVIL}")
    checked = place.dd("data", "check", f"folder:{root}")
    assert checked.code == 0, checked.err
    assert "owned" in checked.out
    assert not RAW.search(checked.out + checked.err)
    ended = place.dd("run", *SHORT, f"dataset=folder:{root}")
    assert ended.code == 0, ended.err
    assert not RAW.search(ended.out + ended.err + str(place.folder()).removeprefix(str(place.path)))
    assert not RAW.search((place.folder() / "recipe.toml").read_text())
    assert place.dd("run", f"recipe={place.folder()}", "--json").report["fresh"] is False


def test_a_path_longer_than_a_folders_name_may_be(place, pictures):
    root = place.path / ("x" * 200) / ("y" * 200)
    shutil.copytree(pictures.partition(":")[2], root)
    ended = place.dd("run", *SHORT, f"dataset=folder:{root}", "--json")
    assert ended.code == 0, ended.err
    assert max(len(part) for part in place.folder().parts) <= 200
    other = place.path / ("x" * 200) / ("y" * 201)
    root.rename(other)
    again = place.dd("run", *SHORT, f"dataset=folder:{other}", "--json").report
    assert again["folder"] != ended.report["folder"]


# --- no files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "PIPE"),
        ("show", "method=mtt", "init=PIPE"),
        ("show", "recipe=PIPE"),
        ("show", "recipe=/dev/zero"),
        ("show", "method=cda", "teachers=PIPE"),
        ("show", "method=PIPE.py"),
        ("eval", "/dev/zero"),
    ],
)
@pytest.mark.timeout(30)
def test_what_is_no_file_is_neither_waited_for_nor_read_for_ever(place, words):
    for suffix in (".safetensors", ".safetensors.py"):
        os.mkfifo(place.path / f"pipe{suffix}")
    ended = place.dd(*(word.replace("PIPE", "pipe.safetensors") for word in words))
    assert ended.code == 2
    assert re.search("not a regular file|no method file", ended.err)
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("words", [("eval", "LONG"), ("show", "recipe=LONG"), ("show", "method=mtt", "init=LONG")])
def test_a_name_that_no_file_can_have(place, words):
    ended = place.dd(*(word.replace("LONG", "x" * 300) for word in words))
    assert ended.code == 2
    assert "File name too long" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_damaged_set_is_not_read_for_its_first_bytes(place):
    """It is larger than the memory that there is: all of it but the end is a hole in the file."""
    file = place.path / "large.safetensors"
    with file.open("wb") as handle:
        handle.write(b"PK")
        handle.truncate(1 << 42)
    ended = place.dd("eval", str(file))
    assert ended.code == 2
    assert "is a pickle or zip" in ended.err


# --- a recipe is data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evil.py", "./evil.py", "evil.py:evil"])
def test_a_recipe_runs_no_code(place, name):
    (place.path / "evil.py").write_text("open('ran', 'w').close()\n")
    (place.path / "recipe.toml").write_text(f'method = "{name}"\nipc = 1\n')
    for words in (("show", "recipe=recipe.toml"), ("run", "recipe=recipe.toml"), ("run", "recipe=.")):
        ended = place.dd(*words)
        assert ended.code == 2
        assert f"if you trust it, add method={name}" in ended.err
    assert not (place.path / "ran").exists()
    place.dd("show", "recipe=recipe.toml", f"method={name}")
    assert (place.path / "ran").exists()


def test_no_program_in_the_current_folder_is_handed_a_call(place):
    program = place.path / "dd"
    program.write_text("#!/bin/sh\ntouch ran\n")
    program.chmod(0o755)
    for path in ("", ".", f".{os.pathsep}"):
        done = code_of("if=a", "of=b", cwd=place.path, env=place.environment | {"PATH": path}, capture_output=True)
        assert done.returncode == 2
        assert not (place.path / "ran").exists()


def test_the_command_imports_nothing_of_the_current_folder(place):
    for name in ("click", "rich", "pydantic", "numpy", "torch", "safetensors", "dd"):
        (place.path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    command = [Path(sys.executable).with_name("dd"), "show", "method=mtt"]
    done = subprocess.run(command, cwd=place.path, env=place.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (place.path / "ran").exists()


# --- memory -----------------------------------------------------------------------------------------------------------

GREEDY = '''
from dataclasses import dataclass

import numpy as np
import torch
from dd.engine.method import Method, Synthetic
from dd.engine.registry import register


@register("greedy")
@dataclass(frozen=True)
class Greedy(Method):
    """Asks for as many bytes as it is told to, here or there."""

    iterations: int = 1
    batch: int = 64
    where: str = "loss"

    def ask(self, where):
        if where == self.where and self.batch == 64:
            torch.empty(1 << 50, dtype=torch.uint8)
        if where == self.where and self.batch == 63:
            np.zeros(1 << 50, np.uint8)

    def prepare(self, task, got):
        self.ask("prepare")

    def start(self, task, prepared):
        return Synthetic(task.data.train.images(task.real_indices("start")), task.targets)

    def optimisers(self, syn):
        return [torch.optim.SGD([syn.images], lr=0.1)]

    def loss(self, syn, task, prepared, it):
        self.ask("loss")
        return syn.images.square().mean()
'''


@pytest.mark.parametrize("batch", [64, 63])
@pytest.mark.parametrize("where", ["loss", "prepare"])
def test_out_of_memory_says_how_much_for_what_and_what_needs_less(place, small, where, batch):
    (place.path / "greedy.py").write_text(GREEDY)
    own = [word for word in small if word.startswith(("dataset", "ipc", "device", "compile", "student", "eval"))]
    command = ("run", "method=greedy.py", *own, f"where={where}")
    ended = place.dd(*command, f"batch={batch}")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    words = {"loss": "synthesising", "prepare": "preparing"}[where]
    line = re.fullmatch(
        rf"dd: out of memory while {words}: (\S+ \S+) were requested; (.*) needs less; finished work is kept",
        ended.err.splitlines()[-1],
    )
    assert line, ended.err
    assert line[1] == ("1125899.9 GB" if batch == 64 else "1.00 PiB")
    if where == "loss":
        assert line[2] == f"batch={batch // 2}"
        assert place.dd(*command, line[2]).code == 0


# --- manners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("verb", ["recipes", "methods", "data", "protocols"])
def test_keys_are_never_cut(place, width, verb):
    text = place.dd(*verb.split(), COLUMNS=str(width)).out
    found = place.dd(*verb.split(), "--json").report
    (rows,) = found.values()
    lines = [line.split() for line in text.splitlines()]
    for row in rows:
        key = [row["method"], row["cell"]] if "cell" in row else [row.get("name", row.get("protocol"))]
        assert any(line[: len(key)] == key for line in lines), key
    if width == 80 and verb == "recipes":
        assert all(len(line) <= 80 for line in text.splitlines())


def test_a_narrow_terminal_still_says_where_it_is_and_how_long_it_takes(place, small, monkeypatch):
    from dd.runs import progress

    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(progress, "_REDRAW", 0.0)
        with progress.bar("synthesise", 20000) as shown:
            for it in range(1, 4):
                time.sleep(0.02)
                shown.update(it, loss=0.123456, probe=70.1)
    said = ""
    with contextlib.suppress(OSError):  # the other end is closed, and all is read
        while piece := os.read(controller, 100_000).decode():
            said += piece
    os.close(controller)
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", said)
    assert re.search(r"synthesise +3/20000 +[^\n]*\d+:\d\d left", plain)
    assert "…" not in plain


def test_no_color_leaves_no_bold(place):
    assert "\x1b[" not in on_a_terminal(place, "doctor", NO_COLOR="1").replace("\x1b[?25h", "")
    assert "\x1b[1m" in on_a_terminal(place, "doctor")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("run", "methd=datm"), "unknown key 'methd'; did you mean method=datm?"),
        (("show", "METHOD=datm"), "did you mean method=datm?"),
        (("show", "method=DATM"), "did you mean 'datm'"),
        (("show", "method=datm", "dataset=CIFAR10"), "did you mean 'cifar10'"),
        (("show", "method=datm", "Iterations=3"), "did you mean 'iterations'"),
        (("experts", "list"), "did you mean dd experts"),
        (("experts", "prun"), "did you mean dd experts prune?"),
        (("RUN",), "did you mean run"),
    ],
)
def test_near_names(place, words, answer):
    ended = place.dd(*words)
    assert ended.code == 2
    assert answer in ended.err


@pytest.mark.parametrize("shut", ["stdout", "stderr"])
def test_a_closed_stream_is_silence(place, shut):
    line = f"exec {sys.executable} -m dd completion bash {'>&-' if shut == 'stdout' else '2>&-'}"
    done = subprocess.run(["sh", "-c", line], env=place.environment, cwd=place.path, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("" if shut == "stdout" else "_dd() {")
    line = line.replace("completion bash", "nonsense")
    done = subprocess.run(["sh", "-c", line], env=place.environment, cwd=place.path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


WORDS = ["dd", "show", "method=mtt"]


def test_an_early_interrupt_is_one_line(place):
    """As soon as our own code runs; before that it is Python's own."""
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background inherits deafness
    begin = f"import os, signal, sys, threading; {heard}; from dd.__main__ import main; sys.argv = {WORDS}"
    soon = "threading.Timer({}, os.kill, (os.getpid(), signal.SIGINT)).start(); sys.exit(main())"
    for after in (0.02, 0.05, 0.1):
        command = [sys.executable, "-c", f"{begin}; {soon.format(after)}"]
        done = subprocess.run(command, env=place.environment, cwd=place.path, capture_output=True, text=True)
        assert (done.returncode, done.stderr.strip()) == (130, "dd: interrupted")


# --- listings and completion ------------------------------------------------------------------------------------------


LISTING = """
import contextlib, io, json, sys
from dd.cli.main import run_command_line
found = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command_line(words)
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([found, "torch" in sys.modules]))
"""


def test_a_listing_does_not_wait_for_torch(place):
    verbs = [["methods"], ["recipes"], ["protocols"], ["data"], ["experts"], ["sets"]]
    verbs.append(["completion", "bash", "--line=dd run method=da"])

    def listed(asked):
        command = [sys.executable, "-c", LISTING, json.dumps(asked)]
        done = subprocess.run(command, env=place.environment, cwd=place.path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, _ = listed(verbs)
    assert [code for code, _, _ in first] == [0] * len(verbs)
    for verb, before in zip(verbs, first, strict=True):
        (again,), waited = listed([verb])
        assert (again, waited) == (before, False), verb


def test_a_listing_is_made_anew_when_what_it_lists_has_changed(place, monkeypatch):
    assert place.dd("experts", "--json").report["pools"] == []
    spec = {"member": 0, "settings": {"kind": "sgd", "epochs": 1}, "network": {"arch": "convnet", "width": 4}}
    from dd.runs import Store

    Store(place.home).tensors("experts", spec, lambda: ({"a": torch.zeros(1)}, {"holdout": None, "data": "mine"}))
    assert len(place.dd("experts", "--json").report["pools"]) == 1
    folder = place.path / "sets" / "cifar-10-batches-py"
    before = place.dd("data", "--json", DD_DATA=str(folder.parent)).report["datasets"]
    folder.mkdir(parents=True)
    (folder / "data_batch_1").touch()
    after = place.dd("data", "--json", DD_DATA=str(folder.parent)).report["datasets"]
    where = [{row["name"]: row["where"] for row in rows}["cifar10"] for rows in (before, after)]
    assert where[0] != where[1] == str(folder)


@pytest.mark.parametrize(
    ("name", "within"),
    [("cifar10", "datasets--uoft-cs--cifar10/snapshots/a1b2/data"), ("cifar10", "cifar10/plain_text/data")],
)
def test_a_listing_sees_files_as_deep_as_the_search_for_them(place, name, within):
    root, folder = place.path / "sets", place.path / "sets" / within
    folder.mkdir(parents=True)

    def there() -> dict:
        rows = place.dd("data", "--json", DD_DATA=str(root)).report["datasets"]
        return next(row for row in rows if row["name"] == name)

    before = there()["where"]
    for part in ("train", "test"):
        (folder / f"{part}-00000-of-00001.parquet").touch()
    assert there()["where"] != before
    assert there()["bytes"] == 0
    (folder / "train-00000-of-00001.parquet").write_bytes(b"longer")
    assert there()["bytes"] == 6


def test_a_listing_counts_classes_that_came_since(place):
    root = place.path / "sets"
    for wnid in ("n01440764", "n01443537"):
        (root / "imagenet" / "train" / wnid).mkdir(parents=True)
    (root / "imagenet" / "val").mkdir()
    counts = []
    for wnid in ("n01484850", "n01491361"):
        rows = place.dd("data", "--json", DD_DATA=str(root)).report["datasets"]
        counts.append(next(row["lacks"] for row in rows if row["name"] == "imagenet-1k"))
        (root / "imagenet" / "train" / wnid).mkdir()
    assert counts == [998, 997]


def offered(place, line: str) -> list[str]:
    return place.dd("completion", "bash", "--line", line).out.split()


def test_what_a_shell_is_offered(place, finished):
    assert offered(place, "dd ev") == ["eval"]
    assert offered(place, "dd run method=da") == ["method=datadam", "method=datm"]
    assert offered(place, "dd run method=datm iter") == ["iterations="]
    assert "dataset=cifar10" in offered(place, "dd show dataset=ci")
    assert offered(place, "dd run method=datm like=cifar10.ipc5") == ["like=cifar10.ipc50", "like=cifar10.ipc500"]
    assert offered(place, "dd run eval.protocol=rethinkdc") == [
        "eval.protocol=rethinkdc-hard",
        "eval.protocol=rethinkdc-soft",
    ]
    assert offered(place, "dd methods dat") == ["datadam", "datm"]
    assert offered(place, "dd experts ma") == ["make"]
    (place.path / "zebra.safetensors").touch()
    (place.path / "zebra.toml").touch()
    assert offered(place, "dd eval z") == ["zebra.safetensors"]
    assert offered(place, "dd run recipe=z") == ["recipe=zebra.toml"]
    assert offered(place, "dd run init=z") == ["init=zebra.safetensors"]
    assert offered(place, 'dd run "open') == []
    assert place.dd("completion", "bash", "--line", "dd run init=~nobody-here/a").code == 0
    folder = str(finished.folder())
    found = place.dd("completion", "bash", "--line", "dd eval ", DD_RUNS=str(finished.runs)).out.split("\n")
    assert folder in found


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_takes_the_script(place):
    place.dd("methods")
    (place.path / "bin").mkdir()
    program = place.path / "bin" / "dd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dd "$@"\n')
    program.chmod(0o755)
    script = 'eval "$(dd completion bash)"; COMP_LINE="dd run method=da"; COMP_POINT=16; _dd; echo "${COMPREPLY[@]}"'
    environment = place.environment | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=place.path, capture_output=True, text=True)
    assert done.stdout == "datadam datm\n"


@pytest.fixture
def shells(place):
    """The environment of a shell in which `dd` is this one, its listings being known."""
    place.dd("methods")
    (place.path / "bin").mkdir()
    program = place.path / "bin" / "dd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dd "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return place.environment | {"PATH": path, "TERM": "xterm", "HOME": str(place.path)}


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
def test_fish_takes_the_script(place, shells):
    script = 'dd completion fish | source; complete -C "dd run method=da"; complete -C "dd ev"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], env=shells, cwd=place.path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["method=datadam", "method=datm", "eval"], done.stderr


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_zsh_takes_the_script(place, shells):
    """Only a terminal has its line editor."""
    terminal, inside = pty.openpty()
    ends = {"stdin": inside, "stdout": inside, "stderr": inside, "start_new_session": True}
    shell = subprocess.Popen(["zsh", "-f", "-i"], env=shells, cwd=place.path, **ends)
    try:
        begin = 'autoload -Uz compinit; compinit -u -D; eval "$(dd completion zsh)"; echo load"ed"\n'
        os.write(terminal, begin.encode())
        said_by(terminal, "loaded")
        os.write(terminal, b"dd run method=datm iter\t20\t\n")
        assert "iterations=20" in said_by(terminal, "iterations=20")
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)
        os.close(inside)


def said_by(terminal: int, until: str) -> str:
    """What a terminal shows, until it shows that."""
    said, deadline = "", time.monotonic() + 60
    while until not in said and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            said += os.read(terminal, 65536).decode(errors="replace")
    return said
