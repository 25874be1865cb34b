"""Sweeps on this machine: killed and resumed, shared by processes, chosen by held-out images alone."""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest
import yaml

from dd import load

TINY = ("device=cpu", "compile=false", "student.depth=1", "student.width=4", "eval.protocol=smoke", "eval.steps=3")
SWEEP = {
    "method": "random",
    "metric": {"name": "eval/holdout", "goal": "maximize"},
    "program": "dd",
    "command": ["${env}", "${interpreter}", "-m", "dd", "run", "${args_no_hyphens}"],
    "parameters": {
        "method": {"value": "dm"},
        "ipc": {"value": 1},
        "iterations": {"value": 4},
        "lr_img": {"distribution": "log_uniform_values", "min": 0.1, "max": "1e1"},
        "batch_real": {"values": [4, 8]},
        "eval": {"parameters": {"probe_steps": {"value": 3}, "full": {"value": False}}},
    },
}


@pytest.fixture
def write(place):
    """Writes the sweep, changed, where it is run."""

    def written(**changes):
        table = {**SWEEP, **changes}
        (place.path / "s.yaml").write_text(yaml.safe_dump({k: v for k, v in table.items() if v is not None}))
        return "s.yaml"

    return written


def settings(rows):
    return [row["settings"] for row in rows]


def stamps(place):
    """When each set was made."""
    return {path.name: path.stat().st_mtime_ns for path in (place.home / "sets").glob("*.json")}


def students(place):
    """What was noted of every student on a distilled set."""
    return [json.loads(path.read_text()) for path in (place.home / "students").glob("*.json")]


@pytest.mark.slow
def test_a_sweep_that_is_killed_is_finished_by_two_processes_that_redo_nothing(place, few, write):
    words = ("sweep", write(), "trials=4", few, *TINY)
    run = place.start(*words)
    killed = run.signal_when(signal.SIGKILL, lambda: "\ntrial 2 of 4" in run.err)
    assert killed.code == -signal.SIGKILL
    (done,) = [line for line in killed.err.splitlines() if line.startswith("trial 1:")]
    (folder,) = (place.runs / "sweeps").iterdir()
    before = stamps(place)
    assert len(before) in (1, 2)

    other = place.start(*words, "--json")
    ended = place.dd(*words, "--json")
    joined = other.end()
    assert (ended.code, joined.code) == (0, 0), ended.err + joined.err
    swept = json.loads(ended.out)
    assert json.loads(joined.out)["rows"] == swept["rows"]
    assert [row["state"] for row in swept["rows"]] == ["complete"] * 4
    assert f"trial 1: eval/holdout {swept['rows'][0]['value']:.2f} %" == done
    assert before.items() <= stamps(place).items()
    assert len(stamps(place)) == 4
    both = ended.err + joined.err
    assert both.count("trial 1 of 4") == 0
    assert [both.count(f"\ntrial {n} of 4") + both.startswith(f"trial {n} of 4") for n in (2, 3, 4)] == [1, 1, 1]
    assert swept["folder"] == str(folder)

    best = max(swept["rows"], key=lambda row: (row["value"], -row["trial"]))
    assert swept["best"] == best["trial"]
    report = json.loads((folder / "report.json").read_text())
    assert report == swept["report"]
    assert report["accuracy"]["holdout"] == best["holdout"]
    assert "best of 4 trials of sweep s by eval/holdout" in report["notes"][-1]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    # test images were looked at for the winner's set alone
    winner = load(best["run"]).digest()
    tested = [one for one in students(place) if "test" in one["value"] and winner not in json.dumps(one["spec"])]
    assert {row["run"] for row in swept["rows"]} == {
        str(path.parent) for path in place.runs.glob("*/*/*/*/recipe.toml")
    }
    assert [str(path.parent) for path in place.runs.glob("*/*/*/*/report.json")] == [best["run"]]
    assert not any("probe" in json.dumps(one["spec"]) for one in tested)


