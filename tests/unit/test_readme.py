"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

from dd.cli.main import run_command_line

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


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


def test_no_figure_is_still_to_be_filled_in():
    assert "TODO" not in README
