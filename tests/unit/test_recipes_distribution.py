"""Recipes of the distribution family against a table of the sources' values: facts, typed from the sources row by row.

Sources: the official codes of DC, DSA and DM (`main.py`, `main_DM.py`, `utils.py` and the README), the table of
hyper-parameters of DataDAM's paper and the defaults of its code, NCFM's released configuration files and its paper.
"""

import math
from typing import Any

import pytest

from dd.recipes import resolve


def built(method: str, dataset: str, ipc: int, preset: str | None = None) -> Any:
    return resolve({"method": method, "dataset": dataset, "ipc": ipc, "preset": preset, "device": "cpu"})


# data set, ipc, outer, inner, protocol of the plain method, protocol under siamese augmentation
LOOPS = """
cifar10       1  1  1  dc mtt
cifar10       10 10 50 dc mtt
cifar10       50 50 10 dc mtt
cifar100      1  1  1  dc mtt
cifar100      10 10 50 dc mtt
cifar100      50 50 10 dc mtt
svhn          1  1  1  dc mtt
svhn          10 10 50 dc mtt
svhn          50 50 10 dc mtt
mnist         1  1  1  mtt mtt
mnist         10 10 50 mtt mtt
mnist         50 50 10 mtt mtt
fashion-mnist 1  1  1  dc mtt
fashion-mnist 10 10 50 dc mtt
fashion-mnist 50 50 10 dc mtt
tiny-imagenet 1  1  1  dc mtt
tiny-imagenet 10 10 50 dc mtt
tiny-imagenet 50 50 10 dc mtt
"""


@pytest.mark.parametrize("row", LOOPS.split("\n")[1:-1], ids=lambda row: "-".join(row.split()[:2]))
@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_gradient_matching(method, row):
    dataset, ipc, outer, inner, plain, siamese = row.split()
    recipe = built(method, dataset, int(ipc))
    found = recipe.method
    assert (found.outer, found.inner, found.iterations) == (int(outer), int(inner), 1000 * int(outer))
    assert (found.lr_img, found.momentum_img, found.batch_real) == (0.1, 0.5, 256)
    assert (found.lr_net, found.batch_net) == (0.01, 256)
    assert (found.start_from, found.augment) == (("noise", False) if method == "dc" else ("real", True))
    assert recipe.eval.protocol == (plain if method == "dc" else siamese)
    assert recipe.expect is not None


# CIFAR-10's ipc to lr_img, of `main_DM.py`'s help and the README's commands; CIFAR-100 has 1 throughout
@pytest.mark.parametrize(
    ("dataset", "ipc", "lr"),
    [
        *(("cifar10", ipc, 1) for ipc in (1, 10, 50)),
        *(("cifar10", ipc, 10) for ipc in (100, 200, 500, 1000, 1250)),
        *(("cifar100", ipc, 1) for ipc in (1, 10, 50)),
    ],
)
def test_distribution_matching(dataset, ipc, lr):
    recipe = built("dm", dataset, ipc)
    found = recipe.method
    assert (found.lr_img, found.momentum_img, found.batch_real, found.iterations) == (lr, 0.5, 256, 20_000)
    assert (found.start_from, found.augment, recipe.eval.protocol) == ("real", True, "mtt")


# data set, ipc, lr_img, side
ATTENTION = """
cifar10       1   1  -
cifar10       50  1  -
cifar10       100 10 -
cifar100      10  1  -
tiny-imagenet 50  1  -
imagenet-1k   1   1  64
imagenet-1k   2   1  64
imagenet-1k   10  1  64
imagenet-1k   50  1  64
imagenette    1   1  128
imagenette    10  1  128
imagewoof     1   1  128
imagewoof     10  1  128
imagesquawk   1   1  128
imagesquawk   10  1  128
"""


@pytest.mark.parametrize("row", ATTENTION.split("\n")[1:-1], ids=lambda row: "-".join(row.split()[:2]))
def test_attention_matching(row):
    dataset, ipc, lr, side = row.split()
    recipe = built("datadam", dataset, int(ipc))
    found = recipe.method
    assert (found.lr_img, found.iterations, found.power, found.momentum_img) == (float(lr), 8000, 4.0, 0.5)
    assert found.weight is None  # 0.01 or 0.02, by the images' size
    assert recipe.data.size == (None if side == "-" else int(side))
    assert recipe.eval.protocol == "datadam"
    code = built("datadam", dataset, int(ipc), "code")
    assert (code.method.iterations, code.method.power, code.method.batch_real) == (20_000, 1.0, 64)
    assert (code.method.weight, code.method.batchnorm, code.student.norm) == (0.01, "all", "batch")


