"""The verbs on real things: what they print for people and for programs, and what they leave on disk."""

import contextlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from dd.cli.common import keys_of, paths_and_settings
from dd.cli.main import run_command_line
from dd.errors import UsageError
from dd.evaluation.origins import ORIGINS
from dd.evaluation.protocols import PROTOCOLS
from dd.io import digest
from dd.recipes import resolve
from dd.sizes import readable_size

TINY = [
    "method=random",
    "ipc=1",
    "student.width=4",
    "compile=false",
    "device=cpu",
    "eval.steps=2",
    "eval.batch=16",
    "eval.students=2",
    "eval.full=false",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def said(capsys, *args: str) -> str:
    assert run_command_line(args) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    return out


def told(capsys, *args: str) -> dict:
    return json.loads(said(capsys, *args, "--json"))


def test_methods(capsys):
    rows = {row["name"]: row for row in told(capsys, "methods")["methods"]}
    assert {"mtt", "datm", "random"} <= set(rows)
    assert (rows["datm"]["family"], rows["datm"]["package"], rows["datm"]["error"]) == ("trajectory", "dd", None)
    assert rows["datm"]["summary"] in said(capsys, "methods")


def test_one_method_with_its_settings(capsys):
    found = told(capsys, "methods", "cvdd")
    assert (found["name"], found["paper"]) == ("cvdd", "https://arxiv.org/abs/2501.07575")
    rows = {row["key"]: row for row in found["settings"]}
    assert rows["members_by"]["default"] == "pairs"
    assert rows["tau"]["type"] == "a number > 0"
    assert "prob_mean" in rows["labels.ensemble"]["about"]
    text = said(capsys, "methods", "cda")
    assert text.startswith(
        "cda  https://arxiv.org/abs/2311.18838\n\nSRe2L with a curriculum of crops, from the whole image"
    )
    (line,) = [line for line in text.splitlines() if line.startswith("curriculum.shape ")]
    assert "cosine" in line
    assert "the whole image until the milestone" in line
    assert "without the data set" in said(capsys, "methods", "random")


def test_a_method_that_is_none_names_the_nearest(capsys):
    assert run_command_line(["methods", "cvd"]) == 2
    assert capsys.readouterr().err == "dd: unknown method 'cvd'; did you mean 'cvdd' or 'cda' or 'cad'?\n"


def test_protocols(capsys):
    rows = told(capsys, "protocols")["protocols"]
    assert [row["protocol"] for row in rows] == list(PROTOCOLS)
    lines = {line.split()[0]: line for line in said(capsys, "protocols").splitlines()}
    assert set(PROTOCOLS) <= set(lines)
    assert "300 steps" in lines["quick"]
    assert "1000 epochs" in lines["datm"]
    assert "the images as they are" in lines["dc"]


def test_every_protocol_of_ours_states_its_family_and_source():
    assert set(ORIGINS) == set(PROTOCOLS.data)
    for origin in ORIGINS.values():
        assert origin.family in ("ours", "matching", "decoupled", "representation", "benchmark", "coreset")
        assert origin.of
        assert origin.source


def test_a_protocol_in_words(capsys):
    text = " ".join(said(capsys, "protocols", "sre2l-cifar").split())
    assert "AdamW, lr 0.001, weight decay 0.01 learned lr" in text
    assert "cosine to zero" in text
    assert "400 epochs, batches of 128" in text
    assert "crops of images padded by 4, flips, mixup" in text
    assert "at temperature 30" in text
    assert digest(PROTOCOLS["sre2l-cifar"].training()) in text
    assert "eval.views.mix_alpha 0.8" in text
    assert "best on test" not in text
    rs2, mtt = (" ".join(said(capsys, "protocols", name).split()) for name in ("rs2", "mtt"))
    assert "the source reports the best epoch by test accuracy; here the last; eval.curve=N shows the best" in rs2
    assert "the source reports the best checkpoint of the distillation by test accuracy; here the last students" in mtt
    dc = " ".join(said(capsys, "protocols", "dc").split())
    assert "SGD, lr 0.01, momentum 0.9" in dc
    assert "lr times 0.1 at 50 % of the training, the optimiser starts anew there" in dc
    assert "300 epochs, counted from 0 to 300 inclusive" in dc
    assert "none on biases" in said(capsys, "protocols", "cda")
    assert "cutmix of 50 % of the batches" in said(capsys, "protocols", "ncfm")
    assert "loss times the squared temperature" in said(capsys, "protocols", "hardtruths-sl")
    assert told(capsys, "protocols", "rd3")["settings"]["batch"] == 50


def test_an_unknown_protocol_names_the_nearest(capsys):
    assert run_command_line(["protocols", "rd4"]) == 2
    assert "unknown protocol 'rd4'; did you mean 'rd3'" in capsys.readouterr().err


def test_recipes(capsys):
    rows = told(capsys, "recipes", "datm")["recipes"]
    assert {row["method"] for row in rows} == {"datm"}
    cell = next(row for row in rows if row["cell"] == "fashion-mini.ipc10")
    assert "smoke" in cell["presets"]
    assert (cell["protocol"], cell["side"]) == ("quick", 28)
    assert [bool(number["source"]) for number in cell["expect"]] == [True]
    text = said(capsys, "recipes")
    for words in ("datm", "mtt", "random", "fashion-mini.ipc10", "cifar100.ipc50"):
        assert words in text


NUMBERS = """
import dataclasses
from dd.engine.method import Method
from dd.engine.registry import register


@register("numbered")
@dataclasses.dataclass(frozen=True)
class Numbered(Method):
    pass
"""


def test_a_cell_with_numbers_under_two_protocols(capsys, tmp_path):
    (tmp_path / "numbered.py").write_text(NUMBERS, encoding="utf-8")
    (tmp_path / "numbered.toml").write_text(
        '[cifar10.ipc10]\neval = { protocol = "cvdd", batch = 10 }\n'
        '[[cifar10.ipc10.expect]]\naccuracy = [50, 57]\nverified = false\nsource = "paper: 53.6"\n'
        '[[cifar10.ipc10.expect]]\neval.epochs = 1000\naccuracy = [60, 66]\nverified = true\nsource = "ours"\n',
        encoding="utf-8",
    )
    file = str(tmp_path / "numbered.py")
    (row,) = told(capsys, "recipes", file)["recipes"]
    assert (row["protocol"], [n["protocol"] for n in row["expect"]]) == (
        "cvdd, batch=10",
        ["cvdd, batch=10", "cvdd, epochs=1000, batch=10"],
    )
    lines = said(capsys, "recipes", file).splitlines()
    assert [("50 to 57" in line, "60 to 66" in line) for line in lines[1:]] == [(True, False), (False, True)]
    assert "cvdd, epochs=1000, batch=10" in lines[2]
    assert run_command_line(["show", f"method={file}", "dataset=cifar10", "ipc=10", "eval.epochs=1000"]) == 0
    told_first, told_next, *_ = capsys.readouterr().err.splitlines()
    assert told_first == "expected: 60 to 66 % under cvdd, epochs=1000, batch=10, verified (ours)"
    assert told_next == "the cell says: 50 to 57 % under cvdd, batch=10, not verified (paper: 53.6)"


def test_data(capsys):
    rows = {row["name"]: row for row in told(capsys, "data")["datasets"]}
    assert rows["fashion-mini"]["where"]
    assert rows["fashion-mini"]["licence"] == "MIT"
    assert "cifar10" in said(capsys, "data")
    found = told(capsys, "data", "check", "fashion-mini")
    assert (found["classes"], found["train"]["total"], found["test"]["total"], found["broken"]) == (
        10,
        10_000,
        2000,
        [],
    )
    assert "T-shirt/top   1000       200" in said(capsys, "data", "check", "fashion-mini")


def test_words_are_settings_unless_they_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=1.pt").touch()
    words = ["b.pt", "a=1.pt", "lr=0.1", "--seed", "3", "--x=4", "+k=v", '{"y": 1}', "c.pt"]
    assert paths_and_settings(words) == (["b.pt", "a=1.pt", "c.pt"], [w for w in words if not w.endswith(".pt")])


def test_the_keys_of_a_verb_are_texts_and_flags():
    @dataclass(frozen=True)
    class Wish:
        out: str = ""
        force: bool = False

    assert keys_of(Wish, {"out": 3, "force": True}) == Wish("3", True)
    for values, why in (({"out2": 1}, "unknown key 'out2'"), ({"force": None}, "force=None: say true or false")):
        with pytest.raises(UsageError, match=why):
            keys_of(Wish, values)


def test_doctor(capsys, tmp_path):
    found = told(capsys, "doctor")
    assert set(found) == {"versions", "devices", "folders", "tools", "plug_ins", "data", "advice"}
    assert found["versions"]["torch"]
    assert "cpu" in found["devices"]
    assert found["folders"]["runs"] == {
        "path": str(tmp_path / "runs"),
        "exists": False,
        "writable": True,
        "free": found["folders"]["runs"]["free"],
        "locks": None,
    }
    assert found["folders"]["runs"]["free"] > 0
    assert "torch" in said(capsys, "doctor")
    assert list(tmp_path.iterdir()) == []


def test_doctor_tries_file_locks_between_processes(capsys, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    found = told(capsys, "doctor")
    assert found["folders"]["shared artefacts"]["locks"] is True
    assert list((tmp_path / "home").iterdir()) == []
    monkeypatch.setattr("dd.io.lock.FileLock", lambda _: contextlib.nullcontext())  # locks that keep nobody out
    found = told(capsys, "doctor")
    assert found["folders"]["shared artefacts"]["locks"] is False
    assert any(line.startswith(f"file locks do not work in {tmp_path / 'home'}") for line in found["advice"])


def test_show_prints_a_recipe_that_can_be_run(capsys, tmp_path):
    asked = {"method": "datm", "ipc": 10, "experts.count": 7, "device": "cpu"}
    args = ["show", *(f"{key}={value}" for key, value in asked.items())]
    text = said(capsys, *args)
    assert resolve(tomllib.loads(text)).hash == resolve(asked).hash
    line = next(line for line in text.splitlines() if line.startswith("count = 7"))
    assert line.endswith("# command line")
    assert "recipes/datm.toml [fashion-mini.ipc10]" in text
    shown = told(capsys, *args)
    assert shown["hash"] == resolve(asked).hash
    assert shown["recipe"]["experts"]["count"] == 7
    assert shown["origin"]["experts.count"] == "command line"
    assert shown["changed"] == ["experts.count"]
    assert shown["cell"]["name"] == "fashion-mini.ipc10"
    assert shown["expect"] is None
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_the_plan_and_makes_nothing(capsys, tmp_path):
    planned = told(capsys, "run", *TINY, "--dry-run")
    assert [stage["stage"] for stage in planned["stages"]] == ["prepare", "synthesise", "evaluate"]
    assert planned["finished"] is False
    assert "2 students, protocol quick" in said(capsys, "run", *TINY, "--dry-run")
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_run_then_again_then_eval(capsys, tmp_path):
    assert run_command_line(["run", *TINY]) == 0
    first = capsys.readouterr()
    assert "dataset=cifar10" in first.err  # the default data set is said, and the papers' one named
    for words in ("the distilled set", "random real images, same ipc", "eval.full=false", "unverified", "fingerprint"):
        assert words in first.out
    (folder,) = (tmp_path / "runs" / "random" / "fashion-mini" / "ipc1").iterdir()
    for name in ("recipe.toml", "set.safetensors", "report.json", "log.csv", "images.png"):
        assert (folder / name).is_file()
    assert str(folder / "set.safetensors") in first.out
    assert f"command    dd run {' '.join(TINY)}" in first.out

    again = told(capsys, "run", *TINY)
    assert again["fresh"] is False
    assert again["folder"] == str(folder)
    assert again["files"]["set"] == str(folder / "set.safetensors")
    assert len(again["accuracy"]["values"]) == 2
    assert again["full"] is None
    assert told(capsys, "run", f"recipe={folder}")["fresh"] is False  # the recipe beside the result is that run
    assert told(capsys, "run", *TINY, "force=true")["fresh"] is True

    scored = told(capsys, "eval", str(folder / "set.safetensors"), "compile=false")
    assert scored["fingerprint"] == again["fingerprint"]
    assert scored["accuracy"]["values"] == again["accuracy"]["values"]
    assert "the distilled set" in said(capsys, "eval", str(folder), "compile=false", "eval.students=1")


def test_out_is_where_the_run_goes(capsys, tmp_path):
    report = told(capsys, "run", *TINY, f"out={tmp_path / 'else where'}")
    assert Path(report["folder"]).is_relative_to(tmp_path / "else where")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, ""), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (5_600_000, "5.6 MB"), (2e12, "2000.0 GB")],
)
def test_sizes_for_people(number, text):
    assert readable_size(number) == text


def test_a_check_ends_like_a_run(tmp_path, capsys):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), i).save(tmp_path / "set" / name / f"{i}.png")
    assert run_command_line(["data", "check", "folder:set"]) == 0
    (tmp_path / "set" / "a" / "1.png").write_bytes(b"?")
    capsys.readouterr()
    assert run_command_line(["data", "check", "folder:set"]) == 2
    checked = capsys.readouterr()
    assert "broken files: 1" in checked.out
    assert run_command_line(["data", "check", "folder:set", "--json"]) == 2
    as_json = capsys.readouterr()
    assert run_command_line(["run", *TINY, "dataset=folder:set"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dd: 1 broken images in folder:set: a/1.png (not an image)")
    assert checked.err.splitlines() == [line]
    assert [f"dd: {problem}" for problem in json.loads(as_json.out)["problems"]] == [line]
