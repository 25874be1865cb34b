"""The decoupled family's recipes against a table of its sources: images, patches, teachers and tests, typed once more.

Facts were read in the official code of SRe2L, CDA, CV-DD and RDED, and of the repository that SRe2L trains on
Tiny-ImageNet with.  Recoveries and students have tables of their own in `test_recipe_files`.
"""

import pytest

from dd.recipes import list_recipes, resolve

# pixels, value space, how test images are brought to size after everybody's own protocol, tiles per side, from files
IMAGES = """
sre2l   cifar10       10,50           -   standard -       - -
sre2l   cifar100      10,50           -   standard -       - -
sre2l   tiny-imagenet 10,50,100       -   standard -       - -
sre2l   imagenette    10              224 standard shorter - -
sre2l   imagenet-1k   10,50,100,200   224 standard shorter - -
cda     tiny-imagenet 10,50,100       -   standard -       - -
cda     imagenet-1k   10,50,100,200   224 standard shorter - -
cda     imagenet-21k  10,20           224 none     shorter - -
sre2lpp cifar10       1,10,50         -   standard -       1 0
sre2lpp cifar100      1,10,50         -   standard -       1 0
sre2lpp tiny-imagenet 1,10,50         -   standard -       1 0
sre2lpp imagenette    1,10,50         224 standard shorter 2 1
sre2lpp imagenet-1k   1,10,50         224 standard shorter 2 1
cvdd    cifar10       1,10,50         -   standard -       1 0
cvdd    cifar100      1,10,50         -   standard -       1 0
cvdd    tiny-imagenet 1,10,50         -   standard -       1 0
cvdd    imagenette    1,10,50         224 standard shorter 2 1
cvdd    imagenet-1k   1,10,50         224 standard shorter 2 1
nrrdd   cifar10       10              -   standard -       1 0
nrrdd   cifar100      10              -   standard -       1 0
nrrdd   tiny-imagenet 10,50           -   standard -       1 0
nrrdd   imagenet-1k   10,50           224 standard shorter 2 1
rded    cifar10       1,10,50         -   standard shorter 1 0
rded    cifar100      1,10,50         -   standard shorter 1 0
rded    tiny-imagenet 1,10,50         -   standard shorter 1 0
rded    imagenette    1,10,50         224 standard shorter 2 1
rded    imagewoof     1,10,50         224 standard shorter 2 1
rded    imagenet-100  1,10,50         224 standard shorter 2 1
rded    imagenet-1k   1,10,50         224 standard shorter 2 1
"""

# epochs, optimiser, lr, weight decay, batch, epochs of warm-up, augmentation; "weights": of torchvision, first version
TEACHERS = """
sre2l   cifar10       200 sgd  .1   5e-4 128 0 pad
sre2l   cifar100      200 sgd  .1   5e-4 128 0 pad
sre2l   tiny-imagenet 50  sgd  .2   1e-4 256 5 crops
sre2l   imagenette    weights
sre2l   imagenet-1k   weights
cda     tiny-imagenet 50  sgd  .2   1e-4 256 5 crops
cda     imagenet-1k   weights
cda     imagenet-21k  80  sgd  .1   5e-4 128 0 crops
sre2lpp cifar10       200 adam 1e-3 1e-4 512 0 pad
sre2lpp cifar100      200 adam 1e-3 1e-4 512 0 pad
sre2lpp tiny-imagenet 50  sgd  .01  1e-4 128 0 pad
sre2lpp imagenette    300 sgd  .01  1e-4 64  0 crops
sre2lpp imagenet-1k   weights
cvdd    cifar10       200 adam 1e-3 1e-4 512 0 pad
cvdd    cifar100      200 adam 1e-3 1e-4 512 0 pad
cvdd    tiny-imagenet 50  sgd  .01  1e-4 128 0 pad
cvdd    imagenette    300 sgd  .01  1e-4 64  0 crops
cvdd    imagenet-1k   weights
nrrdd   cifar10       200 sgd  .1   5e-4 128 0 pad
nrrdd   cifar100      200 sgd  .1   5e-4 128 0 pad
nrrdd   tiny-imagenet 50  sgd  .2   1e-4 256 5 crops
nrrdd   imagenet-1k   weights
rded    cifar10       200 sgd  .1   5e-4 128 0 pad
rded    cifar100      200 sgd  .1   5e-4 128 0 pad
rded    tiny-imagenet 50  sgd  .2   1e-4 256 5 crops
rded    imagenette    300 sgd  .1   1e-4 64  0 crops
rded    imagewoof     300 sgd  .1   1e-4 64  0 crops
rded    imagenet-100  300 sgd  .1   1e-4 64  0 crops
rded    imagenet-1k   weights
"""

