"""Settings given as objects meet those given in words: one recipe, one hash."""

import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from dd.methods.decoupled.cda import CDA
from dd.methods.distribution.dm import DM

from dd.data import DataSettings
from dd.engine import registry
from dd.engine.method import Method
from dd.errors import UsageError
from dd.evaluation.protocols import PROTOCOLS, Protocol
from dd.networks import NetworkSpec
from dd.recipes import parse_overrides, resolve, resolve_evaluation
from dd.recipes.given import shown
from dd.recipes.schema import leaves
from dd.training.experts import ExpertSettings
from dd.views import ViewPolicy

MINE = '''
from dataclasses import dataclass

from dd.engine.method import Method
from dd.engine.registry import register


@register("{name}")
@dataclass(frozen=True)
class Mine(Method):
    """A method of this test."""

    iterations: int = 3

    def rate(self, it):
        return {rate}
'''


@pytest.fixture(autouse=True)
def own_methods():
    yield
    for name in ("of_a_file", "of_a_notebook"):
        registry._registered.pop(name, None)


def words(*given: str):
    return resolve(parse_overrides(["ipc=1", "device=cpu", *given]))


def objects(**given):
    return resolve({"ipc": 1, "device": "cpu", **given})


def spelled(instance, prefix=""):
    """Every field of an object as a word of a command line."""
    return [f"{key}={leaf.default}" for key, leaf in leaves(instance, prefix).items()]


@pytest.mark.parametrize("name", [entry for entry in registry.names() if entry in registry._builtin()])
def test_a_method_object_is_its_fields_in_words(name):
    method = registry.get(name)()
    if "iterations" in leaves(method):
        method = replace(method, iterations=7)
    ours, theirs = objects(method=method), words(f"method={name}", *spelled(method))
    assert ours.method == method
    assert (ours.hash, ours.flat(), ours.changed) == (theirs.hash, theirs.flat(), theirs.changed)
    assert {ours.origin[key] for key in leaves(method)} <= {"command line"}


def test_an_object_states_every_field_and_the_table_speaks_for_the_other_groups():
    table, ours = words("method=dm"), objects(method=DM(iterations=200))
    assert (table.method.batch_real, DM().batch_real) == (64, 256)  # or this test says nothing
    assert (ours.method.iterations, ours.method.batch_real) == (200, 256)
    assert (ours.student, ours.eval, ours.data) == (table.student, table.eval, table.data)
    assert ours.student.width == 32
    assert ours.changed == ("iterations", "batch_real")
    assert ours.expect is None
    same = objects(method=DM(iterations=300, batch_real=64))
    assert (same.hash, same.expect) == (table.hash, table.expect)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"student": "resnet18"}, ["student.arch=resnet18"]),
        ({"student": "resnet18"}, ["student=resnet18"]),
        ({"student": "resnet18", "student.width": 8}, ["student.width=8", "student.arch=resnet18"]),
        ({"student": NetworkSpec(width=16)}, spelled(NetworkSpec(width=16), "student.")),
        ({"student": {"depth": 2, "norm": "batch"}}, ["student.depth=2", "student.norm=batch"]),
        ({"eval": "mtt"}, ["eval.protocol=mtt"]),
        ({"eval": "mtt", "eval.students": 3}, ["eval=mtt", "eval.students=3"]),
        ({"eval": PROTOCOLS["rded"]}, ["eval.protocol=rded"]),
        ({"eval": replace(PROTOCOLS["mtt"], students=3)}, ["eval.protocol=mtt", "eval.students=3"]),
        ({"eval": {"protocol": "cda", "views": {"crop": 0.5}}}, ["eval.protocol=cda", "eval.views.crop=0.5"]),
        (
            {"eval": {"protocol": "smoke", "views": ViewPolicy(flip=True)}},
            ["eval.protocol=smoke", *spelled(ViewPolicy(flip=True), "eval.views.")],
        ),
        ({"eval.views": ViewPolicy(crop=0.5)}, spelled(ViewPolicy(crop=0.5), "eval.views.")),
        ({"data": DataSettings(holdout=0)}, spelled(DataSettings(holdout=0), "data.")),
        ({"experts": ExpertSettings(count=3)}, spelled(ExpertSettings(count=3), "experts.")),
        ({"experts": {"count": 3}, "device": torch.device("cpu")}, ["experts.count=3", "device=cpu"]),
    ],
    ids=str,
)
def test_every_group_takes_objects_mappings_and_names(given, told):
    method = "mtt" if "experts" in given else "dm"
    ours, theirs = objects(method=method, **given), words(f"method={method}", *told)
    assert (ours.hash, ours.flat()) == (theirs.hash, theirs.flat())


