"""What the README shows runs as it stands there."""

import csv
import json
import re
from dataclasses import asdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dd
from dd.cli.main import run_command_line
from dd.networks import NetworkSpec, resolve_network

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "experiments" / "results"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def python_block(words: str) -> str:
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if words in block]
    return found


def test_the_method_of_the_readme_runs_and_lowers_its_objective(tmp_path):
    (tmp_path / "mine.py").write_text(python_block("@register"))
    tiny = ["student.width=8", "compile=false", "device=cpu", "eval.protocol=smoke", "eval.steps=20", "eval.probes=0"]
    assert run_command_line(["run", "method=mine.py", "ipc=5", "iterations=30", "out=here", *tiny]) == 0
    (log,) = (tmp_path / "here").rglob("log.csv")
    losses = [float(line.split(",")[1]) for line in log.read_text().splitlines()[1:]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_set_is_scored_with_another_network_as_the_readme_does(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for place in ("train/dark", "train/light", "test/dark", "test/light"):  # small enough for a ResNet-18
        folder = tmp_path / "pictures" / place
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 128, (8, 8), dtype=np.uint8) + (128 if "light" in place else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    tiny = {"device": "cpu", "compile": False, "eval": {"protocol": "smoke", "students": 1, "steps": 1, "full": False}}
    made = {"dataset": f"folder:{tmp_path / 'pictures'}", "student": {"depth": 1, "width": 4}}
    outcome = dd.run("random", ipc=1, **made, **tiny)
    narrow = resolve_network(NetworkSpec("resnet18", width=16), 8, 1)

    (line,) = re.findall(r"^    dd (eval .*student\.arch.*)$", README, re.MULTILINE)
    (place,) = re.findall(r"runs/\S+", line)
    words = line.replace(place, str(outcome.folder.set)).split()
    short = ["device=cpu", "compile=false", "eval.students=1", "eval.steps=1", "eval.full=false", "--json"]
    capsys.readouterr()
    assert run_command_line([*words, *short]) == 0
    assert json.loads(capsys.readouterr().out)["student"] == asdict(narrow)


def test_every_row_of_results_is_a_recorded_one():
    recorded = {}
    for path in sorted(RESULTS.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            recorded |= {row["command"]: row for row in csv.DictReader(lines)}
    rows = re.findall(r"^\| \d+ \|(.*)\| `(dd run .*)` \|$", README, re.MULTILINE)
    assert len(rows) >= 6
    for cells, command in rows:
        row = recorded[command]
        accuracy, control, gap, start = (cell.strip() for cell in cells.strip(" |").split("|"))
        assert accuracy == f"{tenths(row['accuracy'])} ± {tenths(row['std'])}"
        assert control == f"{tenths(row['control'])} ± {tenths(row['control_std'])}"
        assert start == f"{tenths(row['start'])} ± {tenths(row['start_std'])}"
        assert gap.replace("\N{MINUS SIGN}", "-") == f"{tenths(Decimal(row['accuracy']) - Decimal(row['control'])):+}"


def tenths(value):
    return Decimal(value).quantize(Decimal("0.1"), ROUND_HALF_UP)


def test_the_readme_is_read_in_three_minutes():
    assert README.count("\n") <= 150


def test_no_figure_is_still_to_be_filled_in():
    assert "TODO" not in README
