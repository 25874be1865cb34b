"""The shipped recipe files: every table is a run that can start, and says what it should reach and by whose word."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dd.engine.registry import get
from dd.recipes import resolve

FOLDER = Path(__file__).parents[2] / "experiments" / "recipes"
FILES = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.toml"))}
TRAJECTORY = ("mtt", "datm", "ftd", "tesla", "ast")
GROUPS = (
    "student",
    "eval",
    "data",
    "experts",
    "expect",
    "squeeze",
    "labels",
    "crops",
    "curriculum",
    "distil",
    "record",
    "encoder",
    "pool",
)


def cells() -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """(method, data set, ipc, table) of every cell."""
    for method, file in FILES.items():
        for dataset, tables in file.items():
            if dataset not in ("defaults", "presets"):
                for name, table in tables.items():
                    if name.startswith("ipc"):
                        yield method, dataset, int(name.removeprefix("ipc")), table


def own_presets(table: Mapping[str, Any]) -> list[str]:
    return [key for key, value in table.items() if isinstance(value, dict) and key not in GROUPS]


def runs() -> Iterator[tuple[str, str, int, str | None]]:
    """Every cell, plain and with each preset that is offered for it."""
    for method, dataset, ipc, table in cells():
        for preset in (None, *sorted({*own_presets(table), *FILES[method].get("presets", {})})):
            yield method, dataset, ipc, preset


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def settings(method: str, dataset: str, ipc: int, preset: str | None) -> dict[str, Any]:
    """The layers put on top of each other without the code under test."""
    file, cell = FILES[method], FILES[method][dataset][f"ipc{ipc}"]
    presets = [file.get("presets", {}).get(preset, {}), cell.get(preset, {})] if preset else []
    merged: dict[str, Any] = {}
    for layer in (file.get("defaults", {}), {k: v for k, v in cell.items() if k not in own_presets(cell)}, *presets):
        if "protocol" in layer.get("eval", {}) or "eval.protocol" in layer:
            merged = {key: value for key, value in merged.items() if not key.startswith("eval.")}
        merged |= dotted(layer)
    return {key: value for key, value in merged.items() if key.partition(".")[0] != "expect"}


def named(run: tuple[str, str, int, str | None]) -> str:
    return "-".join(str(part) for part in run if part is not None)


def built(method: str, dataset: str, ipc: int, preset: str | None = None) -> Any:
    words = {"method": method, "dataset": dataset, "ipc": ipc}
    return resolve(words | ({"preset": preset} if preset else {}))


def value(recipe: Any, key: str) -> Any:
    """The setting `key` of a resolved recipe; a bare key is the method's."""
    found = recipe if key.split(".")[0] in ("student", "eval", "data") else recipe.method
    for part in key.split("."):
        found = getattr(found, part)
    return found


def meant(written: Any) -> Any:
    """What a value in TOML stands for."""
    return tuple(written) if isinstance(written, list) else None if written == "null" else written


def test_the_files_are_found():
    assert {"random", *TRAJECTORY} <= set(FILES)
    assert len(list(cells())) > 30
    for method in ("mtt", "datm", "random"):
        own = {(dataset, ipc) for m, dataset, ipc, _ in cells() if m == method}
        assert {("fashion-mini", ipc) for ipc in (1, 10, 50)} <= own
        assert {(dataset, 10) for dataset in ("cifar10", "cifar100", "tiny-imagenet")} <= own


@pytest.mark.parametrize("run", list(runs()), ids=named)
def test_every_table_builds_and_its_values_arrive(run):
    recipe = built(*run)
    for key, wanted in settings(*run).items():
        if key != "eval.protocol":
            assert value(recipe, key) == meant(wanted), key


@pytest.mark.parametrize("run", [run for run in runs() if run[0] in TRAJECTORY], ids=named)
def test_no_segment_ends_after_the_experts(run):
    method = built(*run).method
    assert 0 <= method.start_min < method.start_max
    assert method.start_max - 1 + method.span <= method.experts.epochs
    start = getattr(method, "window_start", None)
    assert start is None or method.start_min < start <= method.start_max


@pytest.mark.parametrize("run", [run for run in runs() if run[3] == "smoke"], ids=named)
def test_smoke_is_small(run):
    recipe = built(*run)
    assert recipe.student.width <= 16
    assert recipe.eval.students == 2
    if run[0] in TRAJECTORY:
        method = recipe.method
        assert method.experts.count * method.experts.epochs <= 8  # about 60 s at CIFAR size on 2 cores
        assert method.iterations * method.steps * min(method.batch, 10 * run[2]) <= 60_000
        assert recipe.data.preprocess == "standard" or run[1] != "tiny-imagenet"  # a 12,288 x 12,288 eigenproblem