def test_words_win_over_objects_whatever_their_order():
    views = objects(method="dm", eval="smoke", **{"eval.views.crop": 0.5, "eval.views": ViewPolicy(flip=True)})
    assert views.eval == replace(PROTOCOLS["smoke"], views=ViewPolicy(crop=0.5, flip=True))
    one = objects(method=DM(iterations=200), iterations=5, **{"student.width": 8, "student": NetworkSpec(depth=2)})
    other = objects(**{"student": NetworkSpec(depth=2), "student.width": 8, "iterations": 5}, method=DM(iterations=200))
    assert (one.method.iterations, one.student) == (5, NetworkSpec(depth=2, width=8))
    assert one.hash == other.hash
    named = objects(method="dm", **{"eval.protocol": "mtt", "eval": Protocol(students=3)})
    assert named.eval == PROTOCOLS["mtt"]  # naming a protocol starts afresh, over an object too


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"method": DM}, "method=DM is a class: give an instance, DM(...), or its name"),
        ({"method": 5}, "method=5 is not a method"),
        ({"method": NetworkSpec()}, "is not a method: give a name, a file or an instance of a registered class"),
        ({"method": "dm", "student": Protocol()}, "student=Protocol(...) has the wrong type; expected a name, "),
        ({"method": "dm", "student": 5}, "student=5 has the wrong type; expected a name, student=NAME"),
        ({"method": "dm", "data": "zca"}, "data='zca' has the wrong type; expected its settings, data.KEY=VALUE"),
        ({"method": "dm", "studnt": NetworkSpec()}, "unknown group of settings 'studnt'; did you mean 'student'?"),
        ({"method": "dm", "experts": ExpertSettings()}, "unknown group of settings 'experts'"),
        ({"method": "dm", "eval": "mttt"}, "unknown eval.protocol 'mttt'; did you mean 'mtt'"),
        ({"method": DM(iterations=-1)}, "iterations=-1 is out of range"),
        ({"method": "dn", "crops": ExpertSettings()}, "unknown method 'dn'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(given, line):
    with pytest.raises(UsageError) as caught:
        objects(**given)
    assert str(caught.value).startswith(line) or line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_subclass_is_not_taken_for_its_parent():
    @dataclass(frozen=True)
    class Another(DM):
        pass

    with pytest.raises(UsageError, match="Another is not registered: decorate it"):
        objects(method=Another())


def test_an_object_of_a_file_is_the_method_of_that_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(name="of_a_file", rate=1.0))
    spec = importlib.util.spec_from_file_location("mine_as_a_module", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours, by_name = objects(method=module.Mine(iterations=5)), objects(method="of_a_file", iterations=5)
    del sys.modules[spec.name], registry._registered["of_a_file"]
    theirs = words(f"method={file}", "iterations=5")
    assert ours.hash == theirs.hash == by_name.hash
    assert ours.method_ref == f"{file}:of_a_file"
    (tmp_path / "recipe.toml").write_text(ours.to_toml())
    assert resolve({"recipe": tmp_path}).hash == ours.hash  # another process finds it again


def test_a_runs_recipe_beside_an_object_runs_the_objects_file_no_second_time(tmp_path):
    file, runs = tmp_path / "mine.py", tmp_path / "runs"
    counted = f"\nwith open({str(runs)!r}, 'a') as f:\n    f.write('.')\n"
    file.write_text(MINE.format(name="of_a_file", rate=1.0) + counted)
    spec = importlib.util.spec_from_file_location("mine_as_a_module", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = objects(method=module.Mine(iterations=5))
    (tmp_path / "recipe.toml").write_text(ours.to_toml())
    assert resolve({"recipe": tmp_path, "method": module.Mine(iterations=5)}).hash == ours.hash
    assert runs.read_text() == "."
    (tmp_path / "recipe.toml").write_text(ours.to_toml().replace("seed = 0", "seed = 1"))
    with pytest.raises(UsageError, match="was changed, or was written by another version"):
        resolve({"recipe": tmp_path, "method": module.Mine(iterations=5)})
    del sys.modules[spec.name]


def in_a_notebook(rate: float, monkeypatch) -> type[Method]:
    """The class as a cell defines it: in a module without a file, its source nowhere."""
    module = type(sys)("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    exec(compile(MINE.format(name="of_a_notebook", rate=rate), "<cell 3>", "exec"), vars(module))
    return module.Mine


def test_a_method_of_a_notebook_is_another_once_its_code_is(monkeypatch):
    first = objects(method=in_a_notebook(1.0, monkeypatch)())
    again = objects(method=in_a_notebook(1.0, monkeypatch)())
    changed = objects(method=in_a_notebook(2.0, monkeypatch)())
    assert first.hash == again.hash
    assert first.hash != changed.hash
    assert objects(method="of_a_notebook").hash == changed.hash
    assert first.method_ref == "of_a_notebook"


def test_an_evaluation_takes_them_too():
    meant = {"data": DataSettings(), "student": NetworkSpec(norm="batch"), "protocol": PROTOCOLS["quick"], "made": {}}

    def asked(**given):
        return resolve_evaluation({"device": "cpu", **given}, dataset="fashion-mini", **meant)

    assert asked(student="resnet18", eval="mtt") == asked(**{"student.arch": "resnet18", "eval.protocol": "mtt"})
    assert asked(student="resnet18").student.norm == "batch"  # a name leaves the set its norm, an object states one
    assert asked(student=NetworkSpec("resnet18")).student.norm == "instance"
    assert asked(eval=PROTOCOLS["rded"]).eval == PROTOCOLS["rded"]
    with pytest.raises(UsageError, match="unknown group of settings 'experts'"):
        asked(experts=ExpertSettings())


def test_an_object_is_shown_by_what_it_changes():
    assert shown(DM(iterations=200)) == "DM(iterations=200)"
    assert shown(NetworkSpec("resnet18", width=8)) == "NetworkSpec(arch='resnet18', width=8)"
    assert shown(Protocol(views=ViewPolicy(crop=0.5))) == "Protocol(views=ViewPolicy(crop=0.5))"
    assert shown(CDA()) == "CDA()"
    assert shown({"width": 3}) == "{'width': 3}"
    assert shown(Path("a")).endswith("('a')")


def test_a_set_to_begin_from_counts_by_its_content_however_it_is_named(tmp_path):
    (tmp_path / "set.safetensors").write_bytes(b"a set")
    ways = (tmp_path, str(tmp_path), tmp_path / "set.safetensors")
    (same,) = {objects(method="dm", init=way).hash for way in ways}
    (tmp_path / "set.safetensors").write_bytes(b"another")
    assert same not in {objects(method="dm", init=tmp_path).hash, objects(method="dm").hash}
    (tmp_path / "set.safetensors").unlink()
    os.mkfifo(tmp_path / "set.safetensors")
    with pytest.raises(UsageError, match="not a regular file"):
        objects(method="dm", init=tmp_path)
