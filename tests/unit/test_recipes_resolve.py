"""Layers become one recipe: who wins, what is said when something is wrong, what the hash covers, what reads back."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dd.data import DataSettings
from dd.engine import registry
from dd.errors import UsageError
from dd.evaluation.protocols import PROTOCOLS
from dd.evaluation.report import Report, Score
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.pipeline.show import judged
from dd.recipes import list_recipes, parse_overrides, resolve, resolve_evaluation, run_options
from dd.recipes.recipe import Recipe

METHOD = '''
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dd.engine.method import Method
from dd.engine.registry import register
from dd.training.experts import ExpertSettings


@register("toy")
@dataclass(frozen=True)
class Toy(Method):
    """A method of this test."""

    iterations: Annotated[int, Field(ge=0)] = 500
    lr_img: Annotated[float, Field(gt=0)] = 1000.0
    window_start: Annotated[int, Field(ge=0)] | None = None
    start_from: Literal["real", "noise"] = "real"
    scales: tuple[float, ...] = (1.0, 0.5)
    experts: ExpertSettings = ExpertSettings(kind="ftd", epochs=100)

    def __post_init__(self) -> None:
        if self.window_start is not None and self.window_start > self.iterations:
            raise ValueError(f"window_start={self.window_start} lies after iterations={self.iterations}")
'''
RECIPES = """
[defaults]
lr_img = 300
eval.protocol = "quick"

[fashion-mini.ipc10]
iterations = 100
experts.count = 4
student.width = 32
eval.steps = 200
expect = { accuracy = [78.0, 83.0], verified = true, source = "ours", cost = "3 min" }

[fashion-mini.ipc10.tiny]
iterations = 2
student.width = 8

[cifar10.ipc50]
window_start = 10
data.preprocess = "zca"
precision = "bf16"
eval.protocol = "mtt"
expect = { accuracy = [60, 70], verified = false }

[cifar10."fraction0.1"]
iterations = 7

[presets.smoke]
iterations = 20
student.width = 16
eval.protocol = "smoke"

