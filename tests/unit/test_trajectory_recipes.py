"""The trajectory family's recipes against its sources, typed from them row by row: a slip of the pen in one shows here.

A row is a cell, or a preset of it; a dash is a setting that is not there (all images in a step, no widening window).
Sources: DC-Bench's commands by MTT's author, and for `third-party` a transcription of MTT's README; FTD's table 7 and
its author's issue 3; DATM's final YAML files; TESLA's README, whose lr_img is halved but in `paper`; AST's scripts and
README.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from dd.recipes import resolve

FOLDER = Path(__file__).parents[2] / "experiments" / "recipes"
SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imagemeow", "imagesquawk", "imageyellow")

COMMON = "steps span start_max batch lr_img lr_lr lr_init data.preprocess"
MTT = """
cifar10.ipc1              50 2 2  -   1e2 1e-7 .01  zca
cifar10.ipc1.third-party  50 2 5  -   1e3 1e-7 .01  standard
cifar10.ipc10             30 2 20 -   1e2 1e-5 .001 zca
cifar10.ipc10.readme      30 2 20 -   1e5 1e-4 .01  zca
cifar10.ipc10.third-party 30 2 15 -   1e3 1e-5 .01  standard
cifar10.ipc50             30 2 40 -   1e3 1e-5 .001 standard
cifar10.ipc50.third-party 30 2 20 -   1e2 1e-5 .001 zca
cifar100.ipc1             20 3 20 -   1e3 1e-5 .01  zca
cifar100.ipc10            20 2 20 -   1e3 1e-5 .01  standard
cifar100.ipc10.third-party 20 2 20 -  1e3 1e-5 .01  zca
cifar100.ipc50            80 2 40 125 1e3 1e-5 .01  zca
tiny-imagenet.ipc1        10 2 10 -   1e4 1e-4 .01  standard
tiny-imagenet.ipc1.depth3 10 2 10 -   1e4 1e-4 .01  standard
tiny-imagenet.ipc10       20 2 40 200 1e4 1e-4 .01  standard
tiny-imagenet.ipc10.depth3 20 2 40 200 1e4 1e-4 .01 standard
tiny-imagenet.ipc50       20 2 40 300 1e4 1e-4 .01  standard
SUBSETS.ipc1              20 2 10 -   1e5 1e-6 .01  standard
SUBSETS.ipc10             20 2 10 20  1e5 1e-6 .01  standard
"""
FTD = """
cifar10.ipc1        50 2 2  -    1e2 1e-7 .01  zca .3 .9999
cifar10.ipc10       30 2 20 -    1e2 1e-5 .001 zca .3 .9995
cifar10.ipc50       30 2 40 -    1e3 1e-5 .01  zca 1  .999
cifar10.ipc50.script 30 2 40 -   1e3 1e-5 .01  zca .4 .999
cifar100.ipc1       40 3 20 -    1e3 1e-5 .01  zca 1  .9995
cifar100.ipc10      20 2 40 -    1e3 1e-5 .01  zca 1  .9995
cifar100.ipc50      80 2 40 1000 1e3 1e-5 .01  zca 1  .999
tiny-imagenet.ipc1  30 2 10 -    1e4 1e-4 .01  zca 1  .999
tiny-imagenet.ipc10 20 2 40 500  1e4 1e-4 .01  zca 1  .999
SUBSETS.ipc1        20 2 10 64   1e4 1e-4 .01  standard 1 .999
SUBSETS.ipc10       20 2 10 64   1e4 1e-4 .01  standard 1 .999
"""
DATM = """
cifar10.ipc1        80 2 4  -    1e2 1e-7 .01 zca 0  -  -    5  1.1 correct
cifar10.ipc10       80 2 20 -    1e2 1e-5 .01 zca 0  10 1000 2  1   correct
cifar10.ipc50       80 2 40 -    1e3 1e-5 .01 zca 0  20 2000 2  1   correct
cifar10.ipc500      40 2 60 1000 50  1e-5 .01 zca 40 -  -    10 1   correct
cifar10.ipc1000    100 2 60 1000 50  1e-5 .01 zca 40 -  -    10 1   correct
cifar100.ipc1       40 3 20 1000 1e3 1e-5 .01 zca 0  10 1000 10 1   correct
cifar100.ipc1.before-2024-04 40 3 30 1000 1e3 1e-5 .01 zca 0 20 1000 10 1 correct
cifar100.ipc10      80 2 50 1000 1e3 1e-5 .01 zca 0  30 2000 10 1   correct
cifar100.ipc50      80 2 70 1000 1e3 1e-5 .01 zca 20 -  -    10 1   real
cifar100.ipc100     80 2 70 1000 50  1e-5 .01 zca 30 -  -    10 1   correct
tiny-imagenet.ipc1  40 2 20 1000 1e4 1e-4 .01 zca 0  15 2000 10 1   correct
tiny-imagenet.ipc10 40 2 50 500  1e2 1e-4 .01 zca 10 -  -    10 1   correct
tiny-imagenet.ipc50 20 2 70 1000 1e2 1e-4 .01 zca 40 -  -    10 1   correct
"""
TESLA = """
cifar10.ipc1         50 2 5  -   5e2 1e-7 .01  standard hard
cifar10.ipc1.paper   50 2 5  -   1e3 1e-7 .01  standard hard
cifar100.ipc50       80 2 40 125 5e2 1e-5 .01  zca      hard
cifar100.ipc50.paper 80 2 40 125 1e3 1e-5 .01  zca      hard
imagenet-1k.ipc1       10 3 10 100 5e3 1e-4 .01 standard target
imagenet-1k.ipc1.paper 10 3 10 100 1e4 1e-4 .01 standard target
"""
AST = """
cifar10.ipc10          30 2 20 -   1e2 1e-6 .01 zca      real    true  sum true  1000
cifar10.ipc10.script-b 30 2 20 -   1e3 1e-5 .01 zca      real    true  sum true  1000
cifar100.ipc1          40 3 15 -   1e2 1e-5 .01 standard cluster false sum true  300
cifar100.ipc1.readme   20 3 20 -   1e3 1e-5 .01 zca      cluster true  sum true  1000
cifar100.ipc10         20 2 30 128 1e3 1e-5 .01 standard cluster false sum true  300
cifar100.ipc50         80 2 40 700 1e3 1e-5 .01 standard cluster false off false 1000
tiny-imagenet.ipc1     10 2 10 -   1e4 1e-4 .01 standard real    false sum true  1000
"""
TABLES = {
    "mtt": (COMMON, MTT),
    "ftd": (f"{COMMON} experts.alpha ema", FTD),
    "datm": (f"{COMMON} start_min window_start window_its lr_label threshold start_from", DATM),
    "tesla": (f"{COMMON} labels", TESLA),
    "ast": (f"{COMMON} start_from balance middle perturb eval.epochs", AST),
}
# what every cell of a method shares
OUTER = "momentum_img=.5 momentum_lr=.5 start_min=0 augment=true"
PLAIN = "experts.lr=.01 experts.momentum=0 experts.weight_decay=0 experts.batch=256 experts.augment=true"
SHARED = {
    "mtt": f"{OUTER} {PLAIN} iterations=5000 start_from=real experts.kind=sgd experts.epochs=50",
    "ftd": f"{OUTER} {PLAIN} iterations=5000 start_from=real experts.kind=ftd experts.epochs=50 experts.rho=.01",
    "datm": f"{OUTER.replace('start_min=0 ', '')} {PLAIN} iterations=10000 momentum_label=.9 experts.kind=ftd "
    "experts.epochs=100 experts.rho=.01 experts.alpha=.3 eval.batch=128",
    "tesla": f"{OUTER} {PLAIN} iterations=10000 backprop=frozen start_from=real experts.kind=sgd experts.epochs=50",
    "ast": f"{OUTER} iterations=5000 momentum=.9 experts.kind=ast experts.epochs=50 experts.lr=.003 "
    "experts.momentum=.9 experts.weight_decay=1e-3 experts.clip=10 experts.penalty=2 experts.decay=.6 "
    "experts.batch=256",
}
# TESLA's cells without a command of the authors' have MTT's settings
OF_MTT = ("cifar10.ipc10", "cifar10.ipc50", "cifar100.ipc1", "cifar100.ipc10")


def rows(method: str) -> dict[str, list[str]]:
    """Columns by the cell's name."""
    found: dict[str, list[str]] = {}
    for line in TABLES[method][1].split("\n"):
        if line:
            name, *columns = line.split()
            for dataset in SUBSETS if name.startswith("SUBSETS") else ("",):
                found[name.replace("SUBSETS", dataset)] = columns
    return found


