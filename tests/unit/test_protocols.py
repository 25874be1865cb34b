"""The published student recipes once more, typed from the sources: a slip of the pen in a protocol shows here."""

import math
from dataclasses import replace

import pytest
import torch

from dd.evaluation import PROTOCOLS
from dd.recipes import resolve
from dd.rng import generator
from dd.training import Fit
from dd.training.criteria import CrossEntropy
from dd.views import View, ViewPolicy, draw_view

# optimiser, lr, weight decay, epochs, batch, micro, temperature, whether times T^2, epochs of warm-up, whether biases
# and norms are spared from decay, what lr is multiplied by in the end
RECIPES = """
sre2l       adamw 1e-3 .01  300  1024 - 20 0 0 1 0
sre2l-tiny  sgd   .2   1e-4 100  256  - 20 1 5 0 0
sre2l-cifar adamw 1e-3 .01  400  128  - 30 0 0 0 0
cda         adamw 1e-3 .01  300  128  - 20 0 0 1 0
cvdd        adamw 1e-3 .01  300  16   8 20 0 0 1 0
rded        adamw 1e-3 .01  300  50   - 20 0 0 1 .5
rethinkdc-soft adamw 1e-3 .01 300 128 - 20 0 0 1 0
rethinkdc-hard adamw 1e-3 .01 300 128 - 1  0 0 1 0
rd3         adamw 1e-3 .01  400  50   - 20 0 0 1 0
hardtruths-hl sgd .01  5e-4 300  256  - 1  0 0 0 .1
hardtruths-sl adamw 1e-3 .01 300 256  - 20 1 0 0 0
ncfm        adamw 1e-3 .01  2000 128  - 1  0 0 0 .0625
mealv2      sgd   .01  0    180  512  - 1  0 0 1 .1
quick-soft  adamw 2e-3 .01  150  50   - 4  0 0 1 0
deepcore nesterov .1   5e-4 200  256  - 1  0 0 0 1e-3
rs2      nesterov .1   5e-4 200  128  - 1  0 0 0 1e-3
dq          sgd   .1   5e-4 200  128  - 1  0 0 0 0
"""
# crop, mirrored, tiles, operations, mix, its share of the batches, its alpha
VIEWS = """
sre2l       .08 1 1 none      cutmix 1  1
sre2l-tiny  .08 1 1 none      none   1  1
sre2l-cifar -   1 1 none      mixup  1  .8
cda         .08 1 1 none      cutmix 1  1
cvdd        .08 1 1 none      cutmix 1  1
rded        .5  1 2 none      cutmix 1  1
rethinkdc-soft .08 1 1 none   cutmix 1  1
rethinkdc-hard .08 1 1 none   none   1  1
rd3         .08 1 1 none      cutmix 1  1
hardtruths-hl -  0 1 none     none   1  1
hardtruths-sl -  0 1 none     none   1  1
ncfm        -   0 1 data      cutmix .5 1
mealv2      .08 1 1 none      none   1  1
quick-soft  .3  1 1 none      cutmix 1  1
deepcore    -   1 1 none      none   1  1
rs2         -   1 1 none      none   1  1
dq          -   1 1 none      none   1  1
"""
# black pixels around an image before it is cropped to its size, and how test images are brought to theirs
SHORTER = ("sre2l", "cda", "rded", "rd3", "rethinkdc-soft", "rethinkdc-hard")
PADDED = ("sre2l-cifar", "deepcore", "rs2", "dq")
TOUCHED = {**dict.fromkeys(PADDED, (4, None)), **dict.fromkeys(SHORTER, (0, "shorter"))}
N = 2000  # images: 2, 8, 16, 40 or 125 steps a pass


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().split("\n")]


def fit_of(name: str) -> Fit:
    protocol = PROTOCOLS[name]
    return protocol.fit(N, protocol.lr, "color_flip", protocol.temperature)


def unmixed(view: View) -> View:
    return replace(view, partner=None, patch=None)