[presets.tiny]
iterations = 3
lr_img = 5
"""


@pytest.fixture(autouse=True)
def own_methods():
    yield
    for name in [name for name, cls in registry._registered.items() if cls.__module__.startswith("dd_method_")]:
        del registry._registered[name]  # the methods of these tests stay in them


@pytest.fixture
def toy(tmp_path) -> str:
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "toy.toml").write_text(RECIPES, encoding="utf-8")
    return str(tmp_path / "toy.py")


def asked(toy: str, **settings: Any) -> Recipe:
    return resolve({"method": toy, "device": "cpu", **settings})


def complaints(**settings: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        resolve(settings)
    return str(caught.value).splitlines()


def value(recipe: Recipe, key: str) -> Any:
    return recipe.flat()[key]


def test_layers_win_in_order(toy):
    plain = asked(toy, ipc=10)
    assert value(plain, "lr_img") == 300  # [defaults] over the field
    assert value(plain, "iterations") == 100  # the cell
    assert value(plain, "experts.count") == 4
    assert value(plain, "experts.epochs") == 100  # the method's own default of a nested class
    assert value(plain, "start_from") == "real"
    tiny = asked(toy, ipc=10, preset="tiny")
    assert value(tiny, "lr_img") == 5  # the general preset over [defaults]
    assert value(tiny, "iterations") == 2  # the cell's preset over the general one
    assert value(tiny, "student.width") == 8
    assert value(tiny, "experts.count") == 4  # the cell stays below the preset
    assert value(asked(toy, ipc=10, preset="tiny", iterations=9), "iterations") == 9


def test_every_value_says_where_it_came_from(toy):
    origin = asked(toy, ipc=10, preset="tiny", **{"experts.epochs": 8}).origin
    assert origin["experts.epochs"] == "command line"
    assert origin["lr_img"] == "toy.toml [presets.tiny]"
    assert origin["iterations"] == "toy.toml [fashion-mini.ipc10.tiny]"
    assert origin["experts.count"] == "toy.toml [fashion-mini.ipc10]"
    assert origin["eval.protocol"] == "toy.toml [defaults]"
    assert origin["eval.batch"] == "protocol quick"
    assert "start_from" not in origin
    assert resolve({"method": toy}).origin["device"] == "auto"


@pytest.mark.parametrize(
    "settings",
    [
        {"ipc": 10},
        {"ipc": 3},
        {"ipc": 10, "preset": "tiny"},
        {"ipc": 1, "preset": "smoke"},
        {"dataset": "cifar10", "ipc": 50},
        {"dataset": "cifar10", "ipc": 50, "window_start": None},
        {"dataset": "cifar10", "ipc": 50, "window_start": "none"},
        {"dataset": "cifar10", "fraction": 0.1},
        {"ipc": 2, "like": "cifar10.ipc50"},
        {"ipc": 10, "data.augment": "none"},
        {"ipc": 10, "eval.epochs": 3},
        {"ipc": 10, "eval.full": True, "lr_img": 1e-5, "scales": [1, 2], "compile": False, "seed": 2**62},
    ],
    ids=str,
)
def test_a_printed_recipe_reads_back_to_the_same(toy, settings, tmp_path):
    recipe = asked(toy, **settings)
    for text in (recipe.to_toml(), recipe.to_toml(origins=True)):
        again = resolve(tomllib.loads(text))
        assert again.flat() == recipe.flat()
        assert again.hash == recipe.hash
        assert (again.method, again.data, again.student, again.eval) == (
            recipe.method,
            recipe.data,
            recipe.student,
            recipe.eval,
        )
        assert (again.expect, again.changed) == (recipe.expect, recipe.changed)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert resolve({"recipe": str(tmp_path / "recipe.toml")}).hash == recipe.hash
    assert resolve({"recipe": str(tmp_path)}).hash == recipe.hash
    omitted = {key for key in ("ipc", "fraction", "preset", "like", "init") if value(recipe, key) is None}
    words = [f"{key}={told}" for key, told in recipe.flat().items() if key not in omitted]
    assert resolve(parse_overrides(words)).hash == recipe.hash  # the values as Python prints them
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()


def test_the_command_line_wins_over_a_recipe_file(toy, tmp_path):
    (tmp_path / "mine.toml").write_text(asked(toy, ipc=10, iterations=3).to_toml(), encoding="utf-8")
    recipe = resolve({"recipe": str(tmp_path / "mine.toml"), "lr_img": 7})
    assert (value(recipe, "iterations"), value(recipe, "lr_img")) == (3, 7)
    assert recipe.origin["iterations"] == str(tmp_path / "mine.toml")


def test_all_problems_are_named_at_once(toy):
    lines = complaints(
        method=toy,
        ipc="ten",
        seed=-1,
        deterministic="yes",
        iterationz=3,
        lr_img=-1,
        start_from="reel",
        experts={"epoch": 1, "count": 0},
        device="tpu",
        **{"eval.student": 4, "student.arch": "convnett", "data.augment": "color_crp", "eval.protocol": "quickk"},
    )
    expected = [
        "ipc='ten'",
        "seed=-1",
        "deterministic='yes'",
        "'iterationz'; did you mean 'iterations'",
        "lr_img=-1",
        "start_from='reel'",
        "'experts.epoch'; did you mean 'experts.epochs'?",
        "experts.count=0",
        "device='tpu'",
        "'eval.student'; did you mean 'eval.students'",
        "'convnett'; did you mean 'convnet'?",
        "did you mean 'crop'",
        "'quickk'; did you mean 'quick'",
    ]
    assert len(lines) == len(expected)
    for words in expected:
        assert sum(words in line for line in lines) == 1, words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "cifar11"}, "did you mean 'cifar10'"),
        ({"dataset": "folder:/no/such/place"}, "no such folder"),
        ({"preset": "smok"}, "did you mean 'smoke'?"),
        ({"like": "cifar10.ipc51"}, "did you mean 'cifar10.ipc50'"),
        ({"like": "cifar10"}, "write DATASET.ipcN"),
        ({"ipc": 1, "fraction": 0.5}, "mutually exclusive"),
        ({"eval.seeds": 5}, "unknown key 'eval.seeds'; did you mean 'eval.students'?"),
        ({"fraction": 1.5}, "expected a number > 0 and <= 1"),
        ({"init": "/no/such/file"}, "init=/no/such/file: no such file"),
        ({"init": "dm/fashion-mini-ipc11"}, "no such file, and no released set of that name; did you mean"),
        ({"recipe": "/no/such/file"}, "recipe=/no/such/file: no such file"),
        ({"init": "/"}, "init=/ is a folder without a set; name that of a run"),
        ({"init": "/dev/null"}, "init=/dev/null: not a regular file"),
        ({"recipe": "/dev/null"}, "recipe=/dev/null: not a regular file"),
        ({"init": "~nobody-here/x"}, "'init=~nobody-here/x' is not a path"),
        ({"recipe": "~nobody-here/x"}, "'recipe=~nobody-here/x' is not a path"),
        ({"dataset": "folder:~nobody-here/x"}, "'dataset=folder:~nobody-here/x' is not a path"),
        ({"dataset": "parquet:" + "x" * 300}, "no such file or folder"),
        ({"dataset": "folder:"}, "write dataset=folder:PATH"),
        ({"expert": {"count": 1}}, "did you mean 'experts'?"),
        ({"width": 3}, "did you mean 'student.width'?"),
        ({"count": 3}, "did you mean 'experts.count'?"),
        ({"device": "cuda:99"}, "device=cuda:99"),
        ({"eval.steps": 5, "eval.epochs": 6}, "give one of steps and epochs"),
        ({"window_start": 11, "iterations": 10}, "window_start=11 lies after iterations=10"),
        ({"track": "tensorboard"}, "unknown tracker 'tensorboard'"),
        ({"force": "perhaps"}, "expected true or false"),
    ],
    ids=str,
)
def test_one_problem_one_line(toy, settings, words):
    lines = complaints(method=toy, **settings)
    assert len(lines) == 1
    assert words in lines[0]


def test_without_a_method():
    assert complaints()[0].startswith("say which method: method=NAME; known: ast, aum, ca2d, cad")
    lines = complaints(method="datmm", ipc=0, iterations=3, **{"data.holdut": 1})
    assert len(lines) == 3  # iterations may well be a field of the method that was meant
    assert any("did you mean 'datm'" in line for line in lines)


def test_a_preset_of_another_cell_names_that_cell(tmp_path):
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "toy.toml").write_text("[cifar10.ipc1.quick]\niterations = 1\n", encoding="utf-8")
    lines = complaints(method=str(tmp_path / "toy.py"), preset="quick")
    assert lines == ["preset=quick is not for fashion-mini.ipc10; it is for cifar10.ipc1"]


def test_a_missing_cell_is_said_with_the_nearest_one(toy):
    (notice,) = asked(toy, dataset="fashion-mini", ipc=30).notices
    assert "like=fashion-mini.ipc10" in notice
    (notice,) = asked(toy, dataset="cifar100", ipc=30).notices  # no cell of that data set: the nearest size of another
    assert "like=cifar10.ipc50" in notice or "like=fashion-mini.ipc10" in notice
    assert asked(toy, dataset="fashion-mini", ipc=30).expect is None
    assert asked(toy, dataset="fashion-mini", ipc=10).notices == ()
    assert "dataset=cifar10" in asked(toy).notices[0]  # the default data set is said


SIZES = """
[fashion-mini.ipc10]
[cifar10.ipc10]
[cifar100.ipc1]
[tiny-imagenet.ipc50]
[imagenette.ipc1]
data.size = 128
[imagenette.ipc10]
data.size = 128
"""


@pytest.mark.parametrize(
    ("settings", "cell"),
    [
        ({"dataset": "imagewoof", "data.size": 128, "ipc": 5}, "imagenette.ipc10"),
        ({"dataset": "imagewoof", "data.size": 128, "ipc": 2}, "imagenette.ipc1"),
        ({"dataset": "imagewoof", "ipc": 2}, "imagenette.ipc1"),  # it brings a size
        ({"dataset": "imagenette", "data.size": 128, "ipc": 50}, "imagenette.ipc10"),
        ({"dataset": "imagenette", "data.size": 32, "ipc": 50}, "cifar10.ipc10"),  # its own are four times as large
        ({"dataset": "imagenet-1k", "data.size": 64, "ipc": 50}, "tiny-imagenet.ipc50"),
        ({"dataset": "svhn", "ipc": 50}, "cifar10.ipc10"),
        ({"dataset": "cifar100", "ipc": 50}, "cifar100.ipc1"),
        ({"dataset": "tiny-imagenet", "ipc": 1}, "tiny-imagenet.ipc50"),
        ({"dataset": "mnist", "ipc": 50}, "fashion-mini.ipc10"),
        ({"dataset": "imagenet-1k", "data.size": 299}, None),
        ({"dataset": "folder:."}, None),  # of which nothing is known
    ],
    ids=str,
)
def test_a_near_cell_is_one_of_similar_images(tmp_path, settings, cell):
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "toy.toml").write_text(SIZES, encoding="utf-8")
    (notice,) = asked(str(tmp_path / "toy.py"), **settings).notices
    assert notice.endswith(f"the nearest is {cell}, taken with like={cell}" if cell else "; no cell is near")


def test_a_grey_28_pixel_cell_is_never_near_128_pixel_colour(tmp_path):
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "toy.toml").write_text("[fashion-mini.ipc10]\niterations = 1\n", encoding="utf-8")
    toy, far = str(tmp_path / "toy.py"), {"dataset": "imagenette", "data.size": 128}
    assert asked(toy, **far).notices[-1].endswith("; no cell is near")
    for settings in (far, {"dataset": "imagenette"}):
        (line,) = complaints(method=toy, like="fashion-mini.ipc10", device="cpu", **settings)
        assert "grey images of 28 pixels" in line
        assert "imagenette has colour images of" in line
    assert asked(toy, like="fashion-mini.ipc10", dataset="mnist").method.iterations == 1
    assert asked(toy, like="fashion-mini.ipc10", dataset="cifar10").method.iterations == 1


RULED = METHOD.replace(
    "    def __post_init__",
    """    @classmethod
    def by_ipc(cls, ipc):
        return {"iterations": 10 * ipc, "experts.count": ipc}

    def __post_init__""",
)


def test_a_methods_own_rule_is_weaker_than_everything_that_is_said(tmp_path):
    (tmp_path / "toy.py").write_text(RULED, encoding="utf-8")
    (tmp_path / "toy.toml").write_text(RECIPES, encoding="utf-8")
    toy = str(tmp_path / "toy.py")
    ruled = asked(toy, ipc=7)
    assert (value(ruled, "iterations"), value(ruled, "experts.count")) == (70, 7)
    assert ruled.origin["iterations"] == "rule of toy for ipc=7"
    assert value(asked(toy, ipc=10), "iterations") == 100  # the cell
    assert value(asked(toy, ipc=7, iterations=3), "iterations") == 3
    assert value(asked(toy, ipc=7, experts={"count": 3}), "experts.count") == 3
    assert resolve(tomllib.loads(ruled.to_toml())).hash == ruled.hash
    assert asked(toy, ipc=10).expect is not None
    assert value(asked(toy, ipc=3, like="cifar10.ipc50"), "iterations") == 30  # by what is asked, not by the cell
    (line,) = complaints(method=toy, fraction=0.1, iterations=3, device="cpu")
    assert "toy: experts.count depend on ipc, which fraction=0.1 does not set" in line
    assert value(asked(toy, fraction=0.1, iterations=3, experts={"count": 3}), "iterations") == 3


def test_loops_of_gradient_matching_follow_from_ipc():
    loops = {}
    for ipc in (1, 2, 5, 10, 15, 20, 30, 40, 50, 80, 1000):
        method = resolve({"method": "dsa", "dataset": "svhn", "ipc": ipc, "device": "cpu"}).method
        assert method.iterations == 1000 * method.outer
        loops[ipc] = (method.outer, method.inner)
    assert (loops[1], loops[10], loops[20], loops[30], loops[40], loops[50]) == (
        (1, 1),
        (10, 50),
        (20, 25),
        (30, 20),
        (40, 15),
        (50, 10),
    )
    assert (loops[2], loops[5], loops[15], loops[80], loops[1000]) == ((1, 1), (10, 50), (20, 25), (100, 2), (100, 2))


def test_like_takes_the_table_of_another_cell(toy):
    recipe = asked(toy, ipc=3, like="cifar10.ipc50")
    assert (recipe.data.preprocess, recipe.eval.protocol, recipe.precision) == ("zca", "mtt", "bf16")
    assert recipe.name == "toy/fashion-mini/ipc3"
    assert recipe.expect is None
    assert "unverified" in recipe.notices[-1]


def test_naming_a_protocol_starts_evaluation_afresh(toy):
    assert asked(toy, ipc=10).eval.steps == 200
    assert asked(toy, ipc=10, **{"eval.protocol": "mtt"}).eval == PROTOCOLS["mtt"]
    assert asked(toy, ipc=10, preset="smoke").eval == PROTOCOLS["smoke"]
    both = asked(toy, ipc=10, preset="smoke", **{"eval.students": 3})
    assert (both.eval.steps, both.eval.students) == (PROTOCOLS["smoke"].steps, 3)


def test_steps_and_epochs_replace_one_another(toy):
    assert (asked(toy, **{"eval.epochs": 3}).eval.steps, asked(toy, **{"eval.epochs": 3}).eval.epochs) == (None, 3)
    again = asked(toy, dataset="cifar10", ipc=50, **{"eval.steps": 3})
    assert (again.eval.steps, again.eval.epochs) == (3, None)


def test_the_band_holds_only_for_the_recipe_as_it_stands(toy):
    assert asked(toy, ipc=10).expect == {"accuracy": [78.0, 83.0], "verified": True, "source": "ours", "cost": "3 min"}
    harmless = {"seed": 3, "eval.full": True, "eval.students": 9, "iterations": 100, "lr_img": "3e2"}
    assert asked(toy, ipc=10, **harmless).expect is not None
    changed = asked(toy, ipc=10, iterations=99, **{"student.width": 16})
    assert changed.expect is None
    assert set(changed.changed) == {"iterations", "student.width"}
    assert asked(toy, ipc=10, precision="bf16").changed == ("precision",)
    assert asked(toy, ipc=10, preset="tiny").expect is None


SEVERAL = """
[fashion-mini.ipc10]
eval = { protocol = "quick", batch = 64 }