def test_the_same_file_gives_the_same_trials_and_more_of_them_when_more_are_asked_for(place, few, write):
    file = write(run_cap=2)
    first = json.loads(place.dd("sweep", file, few, *TINY, "--json").out)
    assert len(first["rows"]) == 2
    again = place.dd("sweep", file, few, *TINY, "--json")
    assert json.loads(again.out) == first
    assert "made" not in again.err
    more = place.dd("sweep", file, "trials=3", few, *TINY)
    assert more.code == 0, more.err
    assert "made student" in more.err
    assert "best of 3 trials" in more.out
    table = json.loads(next(place.runs.glob("sweeps/*/sweep.json")).read_text())
    assert table["rows"][:2] == first["rows"]
    (folder,) = (place.runs / "sweeps").iterdir()
    shown = place.dd("show", str(folder))
    assert shown.code == 0, shown.err
    assert shown.out == more.out
    assert json.loads(place.dd("show", str(folder), "--json").out) == table
    run = place.dd("show", table["run"])
    assert (run.code, f"dd show recipe={table['run']}" in run.err) == (2, True)
    (folder / "sweep.json").unlink()
    assert "the same `dd sweep` command resumes it" in place.dd("show", str(folder)).err
    assert 0.1 <= table["rows"][2]["settings"]["lr_img"] <= 10


@pytest.mark.slow
@pytest.mark.parametrize("how", ["workers", "torchrun"])
def test_a_grid_is_gone_through_by_processes(place, few, write, how):
    parameters = {**SWEEP["parameters"], "lr_img": {"values": [1.0, 2]}, "ipc": {"values": [1, 2]}}
    del parameters["batch_real"]
    words = ("sweep", write(method="grid", parameters=parameters), few, *TINY, "--json")
    if how == "workers":
        ended = place.dd(*words, "workers=2")
        assert ended.code == 0, ended.err
        swept = json.loads(ended.out)
    else:
        done = place.torchrun(2, words)
        swept = json.loads(done.stdout)  # one result, by one process
        assert sorted(re.findall(r"^trial (\d) of 4: ", done.stderr, re.MULTILINE)) == ["1", "2", "3", "4"]
    assert [(s["ipc"], s["lr_img"]) for s in settings(swept["rows"])] == [(1, 1.0), (1, 2), (2, 1.0), (2, 2)]
    assert swept["complete"] == 4


def test_trials_that_fall_behind_are_ended_early_and_a_failed_one_takes_nobody_along(place, few, write):
    """Noise that hardly moves teaches nothing; images that move by 1e30 are not finite."""
    parameters = {
        **SWEEP["parameters"],
        "lr_img": {"values": [1e-3, 1e30]},
        "start_from": {"values": ["real", "noise"]},
        "iterations": {"value": 8},
        "eval": {"parameters": {"probes": {"value": 8}, "probe_steps": {"value": 30}, "full": {"value": False}}},
    }
    del parameters["batch_real"]
    early = {"type": "hyperband", "min_iter": 2, "max_iter": 3, "eta": 2}
    file = write(method="grid", early_terminate=early, parameters=parameters)
    able = ("student.width=16", "eval.steps=40", "eval.students=1", "data.holdout=0.3")
    ended = place.dd("sweep", file, few, *TINY, *able, "--json")
    assert ended.code == 0, ended.err
    swept = json.loads(ended.out)
    assert [row["state"] for row in swept["rows"]] == ["complete", "pruned", "failed", "failed"]
    assert "objective is nan" in swept["rows"][2]["why"]
    for row in swept["rows"]:
        assert (row["value"] is not None) == (row["state"] == "complete")
        if row["state"] == "pruned":
            assert len(row["probes"]) == 2
            assert not list(place.runs.glob(f"*/*/*/{row['recipe'][:8]}-seed0/checkpoint*"))
    assert "(1 stopped early, 2 failed)" in swept["report"]["notes"][-1]


