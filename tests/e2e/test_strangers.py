"""A set from a stranger is data: what it says is used as it is meant, or refused in one line that names the file."""

import json
import shutil
import time
from dataclasses import asdict

import pytest

import dd
from dd.errors import UsageError
from dd.evaluation.evaluate import Evaluator
from dd.io import load_tensors, save_tensors
from dd.labels import LabelSettings
from dd.sets import load
from dd.sets.formats import FORMAT
from dd.training.teachers import SqueezeSettings

from .conftest import SHORT


@pytest.fixture
def forged(place, finished):
    """A function that writes the finished run's set with levels of its manifest changed, and says where."""

    def write(levels=None, **changes) -> str:
        source = finished.folder() / "set.safetensors"
        facts = load(source).facts() | changes
        for path, value in (levels or {}).items():
            *groups, name = path.split(".")
            level = facts
            for group in groups:
                level = level[group]
            level[name] = value
        texts = {"format": FORMAT, "version": "1", "manifest": json.dumps(facts)}
        save_tensors(place.path / "forged.safetensors", load_tensors(source), texts)
        return str(place.path / "forged.safetensors")

    return write


def refused(place, *words) -> str:
    ended = place.dd("eval", *words, "device=cpu", "compile=false")
    assert (ended.code, ended.out) == (2, ""), ended.err
    (line,) = [line for line in ended.err.splitlines() if not line.startswith(("kept", "made"))]
    return line


WRONG = {
    "protocol.stpes": (300, "unknown key 'protocol.stpes'; did you mean 'steps'"),
    "protocol.steps": ("300", 'protocol.steps: Input should be a valid integer (it is "300")'),
    "protocol.lr": (-1, "protocol.lr: Input should be greater than 0 (it is -1)"),
    "protocol.views.crp": (0.5, "unknown key 'protocol.views.crp'; did you mean 'crop'"),
    "protocol.epochs": (3, "give one of steps and epochs"),
    "protocol.views": ([], "protocol.views: Input should be an object (it is [])"),
    "student.arhc": ("convnet", "unknown key 'student.arhc'; did you mean 'arch'"),
    "student.depth": (99, "student.depth: Input should be less than or equal to 12 (it is 99)"),
    "student.norm": ("nrom", "student.norm"),
    "space.std": ([0.0], "space.std: Input should be greater than 0 (it is [0.0])"),
    "space.kind": ("zac", "known: standard, zca"),
    "space.more": (1, "unknown key 'space.more'"),
    "provenance.data.hodlout": (0.1, "unknown key 'provenance.data.hodlout'; did you mean 'holdout'"),
    "provenance.sede": (1, "unknown key 'provenance.sede'; did you mean 'seed'"),
    "provenance.seed": (True, "provenance.seed: Input should be a valid integer (it is true)"),
    "provenance.labeller": ({"teachers": []}, "provenance.labeller.teachers: "),
}


@pytest.mark.parametrize("level", WRONG)
def test_every_level_of_a_manifest_is_of_the_types_that_use_it(place, forged, level):
    value, words = WRONG[level]
    file = forged({level: value})
    line = refused(place, file)
    assert line.startswith(f"dd: {file} is ")
    assert words in line
    with pytest.raises(UsageError, match="forged"):
        dd.load(file)


@pytest.mark.parametrize("source", ["folder:/proc", "npz:/etc/passwd", "parquet:/"])
def test_a_path_that_a_set_names_is_not_read(place, forged, source):
    line = refused(place, forged(source=source))
    assert line.endswith(
        f"this set was not made here and asks for images at a path; to allow that, add dataset={source}"
    )
    assert "no such" in refused(place, forged(source=source), "dataset=folder:/nowhere")


def test_teachers_that_a_set_names_are_not_read(place, forged):
    origin = {"teachers": ["/etc/passwd.pt@convnet"], "weights": None}
    origin |= {"squeeze": asdict(SqueezeSettings()), "labels": asdict(LabelSettings(mode="live"))}
    file = forged({"provenance.labeller": origin})
    soft = ("eval.protocol=quick-soft", "eval.epochs=1")
    line = refused(place, file, *soft)
    assert line.endswith(
        "this set was not made here and asks for teachers at a path; to allow that, add teachers=/etc/passwd.pt@convnet"
    )
    assert "no such file" in refused(place, file, *soft, "teachers=nowhere.pt@convnet")
    assert "the set has 1" in refused(place, file, *soft, "teachers=convnet,convnet")
    assert "its own" in refused(place, forged(), "teachers=convnet")


