import csv
import importlib
from dataclasses import asdict, replace
from pathlib import Path

from dd.experiments import recorded

from dd.evaluation import Protocol, Score
from dd.evaluation.curve import Curve
from dd.evaluation.report import RegimeReport


def test_rows_of_a_command_replace_its_older_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "RESULTS", tmp_path)
    recorded.record("a.csv", ["command", "x"], [{"command": "b", "x": 2}, {"command": "b", "x": 1}])
    recorded.record("a.csv", ["command", "x"], [{"command": "a", "x": "3,4"}])
    recorded.record(
        "a.csv", ["command", "x", "y"], [{"command": "b", "x": 5, "y": 6}, {"command": "b", "x": 0, "y": 7}]
    )
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as lines:
        rows = [tuple(row.values()) for row in csv.DictReader(lines)]
    assert rows == [("a", "3,4", ""), ("b", "5", "6"), ("b", "0", "7")]


def test_columns_that_are_not_named_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "RESULTS", tmp_path)
    recorded.record("a.csv", ["command", "x", "y"], [{"command": "b", "x": 5, "y": 6}])
    recorded.record("a.csv", ["command", "x"], [{"command": "a", "x": 1}])
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines() == ["command,x,y", "a,1,", "b,5,6"]


CURVES = [Curve((10, 20), (100, 200), (1.0, 2.0), (40.0, last)) for last in (60.0, 70.0, 45.0)]


def test_the_time_to_a_target_is_the_mean_over_all_students_of_all_seeds(monkeypatch):
    monkeypatch.syspath_prepend(Path(recorded.__file__).parent)
    times_of = importlib.import_module("seeds")._times

    def told(curves, control=None):
        protocol = asdict(Protocol(curve=2, target=40.0 if control else 55.0))
        rows = {"accuracy": Score(tuple(one.test[-1] for one in curves), curves=tuple(curves))}
        return RegimeReport("hard", rows | ({"control": control} if control else {}), {}, protocol, "f")

    found = times_of([told(CURVES[:2]), told(CURVES[1:]), told(CURVES[2:])])
    assert found == {"target": "55", "reached": "3 of 5", "steps_to": "20", "seconds_to": "2.00"}
    never = told(CURVES[2:], Score((20.0,), curves=(Curve((10,), (9,), (1.0,), (20.0,)),)))
    assert times_of([never]) == {
        **{"target": "40", "reached": "1 of 1", "steps_to": "10", "seconds_to": "1.00"},
        **{"control_reached": "0 of 1", "control_steps_to": "", "control_seconds_to": ""},
    }
    assert times_of([replace(never, protocol=asdict(Protocol()))]) == {}