@pytest.mark.parametrize("row", rows(RECIPES), ids=lambda row: row[0])
def test_the_training_of_a_student(row):
    name, optimiser, lr, decay, epochs, batch, micro, t, squared, warm, spared, end = row
    protocol, fit = PROTOCOLS[name], fit_of(name)
    per_pass = math.ceil(N / int(batch))
    assert (protocol.epochs, protocol.batch, protocol.passes(N)) == (int(epochs), int(batch), int(epochs))
    assert fit.steps == int(epochs) * per_pass
    assert (fit.optimiser, fit.lr, fit.weight_decay) == (optimiser, float(lr), float(decay))
    assert optimiser == "adamw" or fit.momentum == 0.9
    assert fit.micro == (None if micro == "-" else int(micro))
    assert fit.criterion == CrossEntropy(float(t), squared == "1")
    assert (fit.warmup, fit.spare_vectors) == (int(warm) * per_pass, spared == "1")
    assert fit.rate(0) == pytest.approx(float(lr) * (0.01 if warm != "0" else 1))
    assert fit.rate(fit.warmup) == pytest.approx(float(lr))
    assert fit.rate(fit.steps) == pytest.approx(float(end) * float(lr), abs=1e-12)
    # what augments is in the views, so that a teacher labels it; or labels are fixed, and DSA augments each batch
    assert fit.strategy == ("color_flip" if name.startswith("hardtruths") else "none")


def test_lr_drops_once_before_epoch_151_and_momentum_stays():
    fit = fit_of("hardtruths-hl")
    assert fit.decay_at == (151 * 8,)  # 8 steps a pass
    assert fit.keep_state
    assert [fit.rate(at) for at in (0, 151 * 8 - 1, 151 * 8)] == pytest.approx([0.01, 0.01, 0.001])


@pytest.mark.parametrize(("name", "epoch", "factor"), [("rethinkdc-soft", 150, 0.5), ("rethinkdc-hard", 299, 2.74e-5)])
def test_rethinkdcs_schedule(name, epoch, factor):
    """The official code changes lr once an epoch; ours agrees at the first step of each."""
    protocol = PROTOCOLS[name]
    fit = protocol.fit(10_000, protocol.lr, "none", protocol.temperature)
    assert protocol.passes_to_steps(10_000) == 79
    assert fit.rate(0) == protocol.lr
    assert fit.rate(79 * epoch) / protocol.lr == pytest.approx(factor, rel=2e-3)
    assert fit.spare_vectors


def test_the_soft_loss_of_rethinkdc():
    """KL at T = 20 without T^2, and at T = 1: the specification's worked example."""
    student, teacher = torch.tensor([[2.0, 0.0, -1.0]]).double(), torch.tensor([[4.0, 1.0, -2.0]]).double()
    for t, squared, kl in ((20.0, False, 0.0018828), (20.0, True, 0.75312), (1.0, False, 0.0645193)):
        target = (teacher / t).softmax(1)
        entropy = -(target * target.log()).sum() * (t**2 if squared else 1)
        assert CrossEntropy(t, squared)(student, target) - entropy == pytest.approx(kl, rel=5e-5)


@pytest.mark.parametrize("name", ["sre2l", "sre2l-tiny", "sre2l-cifar", "cda", "cvdd", "rded"])
def test_lr_falls_in_a_cosine_to_zero_or_to_half(name):
    fit = fit_of(name)
    span = 2 if name == "rded" else 1
    rest = fit.steps - fit.warmup
    for share in (0.25, 0.5, 0.75):
        wanted = fit.lr / 2 * (1 + math.cos(math.pi * share / span))
        assert fit.rate(fit.warmup + round(share * rest)) == pytest.approx(wanted)
    rates = [fit.rate(step) for step in range(fit.steps)]
    assert rates[fit.warmup :] == sorted(rates[fit.warmup :], reverse=True)
    assert rates[: fit.warmup] == sorted(rates[: fit.warmup])


