"""Splits: disjoint, stratified, reproducible; batches that cover; a fingerprint that tells."""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from dd.data import DataSettings, open_data
from dd.data.positions import stratified
from dd.data.real import DeviceSplit
from dd.data.sources import load_raw
from dd.errors import UsageError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DD_DATA", raising=False)


@pytest.fixture(scope="module")
def mini():
    return open_data("fashion-mini", DataSettings(), torch.device("cpu"))


def write_folder(root, classes, count=6, size=(8, 8), seed=0):
    from PIL import Image

    g = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(g.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_fashion_mini_is_split_ten_to_one(mini):
    assert (len(mini.train), len(mini.holdout), len(mini.test)) == (9000, 1000, 2000)
    assert mini.shape == (1, 28, 28)
    assert len(mini.classes) == 10
    for split, per_class in ((mini.train, 900), (mini.holdout, 100), (mini.test, 200)):
        assert split.labels.dtype == torch.int64
        assert torch.bincount(split.labels).tolist() == [per_class] * 10
    assert mini.preprocess.spec() == {
        "kind": "standard",
        "mean": [pytest.approx(0.2861)],
        "std": [pytest.approx(0.353)],
    }
    assert mini.augment == "color_crop_cutout_flip_scale_rotate"
    assert mini.licence == "MIT"


def test_parts_keep_the_order_and_share_no_image(mini):
    raw = load_raw("fashion-mini")
    kept, held = stratified(raw.train_labels, 0.1, 0, "holdout")
    assert sorted(kept.tolist() + held.tolist()) == list(range(10_000))
    assert kept.tolist() == sorted(kept.tolist())
    assert torch.equal(mini.train.raw(torch.arange(9000)), raw.train_images[kept])
    assert torch.equal(mini.holdout.raw(torch.arange(1000)), raw.train_images[held])
    assert torch.equal(mini.holdout.labels, raw.train_labels[held])


def test_without_holdout_all_images_train():
    data = open_data("fashion-mini", DataSettings(holdout=0), "cpu")
    assert (len(data.train), len(data.holdout)) == (10_000, 0)
    assert data.holdout.images(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 28, 28)
    assert list(data.holdout.batches(4)) == []
    assert len(data.holdout.of_class(3)) == 0


def test_stratified_takes_the_share_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 7 + [2] * 2 + [3])
    kept, taken = stratified(labels, 0.1, 5, "x")
    assert torch.bincount(labels[taken], minlength=4).tolist() == [10, 1, 1, 0]
    assert torch.bincount(labels[kept], minlength=4).tolist() == [90, 6, 1, 1]
    assert torch.equal(stratified(labels, 0.1, 5, "x")[1], taken)
    assert not torch.equal(stratified(labels, 0.1, 6, "x")[1], taken)
    assert not torch.equal(stratified(labels, 0.1, 5, "y")[1], taken)
    # a class's draw depends on that class alone
    fewer = stratified(labels[:100], 0.1, 5, "x")[1]
    assert torch.equal(fewer, taken[taken < 100])
    assert [len(part) for part in stratified(labels, 0, 5, "x")] == [110, 0]


def test_stratified_never_takes_a_whole_class():
    labels = torch.tensor([0, 0, 0, 1])
    kept, _ = stratified(labels, 0.99, 0, "x")
    assert set(labels[kept].tolist()) == {0, 1}


def test_of_class_lists_every_image_once(mini):
    listed = [mini.train.of_class(c) for c in range(10)]
    assert sorted(torch.cat(listed).tolist()) == list(range(9000))
    for c, index in enumerate(listed):
        assert index.dtype == torch.int64
        assert index.tolist() == sorted(index.tolist())
        assert (mini.train.labels[index] == c).all()


def test_images_are_the_transformed_raw_ones_in_order(mini):
    index = torch.tensor([5, 5, 8999, 0])
    raw = mini.train.raw(index)
    assert raw.dtype == torch.uint8
    torch.testing.assert_close(mini.train.images(index), (raw / 255 - 0.2861) / 0.3530, rtol=0, atol=1e-6)


def test_images_are_fresh_memory(mini):
    index = torch.arange(3)
    before = mini.train.images(index)
    mini.train.images(index).zero_()
    mini.train.raw(index).zero_()
    assert torch.equal(mini.train.images(index), before)


def test_batches_cover_everything_once_in_order(mini):
    images, labels = zip(*mini.test.batches(300), strict=True)
    assert [len(x) for x in images] == [300] * 6 + [200]
    assert torch.equal(torch.cat(labels), mini.test.labels)
    assert torch.equal(torch.cat(images), mini.test.images(torch.arange(2000)))