# accuracy of a ResNet-18, what its protocol has that the cell's has not
SEVERAL = """
cvdd  cifar100    1  15.9
cvdd  cifar100    1  28.3 eval.epochs=1000 eval.lr=5e-4 eval.cosine=2
cvdd  cifar100    10 53.6
cvdd  cifar100    10 62.7 eval.epochs=1000
cvdd  cifar100    50 65.1
cvdd  cifar100    50 67.1 eval.epochs=1000
sre2l imagenet-1k 10 21.3
sre2l imagenet-1k 10 40.2 eval.protocol=cda eval.epochs=400 eval.batch=50
sre2l imagenet-1k 50 46.8
sre2l imagenet-1k 50 55.2 eval.protocol=cda eval.epochs=400 eval.batch=50
cda   imagenet-1k 10 33.6
cda   imagenet-1k 10 41.2 eval.epochs=400 eval.batch=50
cda   imagenet-1k 50 53.5
cda   imagenet-1k 50 56.7 eval.epochs=400 eval.batch=50
rded  imagenet-1k 10 42.0
rded  imagenet-1k 10 46.3 eval.protocol=cda eval.epochs=400 eval.batch=50
rded  imagenet-1k 50 56.5
rded  imagenet-1k 50 58.9 eval.protocol=cda eval.epochs=400 eval.batch=50
"""
FAMILY = ("sre2l", "cda", "sre2lpp", "cvdd", "nrrdd", "rded")


def rows(table):
    return [line.split() for line in table.strip().split("\n")]


def published(method):
    """(data set, ipc) of every cell for data that are not inside."""
    return {
        (cell.dataset, int(cell.size.removeprefix("ipc")))
        for cell in list_recipes(method)
        if cell.preset is None and cell.dataset != "fashion-mini"
    }


@pytest.mark.parametrize("method", FAMILY)
def test_the_tables_know_every_cell(method):
    found = {(row[1], int(ipc)) for row in rows(IMAGES) if row[0] == method for ipc in row[2].split(",")}
    assert found == published(method)
    assert {row[1] for row in rows(TEACHERS) if row[0] == method} == {dataset for dataset, _ in published(method)}


@pytest.mark.parametrize("row", rows(IMAGES), ids=lambda row: "-".join(row[:2]))
def test_images(row):
    method, dataset, ipcs, size, space, test, tiles, files = row
    for ipc in ipcs.split(","):
        recipe = resolve({"method": method, "dataset": dataset, "ipc": int(ipc)})
        assert recipe.data.size == (None if size == "-" else int(size))
        assert (recipe.data.resize, recipe.data.preprocess) == ("fit", space)
        assert recipe.eval.test_resize == (None if test == "-" else test)
        if tiles != "-":
            crops = recipe.method.crops
            assert (crops.factor, crops.originals, crops.least) == (int(tiles), files == "1", 0.08)


def test_rdeds_convnets_take_128_pixels():
    recipe = resolve({"method": "rded", "dataset": "imagewoof", "ipc": 10, "preset": "convnet"})
    assert (recipe.data.size, recipe.student.depth, recipe.student.width) == (128, 5, 128)
    assert recipe.method.crops.originals


@pytest.mark.parametrize("row", rows(TEACHERS), ids=lambda row: "-".join(row[:2]))
def test_teachers(row):
    method, dataset, *values = row
    for name, ipc in published(method):
        if name == dataset:
            found = resolve({"method": method, "dataset": dataset, "ipc": ipc}).method
            if values == ["weights"]:
                assert all(t.startswith("torchvision:") and t.endswith(".IMAGENET1K_V1") for t in found.teachers)
                continue
            assert not any(".IMAGENET1K" in teacher for teacher in found.teachers)
            epochs, optimiser, lr, decay, batch, warmup, augment = values
            ours = found.squeeze
            assert (ours.epochs, ours.optimiser, ours.lr) == (int(epochs), optimiser, float(lr))
            assert (ours.weight_decay, ours.batch, ours.warmup) == (float(decay), int(batch), int(warmup))
            assert (ours.augment, ours.schedule, ours.momentum) == (augment, "cosine", 0.9)


@pytest.mark.parametrize("row", rows(SEVERAL), ids=lambda row: "-".join(row[:4]))
def test_a_run_is_judged_by_the_number_of_its_protocol(row):
    method, dataset, ipc, number, *differs = row
    asked = dict(word.split("=") for word in differs)
    for key, kind in (("eval.epochs", int), ("eval.batch", int), ("eval.lr", float), ("eval.cosine", float)):
        if key in asked:
            asked[key] = kind(asked[key])
    expect = resolve({"method": method, "dataset": dataset, "ipc": int(ipc), **asked}).expect
    assert expect is not None
    low, high = expect["accuracy"]
    assert low <= float(number) <= high
    assert f"{number} (" in expect["source"] or f"{number} ±" in expect["source"]


@pytest.mark.parametrize("method", ["sre2lpp", "cvdd"])
def test_labels_as_the_code_makes_them_are_a_preset(method):
    for preset, mode in ((None, "batch"), ("code", "train")):
        words = {"method": method, "dataset": "cifar10", "ipc": 10} | ({"preset": preset} if preset else {})
        assert resolve(words).method.labels.teacher_mode == mode


def test_what_cells_of_small_images_say_is_not_for_presets_that_were_measured():
    """README's numbers of `quick` and `smoke` are of teachers trained by SGD."""
    for method, dataset, preset in (
        ("sre2lpp", "cifar10", "quick"),
        ("sre2lpp", "tiny-imagenet", "quick"),
        ("cvdd", "cifar10", "smoke"),
        ("cvdd", "tiny-imagenet", "smoke"),
    ):
        squeeze = resolve({"method": method, "dataset": dataset, "ipc": 10, "preset": preset}).method.squeeze
        assert (squeeze.optimiser, isinstance(squeeze.augment, bool)) == ("sgd", True)
