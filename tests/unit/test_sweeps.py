"""Files of sweeps, the state that processes share, and files that are written from a method's own fields."""

import contextlib
import json
import math

import pytest
import yaml

from dd.engine import registry
from dd.errors import UsageError
from dd.recipes import resolve
from dd.recipes.schema import leaves
from dd.sweeps import draft, read_sweep
from dd.sweeps.local import read_swept
from dd.sweeps.study import Study


def written(tmp_path, parameters, **more):
    table = {"method": "random", "parameters": parameters, **more}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(table))
    return read_sweep(tmp_path / "s.yaml")


def drawn(study, wanted):
    """All trials that a study gives out, one after another, as (number, settings); each is finished with its number."""
    found = []
    while True:
        with study.next(wanted) as trial:
            if trial is None:
                return found
            found.append((trial.number, dict(trial.settings)))
            study.finish(trial, float(trial.number), {})


def test_every_law_draws_what_it_says(tmp_path):
    file = written(
        tmp_path,
        {
            "fixed": {"value": [1, 2]},
            "choice": {"values": [1, "two", True, None, [3, 4]]},
            "whole": {"min": 2, "max": 5},
            "number": {"min": 0.5, "max": 1.5},
            "log": {"distribution": "log_uniform_values", "min": "1e-5", "max": 1.0},
            "exponents": {"distribution": "log_uniform", "min": -2, "max": 0},
            "steps": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25},
            "logsteps": {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8},
            "group": {"parameters": {"inner": {"parameters": {"deep": {"values": [1, 2]}}}}},
        },
    )
    assert file.fixed == {"fixed": [1, 2]}
    rows = [settings for _, settings in drawn(Study(tmp_path, file, 4, 0), 60)]
    assert len(rows) == 60
    of = {key: [row[key] for row in rows] for key in rows[0]}
    assert {str(value) for value in of["choice"]} == {"1", "two", "True", "None", "[3, 4]"}
    assert set(of["whole"]) == {2, 3, 4, 5}
    assert all(isinstance(value, int) for value in of["whole"])
    assert all(0.5 <= value <= 1.5 for value in of["number"])
    assert min(of["log"]) < 1e-3 < 0.03 < max(of["log"])
    assert all(math.exp(-2) <= value <= 1.0 for value in of["exponents"])
    assert set(of["steps"]) == {0, 0.25, 0.5, 0.75, 1}
    assert set(of["logsteps"]) <= {8, 16, 24, 32, 40, 48, 56, 64}
    assert set(of["group.inner.deep"]) == {1, 2}


@pytest.mark.parametrize("search", ["random", "bayes"])
def test_draws_follow_from_the_seed_alone_and_no_two_processes_draw_alike(search, tmp_path):
    parameters = {"a": {"min": 0.0, "max": 1.0}, "b": {"values": [1, 2, 3]}}
    places = [tmp_path / name for name in ("one", "two", "other")]
    for place in places:
        place.mkdir()
    file = written(tmp_path, parameters, method=search)
    one = drawn(Study(places[0], file, 4, 0), 6)
    first, second = (Study(places[1], file, 4, 0) for _ in range(2))  # in turn, as two processes
    with first.next(6) as a, second.next(6) as b:
        assert a is not None
        assert b is not None
        assert (a.number, b.number) == (0, 1)
        assert a.settings == one[0][1]
        assert a.settings["a"] != b.settings["a"]
    assert [number for number, _ in drawn(Study(places[1], file, 4, 0), 6)] == [0, 1, 2, 3, 4, 5]
    assert drawn(Study(places[2], file, 4, 1), 6) != one


def test_a_trial_that_a_lost_process_left_is_taken_up_again_and_one_that_is_held_is_not(tmp_path):
    file = written(tmp_path, {"a": {"min": 0.0, "max": 1.0}})
    here, there = Study(tmp_path, file, 4, 0), Study(tmp_path, file, 4, 0)
    with contextlib.ExitStack() as held:
        lost = held.enter_context(here.next(2))
        assert lost is not None
        assert here.seen(lost, 1, 50.0) is False
        with there.next(2) as other:
            assert other is not None
            assert other.number == 1
            there.finish(other, 1.0, {})
        with there.next(2) as none:
            assert none is None  # both are begun, and the first is held
        assert there.under_way() == [0]
    with there.next(2) as again:
        assert again is not None
        assert (again.number, again.settings) == (0, lost.settings)
        there.finish(again, 2.0, {"why": "x"})
    rows = there.rows()
    assert [(row["state"], row["value"]) for row in rows] == [("complete", 2.0), ("complete", 1.0)]
    assert rows[0]["probes"] == [50.0]
    with there.next(2) as none:
        assert none is None


def test_a_line_that_a_killed_process_left_half_written_goes(tmp_path):
    file = written(tmp_path, {"a": {"min": 0.0, "max": 1.0}})
    assert len(drawn(Study(tmp_path, file, 4, 0), 2)) == 2
    study, journal = Study(tmp_path, file, 4, 0), tmp_path / "journal.log"
    whole = journal.read_bytes()
    with journal.open("ab") as torn:
        torn.write(b'{"op_code": 4, "wor')
    assert [number for number, _ in drawn(study, 3)] == [2]
    assert journal.read_bytes().startswith(whole + b"{")
    assert [row["state"] for row in Study(tmp_path, file, 4, 0).rows()] == ["complete"] * 3