def test_a_set_that_was_made_here_needs_no_further_word(place, pictures):
    """Its file, a copy of it and its folder are one's own; in another home they are a stranger's."""
    ended = place.dd("run", *SHORT, pictures, "--json")
    assert ended.code == 0, ended.err
    copy = place.path / "copy.safetensors"
    shutil.copy(place.folder() / "set.safetensors", copy)
    for made in (place.folder(), place.folder() / "set.safetensors", copy):
        again = place.dd("eval", str(made), "device=cpu", "compile=false", "--json")
        assert again.code == 0, again.err
        assert again.report["accuracy"]["values"] == ended.report["accuracy"]["values"]
    away = ("eval", str(copy), "device=cpu", "compile=false")
    elsewhere = place.dd(*away, DD_HOME=str(place.path / "other"))
    assert elsewhere.code == 2
    assert elsewhere.err.rstrip().endswith(f"add {pictures}")
    assert place.dd(*away, pictures, DD_HOME=str(place.path / "other")).code == 0


# --- what it costs ----------------------------------------------------------------------------------------------------

COSTLY = {
    "steps": ({"protocol.steps": 10**9}, "would take about"),
    "students": ({"protocol.students": 10**6}, "would take about"),
    "full": ({"protocol.full": True, "protocol.steps": 10**8, "protocol.students": 1}, "would take about"),
    "width": ({"student.width": 2**16, "student.depth": 3}, "a student of this set takes about"),
}


@pytest.mark.parametrize("case", COSTLY)
@pytest.mark.timeout(60)
def test_what_would_take_a_day_is_asked_for(place, forged, case):
    levels, words = COSTLY[case]
    file = forged(levels)
    began = time.monotonic()
    line = refused(place, file)
    assert time.monotonic() - began < 20
    assert words in line
    less = ("eval.students=1", "eval.steps=2", "eval.full=false", "student.width=4")
    brief = place.dd("eval", file, *less, "device=cpu", "compile=false")
    assert brief.code == 0, brief.err


def test_teachers_to_be_trained_are_asked_for(place, forged):
    origin = {"teachers": ["convnet:width=4:depth=1"], "weights": None}
    origin |= {"squeeze": asdict(SqueezeSettings(epochs=1)), "labels": asdict(LabelSettings(mode="live"))}
    file = forged({"provenance.labeller": origin})
    soft = ("eval.protocol=quick-soft", "eval.epochs=1", "eval.students=1", "eval.full=false")
    assert "1 teachers to be trained here, 1 epochs of " in refused(place, file, *soft)
    allowed = place.dd("eval", file, *soft, "hours=10", "device=cpu", "compile=false")
    assert "made teacher" in allowed.err


def test_a_small_set_does_not_wait_for_an_estimate(place, forged):
    """The steps whose time is taken are a few of hundreds."""
    seen = []
    real = Evaluator.pace

    def pace(self, arm, lr):
        began = time.perf_counter()
        found = real(self, arm, lr)
        seen.append(time.perf_counter() - began)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "pace", pace)
        ended = place.dd("eval", forged(), "device=cpu", "compile=false", "--json")
    assert ended.code == 0, ended.err
    assert len(seen) == 1
    assert seen[0] < 0.3


# --- several ----------------------------------------------------------------------------------------------------------


def test_one_bad_set_does_not_hide_the_others(place, forged, finished):
    good, bad = str(finished.folder()), forged({"protocol.stpes": 3})
    words = ("device=cpu", "compile=false", "--eval.students", "1")
    ended = place.dd("eval", good, bad, *words, good, "nowhere")
    assert ended.code == 2
    assert ended.out.count("trained on") == 2
    said = [line for line in ended.err.splitlines() if line.startswith("dd: ")]
    assert [line.split()[1] for line in said] == [f"{bad}:", "nowhere:"]
    assert "protocol.stpes" in said[0]
    both = place.dd("eval", bad, good, *words, "--json")
    assert both.code == 2
    one, other = both.report["sets"]
    assert "protocol.stpes" in one["error"]
    assert other["report"]["accuracy"]["n"] == 1
    assert place.dd("eval", good, good, *words).code == 0
