"""Estimates from a sample: what is credited, what is executed, and that nothing of it is left."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dd.cli.main import run_command_line
from dd.engine.method import Method, Synthetic
from dd.engine.synthesise import Watch, synthesise
from dd.errors import UsageError
from dd.io import locked
from dd.pipeline.estimate import _lend
from dd.pipeline.fitting import Limits
from dd.pipeline.task import make_task
from dd.recipes import resolve
from dd.runs import RunFolder, Store, sampling
from dd.runs.overlay import Overlay
from dd.sizes import parse_size
from dd.training.experts import _prolonged

TURN = 0.02  # seconds


def test_outside_a_sample_loops_are_whole():
    assert sampling.laps() is None
    assert list(sampling.turns(2, 7)) == [2, 3, 4, 5, 6]
    before, clock = time.perf_counter(), sampling.now()
    sampling.credit(100)
    assert clock == pytest.approx(before, abs=1)


def test_the_turns_that_are_left_out_are_credited_at_the_pace_of_the_others():
    with sampling.sampling() as sample:
        began, wall, turns = sampling.now(), time.perf_counter(), 0
        for _ in sampling.turns(0, 1000):
            time.sleep(TURN)
            turns += 1
        estimate, real = sampling.now() - began, time.perf_counter() - wall
    assert turns < 1000
    assert estimate == pytest.approx(real + sample.credit)
    assert 1000 * TURN <= estimate < 2 * 1000 * TURN
    assert sampling.active() is None


def test_a_loop_inside_a_turn_counts_in_full():
    with sampling.sampling():
        began = sampling.now()
        for _ in sampling.turns(0, 20):
            for _ in sampling.turns(0, 200):
                time.sleep(TURN)
        assert 20 * 200 * TURN <= sampling.now() - began < 2 * 20 * 200 * TURN


def test_a_short_loop_is_executed():
    with sampling.sampling() as sample:
        assert list(sampling.turns(0, 3)) == [0, 1, 2]
    assert sample.credit == 0


def test_of_several_alike_one_is_made_and_its_warming_up_counts_once():
    made = []

    def make(item):
        made.append(item)
        for turn in sampling.turns(0, 50):
            time.sleep(1.0 if turn == 0 else TURN)
        return item

    with sampling.sampling() as sample:
        sample.bytes = 5
        began = sampling.now()
        found = sample.each(range(10), make, lambda item: item == 3)
        estimate = sampling.now() - began
    assert (made, found) == ([0, 3], [0, 0, 0, 3, 0, 0, 0, 0, 0, 0])
    once, steady = 1.0, 50 * TURN
    assert 2 * once + 10 * steady <= estimate < 2 * (2 * once + 10 * steady)  # not 10 * once


def test_loops_of_one_key_share_a_pace():
    with sampling.sampling() as sample:
        for _ in sampling.turns(0, 100, "part"):
            time.sleep(TURN)
        before = sample.credit
        assert list(sampling.turns(0, 100, "part")) == []
        assert sample.credit - before >= 100 * TURN
        assert len(list(sampling.turns(0, 3, "another"))) == 3


def test_an_overlay_reads_the_store_below_and_leaves_it_alone(tmp_path):
    below = Store(tmp_path / "below")
    below.value("facts", {"a": 1}, lambda: 7)
    before = sorted(tmp_path.rglob("*"))
    store = Overlay(tmp_path / "above", below)
    assert store.has("facts", {"a": 1})
    assert store.value("facts", {"a": 1}, lambda: 8).value == 7
    assert not store.has("facts", {"a": 2})
    with sampling.sampling() as sample:
        made = store.tensors("facts", {"a": 2}, lambda: ({"x": torch.ones(3)}, {}))
    assert made.tensors is not None
    assert sample.bytes == made.path.stat().st_size
    assert store.has("facts", {"a": 2})
    assert not below.has("facts", {"a": 2})
    assert sorted(path for path in tmp_path.rglob("*") if "below" in path.parts) == before[: len(before)]
    assert {facts["spec"]["a"] for facts in store.manifests("facts")} == {1, 2}


def test_the_trajectory_of_a_sampled_expert_goes_on_in_a_straight_line():
    snapshots = torch.tensor([[0.0, 1.0], [5.0, 5.0], [3.0, -5.0]])
    line = torch.tensor([[0.0, 1.0], [1.0, -1.0], [2.0, -3.0], [3.0, -5.0]])
    torch.testing.assert_close(_prolonged(snapshots, 4), line)


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("home", "runs"):
        monkeypatch.setenv(f"DD_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = {f"{part}_images": rng.integers(0, 256, (40, 16, 16, 1), dtype=np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "images.npz", **images, **{f"{part}_labels": np.arange(40) % 2 for part in ("train", "test")})
    return tmp_path


def tiny(place, *more):
    return [f"dataset=npz:{place / 'images.npz'}", "ipc=1", "device=cpu", "compile=false", "student.width=4",
            "eval.students=3", "eval.steps=3", "eval.batch=4", "eval.full=false", "eval.probes=0", *more]  # fmt: skip


def told(capsys, verb, *args, code=0):
    assert run_command_line([verb, *args, "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def stages(planned):
    return {stage["stage"]: stage for stage in planned["stages"]}


def files(place):
    return {path for path in Path(place).rglob("*") if path.is_file() and "inventories" not in path.parts}


class Counted(Method):
    """Moves pixels; counts its iterations."""

    name = "counted"
    iterations = 100_000

    def __init__(self):
        self.seen = []

    def optimisers(self, syn):
        return [torch.optim.SGD([syn.images], lr=0.1)]

    def loss(self, syn, task, prepared, it):
        self.seen.append(it)
        time.sleep(0.002)
        return syn.images.square().mean()


def test_a_sampled_synthesis_credits_iterations_and_probes(place):
    task = make_task(resolve({"method": "random", "dataset": f"npz:{place / 'images.npz'}", "ipc": 1, "device": "cpu"}))
    method, probes = Counted(), []

    def probe(syn):
        probes.append(len(method.seen))
        time.sleep(0.05)
        return (50.0,)

    watch = Watch(probe=probe, probe_at=frozenset(range(10_000, 100_001, 10_000)))
    with sampling.sampling():
        began = sampling.now()
        synthesise(method, task, None, Synthetic(task.first_images(), task.targets), None, watch)
        estimate = sampling.now() - began
    assert method.seen == list(range(len(method.seen)))
    assert len(method.seen) < 100_000
    assert len(probes) == 2  # of the ten, one that stands for the others, and the last
    assert estimate >= 100_000 * 0.002 + 10 * 0.05


def test_a_plan_costs_what_is_missing_and_leaves_nothing(place, capsys):
    args = tiny(place, "method=mtt", "iterations=3", "experts.count=5", "experts.epochs=3", "start_max=2", "span=1")
    before = files(place)
    planned = told(capsys, "plan", *args)
    assert files(place) == before
    found = stages(planned)
    assert list(found) == ["prepare", "synthesise", "evaluate"]
    assert all(stage["seconds"] > 0 for stage in found.values())
    assert planned["total"]["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found.values()))
    assert planned["total"]["peak_memory"] == max(stage["peak_memory"] for stage in found.values())
    dry = told(capsys, "run", *args, "--dry-run")
    costs = ("seconds", "peak_memory", "disk", "pieces")
    assert dry == {key: value for key, value in planned.items() if key not in ("total", "jobs")} | {
        "stages": [{k: v for k, v in stage.items() if k not in costs} for stage in planned["stages"]]}  # fmt: skip

    told(capsys, "run", *args)
    made = sum(path.stat().st_size for path in (place / "home" / "experts").glob("*.safetensors"))
    assert found["prepare"]["disk"] == made
    assert told(capsys, "plan", *args)["total"] == {"seconds": 0, "peak_memory": 0, "disk": 0}
    longer = stages(told(capsys, "plan", *args, "eval.steps=5"))
    assert longer["prepare"]["disk"] == longer["synthesise"]["seconds"] == 0
    assert longer["evaluate"]["seconds"] > 0
    assert run_command_line(["plan", *args, "iterations=4", "experts.count=6"]) == 0
    said = capsys.readouterr().out
    assert "prepare: 5 of 6 artefacts exist, " in said
    assert "total: " in said

    before = {path: path.read_bytes() for path in files(place)}
    again = told(capsys, "plan", *args, "force=true")
    assert {path: path.read_bytes() for path in files(place)} == before
    repeated = stages(again)
    assert not again["finished"]
    assert not told(capsys, "run", *args, "force=true", "--dry-run")["finished"]
    assert repeated["prepare"]["disk"] == 0
    assert repeated["synthesise"]["exists"] is False
    assert repeated["synthesise"]["seconds"] > 0
    assert repeated["evaluate"]["seconds"] > 0


def test_a_plan_with_jobs_says_what_they_divide_and_what_they_do_not(place, capsys):
    args = tiny(place, "method=mtt", "iterations=3", "experts.count=5", "experts.epochs=3", "start_max=2", "span=1")
    planned = told(capsys, "plan", *args, "eval.students=3", "on=slurm", "jobs=2")
    found, total = stages(planned), planned["total"]
    (experts,), (students,) = found["prepare"]["pieces"], found["evaluate"]["pieces"]
    assert (experts["kind"], experts["count"]) == ("experts", 5)
    assert students["kind"] == "students"
    assert students["count"] >= 9  # on the set, on its start and on random images
    assert found["synthesise"]["pieces"] == []  # probes are the lead's

    def saved(some, rounds):
        return some["seconds"] * (1 - rounds / some["count"])

    shorter = saved(experts, 3) + saved(students, -(-students["count"] // 2))
    assert total["seconds"] == pytest.approx(total["alone"] - shorter)
    assert total["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found.values()))
    assert total["least"] == pytest.approx(total["alone"] - saved(experts, 1) - saved(students, 1))
    assert run_command_line(["plan", *args, "jobs=2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^2 jobs divide: 5 experts of .+, \d+ students of ", said, re.MULTILINE)
    assert "(critical path)" in said


def test_what_is_divided_within_a_piece_is_not_divided_again():
    with sampling.sampling() as sample:
        with sample.dividing("parts", 4):
            sampling.credit(8.0)
            with sample.dividing("students", 2):
                sampling.credit(4.0)
        with sample.dividing("labels", 0):
            sampling.credit(1.0)
    (some,) = sample.pieces
    assert (some.kind, some.count, some.seconds) == ("parts", 4, pytest.approx(12.0, abs=0.1))


def test_labels_of_an_interrupted_run_are_lent_without_their_locks(tmp_path):
    folder, own = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "own")
    own.path.mkdir()
    kind, labels = folder.labels.name, Store(folder.path)
    made = labels.tensors(kind, {"epoch": 0}, lambda: ({"logits": torch.ones(2)}, {}))
    with locked(labels.path(kind, {"epoch": 1}).with_suffix(".lock"), "an epoch that was interrupted"):
        _lend(folder, own)
        lent = Store(own.path)
        assert lent.peek(kind, {"epoch": 0}).key == made.key
        before = files(folder.path)
        lent.tensors(kind, {"epoch": 1}, lambda: ({"logits": torch.zeros(2)}, {}))
    assert files(folder.path) == before


def test_limits_say_whether_a_run_fits_and_how(place, capsys):
    args = tiny(place, "method=mtt", "iterations=30000", "experts.count=2", "experts.epochs=3", "start_max=2", "span=1")
    roomy = told(capsys, "plan", *args, "memory=1000GB", "hours=1e6")
    assert (roomy["fits"], roomy["changes"], roomy["in_words"]) == (True, {}, ["it fits"])
    assert roomy["total"]["seconds"] > 30
    tight = told(capsys, "plan", *args, f"hours={roomy['total']['seconds'] / 4 / 3600}", code=1)
    assert not tight["fits"]
    assert tight["changes"]["iterations"] < 30_000
    assert tight["changed_plan"]["total"]["seconds"] < tight["total"]["seconds"]
    settings = {stage["stage"]: stage for stage in tight["changed_plan"]["stages"]}
    assert settings["synthesise"]["iterations"] == tight["changes"]["iterations"]
    assert "planned again with " in tight["in_words"][1]


@pytest.mark.parametrize(
    ("given", "why"),
    [({"memory": "much"}, "no size"), ({"memory": 0}, "no size"), ({"hours": -1}, "positive"), ({"hours": "a"}, "pos")],
    ids=["words", "zero", "negative", "letters"],
)
def test_limits_that_are_none_are_refused(given, why):
    with pytest.raises(UsageError, match=why):
        Limits.of(given)


def test_sizes():
    assert [parse_size(text) for text in ("8GB", "500 MB", "1.5kB", "12", "1e9")] == [
        8 * 10**9, 500 * 10**6, 1500, 12, 10**9]  # fmt: skip
    assert Limits.of({"memory": "8GB", "hours": 2}) == Limits(8 * 10**9, 2.0)