def test_a_grid_is_laid_down_once(tmp_path):
    file = written(tmp_path, {"a": {"values": [1, 2]}, "b": {"min": 3, "max": 5}}, method="grid")
    assert len(Study(tmp_path, file, 4, 0).rows()) == 6
    found = drawn(Study(tmp_path, file, 4, 0), 6)
    assert [settings for _, settings in found] == file.grid()
    assert drawn(Study(tmp_path, file, 4, 0), 60) == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"min": 2.0, "max": 1.0}, "min 2, max 1 is no range"),
        ({"min": 0, "max": 1.0, "distribution": "log_uniform_values"}, "is no range above 0"),
        ({"min": "a", "max": 1}, "min: 'a' is not a number"),
        ({"min": 1}, "max: None is not a number"),
        ({"min": 1, "max": float("inf")}, "max: inf is not a number"),
        ({"distribution": "normal", "min": 0, "max": 1}, "distribution 'normal' is not supported"),
        ({"values": []}, "values: give a list of at least one"),
        ({"values": [{"a": 1}]}, "is not a setting"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "probabilities is not supported"),
        (3, "give value: .., values: [..] or min: and max:"),
    ],
)
def test_a_range_that_is_none_is_refused(rule, said, tmp_path):
    with pytest.raises(UsageError) as raised:
        written(tmp_path, {"a": rule})
    assert f"s.yaml: a: {said}" in str(raised.value) or said in str(raised.value)


def test_nesting_has_an_end_and_no_key_stands_twice(tmp_path):
    deep = {"values": [1, 2]}
    for _ in range(30):
        deep = {"parameters": {"a": deep}}
    with pytest.raises(UsageError, match="nested too deeply"):
        written(tmp_path, {"a": deep})
    with pytest.raises(UsageError, match=r"a\.b occurs twice"):
        written(tmp_path, {"a.b": {"value": 1}, "a": {"parameters": {"b": {"values": [1, 2]}}}})


@pytest.mark.parametrize(("method", "search"), [("datm", "bayes"), ("sre2lpp", "grid"), ("dm", "random")])
def test_a_file_is_written_from_a_methods_own_fields_and_every_end_of_its_ranges_is_allowed(method, search, tmp_path):
    text = draft({"method": method, "ipc": 1}, search=search, trials=7)
    assert yaml.safe_load(text)["command"][-1] == "${args_no_hyphens}"
    (tmp_path / "s.yaml").write_text(text)
    file = read_sweep(tmp_path / "s.yaml")
    assert (file.cap, file.metric, file.search) == (7, "eval/holdout", search)
    assert 1 <= len(file.parameters) <= 4
    for end in (0, -1):
        resolve({**file.fixed, **{p.key: p.ends[end] for p in file.parameters}})
    (tmp_path / "s.yaml").write_text("\n".join(with_all_settings(text)))
    known, every = leaves(registry.get(method)()), read_sweep(tmp_path / "s.yaml").parameters
    assert len(every) > 4
    for p in every:
        assert [known[p.key].check(end) for end in p.ends] == p.ends


def with_all_settings(text):
    """The lines of a file, those that are commented out too, without the words between them."""
    lines = text.replace("\n  # ", "\n  ").splitlines()
    return [line for line in lines if not line.startswith("  ") or line.endswith("}")]


def test_what_is_swept_may_be_named(tmp_path):
    text = draft({"method": "dm", "ipc": 1, "lr_img": 3}, over=["batch_real", "augment"], search="random")
    (tmp_path / "a.yaml").write_text(text)
    file = read_sweep(tmp_path / "a.yaml")
    assert [p.key for p in file.parameters] == ["batch_real", "augment"]
    assert file.fixed["lr_img"] == 3
    with pytest.raises(UsageError, match="did you mean 'batch_real'"):
        draft({"method": "dm"}, over=["batch_reel"])
    with pytest.raises(UsageError, match="both swept and given"):
        draft({"method": "dm", "lr_img": 3}, over=["lr_img"])
    assert "balanced: {values: [true, false]}" in draft({"method": "random"})


def test_the_files_that_ship_are_sweeps_by_held_out_accuracy():
    from importlib.resources import files

    found = sorted(path for path in files("dd.experiments").joinpath("sweeps").iterdir() if path.name.endswith(".yaml"))
    assert [path.name for path in found] == ["compose.yaml", "datm.yaml", "dm.yaml", "sre2lpp.yaml"]
    for path in found:
        file = read_sweep(str(path))
        assert file.metric == "eval/holdout"
        assert resolve({**file.fixed, **{p.key: p.ends[-1] for p in file.parameters}}).data.holdout > 0


@pytest.mark.parametrize("report", [{}, [], {"accuracy": "high"}, {"accuracy": {"values": [181.0]}}])
def test_a_forged_result_is_one_line(tmp_path, report):
    found = {"metric": "probe", "rows": [{"trial": 0}], "best": 0, "run": "run", "report": report}
    (tmp_path / "sweep.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=r"sweep\.json is damaged \(.*the same `dd sweep` command writes it again"):
        read_swept(tmp_path)
