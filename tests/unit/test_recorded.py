import csv

from dd.experiments import recorded


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
