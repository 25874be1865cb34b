"""The plumbing of augmentation: names, draws, replays.  What the operations compute is in tests/oracle/test_dsa.py."""

import pytest
import torch

from dd.errors import UsageError
from dd.rng import generator
from dd.views import dsa

ALL = "color_crop_cutout_flip_scale_rotate"
OPS = dsa.operations(ALL)
SHAPE = (3, 16, 16)


def images(n=5, shape=SHAPE, dtype=torch.float32):
    return torch.randn(n, *shape, generator=generator(0, "images"), dtype=dtype)


def same(a, b):
    assert a.op == b.op
    assert a.params.keys() == b.params.keys()
    return all(torch.equal(a.params[name], b.params[name]) for name in a.params)


def test_parse_keeps_the_order_of_the_strategy():
    assert dsa.operations(ALL) == ("color", "crop", "cutout", "flip", "scale", "rotate")
    assert dsa.operations("rotate_flip") == ("rotate", "flip")
    assert dsa.operations("none") == dsa.operations("") == ()


@pytest.mark.parametrize(
    ("strategy", "says"),
    [("color_cutot", "'cutot'.*'cutout'"), ("color_none", "'none'"), ("flip_crop_flip", "'flip' twice"), ("_", "''")],
)
def test_a_bad_strategy_is_named(strategy, says):
    with pytest.raises(UsageError, match=says):
        dsa.operations(strategy)


def test_off_changes_nothing_and_draws_nothing():
    g = generator(1)
    before = g.get_state()
    x = images()
    assert dsa.augment("none", x, g) is x
    assert dsa.siamese(dsa.draw("", 5, SHAPE, g), 7).op == "none"
    assert torch.equal(g.get_state(), before)


def test_one_operation_per_batch_all_are_chosen_equally_often():
    g = generator(2)
    counts = dict.fromkeys(OPS, 0)
    for _ in range(1800):
        counts[dsa.draw(ALL, 1, SHAPE, g).op] += 1
    # chi-squared with 5 degrees of freedom: 20.5 is its 0.999 quantile
    assert sum((count - 300) ** 2 / 300 for count in counts.values()) < 20.5


@pytest.mark.parametrize("op", OPS)
def test_parameters_differ_between_images(op):
    draw = dsa.draw(op, 40, SHAPE, generator(3))
    for value in draw.params.values():
        assert len(value) == 40
        assert len(torch.unique(value, dim=0)) > 1
    x = images(1).expand(40, *SHAPE)
    assert len(torch.unique(dsa.apply(draw, x).flatten(1), dim=0)) > 1


@pytest.mark.parametrize("op", OPS)
def test_a_draw_is_replayed_to_the_same_bits(op):
    draw, x = dsa.draw(op, 5, SHAPE, generator(4)), images()
    before = x.clone()
    first, second = dsa.apply(draw, x), dsa.apply(draw, x)
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert same(draw, dsa.draw(op, 5, SHAPE, generator(4)))
    assert torch.equal(dsa.augment(op, x, generator(4)), first)


@pytest.mark.parametrize("op", OPS)
def test_siamese_repeats_the_first_image_for_any_number(op):
    draw = dsa.draw(op, 6, SHAPE, generator(5))
    few, many = dsa.siamese(draw, 3), dsa.siamese(draw, 40)
    for name, value in draw.params.items():
        assert torch.equal(few.params[name], value[:1].repeat(3, *[1] * (value.dim() - 1)))
        assert torch.equal(many.params[name], value[:1].repeat(40, *[1] * (value.dim() - 1)))
    x = images(1)
    outputs = torch.cat([dsa.apply(few, x.repeat(3, 1, 1, 1)), dsa.apply(many, x.repeat(40, 1, 1, 1))])
    assert torch.equal(outputs, outputs[:1].expand_as(outputs))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_and_shape_are_kept(op, dtype):
    x = images(4, (1, 9, 9), dtype)
    y = dsa.augment(op, x, generator(6))
    assert y.dtype == dtype
    assert y.shape == x.shape
    wide = dsa.augment(op, x.float(), generator(6))
    assert torch.allclose(y.float(), wide, atol=1e-6 if dtype == torch.float64 else 0.05)


def test_a_draw_for_another_batch_size_is_refused():
    draw = dsa.draw("crop", 4, SHAPE, generator(7))
    with pytest.raises(ValueError, match=r"4.*5"):
        dsa.apply(draw, images(5))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    for op in OPS:
        dsa.augment(op, images(), generator(8))
    assert torch.equal(torch.get_rng_state(), before)
