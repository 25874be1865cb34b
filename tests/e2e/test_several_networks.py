"""`dd eval SET student.arch=A,B`: one set on several networks, and their table."""

import json
import shutil
import statistics

import pytest

from .conftest import ALIKE, Place


@pytest.fixture(scope="module")
def made(tmp_path_factory, pictures):
    place = Place(tmp_path_factory.mktemp("networks"))
    words = ("method=random", pictures, *ALIKE, "ipc=2", "eval.students=2", "eval.full=false", "eval.references=")
    ended = place.dd("run", *words, "--json")
    assert ended.code == 0, ended.err
    return place, ended.report["files"]["set"]


def test_each_row_is_the_score_on_that_network(made):
    place, file = made
    short = ("eval.steps=3", "eval.students=2", "eval.full=false", "eval.references=")
    ended = place.dd("eval", file, "student.arch=convnet,mlp", *short, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["sets"]
    assert [one["network"] for one in found] == ["convnet", "mlp"]
    alone = place.dd("eval", file, "student.arch=mlp", *short, "--json").report
    assert found[1]["report"]["accuracy"] == alone["accuracy"]
    assert found[0]["report"]["accuracy"] != alone["accuracy"]

    people = place.dd("eval", file, "student.arch=convnet,mlp", *short)
    assert "made student" not in people.err
    rows = {line.split()[0]: line for line in people.out.splitlines() if line.startswith(("convnet", "mlp", "mean"))}
    for one in found:
        accuracy = one["report"]["accuracy"]
        assert f"{accuracy['mean']:.2f} ± {accuracy['std']:.2f}" in rows[one["network"]]
    both = [statistics.fmean(one["report"][name]["mean"] for one in found) for name in ("accuracy", "control")]
    assert rows["mean"].split()[1:] == [f"{both[0]:.2f}", f"{both[1]:.2f}", f"{both[0] - both[1]:+.2f}"]


def test_a_network_that_cannot_be_is_told_and_the_others_are_scored(made):
    place, file = made
    ended = place.dd("eval", file, "student.arch=mlp,nlp", "eval.steps=1", "eval.students=1", "--json")
    assert ended.code == 2
    assert "unknown network 'nlp'" in ended.err
    assert "made student" not in ended.err
    ended = place.dd("eval", file, "student.arch=mlp,vgg11", "eval.steps=1", "eval.students=1", "--json")
    assert ended.code == 2
    assert "vgg11: student.arch=vgg11 needs images of 32 pixels" in ended.err
    found = json.loads(ended.out)["sets"]
    assert ["error" in one for one in found] == [False, True]
    number = place.dd("eval", file, "student.arch=mlp,3", "eval.steps=1", "eval.students=1")
    assert number.code == 2
    assert "unknown network '3'" in number.err
    assert place.dd("eval", file, "student.arch=mlp,mlp").err.splitlines()[-1].endswith("mlp is named twice")


def test_what_is_wrong_for_all_networks_is_said_once_for_each_set(made, tmp_path):
    place, file = made
    ended = place.dd("eval", file, "student.arch=mlp,convnet", "eval.seeds=5")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "unknown key 'eval.seeds'; did you mean 'eval.students'?" in ended.err
    other = shutil.copy(file, tmp_path / "other.safetensors")
    ended = place.dd("eval", file, str(other), "student.arch=mlp,convnet", "eval.seeds=5")
    assert [line.split(": ")[1] for line in ended.err.splitlines()] == [file, str(other)]
