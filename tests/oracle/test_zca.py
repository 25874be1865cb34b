"""ZCA against kornia, against its definition, and against what follows from it."""

import pytest
import torch
from torch import Tensor

from dd.data import DataSettings, open_data
from dd.data.preprocess import Zca, factored, moments, whitening, zca, zca_price
from dd.errors import UsageError
from dd.pipeline import plan
from dd.recipes import resolve
from dd.runs import Store


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))


def correlated(n: int, seed: int = 0, shape=(2, 4, 4)) -> Tensor:
    """uint8 images whose neighbouring values go together."""
    g = torch.Generator().manual_seed(seed)
    d = torch.Size(shape).numel()
    mix = torch.randn(d, d, generator=g) / d**0.5
    values = 128 + 40 * torch.randn(n, d, generator=g) @ (torch.eye(d) + mix)
    return values.clamp(0, 255).to(torch.uint8).view(n, *shape)


def covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)


@pytest.fixture(scope="module")
def fitted() -> tuple[Tensor, Tensor, Tensor]:
    images = correlated(600)
    mean, cov = moments(images)
    return images.flatten(1).double() / 255, mean, cov


def test_moments_are_those_of_a_slow_loop_and_exact():
    images = correlated(1500)
    rows = images.flatten(1).double() / 255
    mean, cov = moments(images)
    want_mean = sum(rows) / len(rows)
    want = torch.zeros_like(cov)
    for row in rows:
        want += torch.outer(row - want_mean, row - want_mean)
    torch.testing.assert_close(mean, want_mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(cov, want / (len(rows) - 1), rtol=0, atol=1e-14)
    shuffled = moments(images[torch.randperm(1500, generator=torch.Generator().manual_seed(1))])
    assert torch.equal(shuffled[0], mean)
    assert torch.equal(shuffled[1], cov)


def test_moments_of_extreme_images_stay_exact():
    images = (torch.rand(5000, 1, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8) * 255
    rows = images.flatten(1).double() / 255
    torch.testing.assert_close(moments(images)[1], covariance(rows), rtol=0, atol=1e-13)


def test_matrix_is_symmetric_and_invertible(fitted):
    _, _, cov = fitted
    matrix, inverse = whitening(cov, 0.1)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix @ inverse, torch.eye(len(cov)).double(), rtol=0, atol=1e-10)


def test_round_trip(fitted):
    rows, mean, cov = fitted
    matrix, inverse = whitening(cov, 0.1)
    back = (rows - mean) @ matrix @ inverse + mean
    torch.testing.assert_close(back, rows, rtol=0, atol=1e-12)


def test_without_eps_the_covariance_is_the_identity(fitted):
    rows, mean, cov = fitted
    matrix, _ = whitening(cov, 0.0)
    torch.testing.assert_close(covariance((rows - mean) @ matrix), torch.eye(len(cov)).double(), rtol=0, atol=1e-9)


def test_with_eps_its_eigenvalues_shrink(fitted):
    rows, mean, cov = fitted
    matrix, _ = whitening(cov, 0.1)
    have = covariance((rows - mean) @ matrix)
    eigenvalues = torch.linalg.eigvalsh(cov)
    torch.testing.assert_close(torch.linalg.eigvalsh(have), eigenvalues / (eigenvalues + 0.1), rtol=0, atol=1e-12)
    assert not torch.allclose(have, torch.eye(len(cov)).double(), atol=0.1)


def test_largest_gain_is_bounded(fitted):
    _, _, cov = fitted
    assert torch.linalg.matrix_norm(whitening(cov, 0.1)[0], 2) <= 0.1**-0.5 + 1e-12


@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_kornia_agrees(fitted, eps):
    from kornia.enhance import zca_mean, zca_whiten

    rows, mean, cov = fitted
    matrix, inverse = whitening(cov, eps)
    want, want_mean, want_inverse = zca_mean(rows, eps=eps, return_inverse=True)
    torch.testing.assert_close(mean, want_mean.flatten(), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix, want, rtol=0, atol=1e-10)
    torch.testing.assert_close(inverse, want_inverse, rtol=0, atol=1e-10)
    torch.testing.assert_close((rows - mean) @ matrix, zca_whiten(rows, eps=eps), rtol=0, atol=1e-10)


def test_model_space_is_the_definition_in_float32():
    images, others = correlated(400), correlated(50, seed=1)
    transform = zca(images, 0.1)
    mean, cov = moments(images)
    matrix, _ = whitening(cov, 0.1)
    want = ((others.flatten(1).double() / 255 - mean) @ matrix).view(others.shape)
    have = transform(others)
    assert have.dtype == torch.float32
    torch.testing.assert_close(have.double(), want, rtol=0, atol=2e-6)
    torch.testing.assert_close(transform.invert(have), others / 255, rtol=0, atol=1e-5)


def test_images_are_transformed_with_what_was_fitted_on_others():
    train, synthetic = correlated(400), correlated(50, seed=2, shape=(2, 4, 4)) // 2
    fitted_on_train, refitted = zca(train, 0.1), zca(synthetic, 0.1)
    assert not torch.allclose(fitted_on_train(synthetic), refitted(synthetic), atol=1e-2)
    assert fitted_on_train.spec() != refitted.spec()
    # the transform of one image does not depend on its company
    torch.testing.assert_close(fitted_on_train(synthetic)[:1], fitted_on_train(synthetic[:1]), rtol=0, atol=1e-5)


def test_opened_data_are_whitened_with_the_training_part_alone(tmp_path):
    import numpy as np
    from PIL import Image

    g = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 5)):
        for name in ("a", "b"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(g.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"{i}.png")
    data = open_data(f"folder:{tmp_path / 'set'}", DataSettings(holdout=0.2, preprocess="zca"), "cpu")
    mean, cov = moments(data.train.raw(torch.arange(len(data.train))))
    matrix, _ = whitening(cov, 0.1)
    for split in (data.train, data.holdout, data.test):
        every = torch.arange(len(split))
        want = ((split.raw(every).flatten(1).double() / 255 - mean) @ matrix).float()
        torch.testing.assert_close(split.images(every).flatten(1), want, rtol=0, atol=2e-6)
        assert torch.equal(torch.cat([x for x, _ in split.batches(7)]), split.images(every))
    assert isinstance(data.preprocess, Zca)
    again = open_data(f"folder:{tmp_path / 'set'}", DataSettings(holdout=0.2, preprocess="zca"), "cpu")
    assert torch.equal(again.train.images(torch.arange(8)), data.train.images(torch.arange(8)))
    assert again.fingerprint == data.fingerprint


def as_doubles(images):
    return images.flatten(1).double() / 255


@pytest.mark.parametrize(("n", "shape"), [(20, (2, 4, 4)), (31, (2, 4, 4)), (2, (1, 3, 3)), (300, (3, 24, 24))])
@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_fewer_images_than_dimensions_give_the_matrix_of_the_dense_route(n, shape, eps):
    """By the Gram matrix, to float32's rounding of what is kept; the dense route is the oracle, in float64."""
    images = correlated(n, shape=shape)
    mean, cov = moments(images)
    matrix, inverse = whitening(cov, eps)
    kept = factored(images, eps)
    vectors, size = kept["vectors"].double(), len(mean)
    assert vectors.shape[1] <= n - 1
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(vectors.shape[1]).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(kept["mean"].double(), mean, rtol=0, atol=1e-7)
    for want, name, power in ((matrix, "matrix.values", -0.5), (inverse, "inverse.values", 0.5)):
        have = torch.eye(size).double() * eps**power + (vectors * kept[name].double()) @ vectors.T
        torch.testing.assert_close(have, want, rtol=0, atol=2e-6 * eps**-0.5)


def test_the_gram_route_agrees_to_the_rounding_of_float64():
    images = correlated(20)
    kept = factored(images, 0.1, torch.float64)
    mean, cov = moments(images)
    matrix, _ = whitening(cov, 0.1)
    have = torch.eye(len(mean)).double() * 0.1**-0.5 + (kept["vectors"] * kept["matrix.values"]) @ kept["vectors"].T
    torch.testing.assert_close(have, matrix, rtol=0, atol=1e-11)
    torch.testing.assert_close(kept["mean"], mean, rtol=0, atol=1e-14)


def test_few_images_in_model_space_and_back():
    images, others = correlated(20), correlated(50, seed=1)
    transform = zca(images, 0.1)
    mean, cov = moments(images)
    matrix, _ = whitening(cov, 0.1)
    want = ((as_doubles(others) - mean) @ matrix).view(others.shape)
    have = transform(others)
    torch.testing.assert_close(have.double(), want, rtol=0, atol=5e-6)
    torch.testing.assert_close(transform.invert(have), others / 255, rtol=0, atol=1e-5)
    torch.testing.assert_close(transform.encode(others / 255), have, rtol=0, atol=1e-5)
    torch.testing.assert_close(transform.matrix.double(), matrix, rtol=0, atol=5e-6)
    assert "matrix" not in transform.state()


def test_gradients_go_through_the_factors():
    transform = zca(correlated(20), 0.1)
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (grad,) = torch.autograd.grad(transform.invert(z).sum(), z)
    inverse = whitening(moments(correlated(20))[1], 0.1)[1]
    torch.testing.assert_close(grad.flatten(1), inverse.sum(1).float().expand(3, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [20, 400])
def test_nothing_is_fitted_before_it_is_used_and_once_then(n, tmp_path, caplog):
    caplog.set_level("INFO")
    images = correlated(n)
    transform = zca(images, 0.1, "blobs").to("cpu")
    ((kind, spec, words),) = transform.needs()
    transform.spec()
    assert words.startswith("ZCA of 32 dimensions (about 0 s, ")
    assert not Store().has(kind, spec)
    assert not (tmp_path / "home").exists()
    transform(images)
    transform.to("cpu").invert(transform(images))
    assert Store().has(kind, spec)
    assert [record.message.split(" in ")[0] for record in caplog.records] == [
        f"making the {words}",
        "made the ZCA of blobs",
    ]


def test_what_it_costs_grows_with_the_smaller_side():
    cheap, held = zca_price(1000, 12_288)
    dear, more = zca_price(90_000, 12_288)
    assert dear > 100 * cheap
    assert more > 20 * held
    # of one core: what was measured, see its source
    one = torch.get_num_threads()
    assert zca_price(4000, 2500)[0] * one == pytest.approx(5.0, rel=0.3)
    assert zca_price(2500, 3072)[0] * one == pytest.approx(4.2, rel=0.3)


def test_a_plan_refuses_what_clips_pixels_that_are_whitened(tmp_path):
    recipe = resolve({"method": "cvdd", "ipc": 1, "device": "cpu", "data.preprocess": "zca"})
    with pytest.raises(UsageError, match=r"data\.preprocess=zca: cvdd clips and saves pixels"):
        plan(recipe, out=str(tmp_path))


@pytest.mark.parametrize("method", ["dm", "mtt", "ncfm"])
def test_a_plan_fits_nothing_and_says_what_is_to_be_made(method, tmp_path):
    planned = plan(resolve({"method": method, "ipc": 1, "device": "cpu", "data.preprocess": "zca"}), out=str(tmp_path))
    first = planned["stages"][0]["artefacts"][0]
    assert first["what"].startswith("ZCA of 784 dimensions (about ")
    assert not first["exists"]
    assert not (tmp_path / "home" / "zca").exists()
