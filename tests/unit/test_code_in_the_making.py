"""A method under development is identified by its code: an edit is never answered with an old result."""

import json
import sys
from dataclasses import dataclass

import pytest
import torch

from dd.cli.main import run_command_line
from dd.engine import registry
from dd.engine.code import code_in_the_making
from dd.engine.needs import Got, Made
from dd.errors import UsageError
from dd.runs import Store

METHOD = '''
from dataclasses import dataclass
import torch
from torch.optim import SGD
from dd.engine.method import Method, Synthetic
from dd.engine.needs import Made
from dd.engine.registry import register

@register("shade")
@dataclass(frozen=True)
class Shade(Method):
    """Images of one grey."""

    iterations: int = 1
    """Updates."""

    def grey(self, task):
        def make(got):
            return {"grey": torch.full((1,), 0.25)}, {}
        return Made("grey", task.store, {}, make, "a grey")

    def needs(self, task):
        return [self.grey(task)]

    def prepare(self, task, got):
        return got[self.grey(task)].tensors["grey"]

    def start(self, task, prepared):
        return Synthetic(task.first_images() * 0 + prepared.to(task.device), task.targets)

    def optimisers(self, syn):
        return [SGD([syn.images], lr=0.0)]

    def loss(self, syn, task, prepared, it):
        return syn.images.sum()
'''
TINY = ("ipc=1", "device=cpu", "compile=false", "student.depth=1", "student.width=4", "eval.protocol=smoke")
TINY = (*TINY, "eval.steps=1", "eval.students=1", "eval.full=false", "eval.probes=0")


@pytest.fixture
def shade(tmp_path, monkeypatch):
    """A method's file, and how it is written anew."""
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def write(old="", new=""):
        assert old in METHOD
        (tmp_path / "shade.py").write_text(METHOD.replace(old, new) if old else METHOD)
        return ("run", f"method={tmp_path}/shade.py", *TINY, f"out={tmp_path}/runs", "--json")

    yield write
    registry._registered.pop("shade", None)
    sys.modules.pop("dd_method_shade", None)


def grey(capsys):
    report = json.loads(capsys.readouterr().out)
    from dd import load

    return float(load(report["files"]["set"]).images.mean())


def test_an_artefact_follows_the_code_that_makes_it(shade, capsys):
    assert run_command_line(shade()) == 0
    assert grey(capsys) == 0.25
    assert run_command_line(shade("0.25", "0.75")) == 0
    assert grey(capsys) == 0.75


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('return {"grey": torch.full((1,), 0.25)}, {}', 'return {"grey": torch.zeros(1)}', "must return a pair"),
        ('{"grey": torch.full((1,), 0.25)}', '{"grey": 3.0}', "gives 'grey' as float, not as a torch.Tensor"),
        ("task.store, {}, make", "task.store, {1: {2}}, make", "must be JSON-serialisable"),
        ("return [self.grey(task)]", "return []", "'grey' is used in `prepare`, but `needs` does not list it"),
        ("return syn.images.sum()", "return torch.zeros(())", "nothing in it has a gradient"),
    ],
)
def test_mistakes_of_an_author_are_one_line(shade, capsys, old, new, why):
    assert run_command_line(shade(old, new)) == 2
    err = capsys.readouterr().err
    assert why in json.loads(err.splitlines()[-1])["error"]


def test_an_error_in_a_method_is_not_put_down_to_dd(shade, capsys):
    assert run_command_line(shade("syn.images.sum()", "syn.images.summ()")) == 1
    said = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    assert said.startswith("AttributeError: ")
    assert said.endswith("shade.py, line 35, in loss")
    assert "bug" not in said


def test_one_file_imported_twice_is_one_method(shade, tmp_path, monkeypatch):
    shade()
    monkeypatch.syspath_prepend(tmp_path)
    import shade as module

    try:
        by_path = registry.get(f"{tmp_path}/shade.py")
        assert by_path is not module.Shade
        assert by_path.name == module.Shade.name == "shade"
        (tmp_path / "other.py").write_text(METHOD)
        with pytest.raises(UsageError, match=f"'shade' is taken by {tmp_path}/shade.py; .* in {tmp_path}/other.py"):
            registry.get(f"{tmp_path}/other.py")
    finally:
        sys.modules.pop("shade")


def test_which_code_counts(tmp_path, monkeypatch):
    """Ours and that of installed packages has versions; a file has its text, and a notebook's function itself."""
    assert code_in_the_making(registry.get) == ""
    found = {}
    for name, text in (("a", "def f(): return 1\n"), ("b", "def f(): return 2\n"), ("c", "\n\ndef f(): return 1\n")):
        scope = {"__name__": "__main__"}
        exec(compile(text, f"<cell {name}>", "exec"), scope)
        found[name] = code_in_the_making(scope["f"])
    assert found["a"] == found["c"] != found["b"]

    def install(editable):
        info = tmp_path / "made_up-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[dd.methods]\nmade-up = made_up:F\n")
        (info / "direct_url.json").write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": editable}}))
        (tmp_path / "made_up.py").write_text("def f(): return 1\n")

    install(False)
    monkeypatch.syspath_prepend(tmp_path)
    import made_up

    try:
        assert code_in_the_making(made_up.f) == ""
        install(True)
        assert len(code_in_the_making(made_up.f)) == 64
    finally:
        sys.modules.pop("made_up")


def test_a_need_gives_what_was_made(tmp_path):
    @dataclass(frozen=True)
    class Counted:
        calls: list

        def make(self, got):
            self.calls.append(1)
            return {"a": torch.ones(2)}, {"n": 3}

    counted = Counted([])
    for _ in range(2):
        need = Made("kind", Store(tmp_path), {"x": 1}, counted.make, "words")
        assert Got([need])[need].info == {"n": 3}
    assert counted.calls == [1]
