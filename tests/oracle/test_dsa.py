"""DSA against slow loops, closed forms and finite differences; none of it shares code with dd.views.dsa.

Source of the operations: Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021).
"""

import math

import pytest
import torch
import torch.nn.functional as F

from dd.rng import generator
from dd.views import dsa

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
N = 12


def batch(channels=3, size=8, n=N, seed=0):
    return torch.randn(n, channels, size, size, generator=generator(seed, "x"), dtype=torch.float64)


def drawn(op, x, seed=0):
    return dsa.draw(op, len(x), tuple(x.shape[1:]), generator(seed, op))


@pytest.mark.parametrize("channels", [1, 3])
def test_color_is_brightness_then_saturation_then_contrast(channels):
    x = batch(channels)
    draw = drawn("color", x)
    out = dsa.apply(draw, x)
    b, s, k = (draw.params[name].tolist() for name in ("brightness", "saturation", "contrast"))
    for i in range(N):
        image = x[i] + b[i]
        for r in range(8):
            for q in range(8):
                grey = sum(image[c, r, q] for c in range(channels)) / channels
                for c in range(channels):
                    image[c, r, q] = (image[c, r, q] - grey) * s[i] + grey
        mean = image.sum() / image.numel()
        assert torch.allclose(out[i], (image - mean) * k[i] + mean, atol=1e-12)


def test_color_ranges():
    p = dsa.draw("color", 4000, (3, 8, 8), generator(1)).params
    for name, low, high in (("brightness", -0.5, 0.5), ("saturation", 0.0, 2.0), ("contrast", 0.5, 1.5)):
        values = p[name]
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
    spread = torch.corrcoef(torch.stack([p["brightness"], p["saturation"], p["contrast"]]))
    assert (spread - torch.eye(3)).abs().max() < 0.06  # three separate draws


@pytest.mark.parametrize("size", [7, 8])
def test_crop_translates_and_fills_with_zeros(size):
    x = batch(size=size, n=40)
    draw = drawn("crop", x)
    out = dsa.apply(draw, x)
    for i, (down, across) in enumerate(draw.params["shift"].tolist()):
        expected = torch.zeros_like(x[i])
        for r in range(size):
            for q in range(size):
                if 0 <= r + down < size and 0 <= q + across < size:
                    expected[:, r, q] = x[i, :, r + down, q + across]
        assert torch.equal(out[i], expected)


@pytest.mark.parametrize(("size", "reach"), [(32, 4), (28, 4), (64, 8), (27, 3)])
def test_crop_reaches_an_eighth_of_the_side(size, reach):
    shift = dsa.draw("crop", 3000, (1, size, size), generator(2)).params["shift"]
    for axis in range(2):
        values, counts = shift[:, axis].unique(return_counts=True)
        assert values.tolist() == list(range(-reach, reach + 1))
        assert counts.min() > 0.7 * 3000 / (2 * reach + 1)


