"""Named data sets: the embedded one, the published formats, where they are looked for."""

import gzip
import hashlib
import importlib.util
import pickle
import struct
import time
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd.data import list_sources
from dd.data.check import check_data
from dd.data.sources import embedded, find, load_raw
from dd.data.sources.catalogue import CATALOGUE
from dd.data.sources.idx import parse_idx
from dd.errors import RunError, UsageError
from dd.views.dsa import operations

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("DD_DATA", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture
def offline(monkeypatch):
    # port 9 of this machine answers nobody
    for name, entry in CATALOGUE.items():
        remotes = tuple(replace(remote, urls=("http://127.0.0.1:9/x",)) for remote in entry.remotes)
        monkeypatch.setitem(CATALOGUE, name, replace(entry, remotes=remotes))


# ---------------------------------------------------------------- embedded


def test_fashion_mini_is_small_balanced_and_licensed():
    folder = files("dd.assets").joinpath("fashion-mini")
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) <= 6_000_000
    assert "MIT" in folder.joinpath("LICENSE").read_text(encoding="utf-8")
    raw = load_raw("fashion-mini")
    assert raw.train_images.shape == (10_000, 1, 28, 28)
    assert raw.train_images.dtype == torch.uint8
    assert torch.bincount(raw.train_labels).tolist() == [1000] * 10
    assert torch.bincount(raw.test_labels).tolist() == [200] * 10
    assert raw.constants == ((0.2861,), (0.3530,))
    assert raw.where == str(folder)


def test_fashion_mini_opens_fast():
    load_raw("fashion-mini")
    start = time.process_time()
    load_raw("fashion-mini")
    assert time.process_time() - start < 1


def test_checksums_are_those_of_the_files():
    folder = files("dd.assets").joinpath("fashion-mini")
    listed = tomllib.loads(folder.joinpath("checksums.toml").read_text(encoding="utf-8"))
    assert len(listed) == 4
    for name, sums in listed.items():
        data = folder.joinpath(name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sums["file"]
        assert hashlib.sha256(gzip.decompress(data)).hexdigest() == sums["content"]


def test_a_damaged_embedded_file_is_noticed(tmp_path, monkeypatch):
    for file in embedded.EMBEDDED_FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(embedded, "EMBEDDED_FOLDER", tmp_path)
    load_raw("fashion-mini")
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="t10k-labels"):
        load_raw("fashion-mini")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mini_is_the_first_of_each_class_of_debians():
    whole, mini = load_raw("fashion-mnist"), load_raw("fashion-mini")
    assert (len(whole.train_labels), whole.where) == (60_000, str(DEBIAN))
    for part, count in (("train", 1000), ("test", 200)):
        images, labels = getattr(whole, f"{part}_images"), getattr(whole, f"{part}_labels")
        seen, keep = [0] * 10, []
        for i, label in enumerate(labels.tolist()):
            if seen[label] < count:
                seen[label] += 1
                keep.append(i)
        assert torch.equal(images[keep], getattr(mini, f"{part}_images"))
        assert torch.equal(labels[keep], getattr(mini, f"{part}_labels"))


def test_the_script_writes_the_same_bytes_twice(tmp_path):
    path = Path(__file__).parents[2] / "assets" / "make_fashion_mini.py"
    spec = importlib.util.spec_from_file_location("make_fashion_mini", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    labels = np.array([1, 0, 1, 1, 0], dtype=np.uint8)
    assert script.first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4]
    data = {"a-labels-idx1-ubyte.gz": script.idx(labels)}
    assert parse_idx(data["a-labels-idx1-ubyte.gz"], "a").tolist() == labels.tolist()
    for name in ("one", "two"):
        script.write(data, tmp_path / name)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert len(one) == 2