def expectations() -> Iterator[Any]:
    """Every cell must say what to expect; a preset may, and must where the cell is nothing but presets."""
    for method, dataset, ipc, table in cells():
        presets = set(own_presets(table))
        if not presets or set(table) - presets:
            yield from each(table["expect"], f"{method}-{dataset}-{ipc}")
        for preset in own_presets(table):
            if "expect" in table[preset] or not set(table) - presets:
                yield from each(table[preset]["expect"], f"{method}-{dataset}-{ipc}-{preset}")


def each(expect: Any, name: str) -> Iterator[Any]:
    """A number under the cell's own protocol, or one under each of several."""
    for number, entry in enumerate(expect if isinstance(expect, list) else [expect]):
        yield pytest.param(entry, id=f"{name}-{number}" if number else name)


@pytest.mark.parametrize("expect", list(expectations()))
def test_what_to_expect_and_who_says_so(expect):
    assert expect["source"]
    assert expect["cost"]
    if "accuracy" not in expect:
        assert expect["verified"] is False
        assert expect["source"].endswith("; no number was readable")
        return
    low, high = expect["accuracy"]
    assert 0 < low < high < 100
    assert high - low <= 13  # a band that admits anything says nothing
    assert isinstance(expect["verified"], bool)
    quoted = re.search(r"(\d+\.\d) (?:± \d+\.\d|\(no deviation given\))", expect["source"])
    assert quoted is not None
    assert low <= float(quoted[1]) <= high


@pytest.mark.parametrize("method", sorted(FILES))
def test_every_file_names_its_paper(method):
    assert re.search(r"arXiv:\d{4}\.\d{5}", (FOLDER / f"{method}.toml").read_text(encoding="utf-8"))


# iterations, lr_img, r_bn, batch, roll, whether both ways, crop, start_from
RECOVERY = """
sre2l   imagenet-1k   50 4000 0.25 0.01 100 32 0 0.08 noise
sre2l   tiny-imagenet 50 4000 0.1  1.0  100 4  1 0.08 noise
sre2l   cifar100      50 1000 0.25 0.01 100 4  0 -    noise
cda     imagenet-1k   50 4000 0.25 0.01 100 32 0 0.08 noise
cda     tiny-imagenet 50 4000 0.4  0.05 100 4  0 0.08 noise
cda     imagenet-21k  20 2000 0.05 0.25 100 32 0 0.08 noise
sre2lpp cifar10       10 4000 0.25 0.01 10  4  0 0.08 crops
sre2lpp cifar100      10 4000 0.25 0.01 100 4  0 0.08 crops
sre2lpp tiny-imagenet 50 4000 0.25 0.01 100 4  0 0.08 crops
cvdd    imagenette    10 4000 0.25 0.01 10  32 0 0.08 crops
cvdd    imagenet-1k   50 4000 0.25 0.01 100 32 0 0.08 crops
"""


@pytest.mark.parametrize("row", RECOVERY.strip().split("\n"), ids=lambda row: "-".join(row.split()[:3]))
def test_published_recoveries(row):
    method, dataset, ipc, its, lr, r_bn, batch, roll, back, crop, start = row.split()
    found = built(method, dataset, int(ipc)).method
    assert (found.iterations, found.batch, found.roll) == (int(its), int(batch), int(roll))
    assert (found.lr_img, found.r_bn, found.first_bn, found.betas) == (float(lr), float(r_bn), 10.0, (0.5, 0.9))
    assert (found.crop, found.flip) == ((None, False) if crop == "-" else (float(crop), True))
    assert (found.roll_back, found.start_from, found.layout) == (back == "1", start, "one-per-class")
    assert method != "cda" or (found.curriculum.shape, found.curriculum.milestone) == ("cosine", 1.0)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny-imagenet", "imagenette", "imagenet-1k"])
