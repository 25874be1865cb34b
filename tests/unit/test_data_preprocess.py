"""Normalisation per channel, its identity, and the way back."""

import json

import pytest
import torch

from dd.data import Preprocess
from dd.data.preprocess import Standard, from_state, pixel_statistics, standard, zca
from dd.errors import UsageError


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path))


def test_constants_are_applied_per_channel(images):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    have = standard(images, (mean, std))(images)
    assert have.dtype == torch.float32
    for c in range(3):
        want = (images[:, c].double() / 255 - mean[c]) / std[c]
        torch.testing.assert_close(have[:, c].double(), want, rtol=0, atol=1e-6)


def test_fitted_statistics_are_those_of_the_pixels(images):
    mean, std = pixel_statistics(images)
    pixels = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.tensor(std).double(), pixels.std((0, 2, 3), correction=0), rtol=0, atol=1e-7)
    have = standard(images)(images)
    torch.testing.assert_close(have.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(have.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)


def test_a_constant_channel_is_not_divided_by_zero():
    grey = torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)
    assert pixel_statistics(grey) == ((0.2,), (1.0,))
    assert torch.isfinite(standard(grey)(grey)).all()


def test_invert_gives_pixels_back(images):
    transform = standard(images)
    torch.testing.assert_close(transform.invert(transform(images)), images / 255, rtol=0, atol=1e-6)


def test_the_input_is_left_alone(images):
    before = images.clone()
    for transform in (standard(images), zca(images, 0.1)):
        transform(images)
        z = transform(images)
        kept = z.clone()
        transform.invert(z)
        assert torch.equal(z, kept)
    assert torch.equal(images, before)


def test_floats_are_refused(images):
    for transform in (standard(images), zca(images, 0.1)):
        with pytest.raises(TypeError, match="uint8"):
            transform(images.float())


def test_spec_is_json_and_enough_for_standard(images):
    transform = standard(images, ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    spec = json.loads(json.dumps(transform.spec()))
    again = from_state(spec)
    assert isinstance(again, Standard)
    assert torch.equal(again.mean, transform.mean)
    assert torch.equal(again.std, transform.std)
    assert again.spec() == spec


def test_state_and_spec_are_enough_for_zca(images):
    transform = zca(images, 0.1)
    again = from_state(json.loads(json.dumps(transform.spec())), transform.state())
    assert torch.equal(again(images), transform(images))
    with pytest.raises(UsageError, match="data it was fitted on"):
        from_state(transform.spec())


def test_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="'pca'"):
        from_state({"kind": "pca"})


def test_zca_is_found_again_in_the_cache(images, tmp_path):
    first, second = zca(images, 0.1), zca(images.clone(), 0.1)
    assert torch.equal(first.matrix, second.matrix)
    assert len(list((tmp_path / "zca").glob("*.json"))) == 1
    assert zca(images, 0.2).spec() != first.spec()
    with pytest.raises(UsageError, match="at least 2"):
        zca(images[:1], 0.1)


def test_to_keeps_everything_else(images):
    for transform in (standard(images), zca(images, 0.1)):
        moved = transform.to("cpu")
        assert isinstance(moved, Preprocess)
        assert type(moved) is type(transform)
        assert moved.spec() == transform.spec()
        assert moved.to("meta").mean.device.type == "meta"
