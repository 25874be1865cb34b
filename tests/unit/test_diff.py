"""Two runs side by side: settings, circumstances, the interval of the gap, and what is not claimed."""

import itertools
import json
import shutil
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dd.cli.main import run_command_line
from dd.errors import UsageError
from dd.evaluation import PROTOCOLS, Report, Score
from dd.evaluation.difference import changes, difference
from dd.evaluation.scores import paired_gap, unpaired_gap
from dd.networks import NetworkSpec
from dd.pipeline.diff import diff

QUICK = PROTOCOLS["quick"]
TINY = ["method=random", "ipc=1", "student.width=4", "compile=false", "device=cpu", "eval.steps=2", "eval.batch=16",
        "eval.students=2", "eval.full=false"]  # fmt: skip


def report(values=(70.0, 71.0, 73.0), seed=0, protocol=QUICK, **changed):
    student = asdict(NetworkSpec(depth=3, width=32))
    given = {
        "accuracy": Score(tuple(values)),
        "control": Score((60.0, 61.0)),
        "start": None,
        "full": None,
        "missing": {},
        "protocol": protocol.to_dict(),
        "fingerprint": protocol.fingerprint(student, "flip"),
        "student": student,
        "dataset": {"name": "blobs", "fingerprint": "d", "where": "here"},
        "bytes": {"images": 10, "labels": 2, "total": 12},
        "provenance": {"seed": seed},
        "versions": {"torch": "2.14.1", "numpy": "2.4.6"},
        "device": "cpu (x86_64, 1 threads)",
        "cost": {"synthesise": {"seconds": 5.0, "peak_memory": 7}},
    }
    return Report(**given | changed)


def test_students_of_one_seed_and_number_are_paired():
    (pair,) = difference(report(), report((72.0, 72.5, 75.5))).scores
    assert (pair.gap, pair.unpaired) == (paired_gap((72.0, 72.5, 75.5), (70.0, 71.0, 73.0)), "")
    assert pair.in_words() == "the second is better"
    (back,) = difference(report((72.0, 72.5, 75.5)), report()).scores
    assert (back.gap.mean, back.in_words()) == (-pair.gap.mean, "the first is better")
    (same,) = difference(report(), report((70.5, 70.5, 73.0))).scores
    assert same.in_words() == "no significant difference"


@pytest.mark.parametrize(
    ("other", "why"),
    [(report(seed=3), "the seeds are 0 and 3"), (report((70.0, 71.0)), "3 and 2 students")],
    ids=["seed", "number"],
)
def test_other_students_are_not_paired_and_it_is_said(other, why):
    (pair,) = difference(report(), other).scores
    assert pair.unpaired == why
    assert pair.gap == unpaired_gap(other.accuracy.values, report().accuracy.values)


def test_an_unpaired_interval_is_that_of_two_independent_resamplings():
    one, other = (1.0, 2.0, 7.0), (0.5, 4.0)
    gaps = sorted(
        statistics.fmean(a) - statistics.fmean(b)
        for a in itertools.product(one, repeat=3)
        for b in itertools.product(other, repeat=2)
    )
    found = unpaired_gap(one, other)
    assert found.mean == pytest.approx(10 / 3 - 2.25)
    noise = 4 * (0.025 * 0.975 / 10_000) ** 0.5  # four standard errors of a share of the samples
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        assert sum(gap < end - 1e-9 for gap in gaps) / len(gaps) <= share + noise
        assert sum(gap <= end + 1e-9 for gap in gaps) / len(gaps) >= share - noise
    paired = paired_gap((1.0, 2.0), (1.0, 2.0))
    assert (paired.low, paired.high) == (0, 0)
    assert unpaired_gap((1.0, 2.0), (1.0, 2.0)).high > 0


def test_a_single_student_has_no_interval():
    found = unpaired_gap((1.0,), (3.0, 4.0))
    assert (found.mean, found.low, found.high, found.n) == (-2.5, None, None, 1)
    (pair,) = difference(report((70.0,)), report((90.0,))).scores
    assert pair.in_words() == "one student says nothing about significance"
    with pytest.raises(UsageError, match="at least one value"):
        unpaired_gap((), (1.0,))


def test_under_other_conditions_nothing_is_better():
    longer = replace(QUICK, steps=600)
    (pair,) = difference(report(), report((99.0, 99.0, 99.0), protocol=longer)).scores
    assert pair.gap is None
    assert set(pair.conditions) == {"eval.steps"}
    assert pair.conditions["eval.steps"][1] == 600
    assert pair.in_words() == "not comparable, because these differ: eval.steps"


def test_versions_device_and_data_that_differ():
    other = report(versions={"torch": "2.15.0", "numpy": "2.4.6"}, device="cuda (H200)",
                   dataset={"name": "blobs", "fingerprint": "e", "where": "here"})  # fmt: skip
    assert difference(report(), other).facts == {
        "version of torch": ("2.14.1", "2.15.0"),
        "device": ("cpu (x86_64, 1 threads)", "cuda (H200)"),
        "data.fingerprint": ("d", "e"),
    }
    assert difference(report(), report()).facts == {}


def test_a_missing_setting_is_not_one_of_value_none():
    assert changes({"a": None, "b": 1, "c": 2}, {"b": 1.0, "c": 3, "d": None}) == {
        "a": (None, None), "b": (1, 1.0), "c": (2, 3), "d": (None, None)}  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))
    found = []
    for more in ([], ["copy=false", "seed=1"]):
        assert run_command_line(["run", *TINY, *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["folder"])
    return found


def test_two_runs(runs, capsys):
    assert run_command_line(["diff", *runs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"seed": [0, 1], "copy": [True, False]}
    (own,) = found["scores"]
    assert (own["kind"], own["comparable"], own["unpaired"]) == ("own", True, "the seeds are 0 and 1")
    reports = [json.loads((Path(run) / "report.json").read_text()) for run in runs]
    assert own["gap"]["mean"] == pytest.approx(reports[1]["accuracy"]["mean"] - reports[0]["accuracy"]["mean"])
    assert found["cost"]["evaluate"]["seconds"] == [one["cost"]["evaluate"]["seconds"] for one in reports]
    assert found["bytes"]["total"] == [one["bytes"]["total"] for one in reports]
    assert run_command_line(["diff", f"{runs[0]}/report.json", f"{runs[1]}/set.safetensors"]) == 0
    said = capsys.readouterr().out
    for words in ("copy", "test accuracy %", "versions, device and data: the same", "students not paired"):
        assert words in said


def test_what_is_no_finished_run_is_refused(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    begun = tmp_path / "begun"
    shutil.copytree(runs[0], begun)
    (begun / "report.json").unlink()
    for place, why in (
        (tmp_path / "nowhere", "no run at"),
        (tmp_path / "empty", "no finished run in"),
        (begun, "is not finished; dd run recipe="),
        (runs[0], "are the same run"),
    ):
        with pytest.raises(UsageError, match=why):
            diff(runs[0], str(place))
    assert run_command_line(["diff", runs[0], str(tmp_path / "nowhere")]) == 2
    assert "no run at" in capsys.readouterr().err