CELLS = [(method, name) for method in TABLES for name in rows(method)]


def built(method: str, name: str) -> Any:
    dataset, ipc, *preset = name.split(".")
    words = {"method": method, "dataset": dataset, "ipc": int(ipc[3:])}
    return resolve({**words, "device": "cpu", **({"preset": preset[0]} if preset else {})})


def has(flat: dict[str, Any], key: str, text: str) -> None:
    found = flat[key]
    if text == "-":
        assert found is None or (key == "window_its" and flat["window_start"] is None), key
    elif isinstance(found, bool | str):
        assert str(found).lower() == text, key
    else:
        assert found == float(text), key


@pytest.mark.parametrize(("method", "name"), CELLS, ids="-".join)
def test_a_cell_is_what_its_source_says(method, name):
    flat = built(method, name).flat()
    for key, text in zip(TABLES[method][0].split(), rows(method)[name], strict=True):
        has(flat, key, text)
    for words in SHARED[method].split():
        has(flat, *words.split("="))
    assert flat["experts.count"] == (50 if name.startswith("imagenet-1k") else 100)
    assert flat["student.width"] in (None, 128)
    assert flat["student.depth"] == (3 if name.endswith("depth3") else None)
    assert flat["data.holdout"] == 0.1


@pytest.mark.parametrize(("method", "name"), [cell for cell in CELLS if cell[1].startswith("image")], ids="-".join)
def test_pictures_of_imagenet_are_squashed_whole(method, name):
    data = built(method, name).data
    assert (data.size, data.resize) == (64 if name.startswith("imagenet-1k") else 128, "squash")


@pytest.mark.parametrize("name", OF_MTT)
def test_tesla_without_a_command_of_its_own_is_mtt(name):
    ours, theirs = built("tesla", name).flat(), built("mtt", name).flat()
    assert [ours[key] for key in COMMON.split()] == [theirs[key] for key in COMMON.split()]


@pytest.mark.parametrize("method", TABLES)
def test_every_published_cell_has_a_row(method):
    file = tomllib.loads((FOLDER / f"{method}.toml").read_text(encoding="utf-8"))
    groups = {"experts", "student", "eval", "data", "expect", "smoke"}
    there = set()
    for dataset, sizes in file.items():
        if dataset not in ("defaults", "presets", "fashion-mini"):
            for size, table in sizes.items():
                there.add(f"{dataset}.{size}")
                presets = {key for key, found in table.items() if isinstance(found, dict)} - groups
                there |= {f"{dataset}.{size}.{preset}" for preset in presets}
    assert there == {name for name in rows(method) if not name.endswith(".script")} | set(
        OF_MTT if method == "tesla" else ()
    )
