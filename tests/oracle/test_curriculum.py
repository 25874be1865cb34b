"""CDA's curriculum of crops: from the whole image to small parts of it, and without one it is SRe2L."""

import importlib
from itertools import pairwise

import pytest
import torch

from dd.engine.method import prepare
from dd.engine.registry import get
from dd.engine.synthesise import synthesise
from dd.rng import generator
from dd.views import draw_boxes

from .conftest import SQUEEZE

SRE2L, CDA = get("sre2l"), get("cda")
Curriculum = importlib.import_module("dd.methods.decoupled.cda").Curriculum

SHAPES = ["cosine", "linear", "step"]
SMALL = {"squeeze": SQUEEZE, "iterations": 20, "lr_img": 0.1, "roll": 2, "crop": 0.5, "batch": 3}


def recovered(method, task):
    prepared = prepare(method, task)
    return synthesise(method, task, prepared, method.start(task, prepared)).images


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("milestone", [1.0, 0.6])
def test_the_curriculum(shape, milestone):
    a = [Curriculum(shape, milestone)(t, 1000, 0.08) for t in range(1000)]
    arrived = round(1000 * milestone)
    assert a[0] == 1.0
    assert all(share == 0.08 for share in a[arrived:])
    assert all(one >= two for one, two in pairwise(a))
    half = a[arrived // 2]
    assert half == pytest.approx(1.0 if shape == "step" else 0.54)
    back = [Curriculum(shape, milestone, reverse=True)(t, 1000, 0.08) for t in range(1000)]
    assert [x + y for x, y in zip(a, back, strict=True)] == pytest.approx([1.08] * 1000)


def test_published_values_of_the_curriculum():
    at = (0, 1000, 2000, 3000, 3999)
    assert [Curriculum("cosine")(t, 4000, 0.08) for t in at] == pytest.approx([1, 0.8653, 0.54, 0.2147, 0.08], abs=1e-4)
    assert [Curriculum("linear")(t, 4000, 0.08) for t in at] == pytest.approx([1, 0.77, 0.54, 0.31, 0.0802], abs=1e-4)
    cosine, linear = Curriculum("cosine"), Curriculum("linear")
    assert all(cosine(t, 4000, 0.08) >= linear(t, 4000, 0.08) for t in range(2001))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_milestone_of_nothing_and_of_everything(shape):
    """Oracle 14: without a milestone the crop is small from the first iteration on; it has arrived at the last."""
    assert all(Curriculum(shape, 0.0)(t, 1000, 0.08) == 0.08 for t in range(1000))
    assert Curriculum(shape, 1.0)(999, 1000, 0.08) > 0.08
    assert Curriculum(shape, 1.0)(1000, 1000, 0.08) == 0.08


def test_no_curriculum_is_sre2l(task):
    plain, none = SRE2L(**SMALL), CDA(**SMALL, curriculum=Curriculum(milestone=0.0))
    assert [none.least(t) for t in range(20)] == [0.5] * 20
    images = recovered(plain, task)
    assert torch.equal(images, recovered(none, task))
    assert not torch.equal(images, recovered(CDA(**SMALL), task))


def test_the_first_view_is_the_whole_image_and_later_ones_are_not(task):
    """Oracle 14, of the views themselves: the curriculum reaches them, iteration by iteration."""
    method = CDA(flip=False, roll=0, crop=0.08, iterations=100)
    images = torch.randn(3, 1, 8, 8, generator=generator(0))
    assert method.least(0) == 1.0
    assert method.least(99) == pytest.approx(0.08, abs=1e-3)
    assert torch.equal(method.view(task, 0)(images), images)
    for it in (50, 70, 99):
        assert not torch.equal(method.view(task, it)(images), images)


def test_a_share_of_one_is_the_whole_image():
    boxes = draw_boxes(5000, (32, 32), (1.0, 1.0), generator(0))
    assert (boxes == torch.tensor([0, 0, 32, 32])).all()


@pytest.mark.parametrize(("least", "area"), [(1.0, 1.0), (0.54, 0.713), (0.08, 0.485)])
def test_mean_area_of_a_crop(least, area):
    boxes = draw_boxes(4000, (224, 224), (least, 1.0), generator(0))
    assert (boxes[:, 2] * boxes[:, 3] / 224**2).double().mean().item() == pytest.approx(area, abs=0.02)