[[fashion-mini.ipc10.expect]]
accuracy = [70, 72]
verified = true
source = "own"

[[fashion-mini.ipc10.expect]]
eval.steps = 900
accuracy = [74, 75]
verified = false
source = "longer"

[[fashion-mini.ipc10.expect]]
protocol = "mtt"
eval = { lr = 0.02 }
accuracy = [76, 77]
verified = false
source = "another"

[[fashion-mini.ipc10.expect]]
protocol = "mtt"
accuracy = [78, 79]
verified = false
source = "as published"
"""


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({}, "own"),
        ({"eval.students": 2, "eval.full": True}, "own"),
        ({"eval.steps": 900}, "longer"),
        ({"eval.steps": 901}, None),
        ({"eval.protocol": "quick", "eval.steps": 900}, None),  # the batch is not the cell's then
        ({"eval.protocol": "quick", "eval.steps": 900, "eval.batch": 64}, "longer"),
        ({"eval.protocol": "mtt", "eval.lr": 0.02}, "another"),
        ({"eval.protocol": "mtt"}, "as published"),
        ({"eval.protocol": "mtt", "lr_img": 1}, None),
        ({"student.width": 5}, None),
        ({"init": __file__}, None),
    ],
    ids=str,
)
def test_a_run_is_judged_by_the_number_of_its_own_protocol(tmp_path, settings, source):
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "toy.toml").write_text(SEVERAL, encoding="utf-8")
    recipe = asked(str(tmp_path / "toy.py"), ipc=10, **settings)
    assert (recipe.expect or {}).get("source") == source
    assert [(p.protocol, p.steps, p.epochs, p.batch, p.lr) for p, _ in recipe.numbers] == [
        ("quick", 300, None, 64, 0.01),
        ("quick", 900, None, 64, 0.01),
        ("mtt", None, 1000, 256, 0.02),
        ("mtt", None, 1000, 256, 0.01),
    ]


def test_the_verdict_is_by_that_number(tmp_path):
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "toy.toml").write_text(SEVERAL, encoding="utf-8")
    facts: dict[str, Any] = dict.fromkeys(("control", "start", "full"))
    facts |= {key: {} for key in ("missing", "protocol", "student", "dataset", "bytes")}
    report = Report(accuracy=Score((74.5, 74.7)), fingerprint="", **facts)
    words = {}
    for steps in (300, 900, 901):
        found = judged(report, asked(str(tmp_path / "toy.py"), ipc=10, **{"eval.steps": steps}), "")
        words[steps] = f"{found.verdict}: {found.verdict_note}"
    assert words == {
        300: "outside: expected 70 to 72 % under quick, batch=64",
        900: "unverified: inside of the published band 74 to 75 % under quick, steps=900, batch=64, "
        "which we have not reproduced",
        901: "unverified: settings differ from the recipe's: eval.steps",
    }


def test_hash_covers_what_determines_the_result_and_nothing_else(toy, tmp_path):
    base = asked(toy, ipc=10)
    for same in (
        {"out": "/tmp/x", "force": True, "track": "none"},
        {"experts": {"count": 4}},
        {"lr_img": 300.0},
        {"data.workers": 3},
    ):
        assert asked(toy, ipc=10, **same).hash == base.hash
    init = tmp_path / "set.safetensors"
    init.write_bytes(b"one")
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"ipc": 11},
        {"iterations": 101},
        {"experts.seed": 1},
        {"data.holdout": 0.2},
        {"data.size": 32},
        {"data.stream": True},
        {"student.width": 33},
        {"eval.students": 6},
        {"precision": "bf16"},
        {"deterministic": True},
        {"compile": False},
        {"dataset": "mnist"},
        {"init": str(init)},
    ]
    hashes = {asked(toy, **{"ipc": 10, **other}).hash for other in others}
    assert len(hashes | {base.hash}) == len(others) + 1
    init.write_bytes(b"two")
    assert asked(toy, ipc=10, init=str(init)).hash not in hashes
    Path(toy).write_text(METHOD + "\n# another idea\n", encoding="utf-8")
    assert asked(toy, ipc=10).hash != base.hash  # a method in the making is its text


def test_a_raised_version_is_another_run_of_other_images(toy, monkeypatch):
    recipe = asked(toy, ipc=10)
    before, key = recipe.hash, recipe.images_identity()
    monkeypatch.setattr(type(recipe.method), "version", 2)
    assert recipe.identity()["version"] == recipe.images_identity()["version"] == 2
    assert recipe.hash != before
    assert recipe.images_identity() != key


def test_the_content_of_a_teachers_file_is_part_of_the_recipe(tmp_path):
    file = tmp_path / "mine.pt"
    settings = {"method": "sre2l", "ipc": 10, "device": "cpu", "teachers": ("student", f"{file}@convnet:width=4")}
    hashes = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        recipe = resolve(settings)
        assert list(recipe.digests) == ["teachers[1]"]
        hashes.append(recipe.hash)
    assert hashes[0] == hashes[2] != hashes[1]
    file.unlink()
    with pytest.raises(UsageError) as caught:
        resolve(settings | {"lr_img": -1.0})
    assert len(str(caught.value).splitlines()) == 2
    assert "no such file" in str(caught.value)


@pytest.mark.parametrize(
    "field", ["teachers: int = 3", 'teachers: str = "./net.bin"', "teachers: tuple[str, ...] = ('a/b',)"]
)
def test_another_methods_teachers_are_its_own_affair(tmp_path, field):
    (tmp_path / "own.py").write_text(METHOD.replace("iterations: A", f"{field}\n    iterations: A"), encoding="utf-8")
    assert resolve({"method": str(tmp_path / "own.py"), "device": "cpu"}).digests.keys() == {"method"}


def test_a_cell_of_nothing_but_presets_is_no_recipe_without_them(tmp_path):
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    cells = "[fashion-mini.ipc1.quick]\niterations = 1\n[cifar10.ipc10]\niterations = 7\n"
    (tmp_path / "toy.toml").write_text(cells, encoding="utf-8")
    toy = str(tmp_path / "toy.py")
    bare = asked(toy, dataset="fashion-mini", ipc=1)
    assert "no recipe of toy for fashion-mini.ipc1" in bare.notices[0]
    assert "the nearest is cifar10.ipc10" in bare.notices[0]
    quick = asked(toy, dataset="fashion-mini", ipc=1, preset="quick")
    assert (quick.notices, quick.method.iterations) == ((), 1)
    assert "like='fashion-mini.ipc1': no such cell" in complaints(method=toy, ipc=2, like="fashion-mini.ipc1")[0]


def test_synthesis_does_not_depend_on_evaluation(toy):
    base = asked(toy, ipc=10)
    evaluation = asked(toy, ipc=10, **{"eval.students": 6, "eval.probes": 9})
    assert evaluation.images_identity() == base.images_identity()
    assert evaluation.hash != base.hash
    assert asked(toy, ipc=10, lr_img=1).images_identity() != base.images_identity()


def test_synthesis_does_not_depend_on_the_labels_that_teachers_give_later(toy):
    base = replace(asked(toy, ipc=10), method=registry.get("sre2l")())
    other = replace(base, method=replace(base.method, labels=LabelSettings(form="topk")))
    assert other.images_identity() == base.images_identity()
    assert other.hash != base.hash


def test_run_options():
    assert run_options({"out": "x", "force": "true", "ipc": 3}).force is True
    assert run_options({}).out is None
    with pytest.raises(UsageError, match="track"):
        run_options({"track": "x"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fashion-mini]\niterations = 3\n", "'fashion-mini.iterations' is not a table"),
        ("fashion-mini = 3\n", "'fashion-mini' is not a table"),
        ("[fashion-mini.ipc10]\nseed = 3\n", "[fashion-mini.ipc10]: unknown key 'seed'"),
        ("[fashion-mini.ipc10]\nlr_img = 0\n", "[fashion-mini.ipc10]: lr_img=0 is out of range"),
        ("[fashion-mini.ipc10]\nexpect = { accuracy = [9, 3], verified = true }\n", "expect must be"),
        ("[[fashion-mini.ipc10.expect]]\naccuracy = [3, 9]\n", "expect must be"),
        ("[[fashion-mini.ipc10.expect]]\nverified = false\neval = 3\n", "expect must be"),
        ("[[fashion-mini.ipc10.expect]]\nverified = false\nprotocol = 'mt'\n", "expect: unknown eval.protocol 'mt'"),
        ("[[fashion-mini.ipc10.expect]]\nverified = false\neval.epoch = 2\n", "expect: unknown key 'eval.epoch'"),
        ("[fashion-mini.ipc10\n", "not TOML"),
    ],
)
def test_mistakes_in_a_recipe_file_name_the_table(tmp_path, text, words):
    (tmp_path / "toy.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
    lines = complaints(method=str(tmp_path / "toy.py"), ipc=10)
    assert len(lines) == 1
    assert "toy.toml" in lines[0]
    assert words in lines[0]


def test_a_field_named_like_a_key_of_every_run_is_refused(tmp_path):
    text = METHOD.replace("scales: tuple[float, ...] = (1.0, 0.5)", "seed: int = 0").replace("Toy", "Clash")
    (tmp_path / "clash.py").write_text(text.replace('"toy"', '"clash"'), encoding="utf-8")
    assert "seed" in complaints(method=str(tmp_path / "clash.py"))[0]


def test_cells(toy):
    names = [cell.name for cell in list_recipes(toy)]
    assert names == ["fashion-mini.ipc10", "fashion-mini.ipc10.tiny", "cifar10.ipc50", "cifar10.fraction0.1"]


def test_evaluation_settings_start_from_the_set(toy):
    recipe = asked(toy, ipc=10)
    own = {"dataset": "fashion-mini", "data": recipe.data, "student": NetworkSpec(width=8), "protocol": recipe.eval}
    own["made"] = {"seed": 7, "compile": False, "method": "toy"}
    assert resolve_evaluation({}, **own).eval == recipe.eval
    told = resolve_evaluation(
        {"eval": {"students": 2}, "student.arch": "resnet18", "device": "cpu", "force": True}, **own
    )
    assert (told.eval.students, told.eval.steps, told.student.arch, told.force) == (2, 200, "resnet18", True)
    assert (told.seed, told.compile, told.precision) == (7, False, "fp32")
    assert resolve_evaluation({"seed": 8}, **own).seed == 8
    assert resolve_evaluation({"eval.protocol": "smoke"}, **own).eval == PROTOCOLS["smoke"]
    with pytest.raises(UsageError) as caught:
        resolve_evaluation({"ipc": 3, "eval.studnts": 1, "dataset": "cifr10", "eval.batch": 0}, **own)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eval.suite": "quik"}, "unknown eval.suite 'quik'; did you mean 'quick'"),
        ({"eval.coreset": "randon"}, "unknown eval.coreset 'randon'; did you mean 'random'"),
        ({"eval.coreset": "random,dm"}, "eval.coreset=dm is no selection method"),
        ({"eval.labels": "soft", "eval.teachers": "convnett"}, "unknown network 'convnett'"),
        ({"eval.labels": "views", "eval.teachers": "none/there.pt"}, "none/there.pt"),
    ],
)
def test_names_of_label_regimes_are_checked_before_anything_is_made(toy, settings, words):
    facts = {"dataset": "fashion-mini", "data": DataSettings(), "student": NetworkSpec(), "made": {}}
    with pytest.raises(UsageError, match=words):
        resolve_evaluation(settings, **facts, protocol=PROTOCOLS["smoke"])
    with pytest.raises(UsageError, match=words):
        asked(toy, ipc=10, **settings)


# --- another architecture -------------------------------------------------------------------------------------------

CONVNET = NetworkSpec("convnet", 3, 32, norm="batch")


def evaluated(own: NetworkSpec, **settings: Any) -> NetworkSpec:
    facts = {"dataset": "fashion-mini", "data": DataSettings(), "student": own, "protocol": PROTOCOLS["smoke"]}
    return resolve_evaluation({"device": "cpu", **settings}, made={}, **facts).student


@pytest.mark.parametrize(
    ("own", "settings", "expected"),
    [
        (CONVNET, {"arch": "resnet18"}, NetworkSpec("resnet18", norm="batch")),  # not of width 32
        (CONVNET, {"arch": "resnet18", "width": 16}, NetworkSpec("resnet18", width=16, norm="batch")),
        (CONVNET, {"arch": "resnet18", "norm": "instance"}, NetworkSpec("resnet18")),
        (CONVNET, {"arch": "torchvision:resnet18"}, NetworkSpec("torchvision:resnet18", norm="batch")),
        (NetworkSpec("resnet18", width=64), {"arch": "convnet", "depth": 2}, NetworkSpec("convnet", 2)),
        (CONVNET, {"arch": "ConvNet"}, NetworkSpec("ConvNet", 3, 32, norm="batch")),  # the same one
        (CONVNET, {"arch": "ConvNetD4"}, NetworkSpec("ConvNetD4", None, 32, norm="batch")),
        (NetworkSpec("resnet18", width=8), {"arch": "ResNet18"}, NetworkSpec("ResNet18", width=8)),
    ],
)
def test_another_architecture_has_its_own_sizes(own, settings, expected):
    assert evaluated(own, student=settings) == expected
    assert evaluated(own, **{f"student.{key}": value for key, value in settings.items()}) == expected


@pytest.mark.parametrize(
    ("own", "settings", "words"),
    [
        (CONVNET, {"arch": "resnet18", "depth": 3}, "student.depth=3 means nothing to student.arch=resnet18"),
        (CONVNET, {"arch": "torchvision:resnet18", "width": 8}, "student.width=8 means nothing"),
        (NetworkSpec("resnet18", width=8), {"depth": 2}, "student.depth=2 means nothing"),
        (CONVNET, {"arch": "ConvNetD4", "depth": 3}, "give one"),
    ],
)
def test_a_size_that_is_typed_for_an_architecture_without_it_is_refused(own, settings, words):
    with pytest.raises(UsageError, match=words):
        evaluated(own, student=settings)


def test_a_named_architecture_lays_down_the_sizes_of_a_cell_and_of_a_recipe_file(toy, tmp_path):
    recipe = asked(toy, ipc=10, **{"student.arch": "torchvision:resnet18"})
    assert recipe.student == NetworkSpec("torchvision:resnet18")
    assert "student.width" not in recipe.origin
    assert set(recipe.changed) == {"student.arch", "student.width"}
    assert resolve(tomllib.loads(recipe.to_toml())).hash == recipe.hash
    file = tmp_path / "mine.toml"
    file.write_text(asked(toy, ipc=10, **{"student.depth": 2}).to_toml(), encoding="utf-8")
    assert resolve({"recipe": str(file), "student.width": 4}).student == NetworkSpec("convnet", 2, 4)
    assert resolve({"recipe": str(file), "student.arch": "resnet18"}).student == NetworkSpec("resnet18")
    # of one layer, the sizes are meant for the architecture beside them
    assert asked(toy, ipc=10, preset="smoke", student={"arch": "resnet18", "width": 4}).student.width == 4
    lines = complaints(method=toy, ipc=10, device="cpu", student={"arch": "resnet18", "depth": 3})
    assert lines == ["student.depth=3 means nothing to student.arch=resnet18: leave it out"]


def test_a_cell_of_ours_with_a_network_of_torchvision():
    recipe = resolve({"method": "sre2l", "ipc": 10, "device": "cpu", "student.arch": "torchvision:resnet18"})
    assert (recipe.student.arch, recipe.student.width) == ("torchvision:resnet18", None)


# --- experts from files ----------------------------------------------------------------------------------------------


def test_experts_from_files_are_in_the_identity_by_their_content(tmp_path):
    def buffers(name, *contents):
        folder = tmp_path / name
        folder.mkdir()
        for number, content in enumerate(contents):
            (folder / f"replay_buffer_{number}.pt").write_bytes(content)
        return str(folder)

    def run(**settings):
        return resolve({"method": "mtt", "ipc": 1, "device": "cpu", **settings})

    plain, one = run(), run(**{"experts.from": buffers("one", b"a", b"b")})
    assert "experts.from" not in plain.identity()
    assert one.method.experts.from_ == str(tmp_path / "one")
    assert one.flat()["experts.from"] == str(tmp_path / "one")
    assert one.hash == run(experts={"from": buffers("moved", b"a", b"b")}).hash
    others = [
        run(**{"experts.from": buffers(name, *content)}) for name, content in (("c", [b"a"]), ("d", [b"b", b"a"]))
    ]
    assert len({recipe.hash for recipe in (plain, one, *others)}) == 4
    file = tmp_path / "recipe.toml"
    for recipe in (plain, one):
        file.write_text(recipe.to_toml(), encoding="utf-8")
        again = resolve({"recipe": str(file)})
        assert (again.hash, again.method) == (recipe.hash, recipe.method)
    with pytest.raises(UsageError, match=r"experts\.from=.*nowhere: no such folder or file"):
        run(**{"experts.from": str(tmp_path / "nowhere")})


def test_a_key_that_is_a_word_of_python_is_explained():
    from dd.recipes import about

    (found,) = [setting for setting in about("mtt").settings if setting.key == "experts.from"]
    assert "replay_buffer_N.pt" in found.about
    assert found.default is None