def test_the_committee_of_an_only_image_is_its_first_pair(dataset):
    from dd.training.committee import published_prior

    one, ten, fifty = (built("cvdd", dataset, ipc).method for ipc in (1, 10, 50))
    assert sorted(one.teachers) == sorted(ten.teachers) == sorted(fifty.teachers)
    pair = {
        "cifar10": "mobilenet densenet",
        "imagenette": "mobilenet densenet",
        "cifar100": "shufflenet mobilenet",
        "tiny-imagenet": "resnet18 mobilenet",
        "imagenet-1k": "resnet18 shufflenet",
    }[dataset]
    assert all(word in name for word, name in zip(pair.split(), one.teachers, strict=False))
    assert (one.members_by, ten.members_by, fifty.members_by) == ("pairs", "pairs", "random")
    assert all(published_prior(dataset, name) is not None for name in one.teachers)


@pytest.mark.parametrize(("dataset", "factor"), [("cifar10", 1), ("tiny-imagenet", 1), ("imagenette", 2)])
def test_published_crops(dataset, factor):
    crops = built("rded", dataset, 10).method.crops
    assert (crops.factor, crops.crops, crops.candidates, crops.least, crops.order) == (factor, 5, 300, 0.08, "low")


# protocol, epochs, batch, micro, lr, share of the cosine, tiles, crop, mix, temperature, labels' mode, teachers' mode
STUDENTS = """
sre2l   imagenet-1k   10 sre2l       300  1024 - 1e-3 1 1 .08 cutmix 20 store eval
sre2l   imagenet-1k   50 sre2l       300  1024 - 1e-3 1 1 .08 cutmix 20 store eval
sre2l   tiny-imagenet 50 sre2l-tiny  100  256  - .2   1 1 .08 none   20 live  eval
sre2l   cifar100      50 sre2l-cifar 400  128  - 1e-3 1 1 -   mixup  30 live  batch
cda     imagenet-1k   50 cda         300  128  - 1e-3 1 1 .08 cutmix 20 store eval
cda     tiny-imagenet 50 sre2l-tiny  100  256  - .2   1 1 .08 none   20 live  eval
cvdd    cifar10       1  cvdd        300  10   5 1e-3 1 1 .08 cutmix 20 store batch
cvdd    cifar10       10 cvdd        300  16   8 1e-3 1 1 .08 cutmix 20 store batch
cvdd    cifar10       50 cvdd        300  16   8 1e-3 1 1 .08 cutmix 20 store batch
cvdd    cifar100      1  cvdd        300  16   8 1e-3 1 1 .08 cutmix 20 store batch
cvdd    cifar100      10 cvdd        300  16   8 1e-3 2 1 .08 cutmix 20 store batch
cvdd    cifar100      50 cvdd        300  16   8 1e-3 1 1 .08 cutmix 20 store batch
cvdd    tiny-imagenet 1  cvdd        300  16   8 1e-3 2 1 .08 cutmix 20 store batch
cvdd    tiny-imagenet 10 cvdd        300  16   8 1e-3 1 1 .08 cutmix 20 store batch
cvdd    tiny-imagenet 50 cvdd        300  16   8 1e-3 2 1 .08 cutmix 20 store batch
cvdd    imagenette    1  cvdd        300  10   5 5e-4 2 1 .08 cutmix 20 store batch
cvdd    imagenette    10 cvdd        300  16   8 5e-4 1 1 .08 cutmix 20 store batch
cvdd    imagenette    50 cvdd        300  16   8 5e-4 2 1 .08 cutmix 20 store batch
cvdd    imagenet-1k   1  cvdd        300  16   8 1e-3 2 1 .08 cutmix 20 store batch
cvdd    imagenet-1k   10 cvdd        300  16   8 1e-3 2 1 .08 cutmix 20 store batch
cvdd    imagenet-1k   50 cvdd        300  16   8 1e-3 1 1 .08 cutmix 20 store batch
rded    cifar10       1  rded        300  10   - 1e-3 2 1 1   cutmix 20 live  eval
rded    cifar10       10 rded        300  50   - 1e-3 2 1 1   cutmix 20 live  eval
rded    cifar10       50 rded        300  100  - 1e-3 2 1 1   cutmix 20 live  eval
rded    cifar100      1  rded        300  20   - 1e-3 2 1 1   cutmix 20 live  eval
rded    cifar100      10 rded        300  100  - 1e-3 2 1 1   cutmix 20 live  eval
rded    cifar100      50 rded        300  200  - 1e-3 2 1 1   cutmix 20 live  eval
rded    tiny-imagenet 1  rded        300  100  - 1e-3 2 1 1   cutmix 20 live  eval
rded    tiny-imagenet 10 rded        300  100  - 1e-3 2 1 1   cutmix 20 live  eval
rded    tiny-imagenet 50 rded        300  100  - 1e-3 2 1 1   cutmix 20 live  eval
rded    imagenette    1  rded        300  10   - 1e-3 2 2 .5  cutmix 20 live  eval
rded    imagewoof     10 rded        300  50   - 1e-3 2 2 .5  cutmix 20 live  eval
rded    imagewoof     50 rded        300  100  - 1e-3 2 2 .5  cutmix 20 live  eval
rded    imagenet-100  10 rded        300  100  - 1e-3 2 2 .5  cutmix 20 live  eval
rded    imagenet-1k   1  rded        300  20   - 1e-3 2 2 .5  cutmix 20 live  eval
rded    imagenet-1k   10 rded        300  100  - 1e-3 2 2 .5  cutmix 20 live  eval
rded    imagenet-1k   50 rded        300  200  - 1e-3 2 2 .5  cutmix 20 live  eval
ncfm    cifar10       50 ncfm        2000 128  - 1e-3 - 1 -   cutmix 1  -     -
ncfm    cifar100      10 ncfm        2000 128  - 1e-3 - 1 -   cutmix 1  -     -
ncfm    tiny-imagenet 1  ncfm        2000 128  - 1e-3 - 1 -   cutmix 1  -     -
ncfm    tiny-imagenet 10 ncfm        300  128  - 1e-3 - 1 -   cutmix 1  -     -
ncfm    tiny-imagenet 50 ncfm        40   128  - 1e-3 - 1 -   cutmix 1  -     -
"""