def test_ncfms_lr_is_halved_at_every_fifth():
    fit = fit_of("ncfm")
    fifths = [fit.steps * i // 5 for i in range(1, 5)]
    assert [fit.rate(at) / fit.rate(at - 1) for at in fifths] == [0.5] * 4
    assert len({fit.rate(step) for step in range(fit.steps)}) == 5
    assert fit.keep_state


def test_softlabels_lr_falls_to_three_tenths_after_every_quarter():
    """SGD .9 with weight decay 5e-4, batch 256, 3000 epochs, StepLR x .3 every E / 4."""
    protocol, fit = PROTOCOLS["softlabel"], PROTOCOLS["softlabel"].fit(N, 0.01, "color_flip")
    assert (protocol.epochs, protocol.batch, protocol.passes(N), fit.steps) == (3000, 256, 3000, 24000)
    assert (fit.optimiser, fit.momentum, fit.weight_decay, fit.strategy) == ("sgd", 0.9, 5e-4, "color_flip")
    rates = [fit.rate(epoch * 8) for epoch in (0, 749, 750, 1499, 1500, 2250, 2999)]
    assert rates == pytest.approx([0.01, 0.01, 0.003, 0.003, 9e-4, 2.7e-4, 2.7e-4])
    assert fit.keep_state


@pytest.mark.parametrize("row", rows(VIEWS), ids=lambda row: row[0])
def test_the_views_of_a_student(row):
    name, crop, flip, tiles, strategy, mix, share, alpha = row
    assert (PROTOCOLS[name].views.pad, PROTOCOLS[name].test_resize) == TOUCHED.get(name, (0, None))
    assert replace(PROTOCOLS[name].views, pad=0) == ViewPolicy(
        crop=None if crop == "-" else float(crop),
        stretch=4 / 3,
        flip=flip == "1",
        tiles=int(tiles),
        strategy=strategy,
        mix=mix,
        mix_share=float(share),
        mix_alpha=float(alpha),
    )


def test_on_cifar_sre2l_moves_images_by_up_to_4_pixels_and_mirrors_half():
    """Padded by 4 and cropped (official script): every shift of -4 to 4 either way, with black coming in."""
    black = -2.5  # in model space, where 0 is the mean
    lit = torch.full((400, 1, 32, 32), black)
    lit[:, 0, 16, 10] = 1.0
    view = draw_view(PROTOCOLS["sre2l-cifar"].views, 400, (1, 32, 32), generator(0, "views"), "none", [black])
    seen = unmixed(view)(lit)
    assert torch.equal((seen - black).sum((1, 2, 3)), torch.full((400,), 1 - black))
    seen = seen - black
    spots = seen.flatten(1).argmax(1)
    down, right = spots // 32 - 16, spots % 32
    assert set(down.tolist()) == set(range(-4, 5))
    mirrored = right > 16  # from column 31 - 10 = 21 instead of 10
    assert 150 < int(mirrored.sum()) < 250
    assert set((right - 10)[~mirrored].tolist()) == set((right - 21)[mirrored].tolist()) == set(range(-4, 5))


def test_rdeds_views_of_small_images_are_the_whole_images():
    """Oracle 23: with one tile an image the crop is the identity; with four it is not."""
    small = resolve({"method": "rded", "dataset": "cifar10", "ipc": 10}).eval.views
    images = torch.randn(300, 3, 32, 32, generator=generator(0, "images"))
    view = unmixed(draw_view(small, 300, (3, 32, 32), generator(0, "views")))
    same = torch.where(view.flips.view(-1, 1, 1, 1), images.flip(3), images)
    assert torch.equal(view(images), same)
    four = unmixed(draw_view(PROTOCOLS["rded"].views, 300, (3, 32, 32), generator(0, "views")))
    assert not torch.equal(four(images), same)
    areas = four.boxes[:, 2] * four.boxes[:, 3] / 32**2
    assert 0.45 < float(areas.min()) < 0.6 < float(areas.max()) <= 1