def test_a_sweep_file_runs_no_code_that_the_user_did_not_name(place, write):
    evil = place.path / "evil.py"
    evil.write_text("open('ran', 'w').close()\n")
    parameters = {**SWEEP["parameters"], "method": {"value": "evil.py"}}
    ended = place.dd("sweep", write(run_cap=2, parameters=parameters), "device=cpu")
    assert ended.code == 2
    assert "names a file of code as its method" in ended.err
    assert "add method=evil.py" in ended.err
    assert place.files() == {"s.yaml", "evil.py"}


def test_the_commands_of_the_page_run_as_they_stand_there(place):
    """With fewer, smaller trials; a run that is followed is only planned."""
    text = (Path(__file__).parents[2] / "docs" / "pages" / "howto" / "sweep.md").read_text(encoding="utf-8")
    lines = [shlex.split(line)[1:] for line in re.findall(r"^    (dd .*)$", text, re.MULTILINE)]
    assert [line[0] for line in lines] == ["run"] * 3 + ["new", "sweep", "sweep"]
    small = ("trials=1", "workers=1", "ipc=1", "iterations=2", "eval.full=false", *TINY)
    for line in lines:
        beside = {"run": ("--dry-run",), "sweep": small}.get(line[0], ())
        ended = place.dd(*line, *beside)
        assert ended.code == 0, ended.err
    assert "best of 1 trials" in ended.out
    refused = place.dd("new", "sweep", "method=dm")
    assert (refused.code, "sweep-dm.yaml already exists" in refused.err) == (2, True)
    refused = place.dd("new", "sweep", "method=dm", "to=sweep-dm.yaml/x")
    assert (refused.code, "cannot write to sweep-dm.yaml (File exists)" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"metric": {"name": "eval/test", "goal": "maximize"}}, [], "eval/test is measured on test images"),
        ({"metric": {"name": "eval/test_control"}}, [], "is measured on test images"),
        ({"metric": {"name": "loss", "goal": "minimize"}}, [], "'loss' cannot rank trials"),
        ({"metric": {"name": "probe", "goal": "minimize"}}, [], "goal: 'minimize' of an accuracy"),
        ({"method": "bayse"}, [], "'bayse' is not a search"),
        ({"metrics": {}}, [], "unknown key 'metrics'; did you mean 'metric'"),
        ({}, ["data.holdout=0"], "data.holdout=0 leaves a sweep without held-out images"),
        ({}, ["lr_img=3"], "lr_img is swept by s.yaml: leave out lr_img="),
        ({}, ["batch_reel=3"], "did you mean 'batch_real'"),
        ({}, ["trials=none"], "trials='none' has the wrong type"),
        ({"run_cap": None}, ["force=true"], "a sweep resumes"),
        ({"run_cap": None}, [], "give the number of trials: trials=N"),
        ({"method": "grid"}, [], "lr_img needs values: [..]"),
        ({"early_terminate": {"type": "envelope"}}, [], "the only type is hyperband"),
        ({"parameters": {"method": {"value": "dm"}}}, [], "there is nothing to sweep"),
        ({"parameters": {"method": {"value": "dm"}, "out": {"values": ["a", "b"]}}}, [], "out changes nothing"),
        ({"parameters": {"method": {"value": "dm"}, "lr_img": {"min": -1.0, "max": 1.0}}}, [], "lr_img=-1.0 is out of"),
        (
            {"parameters": {"method": {"value": "dm"}, "lr_img": {"mu": 1, "sigma": 2}}},
            [],
            "lr_img: mu is not supported",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_made(changes, words, said, place, write):
    ended = place.dd("sweep", write(**{"run_cap": 3, **changes}), *words, "device=cpu")
    assert ended.code == 2, ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert place.files() == {"s.yaml"}


@pytest.mark.parametrize(
    "text", ["", "[1]", "a: &a [1]\nb: *a", "{" * 3000, "method: random\nparameters: 3", "\0", "a: !!python/name:os.x"]
)
def test_a_file_that_is_no_sweep_is_one_line(text, place):
    (place.path / "s.yaml").write_text(text)
    ended = place.dd("sweep", "s.yaml")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("dd: s.yaml: ")
