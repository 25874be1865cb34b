"""What goes where: plans, JSON, and colours only for those who see them."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from .conftest import SMALL

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:[349][0-7]|10[0-7]|[34]8)[;\dm]")


def planned(place, settings) -> tuple[dict, str]:
    return place.dd("run", *settings, "--dry-run", "--json").report, place.dd("run", *settings, "--dry-run").out


def test_a_dry_run_leaves_no_file(place, pictures):
    """Not even what it looked up: here the sizes of all images."""
    streamed = ("run", *SMALL, pictures, "data.stream=true", "data.size=8", "--dry-run")
    assert place.dd(*streamed).code == 0
    assert place.files() == set()
    ran = place.dd(*streamed[:-1])
    assert ran.code == 0, ran.err
    assert any("surveys" in file for file in place.files())


def test_a_plan_is_all_that_a_dry_run_makes(place, short):
    plan, words = planned(place, short)
    assert place.files() == set()
    assert [stage["stage"] for stage in plan["stages"]] == ["prepare", "synthesise", "evaluate"]
    for stage in ("prepare: nothing to prepare", "synthesise: 0 iterations, to make", "evaluate: 2 students"):
        assert stage in words


def test_a_plan_before_and_after(place, small):
    plan, words = planned(place, small)
    assert not plan["finished"]
    prepare, synthesise, evaluate = plan["stages"]
    assert (prepare["done"], prepare["of"]) == (0, 3)  # the images are decoded by the run, not by its plan
    assert [artefact["exists"] for artefact in prepare["artefacts"]] == [False, False, False]
    assert prepare["artefacts"][0]["what"].startswith("the decoded images of folder:")
    assert (synthesise["iterations"], synthesise["exists"]) == (4, False)
    assert evaluate["students"] == 2
    assert words.count("to make") == 4
    assert not place.runs.exists()

    report = place.dd("run", *small, "--json").report
    files = place.files()
    after, words = planned(place, small)
    assert after["finished"]
    assert after["folder"] == report["folder"]
    assert after["recipe"] == plan["recipe"] == report["recipe_hash"]
    assert after["stages"][0]["done"] == 2
    assert all(Path(artefact["path"]).is_file() for artefact in after["stages"][0]["artefacts"])
    assert after["stages"][1]["exists"]
    assert words.count("exist") == 4
    assert "to make" not in words

    more, _ = planned(place, [*small, "experts.count=3"])
    assert [artefact["exists"] for artefact in more["stages"][0]["artefacts"]] == [True, True, False]
    assert not more["stages"][1]["exists"]
    assert place.files() == files


def test_json_alone_on_stdout(place, small):
    ended = place.dd("run", *small, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["accuracy"]["n"] == 2
    for words in ("made expert 2 of 2", "synthesise 4/4", "made student 2 on the distilled set"):
        assert words in ended.err
        assert words not in ended.out
    assert "\x1b" not in ended.out + ended.err

    people = place.dd("run", *small)
    assert "test accuracy %" in people.out
    assert "\x1b" not in people.out + people.err


def on_a_terminal(place, *args: str, **environment: str) -> str:
    controller, terminal = pty.openpty()
    environment = place.environment | {"TERM": "xterm-256color"} | environment
    command = [sys.executable, "-m", "dd", *args]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment, cwd=place.path)
    os.close(terminal)
    said = b""
    try:
        while block := os.read(controller, 4096):
            said += block
    except OSError:  # how Linux tells that nobody holds the other end any more
        pass
    finally:
        os.close(controller)
    assert process.wait(60) == 0
    return said.decode()


def test_no_colour_on_a_terminal_where_none_is_wanted(place, small):
    text = on_a_terminal(place, "run", *small, NO_COLOR="1")
    assert "━" in text  # the bar was drawn
    assert not COLOUR.search(text)
    assert COLOUR.search("\x1b[38;5;237m")
    assert COLOUR.search("\x1b[1;32m")
    assert not COLOUR.search("\x1b[1m")
