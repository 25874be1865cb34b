"""Labels are refused only if correctly labelled real images would fit better: random real images never are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dd.data import DataSettings, open_data
from dd.errors import UsageError
from dd.exchange.draft import Draft
from dd.exchange.order import OrderCheck, OrderFit, require_order

EACH = 700  # training images per class of the data set whose classes hardly differ


def opened(name):
    return open_data(name, DataSettings(holdout=0.0), "cpu")


@pytest.fixture(scope="module")
def clear():
    return opened("fashion-mini")


@pytest.fixture(scope="module")
def faint(tmp_path_factory):
    """Ten classes of noise around ten faint patterns: ten images, one of each class, do not tell their order."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(0, 4, (10, 8, 8, 1))
    labels = np.arange(10).repeat(EACH)
    images = (128 + patterns[labels] + rng.normal(0, 30, (10 * EACH, 8, 8, 1))).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("faint") / "faint.npz"
    parts = {
        f"{part}_{kind}": array
        for part in ("train", "test")
        for kind, array in (("images", images), ("labels", labels[:, None]))
    }
    np.savez(path, **parts)
    return opened(f"npz:{path}")


def drawn(data, ipc, seed):
    """Random real images, (n, c, h, w) from 0 to 1, and their labels."""
    rng = torch.Generator().manual_seed(seed)
    members = [data.train.of_class(c) for c in range(len(data.classes))]
    index = torch.cat([one[torch.randperm(len(one), generator=rng)[:ipc]] for one in members])
    return data.train.raw(index).float() / 255, data.train.labels[index]


def judged(fit, data):
    draft = Draft("dc", torch.zeros(1, 1, 8, 8), None, (Path("x.pt"),))
    return require_order(draft, fit, data, None)


@pytest.mark.parametrize("name", ["clear", "faint"])
@pytest.mark.parametrize("ipc", [1, 10])
def test_no_random_real_set_is_refused(request, name, ipc):
    data = request.getfixturevalue(name)
    check = OrderCheck(data)
    fits = [check([drawn(data, ipc, seed)]) for seed in range(30)]
    assert not any(fit.refuted for fit in fits)
    unclear = [fit for fit in fits if not fit.fits]
    assert bool(unclear) == (name == "faint" and ipc == 1)
    for fit in unclear:
        assert "too few images to confirm the order of the classes" in judged(fit, data)


@pytest.mark.parametrize(("name", "ipc"), [("clear", 1), ("clear", 10), ("faint", 30)])
def test_shuffled_classes_are_refused(request, name, ipc):
    data = request.getfixturevalue(name)
    check = OrderCheck(data)
    for seed in range(10):
        images, labels = drawn(data, ipc, seed)
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        while bool((order == torch.arange(10)).any()):
            order = order.roll(1)
        fit = check([(images, order[labels])])
        assert fit.refuted
        with pytest.raises(UsageError, match="class_order="):
            judged(fit, data)


@pytest.mark.parametrize(
    ("least", "words"), [(0.5, "unknown order"), (3.5, "another order of the classes fits much better")]
)
def test_an_order_is_named_only_if_as_many_real_images_would_show_it(clear, least, words):
    fit = OrderFit(-2.0, 0.0, -1.0, 10, 10, best=(1, 0, *range(2, 10)), best_score=4.0, present=10, least=least)
    assert fit.refuted
    with pytest.raises(UsageError, match=words):
        judged(fit, clear)


def test_the_least_statistic_is_that_of_draws_from_the_real_images(clear):
    """The bound, computed from draws through the front door instead of from stored statistics."""
    check = OrderCheck(clear)
    scores = torch.tensor([check([drawn(clear, 1, seed)]).score for seed in range(200)], dtype=torch.float64)
    labels = drawn(clear, 1, 0)[1]
    noise = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    fit = check([(noise, labels)])
    assert fit.refuted
    assert fit.least == pytest.approx(float(scores.mean() - 3.5 * scores.std()), abs=0.8)
