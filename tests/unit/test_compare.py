"""Sets side by side: what is ranked, what is refused and why, and which differences are significant."""

import json
import statistics
from dataclasses import asdict, replace

import pytest

from dd.cli.main import run_command_line
from dd.errors import RunError, UsageError
from dd.evaluation import PROTOCOLS, Report, Score
from dd.evaluation.compare import compare
from dd.evaluation.report import RegimeReport
from dd.evaluation.scores import bootstrap, nested_std
from dd.networks import NetworkSpec
from dd.pipeline.compare import reports_of

QUICK = PROTOCOLS["quick"]


def report(name="dm", values=(70.0, 71.0, 72.0), control=(60.0, 61.5, 62.0), seed=0, protocol=QUICK, **changes):
    student = asdict(NetworkSpec(depth=3, width=32))
    given = {
        "accuracy": Score(tuple(values)),
        "control": None if control is None else Score(tuple(control)),
        "start": None,
        "full": None,
        "missing": {},
        "protocol": protocol.to_dict(),
        "fingerprint": protocol.fingerprint(student, "flip"),
        "student": student,
        "dataset": {"name": "blobs", "fingerprint": "d"},
        "bytes": {"images": 10, "labels": 2, "total": 12},
        "provenance": {"name": name, "seed": seed, "series": f"recipe of {name}"},
        "cost": {"prepare": {"seconds": 1.0, "artefact_seconds": 9.0}, "synthesise": {"seconds": 5.0},
                 "evaluate": {"seconds": 70.0}},
    }  # fmt: skip
    return Report(**given | changes)


def regime(kind, values, protocol=QUICK, control=(60.0, 61.5, 62.0), **changes):
    rows = {"accuracy": Score(tuple(values)), "control": Score(tuple(control))}
    size = {"images": 10, "labels": 4, "teacher": 0, "total": 14}
    given = {"fingerprint": protocol.fingerprint({}, "flip"), "bytes": size, "labels": None}
    return RegimeReport(kind, rows, {}, protocol.to_dict(), **given | changes)


def test_rows_are_ranked_with_paired_intervals():
    one, other = (70.0, 71.0, 72.0), (73.0, 73.5, 76.0)
    found = compare({"a": report("dm", one), "b": report("datm", other)})
    assert found.comparable
    (block,) = found.blocks
    first, second = block.rows
    assert (block.kind, first.name, second.name) == ("own", "datm", "dm")
    assert (first.behind, first.gap) == (None, bootstrap([13.0, 12.0, 14.0]))
    assert second.behind == bootstrap([3.0, 2.5, 4.0])
    assert second.behind.above
    assert (second.mean, second.within, second.between) == (71.0, 1.0, None)
    assert (second.sets, second.students, second.bytes, second.seconds) == (1, 3, 12, 14.0)  # artefacts count in full
    assert not any(row.other for row in block.rows)


def test_sets_of_one_recipe_are_one_row_whose_sets_vary():
    values = {0: (70.0, 72.0), 1: (75.0, 76.0), 2: (71.0, 73.0)}
    same = {f"s{seed}": report("dm", found, (60.0, 62.0), seed=seed) for seed, found in values.items()}
    shifted = [report("datm", [v + 2 for v in found], (60.0, 62.0), seed=seed) for seed, found in values.items()]
    (block,) = compare(same | {f"t{one.provenance['seed']}": one for one in shifted}).blocks
    best, row = block.rows
    assert (best.name, row.name, row.sets, row.students) == ("datm", "dm", 3, 2)
    assert (row.between, row.within) == pytest.approx(nested_std(list(values.values())))
    assert row.mean == pytest.approx(statistics.fmean(statistics.fmean(found) for found in values.values()))
    assert (row.behind.mean, row.behind.low, row.behind.n) == (pytest.approx(2), pytest.approx(2), 3)  # paired by seed
    assert row.gap == bootstrap([71 - 61, 75.5 - 61, 72 - 61])