@pytest.mark.parametrize("row", STUDENTS.strip().split("\n"), ids=lambda row: "-".join(row.split()[:3]))
def test_published_students(row):
    method, dataset, ipc, protocol, epochs, batch, micro, lr, cosine, tiles, crop, mix, t, *labels = row.split()
    recipe = built(method, dataset, int(ipc))
    found, views = recipe.eval, recipe.eval.views
    assert (found.protocol, found.steps, found.epochs, found.batch) == (protocol, None, int(epochs), int(batch))
    assert (found.micro, found.lr) == (None if micro == "-" else int(micro), float(lr))
    assert (found.cosine, found.temperature) == (None if cosine == "-" else float(cosine), float(t))
    assert (views.tiles, views.crop, views.mix) == (int(tiles), None if crop == "-" else float(crop), mix)
    if method != "ncfm":
        assert [recipe.method.labels.mode, recipe.method.labels.teacher_mode] == labels


def test_sre2lpp_has_the_students_of_cvdd():
    for method, dataset, ipc, _ in cells():
        if method == "sre2lpp" and dataset != "fashion-mini":
            ours = built(method, dataset, ipc)
            assert ours.eval == built("cvdd", dataset, ipc).eval
            assert ours.method.labels.teacher_mode == "batch"


def test_rdeds_views_have_the_tiles_that_its_images_are_made_of():
    for method, dataset, ipc, _ in cells():
        if method == "rded" and dataset != "fashion-mini":
            recipe = built(method, dataset, ipc)
            factor = recipe.method.crops.factor
            assert (recipe.eval.views.tiles, recipe.eval.views.crop) == (factor, 1 / factor)
    small = built("rded", "cifar100", 10, "convnet").eval
    assert (small.batch, small.lr, small.cosine) == (25, 2e-3, 2.0)
    assert built("rded", "tiny-imagenet", 10, "convnet").eval.batch == 100


def test_smoke_on_tiny_imagenet_fits_into_a_quarter_of_an_hour():
    taught = {m for m in FILES if ".decoupled." in get(m).__module__ and "tiny-imagenet" in FILES[m]}
    found = {m: built(m, "tiny-imagenet", 10, "smoke") for m in taught}
    assert {"sre2l", "cda", "sre2lpp", "cvdd", "rded", "nrrdd"} == set(found)
    assert len({recipe.method.squeeze for recipe in found.values()}) == 1  # one teacher in the store for all
    for recipe in found.values():
        method, protocol = recipe.method, recipe.eval
        # of 9,000 images 20 classes have; a set of 200, its control and its start; 160 images a second were measured
        passes = method.squeeze.epochs * 9000 + method.iterations * 200 + 3 * protocol.students * protocol.epochs * 200
        assert passes < 100_000
        assert (protocol.protocol, protocol.full) == ("quick-soft", False)
        assert (recipe.student.arch, recipe.student.width) == ("resnet18", 8)
        assert method.labels.mode == ("live" if method.name == "rded" else "store")