def test_crop_adjoint_of_ones_counts_the_kept_pixels():
    x = batch(1, 16).requires_grad_()
    draw = drawn("crop", x)
    out = dsa.apply(draw, x)
    (adjoint,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert set(adjoint.unique().tolist()) <= {0.0, 1.0}
    for i, (down, across) in enumerate(draw.params["shift"].tolist()):
        assert adjoint[i].sum() == (16 - abs(down)) * (16 - abs(across))


@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_cutout_erases_a_clipped_square(size):
    side = math.floor(size / 2 + 0.5)
    x = batch(size=size, n=60).abs() + 1
    draw = drawn("cutout", x)
    out = dsa.apply(draw, x)
    for i, (row, column) in enumerate(draw.params["centre"].tolist()):
        expected = x[i].clone()
        for r in range(row - side // 2, row - side // 2 + side):
            for q in range(column - side // 2, column - side // 2 + side):
                if 0 <= r < size and 0 <= q < size:
                    expected[:, r, q] = 0
        assert torch.equal(out[i], expected)


@pytest.mark.parametrize(("size", "last"), [(32, 32), (28, 28), (6, 5)])
def test_cutout_centres_are_one_more_for_an_even_square(size, last):
    centre = dsa.draw("cutout", 4000, (1, size, size), generator(3)).params["centre"]
    for axis in range(2):
        assert centre[:, axis].unique().tolist() == list(range(last + 1))


def test_flip_mirrors_left_and_right_and_undoes_itself():
    x = batch()
    draw = drawn("flip", x)
    out = dsa.apply(draw, x)
    for i, flipped in enumerate(draw.params["flip"].tolist()):
        expected = x[i]
        if flipped:
            expected = torch.stack([x[i, :, :, 7 - q] for q in range(8)], 2)
        assert torch.equal(out[i], expected)
    assert torch.equal(dsa.apply(draw, out), x)
    share = dsa.draw("flip", 4000, (1, 8, 8), generator(4)).params["flip"].float().mean()
    assert abs(share - 0.5) < 0.03


def bilinear(image, row, column):
    """The value between pixels, with zeros outside, term by term."""
    h, w = image.shape[1:]
    value = torch.zeros(image.shape[0], dtype=image.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for q in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < h and 0 <= q < w:
                value += image[:, r, q] * (1 - abs(row - r)) * (1 - abs(column - q))
    return value


def slow_affine(image, matrix):
    size = image.shape[1]
    out, half = torch.zeros_like(image), (size - 1) / 2
    for r in range(size):
        for q in range(size):
            x, y = (q - half), (r - half)  # corner pixels are the corners of the field (align_corners=True)
            column, row = matrix[0][0] * x + matrix[0][1] * y + half, matrix[1][0] * x + matrix[1][1] * y + half
            out[:, r, q] = bilinear(image, row, column)
    return out


def matrix_of(draw, i):
    if draw.op == "scale":
        across, down = draw.params["scale"][i].tolist()
        return [[across, 0.0], [0.0, down]]
    angle = draw.params["angle"][i].item()
    return [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]


@pytest.mark.parametrize("op", ["scale", "rotate"])
@pytest.mark.parametrize("size", [7, 8])
def test_scale_and_rotate_against_a_slow_loop_and_grid_sample(op, size):
    x = batch(size=size)
    draw = drawn(op, x)
    out = dsa.apply(draw, x)
    matrices = [matrix_of(draw, i) for i in range(N)]
    for i in range(N):
        assert torch.allclose(out[i], slow_affine(x[i], matrices[i]), atol=1e-12)
    theta = F.pad(torch.tensor(matrices, dtype=torch.float64), (0, 1))
    grid = F.affine_grid(theta, list(x.shape), align_corners=True)
    assert torch.allclose(out, F.grid_sample(x, grid, align_corners=True), atol=1e-12)


def test_scale_and_rotate_ranges():
    scale = dsa.draw("scale", 4000, (1, 8, 8), generator(5)).params["scale"]
    assert scale.shape == (4000, 2)
    assert 1 / 1.2 <= scale.min() < 1 / 1.2 + 0.005
    assert 1.2 - 0.005 < scale.max() <= 1.2
    assert abs(torch.corrcoef(scale.T)[0, 1]) < 0.06
    angle = dsa.draw("rotate", 4000, (1, 8, 8), generator(6)).params["angle"]
    assert math.radians(14.8) < angle.max() <= math.radians(15.001)
    assert -math.radians(15.001) <= angle.min() < -math.radians(14.8)


@pytest.mark.parametrize("op", ["scale", "rotate"])
def test_identity_parameters_give_the_image_back(op):
    x = batch()
    params = {"scale": torch.ones(N, 2)} if op == "scale" else {"angle": torch.zeros(N)}
    assert torch.allclose(dsa.apply(dsa.Draw(op, params), x), x, atol=1e-14)


@pytest.mark.parametrize("op", OPS)
def test_first_and_second_derivatives_against_finite_differences(op):
    x = batch(2, 5, n=3).requires_grad_()
    draw = drawn(op, x)
    assert torch.autograd.gradcheck(lambda images: dsa.apply(draw, images), x)

    def bent(images):  # linear operations have no second derivative of their own: bend what they give
        return dsa.apply(draw, images).sin().mul(images)

    assert torch.autograd.gradgradcheck(bent, x)


@pytest.mark.parametrize("op", OPS)
def test_every_operation_is_affine_in_the_images(op):
    x, y = batch(), batch(seed=1)
    draw = drawn(op, x)
    mixed = dsa.apply(draw, 0.3 * x + 0.7 * y)
    assert torch.allclose(mixed, 0.3 * dsa.apply(draw, x) + 0.7 * dsa.apply(draw, y), atol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_images_of_a_batch_do_not_touch_one_another(op):
    x = batch()
    draw = drawn(op, x)
    whole = dsa.apply(draw, x)
    for i in range(N):
        one = dsa.Draw(op, {name: value[i : i + 1] for name, value in draw.params.items()})
        assert torch.allclose(dsa.apply(one, x[i : i + 1])[0], whole[i], atol=1e-14)
