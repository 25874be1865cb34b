"""`dd experts`: made before a run, looked after, and shared with it."""

import json
import re
import subprocess
import sys

import pytest


@pytest.fixture
def pool(small, pictures):
    """What the experts of a small run need to know."""
    return [word for word in small if not word.startswith("eval.")]


def test_made_listed_used_verified_and_deleted(place, small, pool):
    assert place.dd("experts", "--json").report["pools"] == []
    priced = place.dd("experts", "make", *pool, "--dry-run", "--json")
    assert priced.code == 0, priced.err
    assert priced.report["missing"] == 2
    assert "2 of 2 experts to train: about " in priced.err
    assert place.dd("experts", "--json").report["pools"] == []
    made = place.dd("experts", "make", *pool, "--json")
    assert made.code == 0, made.err
    assert "made expert 2 of 2" in made.err
    assert len(made.report["holdout"]) == 2
    again = place.dd("experts", "make", *pool)
    assert "all 2 experts exist" in again.err

    ran = place.dd("run", *small, "--json")
    assert ran.code == 0, ran.err
    assert "kept expert 2 of 2" in ran.err
    assert "made expert" not in ran.err

    (listed,) = place.dd("experts", "--json").report["pools"]
    assert listed["experts"] == "2"
    table = place.dd("experts")
    assert listed["key"] in table.out
    assert place.dd("experts", "verify").out.strip() == "2 experts, all intact"

    (payload, *_) = sorted(place.home.glob("**/experts/*.safetensors"))
    raw = bytearray(payload.read_bytes())
    raw[-3] ^= 16
    payload.write_bytes(raw)
    bad = place.dd("experts", "verify", listed["key"][:6])
    assert bad.code == 1
    assert "1 of 2 experts are damaged" in bad.err
    assert str(payload.with_suffix(".json")) in bad.err
    mended = place.dd("experts", "make", *pool)
    assert "is damaged" in mended.err
    assert place.dd("experts", "verify").code == 0

    would = place.dd("experts", "prune", "--all", "--dry-run", "--json")
    assert would.report["freed"] == listed["bytes"]
    assert len(place.dd("experts", "--json").report["pools"]) == 1
    assert place.dd("experts", "prune", listed["key"][:6], "--json").report["freed"] >= listed["bytes"]
    assert place.dd("experts", "--json").report["pools"] == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["prune"], "name the pools to delete"),
        (["prune", "abc"], "'abc' is not a pool; stored: none"),
        (["verify", "abc"], "'abc' is not a pool; stored: none"),
        (["make", "method=random", "ipc=1"], "method 'random' trains no experts"),
        (["make", "method=mtt", "ipc=1", "expert.count=3"], "experts.count"),
    ],
)
def test_errors_say_the_way_out(place, words, line):
    ended = place.dd("experts", *words)
    assert ended.code == 2
    assert line in ended.err
    assert "Traceback" not in ended.err


def test_the_way_back_is_decided_once_and_stands_in_the_recipe(place, small):
    ended = place.dd("run", *small, "--json")
    assert ended.code == 0, ended.err
    written = (place.path / ended.report["folder"] / "recipe.toml").read_text()
    assert 'backprop = "full"' in written
    assert "stack = 1" in written
    planned = json.loads(place.dd("run", *small, "--dry-run", "--json").out)
    assert planned["stages"][1]["exists"]  # the set is found under the same decisions


def test_two_runs_that_start_together_make_a_pool_once(place, small, pool):
    more = [*pool, "experts.count=4", "experts.epochs=6"]
    (place.path / "one").mkdir()
    (place.path / "two").mkdir()
    runs = [Running(place, name, ["experts", "make", *more]) for name in ("one", "two")]
    ended = [run.end() for run in runs]
    assert [code for code, _ in ended] == [0, 0], ended
    made = [re.findall(r"made expert (\d)", err) for _, err in ended]
    assert sorted(made[0] + made[1]) == ["1", "2", "3", "4"]
    kept = [re.findall(r"kept expert (\d)", err) for _, err in ended]
    assert sorted(made[0] + kept[0]) == sorted(made[1] + kept[1]) == ["1", "2", "3", "4"]


class Running:
    """A call of `dd` in a process of its own, beside others at the same place."""

    def __init__(self, place, name, args):
        self.err = place.path / name / "err"
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dd", *args], env=place.environment, cwd=place.path, stdout=err, stderr=err
            )

    def end(self):
        try:
            code = self.process.wait(240)
        finally:
            self.process.kill()
        return code, self.err.read_text(encoding="utf-8")