# ---------------------------------------------------------------- idx


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, count=20, form="{}-idx{}-ubyte"):
    folder.mkdir(parents=True)
    for split, start in (("train", 0), ("t10k", 100)):
        for kind, array in (
            ("images", np.arange(start, start + count)[:, None, None] * np.ones((1, 28, 28))),
            ("labels", np.arange(count) % 10),
        ):
            name = form.format(f"{split}-{kind}", array.ndim)
            data = idx(array)
            (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


@pytest.mark.parametrize("form", ["{}-idx{}-ubyte", "{}-idx{}-ubyte.gz", "{}.idx{}-ubyte"])
@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist"])
def test_idx_in_dd_data(tmp_path, monkeypatch, form, folder):
    write_idx(tmp_path / "sets" / folder, form=form)
    monkeypatch.setenv("DD_DATA", str(tmp_path / "sets"))
    raw = load_raw("mnist", download=False)
    assert raw.train_images[:, 0, 5, 5].tolist() == [*range(20)]
    assert raw.test_images[:, 0, 5, 5].tolist() == [*range(100, 120)]
    assert raw.train_labels.tolist() == [*range(10)] * 2
    assert raw.classes == tuple("0123456789")
    assert raw.where == str(tmp_path / "sets" / folder)


def test_damaged_idx_files(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_DATA", str(tmp_path))
    write_idx(tmp_path / "mnist", form="{}-idx{}-ubyte.gz")
    images, labels = (tmp_path / "mnist" / f"train-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    images.write_bytes(gzip.compress(idx(np.zeros((20, 28, 28)))[:-5]))
    with pytest.raises(UsageError, match="cut off"):
        load_raw("mnist")
    images.write_bytes(images.read_bytes()[:-9])
    with pytest.raises(UsageError, match="cannot be read"):
        load_raw("mnist")
    images.write_bytes(gzip.compress(idx(np.zeros((19, 28, 28)))))
    with pytest.raises(UsageError, match="do not go with"):
        load_raw("mnist")
    labels.unlink()
    with pytest.raises(UsageError, match="lacks train-labels-idx1-ubyte"):
        load_raw("mnist")
    with pytest.raises(UsageError, match="not an idx file"):
        parse_idx(b"\0\0\x0d\x01", "x")


# ---------------------------------------------------------------- CIFAR, SVHN, Tiny-ImageNet


def test_cifar_batches(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    monkeypatch.setenv("DD_DATA", str(tmp_path))
    g = np.random.default_rng(0)
    images = {name: g.integers(0, 256, (4, 3072), dtype=np.uint8) for name in ("data_batch_1", "test_batch")}
    for name, data in images.items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [3, 1, 2, 0]}))
    names = ["airplane", "automobile", "bird", "cat"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(UsageError, match="checksum"):  # these are not the published batches
        load_raw("cifar10")

    def md5(name):
        return hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()

    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5("data_batch_1")]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5("test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5("batches.meta")})
    raw = load_raw("cifar10")
    assert torch.equal(raw.train_images, torch.from_numpy(images["data_batch_1"]).view(4, 3, 32, 32))
    assert torch.equal(raw.test_images, torch.from_numpy(images["test_batch"]).view(4, 3, 32, 32))
    assert raw.train_labels.tolist() == [3, 1, 2, 0]
    assert raw.classes == tuple(names)


def test_svhn_counts_ten_as_zero(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    from torchvision.datasets import SVHN

    monkeypatch.setenv("DD_DATA", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    sums = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": np.array([[10], [1], [2], [9], [10]], dtype=np.uint8)})
        sums[split] = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    with pytest.raises(UsageError, match="missing or damaged"):
        load_raw("svhn")
    monkeypatch.setattr(SVHN, "split_list", {s: ["", f"{s}_32x32.mat", md5] for s, md5 in sums.items()})
    raw = load_raw("svhn")
    assert raw.train_labels.tolist() == [0, 1, 2, 9, 0]
    assert torch.equal(raw.train_images, torch.from_numpy(images).permute(3, 2, 0, 1))
    assert raw.augment == "color_crop_cutout_scale_rotate"


def jpeg(path, value, size=64, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).convert(mode).save(path, "JPEG")


def test_tiny_imagenet_folders(tmp_path, monkeypatch):
    folder = tmp_path / "tiny-imagenet-200"
    for c, name in enumerate(("n02", "n01")):
        jpeg(folder / "train" / name / "images" / f"{name}_0.JPEG", 10 + c)
        jpeg(folder / "train" / name / "images" / f"{name}_1.JPEG", 20 + c, mode="L")
    jpeg(folder / "val" / "images" / "val_0.JPEG", 90)
    jpeg(folder / "val" / "images" / "val_1.JPEG", 91)
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n")
    monkeypatch.setenv("DD_DATA", str(tmp_path))
    raw = load_raw("tiny-imagenet")
    assert raw.classes == ("n01", "n02")
    assert raw.train_labels.tolist() == [0, 0, 1, 1]
    assert raw.train_images.shape == (4, 3, 64, 64)
    assert raw.test_labels.tolist() == [1, 0]
    assert raw.test_images[:, 0, 0, 0].tolist() == [90, 91]
    assert "2 of its 200 classes" in raw.notes
    annotations.write_text("val_0.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(UsageError, match="n99"):
        load_raw("tiny-imagenet")
    annotations.unlink()
    for name in ("n01", "n02"):
        jpeg(folder / "val" / name / "x.JPEG", 7)
    (folder / "val" / "images" / "val_0.JPEG").unlink()
    (folder / "val" / "images" / "val_1.JPEG").unlink()
    (folder / "val" / "images").rmdir()
    assert load_raw("tiny-imagenet").test_labels.tolist() == [0, 1]


# ---------------------------------------------------------------- nowhere


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet"])
def test_one_line_says_where_it_looked_and_the_ways_out(tmp_path, monkeypatch, offline, name):
    monkeypatch.setenv("DD_DATA", str(tmp_path / "nowhere"))
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        load_raw(name)
    assert time.monotonic() - start < 5
    with pytest.raises(UsageError, match="was not found") as again:
        load_raw(name)
    assert str(again.value) == str(caught.value)
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        name,
        f"$DD_DATA={tmp_path / 'nowhere'} (no such folder)",
        "./data",
        "~/data",
        "127.0.0.1",
        "train-*.parquet",
    ):
        assert part in line
    assert line.endswith("dataset=fashion-mini needs no download")
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_no_download_when_none_is_wanted(tmp_path):
    with pytest.raises(UsageError, match="may not be downloaded"):
        load_raw("mnist", download=False)
    assert not (tmp_path / "home").exists()


def test_unknown_names():
    with pytest.raises(UsageError, match="'cifar-10'; did you mean 'cifar10'"):
        load_raw("cifar-10")
    with pytest.raises(UsageError, match="unknown dataset 'zip:/x'"):
        load_raw("zip:/x")


def test_list_sources_finds_without_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(find, "roots", lambda: [tmp_path / "sets"])
    write_idx(tmp_path / "sets" / "mnist")
    rows = {row.name: row for row in list_sources()}
    assert list(rows) == [*CATALOGUE, "folder:PATH", "parquet:PATH", "npz:PATH"]
    assert rows["mnist"].where == str(tmp_path / "sets" / "mnist")
    assert rows["mnist"].bytes == sum(file.stat().st_size for file in (tmp_path / "sets" / "mnist").iterdir())
    assert rows["cifar10"].where is None
    assert rows["cifar10"].bytes == 170_500_000
    assert 4_000_000 < rows["fashion-mini"].bytes < 6_000_000
    assert not (tmp_path / "home").exists()


def test_every_entry_is_complete():
    for entry in CATALOGUE.values():
        mean, std = entry.constants
        assert len(mean) == len(std) == entry.channels
        assert operations(entry.augment)
        assert entry.classes is None or len(entry.classes) == entry.classes_expected
        assert all(len(remote.md5) == 32 for remote in entry.remotes)


def test_check_describes_the_embedded_set():
    found = check_data("fashion-mini")
    assert found["train"]["total"] == 10_000
    assert found["test"]["per_class"]["Ankle boot"] == 200
    assert found["broken"] == []
    assert found["mean"] == [pytest.approx(0.286, abs=0.01)]
    assert found["std"] == [pytest.approx(0.353, abs=0.01)]
    assert found["constants"] == [[0.2861], [0.353]]