# data set, ipc, side, epochs of the pool, optimiser, its rate, epochs of a student: the 21 configuration files
CONFIGURATIONS = """
cifar10       1  -   60 adamw 1e-3 2000
cifar10       10 -   60 adamw 1e-3 2000
cifar10       50 -   60 adamw 1e-3 2000
cifar100      1  -   60 adamw 1e-3 2000
cifar100      10 -   60 sgd   1e-2 2000
cifar100      50 -   60 adamw 1e-3 2000
tiny-imagenet 1  -   60 adamw 1e-3 2000
tiny-imagenet 10 -   60 adamw 1e-3 300
tiny-imagenet 50 -   60 adamw 1e-3 40
imagenette    1  128 80 adamw 1e-3 2000
imagenette    10 128 80 adamw 1e-3 2000
imagewoof     1  128 80 adamw 1e-3 2000
imagewoof     10 128 80 adamw 1e-3 2000
imagefruit    1  128 80 adamw 1e-3 2000
imagefruit    10 128 80 adamw 1e-3 2000
imagemeow     1  128 80 adamw 1e-3 2000
imagemeow     10 128 80 adamw 1e-3 2000
imagesquawk   1  128 80 adamw 1e-3 2000
imagesquawk   10 128 80 adamw 1e-3 2000
imageyellow   1  128 80 adamw 1e-3 2000
imageyellow   10 128 80 adamw 1e-3 2000
"""


@pytest.mark.parametrize("row", CONFIGURATIONS.split("\n")[1:-1], ids=lambda row: "-".join(row.split()[:2]))
def test_characteristic_functions(row):
    dataset, ipc, side, pool, optimiser, lr, epochs = row.split()
    recipe, code = (built("ncfm", dataset, int(ipc), preset) for preset in (None, "code"))
    for one in (recipe, code):
        found, experts = one.method, one.method.experts
        assert one.data.size == (None if side == "-" else int(side))
        assert (one.eval.protocol, one.eval.epochs, one.eval.batch) == ("ncfm", int(epochs), 128)
        assert (found.batch_real, found.factor, found.amplitude, found.phase) == (1024, 2, 0.5, 0.5)
        assert (found.scale, found.calibration, found.strategy) == (300.0, 1.0, "color_crop_cutout")
        assert (experts.count, experts.epochs, experts.lr, experts.batch) == (20, int(pool), 0.01, 128)
        assert (experts.momentum, experts.weight_decay, experts.drop) == (0.9, 5e-4, 0.2)
        # `MultiStepLR` at 2 * epochs // 3 and 5 * epochs // 6
        at = [math.floor(share * experts.epochs) for share in experts.drops]
        assert at == [2 * int(pool) // 3, 5 * int(pool) // 6]
    theirs = code.method
    assert (theirs.iterations, theirs.weight_decay, theirs.schedule) == (20_000, 5e-4, "plateau")
    assert (theirs.optimiser, theirs.lr_img, theirs.lr_per) == (optimiser, float(lr), "class")
    assert (theirs.sampler, theirs.frequencies, theirs.shared, theirs.order) == ("gaussian", 4096, False, "file")
    assert optimiser == "adamw" or theirs.sgd_momentum == 0.5
    ours = recipe.method  # the paper's 10,000 iterations and sampler with 1,024 frequencies
    assert (ours.iterations, ours.sampler, ours.frequencies, ours.optimiser) == (10_000, "learned", 1024, "adamw")
    assert (ours.lr_img, ours.lr_per) == (1e-3, "class")


def test_random_real_images_have_the_protocol_of_the_table_they_are_from():
    for dataset in ("cifar10", "cifar100", "tiny-imagenet"):
        for ipc in (1, 10, 50):
            assert built("random", dataset, ipc).eval.protocol == "mtt"