def test_batches_shuffle_with_the_generator_alone(mini):
    state = torch.get_rng_state()

    def labels(seed):
        return torch.cat([y for _, y in mini.test.batches(300, torch.Generator().manual_seed(seed))])

    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(labels(1), mini.test.labels[order])
    assert not torch.equal(labels(1), labels(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_device_split_moves_indices():
    split = DeviceSplit(
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8, device="meta"),
        torch.zeros(4, dtype=torch.int64, device="meta"),
        open_data("fashion-mini", DataSettings(), "cpu").preprocess.to("meta"),
        classes=2,
    )
    assert split.images(torch.tensor([1, 2])).device.type == "meta"


def test_fingerprint_tells_what_differs(mini, tmp_path):
    def fingerprint(**settings):
        return open_data("fashion-mini", DataSettings(**settings), "cpu").fingerprint

    prints = [mini.fingerprint, fingerprint(holdout=0), fingerprint(holdout=0.2), fingerprint(holdout_seed=1)]
    assert len(set(prints)) == 4
    assert fingerprint() == mini.fingerprint
    assert fingerprint(augment="none") == mini.fingerprint  # not a property of the images
    assert fingerprint(holdout=0, holdout_seed=1) == prints[1]
    first = write_folder(tmp_path / "one", ["a", "b"])
    second = write_folder(tmp_path / "two", ["a", "c"])
    names = [open_data(f"folder:{path}", DataSettings(), "cpu").fingerprint for path in (first, second)]
    assert names[0] != names[1]


def test_augment_is_resolved():
    assert open_data("fashion-mini", DataSettings(augment="none"), "cpu").augment == "none"
    assert open_data("fashion-mini", DataSettings(augment="flip_crop"), "cpu").augment == "flip_crop"
    with pytest.raises(UsageError, match="flop"):
        open_data("fashion-mini", DataSettings(augment="flop"), "cpu")


def test_constants_are_fitted_on_the_training_part(tmp_path):
    root = write_folder(tmp_path / "set", ["a", "b"], count=20)
    data = open_data(f"folder:{root}", DataSettings(holdout=0.25), "cpu")
    pixels = data.train.raw(torch.arange(len(data.train))).double() / 255
    torch.testing.assert_close(data.preprocess.mean.double(), pixels.mean((0, 2, 3)), rtol=0, atol=1e-6)
    assert data.licence == "not stated"


def test_settings_are_frozen_and_validated_all_at_once():
    with pytest.raises(FrozenInstanceError):
        DataSettings().holdout = 0.5  # type: ignore[misc]
    check = TypeAdapter(DataSettings).validate_python
    assert check({"holdout": 0.2, "augment": "flip"}) == DataSettings(holdout=0.2, augment="flip")
    bad = {"holdout": 1.0, "preprocess": "pca", "zca_eps": 0, "holdout_seed": -1, "augment": "color_flop"}
    with pytest.raises(ValidationError) as caught:
        check(bad)
    assert {error["loc"][0] for error in caught.value.errors()} == set(bad)
    assert "'flop'" in str(caught.value)


def test_one_class_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least two"):
        open_data(f"folder:{write_folder(tmp_path / 'set', ['a'])}", DataSettings(), "cpu")


def test_a_class_without_training_images_is_named(tmp_path):
    root = tmp_path / "set"
    write_folder(root / "train", ["a", "b"])
    write_folder(root / "test", ["a", "empty"])
    (root / "train" / "empty").mkdir()
    with pytest.raises(UsageError, match="no training images of empty"):
        open_data(f"folder:{root}", DataSettings(), "cpu")


# ---------------------------------------------------------------- memory

PEAK = """
import sys, torch
torch.set_num_threads(1)
from dd.data import DataSettings, open_data

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

open_data(sys.argv[1], DataSettings(), "cpu")  # whatever is loaded once is loaded now
before = kilobytes("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again
data = open_data(sys.argv[2], DataSettings(), "cpu")
pixels = sum(map(len, (data.train, data.holdout, data.test))) * data.channels * data.size**2 / 1024
print((kilobytes("VmHWM:") - before) / pixels, pixels, data.fingerprint)
"""


def write_copies(root, count, side):
    """Many files of few different images: what costs is decoding them."""
    from io import BytesIO

    from PIL import Image

    g, files = np.random.default_rng(0), []
    for _ in range(16):
        buffer = BytesIO()
        corners = Image.fromarray(g.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        corners.resize((side, side)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    for part, share in (("train", count), ("test", count // 10)):
        for i in range(share):
            path = root / part / f"class {i % 4}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[i % 16])
    return f"folder:{root}"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_opening_takes_no_more_than_one_and_a_half_times_the_pixels(tmp_path):
    small, large = write_copies(tmp_path / "small", 20, 200), write_copies(tmp_path / "large", 1600, 200)
    found = []
    for _ in ("first reading", "from the cache"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, small, large], capture_output=True, text=True, check=True, env=dict(os.environ)
        )
        found.append(done.stdout.split())
    for share, pixels, _ in found:
        assert float(pixels) > 200_000  # kilobytes: other things weigh little beside them
        assert 0.5 < float(share) < 1.5
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("preprocess", ["standard", "zca"])
def test_both_parts_are_rows_of_one_tensor(tmp_path, preprocess):
    root = write_folder(tmp_path / "set", ["a", "b"], count=20)
    raw = load_raw(f"folder:{root}")
    data = open_data(f"folder:{root}", DataSettings(holdout=0.25, preprocess=preprocess), "cpu")
    assert data.train.pixels.data_ptr() == data.holdout.pixels.data_ptr()
    kept, held = stratified(raw.train_labels, 0.25, 0, "holdout")
    for part, rows in ((data.train, kept), (data.holdout, held)):
        index = torch.tensor([2, 0, 2])
        assert torch.equal(part.raw(index), raw.train_images[rows[index]])
        assert torch.equal(part.labels, raw.train_labels[rows])
        torch.testing.assert_close(part.images(index), data.preprocess(raw.train_images[rows[index]]))
        seen = torch.cat([images for images, _ in part.batches(7)])
        torch.testing.assert_close(seen, data.preprocess(raw.train_images[rows]))
