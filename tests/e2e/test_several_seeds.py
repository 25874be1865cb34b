"""`dd run … seed=0,1`: every seed is a run of its own, and the row of all."""

import pytest

from dd.evaluation.scores import nested_std

from .conftest import ALIKE, Place


@pytest.fixture(scope="module")
def ran(tmp_path_factory, pictures):
    place = Place(tmp_path_factory.mktemp("seeds"))
    words = ("method=random", pictures, *ALIKE, "ipc=2", "eval.students=2", "eval.full=false", "eval.references=")
    alone = place.dd("run", *words, "seed=1", "--json")
    assert alone.code == 0, alone.err
    return place, words, alone.report


def test_each_is_the_run_of_that_seed_alone_and_one_row_is_of_all(ran):
    place, words, alone = ran
    ended = place.dd("run", *words, "seed=0,1", "--json")
    assert ended.code == 0, ended.err
    zero, one = ended.report["runs"]
    assert (zero["fresh"], one["fresh"]) == (True, False)
    assert one["accuracy"] == alone["accuracy"]
    assert one["folder"] == alone["folder"] != zero["folder"]
    assert zero["command"].endswith("seed=0")
    values = [run["accuracy"]["values"] for run in (zero, one)]
    assert len({tuple(some) for some in values}) == 2
    (block,) = ended.report["comparison"]["blocks"]
    (row,) = block["rows"]
    assert row["mean"] == pytest.approx(sum(map(sum, values)) / 4)
    assert (row["between"], row["within"]) == pytest.approx(nested_std(values))
    assert (row["sets"], row["students"]) == (2, 2)

    again = place.dd("run", *words, "seed=[0,1]")
    assert again.code == 0
    assert "made" not in again.err
    assert f"{row['mean']:.2f} ± {row['within']:.2f}" in again.out
    assert [line.split()[-1] for line in again.out.splitlines()[-2:]] == [zero["folder"], one["folder"]]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("seed=0,0", "seed=0,0: 0 is named twice"),
        ("seed=[3]", "seed=[3]: give one value, or several: seed=A,B"),
        ("seed=0,x", "seed='x'"),
        ("seed=0,-1", "seed=-1"),
        ("seed=0,", "seed=0,: a value is empty"),
    ],
)
def test_what_is_no_list_of_seeds_is_refused_before_anything_runs(ran, word, why):
    place, words, _ = ran
    ended = place.dd("run", *words, word, "ipc=1")
    assert ended.code == 2
    assert why in ended.err.splitlines()[-1]
    assert "made" not in ended.err


def test_plans_of_several_seeds_are_one_object(ran):
    place, words, _ = ran
    planned = place.dd("run", *words, "ipc=1", "--seed", "3,4", "--dry-run", "--json").report["runs"]
    alone = [place.dd("run", *words, "ipc=1", f"seed={seed}", "--dry-run", "--json").report for seed in (3, 4)]
    assert planned == alone
    refused = place.dd("plan", *words, "seed=3,4")
    assert (refused.code, "a plan is about one run" in refused.err) == (2, True)


FAILING = '''
from dataclasses import dataclass
from dd.engine.method import Method, Synthetic
from dd.engine.registry import register
from dd.errors import RunError


@register("failing")
@dataclass(frozen=True)
class Failing(Method):
    """Random real images, but not with seed 1."""

    def start(self, task, prepared):
        if task.seed == 1:
            raise RunError("diverged")
        return Synthetic(task.first_images(), task.targets)
'''


def test_a_seed_that_fails_is_named_and_those_before_it_are_kept(ran):
    place, words, _ = ran
    (place.path / "failing.py").write_text(FAILING)
    own = ("run", "method=failing.py", *words[1:], "ipc=1")
    ended = place.dd(*own, "seed=0,1,2")
    assert ended.code == 1
    assert "seed=1 ended; 1 of 3 seeds are finished, and the same command keeps them" in ended.err
    assert ended.err.splitlines()[-1] == "dd: diverged"
    assert ended.out == ""
    assert place.dd(*own, "seed=0", "--json").report["fresh"] is False