def test_only_seeds_that_both_have_are_paired():
    reports = {"a": report("dm", (70.0, 70.0), (60.0, 60.0), seed=0), "b": report("mtt", (75.0, 75.0), None, seed=1)}
    best, row = compare(reports).blocks[0].rows
    assert (best.name, best.gap, row.behind) == ("mtt", None, None)
    fewer = {"a": report("dm", (70.0, 70.0)), "b": report("mtt", (75.0, 75.0, 75.0))}
    assert compare(fewer).blocks[0].rows[1].behind is None


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"protocol": replace(QUICK, steps=600)}, {"eval.steps"}),
        ({"protocol": PROTOCOLS["dc"]}, {"eval.steps", "eval.epochs", "eval.batch", "eval.augment"}),
        ({"student": asdict(NetworkSpec("resnet18")), "fingerprint": "r"}, {"student.arch", "student.depth",
                                                                           "student.width"}),
        ({"dataset": {"name": "blobs", "fingerprint": "e"}}, {"data.fingerprint"}),
        ({"labels": {"form": "logits", "teacher_mode": "eval", "teachers": [1]}}, {"labels.form", "labels.teacher_mode",
                                                                                "labels.teachers"}),
        ({"fingerprint": "of another version"}, {"fingerprint"}),
    ],
    ids=["steps", "protocol", "student", "data", "labels", "version"],
)  # fmt: skip
def test_numbers_under_other_conditions_are_shown_apart_with_what_differs(changes, keys):
    reports = {"a": report("dm"), "b": report("datm", (90.0, 91.0, 92.0), **changes), "c": report("mtt")}
    found = compare(reports)
    assert not found.comparable
    assert set(found.differs["own"]) == keys
    assert [[row.name for row in block.rows] for block in found.blocks] == [["dm", "mtt"], ["datm"]]
    assert all(values["dm"] == values["mtt"] != values["datm"] for values in found.differs["own"].values())
    forced = compare(reports, allow_mismatch=True)
    assert not forced.comparable
    (block,) = forced.blocks
    assert [(row.name, row.other) for row in block.rows] == [("datm", True), ("dm", False), ("mtt", False)]


def test_counts_of_students_and_rows_that_were_asked_for_are_no_other_conditions():
    other = replace(QUICK, protocol="mine", students=9, full=True, labels=("hard",), coreset=("random",))
    assert compare({"a": report("dm"), "b": report("datm", protocol=other)}).comparable


def test_regimes_that_all_reports_have_are_compared_too():
    one = report("dm", regimes=(regime("hard", (50.0, 51.0, 52.0)), regime("views", (80.0, 80.0, 80.0))))
    other = report(
        "datm",
        protocol=replace(QUICK, steps=600),
        regimes=(regime("hard", (40.0, 41.0, 42.0)), regime("soft", (1, 2, 3))),
    )
    found = compare({"a": one, "b": other})
    assert [block.kind for block in found.blocks] == ["own", "own", "hard"]
    assert set(found.differs) == {"own"}
    hard = compare({"a": one, "b": other}, ["hard"])
    assert hard.comparable
    assert [(row.name, row.bytes) for row in hard.blocks[0].rows] == [("dm", 14), ("datm", 14)]
    with pytest.raises(UsageError, match=r"a has no score with labels=soft; add eval\.labels=soft"):
        compare({"a": one, "b": other}, ["soft"])
    with pytest.raises(UsageError, match="labels=sotf is not one of own, hard, soft, views"):
        compare({"a": one, "b": other}, ["sotf"])
    taught = {"form": "logits", "teacher_mode": "eval", "teachers": [{"trained": "x"}]}
    soft = [report(name, regimes=(regime("soft", (1, 2, 3), labels=taught | {"teachers": [name]}),)) for name in "xy"]
    assert set(compare(dict(zip("xy", soft, strict=True)), ["soft"]).differs["soft"]) == {"labels.teachers"}


