"""The commands of the page on downstream tasks, with the smallest students, as its reader types them."""

import json
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "howto" / "downstream.md"
COMMANDS = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    dd eval")]
TINY = "student.width=4 student.depth=1 eval.students=1 eval.epochs=null eval.steps=2 eval.full_students=1"
OF_TASK = {
    "continual": "continual.orders=1",
    "linear": "linear.squeeze.augment=false",
    "nas": "nas.sample=3 nas.reference=1 nas.reference_epochs=1",
    "transfer": "transfer.fine_tune=2",
}


def task_of(command):
    return next(word.removeprefix("task=") for word in shlex.split(command) if word.startswith("task="))


def test_every_task_has_a_command():
    from dd.evaluation.downstream import TASKS

    assert {task_of(command) for command in COMMANDS} == set(TASKS) == set(OF_TASK)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(place, command):
    """Later words override earlier ones, so what is added only makes it smaller."""
    _, *words = shlex.split(command)
    task = task_of(command)
    ended = place.dd(*words, *TINY.split(), *OF_TASK[task].split(), "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["task"] == task
    again = place.dd(*words, *TINY.split(), *OF_TASK[task].split())
    assert again.code == 0
    assert "made" not in again.err  # everything was kept
    assert f"task       {task}: " in again.out