def test_names_tell_recipes_apart():
    other = {"name": "dm", "series": "another recipe"}
    two = {"p": report("dm"), "q": report("dm", provenance=other), "r": report("", provenance={})}
    assert {row.name for row in compare(two).blocks[0].rows} == {"p", "q", "blobs"}
    with pytest.raises(UsageError, match="two or more"):
        compare({"p": report("dm")})


def written(path, one):
    path.write_text(json.dumps(one.to_dict()), encoding="utf-8")
    return str(path)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    a = written(tmp_path / "a.json", report("dm"))
    b = written(tmp_path / "b.json", report("datm", (73.0, 73.5, 76.0)))
    c = written(tmp_path / "c.json", report("mtt", (90.0, 91.0, 92.0), protocol=replace(QUICK, steps=600)))
    assert run_command_line(["compare", a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    (best,) = [line for line in lines if line.startswith("datm")]
    (row,) = [line for line in lines if line.startswith("dm")]
    assert lines.index(best) < lines.index(row)
    assert "+3.17 [+2.50, +4.00]" in row
    assert "not significant" not in row

    alone = [
        written(tmp_path / f"{name}.json", report(name, (value,), control=(60.0,)))
        for name, value in (("x", 70.0), ("y", 71.0))
    ]
    assert run_command_line(["compare", *alone]) == 0
    assert "not significant" not in capsys.readouterr().out  # a single student has no interval

    assert run_command_line(["compare", a, b, c]) == 2
    told = capsys.readouterr()
    assert "eval.steps" in told.out
    assert "600" in told.out
    assert told.err == (
        "dd: these numbers are not comparable, eval.steps differ; allow_mismatch=true ranks them nevertheless\n"
    )
    assert run_command_line(["compare", a, b, c, "allow_mismatch=true", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["blocks"][0]["rows"]] == ["mtt", "datm", "dm"]
    assert (found["comparable"], found["differs"]["own"]["eval.steps"]["mtt"]) == (False, 600)
    for words, why in (
        ([a], "two or more"),
        ([a, a], "named twice"),
        ([a, str(tmp_path / "." / ".." / tmp_path.name / "a.json")], "named twice"),
        ([a, b, "label=own"], "unknown key 'label'; did you mean 'labels'?"),
        ([a, b, "alow_mismatch=true"], "did you mean 'allow_mismatch'?"),
        ([str(tmp_path / "none"), b, "labels=own,hrad"], "labels=hrad is not one of"),
        ([a, str(tmp_path / "d.json")], "no report at"),
        ([a, b, "eval.steps=3"], "name its set"),
        ([a, b, "allow_mismatch=maybe"], "say true or false"),
        ([a, str(tmp_path / "none")], "none"),
    ):
        assert run_command_line(["compare", *words]) == 2
        told = capsys.readouterr()
        assert len(told.err.splitlines()) == 1
        assert why in told.err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"accuracy": 3}', "null", "\udcff"])
def test_a_broken_report_is_refused(tmp_path, text):
    file = tmp_path / "broken.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match="cannot be read as a report"):
        reports_of([str(file)], {})


def test_finished_runs_are_read_and_sets_are_scored_under_given_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))
    tiny = ["method=random", "ipc=1", "student.depth=1", "student.width=4", "compile=false", "device=cpu",
            "eval.steps=2", "eval.batch=16", "eval.students=2", "eval.full=false"]  # fmt: skip
    places = []
    for seed in (0, 1):
        assert run_command_line(["run", *tiny, f"seed={seed}", "--json"]) == 0
        json.loads(capsys.readouterr().out)
        places.append(str(next((tmp_path / "runs").rglob(f"*-seed{seed}"))))
    assert run_command_line(["compare", *places, "--json"]) == 0
    told = capsys.readouterr()
    (row,) = json.loads(told.out)["blocks"][0]["rows"]
    assert (row["sets"], row["students"]) == (2, 2)
    assert "made student" not in told.err
    assert run_command_line(["compare", *places, "eval.steps=3", "labels=own", "--json"]) == 0
    told = capsys.readouterr()
    assert "made student 1 on the distilled set" in told.err
    assert json.loads(told.out)["comparable"]
