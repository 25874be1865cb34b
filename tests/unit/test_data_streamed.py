"""Streamed images: what they are, in which order, and that nothing but time tells them from those on the device."""

import io
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from dd.data import DataSettings, open_data, streamed
from dd.data import check as checking
from dd.data.preprocess import pixel_statistics
from dd.data.real import DeviceSplit
from dd.data.sources import decoding, load_raw, pixels, rows
from dd.data.sources.pixels import Target, pixels_of
from dd.data.streamed import StreamedSplit, sample
from dd.engine.method import prepare
from dd.engine.synthesise import synthesise
from dd.errors import UsageError
from dd.pipeline.task import make_task
from dd.recipes import resolve
from dd.rng import generator

SIZES = [(12, 12), (20, 12), (9, 31), (12, 12), (40, 40)]

REAL = os.environ.get("DD_DATA")  # before the tests forget it


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("DD_DATA", raising=False)


def noise(rng, size, grey=False):
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert("L" if grey else "RGB")


def write_folder(root, classes=("ant", "bee", "cat"), train=23, test=5, sizes=SIZES, form="png", grey=False):
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                noise(rng, sizes[i % len(sizes)], grey).save(root / part / name / f"{i:03}.{form}")
    return f"folder:{root}"


def write_parquet(path, count, classes=3, group=7, size=(12, 12), seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        buffer = io.BytesIO()
        noise(rng, size).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(rows), "label": [i * 7 % classes for i in range(count)]})
    pq.write_table(table, path, row_group_size=group)


def both(name, device="cpu", **settings):
    """The same data on the device and streamed."""
    return [open_data(name, DataSettings(stream=stream, **settings), device) for stream in (False, True)]


def require_equal(device, stream):
    for part in ("train", "holdout", "test"):
        ours, theirs = getattr(stream, part), getattr(device, part)
        assert isinstance(ours, StreamedSplit)
        assert isinstance(theirs, DeviceSplit)
        assert len(ours) == len(theirs)
        index = torch.randint(len(ours), (9,), generator=generator(1)) if len(ours) else torch.arange(0)
        for a, b in (
            (ours.labels, theirs.labels),
            (ours.raw(index), theirs.raw(index)),
            (ours.images(index), theirs.images(index)),
            *((ours.of_class(c), theirs.of_class(c)) for c in range(len(device.classes))),
        ):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        for size in (1, 4, 64):
            for seed in (None, 3):
                passes = [s.batches(size, generator(seed) if seed else None) for s in (ours, theirs)]
                for (x, y), (x2, y2) in zip(*passes, strict=True):
                    assert torch.equal(x, x2)
                    assert torch.equal(y, y2)
    assert stream.preprocess.spec() == device.preprocess.spec()
    assert (stream.shape, stream.classes, stream.augment) == (device.shape, device.classes, device.augment)
    assert stream.fingerprint != device.fingerprint  # of the files, not of the pixels


@pytest.mark.parametrize(("form", "grey"), [("png", False), ("jpg", False), ("png", True)])
def test_streamed_equals_device_in_folders(tmp_path, form, grey):
    require_equal(*both(write_folder(tmp_path / "set", form=form, grey=grey), size=8, holdout=0.2))


@pytest.mark.gpu
def test_streamed_equals_device_on_a_gpu(tmp_path):
    device, stream = both(write_folder(tmp_path / "set", form="jpg"), "cuda", size=8, holdout=0.2)
    assert stream.train.labels.is_cuda
    require_equal(device, stream)


def test_streamed_equals_device_without_holdout_and_at_their_own_size(tmp_path):
    device, stream = both(write_folder(tmp_path / "set", sizes=[(14, 10)], train=4, test=2), holdout=0)
    assert stream.shape == (3, 10, 10)
    require_equal(device, stream)


def test_streamed_equals_device_without_a_test_part(tmp_path):
    write_folder(tmp_path / "set")
    device, stream = both(f"folder:{tmp_path / 'set' / 'train'}", size=8)
    assert len(stream.test) == round(0.2 * 23) * 3
    assert "no test part was found" in stream.notes
    require_equal(device, stream)


@pytest.mark.parametrize("kept", [1 << 30, 0])
def test_streamed_equals_device_in_parquet(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(rows, "_KEPT_BYTES", kept)
    for i in range(3):
        write_parquet(tmp_path / "set" / f"train-{i}.parquet", 25, seed=i)
    write_parquet(tmp_path / "set" / "test-0.parquet", 11, seed=9)
    require_equal(*both(f"parquet:{tmp_path / 'set'}", size=8, holdout=0.2))


def test_row_groups_are_read_once_while_they_are_kept(tmp_path, monkeypatch):
    write_parquet(tmp_path / "set" / "train-0.parquet", 40)
    write_parquet(tmp_path / "set" / "test-0.parquet", 7)
    open_data(f"parquet:{tmp_path / 'set'}", DataSettings(stream=True, size=8, holdout=0), "cpu")  # fits constants
    read, original = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **kw: (read.append(i), original(self, i, **kw))[1]
    )
    data = open_data(f"parquet:{tmp_path / 'set'}", DataSettings(stream=True, size=8, holdout=0), "cpu")
    for _ in range(2):
        assert sum(len(y) for _, y in data.train.batches(5, generator(0))) == 40
    assert sorted(read) == list(range(6))  # 40 rows in groups of 7


def test_nothing_depends_on_the_number_of_workers(tmp_path):
    name = write_folder(tmp_path / "set")
    passes = []
    for workers in (1, 2, 5, None):
        data = open_data(name, DataSettings(stream=True, size=8, workers=workers), "cpu")
        batches = list(data.train.batches(10, generator(4)))
        passes.append((data.fingerprint, torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])))
    for fingerprint, images, labels in passes[1:]:
        assert fingerprint == passes[0][0]
        assert torch.equal(images, passes[0][1])
        assert torch.equal(labels, passes[0][2])


def test_batches_are_decoded_ahead_and_no_further_than_that(tmp_path, monkeypatch):
    data = open_data(write_folder(tmp_path / "set", train=70), DataSettings(stream=True, size=8, workers=1), "cpu")
    decoded, original = [], pixels.squared
    monkeypatch.setattr(pixels, "squared", lambda *args: (decoded.append(1), original(*args))[1])
    batches = data.train.batches(16)
    next(batches)
    decoding.pool(1).submit(int).result()  # one thread: everything asked for before is done
    assert len(decoded) == 16 * 3  # this one, and two chunks ahead
    batches.close()
    assert sum(1 for _ in data.train.batches(16)) == len(data.train) // 16 + (len(data.train) % 16 > 0)


def test_an_abandoned_pass_leaves_the_next_one_whole(tmp_path):
    data = open_data(write_folder(tmp_path / "set"), DataSettings(stream=True, size=8), "cpu")
    whole = torch.cat([x for x, _ in data.train.batches(4)])
    for _ in range(3):
        assert len(list(islice(data.train.batches(4), 2))) == 2
    assert torch.equal(torch.cat([x for x, _ in data.train.batches(4)]), whole)


def test_images_are_fresh_memory(tmp_path):
    data = open_data(write_folder(tmp_path / "set"), DataSettings(stream=True, size=8), "cpu")
    index = torch.tensor([3, 3, 0])
    before = data.train.images(index)
    data.train.images(index).zero_()
    assert torch.equal(data.train.images(index), before)
    assert torch.equal(before[0], before[1])


# ---------------------------------------------------------------- pixels


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("wide", [True, False])
def test_the_centre_is_cropped_and_pixels_stay_where_no_resizing_is_needed(wide):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 3), dtype=np.uint8)
    pixels = pixels if wide else pixels.transpose(1, 0, 2)
    centre = pixels[:, 4:8] if wide else pixels[4:8]
    assert np.array_equal(pixels_of(encoded(np.ascontiguousarray(pixels)), Target(3, 4)), centre.transpose(2, 0, 1))


def test_the_shorter_side_is_resized():
    ramp = np.repeat(np.arange(32, dtype=np.uint8)[None, :] * 8, 16, axis=0)  # 32 x 16, rising by 8 to the right
    found = pixels_of(encoded(ramp), Target(1, 8))
    # every second of columns 8 … 23, averaged with its neighbour: 8 (8 + 2 i) + 4
    assert found.shape == (1, 8, 8)
    assert np.array_equal(found[0, 4], 68 + 16 * np.arange(8))
    assert np.array_equal(pixels_of(encoded(np.full((50, 30), 77, np.uint8)), Target(3, 7)), np.full((3, 7, 7), 77))


def test_a_size_is_taken_on_the_device_too(tmp_path):
    data = open_data("fashion-mini", DataSettings(size=14, holdout=0), "cpu")
    raw = load_raw("fashion-mini").train_images
    assert data.shape == (1, 14, 14)
    for i in (0, 9999):
        file = io.BytesIO()
        Image.fromarray(raw[i, 0].numpy()).save(file, "PNG")
        assert np.array_equal(data.train.raw(torch.tensor([i]))[0].numpy(), pixels_of(file.getvalue(), Target(1, 14)))
    assert data.fingerprint != open_data("fashion-mini", DataSettings(holdout=0), "cpu").fingerprint
    name = write_folder(tmp_path / "set")
    assert {open_data(name, DataSettings(stream=False, size=s), "cpu").size for s in (None, 8, 9)} == {12, 8, 9}


# ---------------------------------------------------------------- opening


def test_auto_streams_what_would_take_over_a_quarter_of_the_memory(tmp_path, monkeypatch):
    name = write_folder(tmp_path / "set", train=10, test=2)
    needed = 3 * 12 * 3 * 8 * 8
    for memory, kind in ((4 * needed, DeviceSplit), (4 * needed - 1, StreamedSplit)):
        monkeypatch.setattr(streamed, "total_memory", lambda device, memory=memory: memory)
        assert type(open_data(name, DataSettings(size=8), "cpu").train) is kind
    monkeypatch.undo()
    assert type(open_data("fashion-mini", DataSettings(), "cpu").train) is DeviceSplit


def test_auto_follows_the_images_own_size(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    name = write_folder(tmp_path / "set", train=10, test=2, sizes=[(20, 10)])
    for memory, kind in ((4 * 36 * 300, DeviceSplit), (4 * 36 * 300 - 1, StreamedSplit)):
        monkeypatch.setattr(streamed, "total_memory", lambda device, memory=memory: memory)
        assert type(open_data(name, DataSettings(), "cpu").train) is kind


def test_fitted_constants_are_those_of_a_sample_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "FIT_IMAGES", 8)
    monkeypatch.setattr(streamed, "_AT_ONCE", 3)
    name = write_folder(tmp_path / "set")
    settings = DataSettings(stream=True, size=8)
    data = open_data(name, settings, "cpu")
    index = sample(len(data.train), 8, 1, generator(0, "constants"))
    assert len(index) == 8
    mean, std = pixel_statistics(data.train.raw(index))
    assert data.preprocess.spec()["mean"] == pytest.approx(mean, abs=1e-7)
    assert data.preprocess.spec()["std"] == pytest.approx(std, abs=1e-7)
    monkeypatch.setattr(pixels, "squared", None)
    assert open_data(name, settings, "cpu").preprocess.spec() == data.preprocess.spec()


@pytest.mark.parametrize(("count", "limit", "run"), [(10, 10, 1), (100, 7, 1), (1000, 100, 10), (95, 30, 10)])
def test_a_sample_is_runs_of_neighbours(count, limit, run):
    chosen = sample(count, limit, run, generator(0)).tolist()
    assert chosen == sorted(set(chosen))
    assert all(0 <= i < count for i in chosen)
    assert limit - run < len(chosen) <= limit
    if count > limit:
        assert len({i // run for i in chosen}) == limit // run
        assert chosen != sample(count, limit, run, generator(1)).tolist()


def test_the_fingerprint_is_of_files_split_and_size(tmp_path):
    name = write_folder(tmp_path / "set")

    def fingerprint(**settings):
        return open_data(name, DataSettings(**{"stream": True, "size": 8, **settings}), "cpu").fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert len({first, fingerprint(size=9), fingerprint(holdout=0.2), fingerprint(holdout_seed=1)}) == 4
    noise(np.random.default_rng(5), (12, 12)).save(tmp_path / "set" / "train" / "ant" / "000.png")
    assert fingerprint() != first


# ---------------------------------------------------------------- what cannot be


def test_broken_files_are_named_in_one_line_when_they_are_used(tmp_path):
    name = write_folder(tmp_path / "set")
    whole = (tmp_path / "set" / "train" / "ant" / "001.png").read_bytes()
    (tmp_path / "set" / "train" / "ant" / "001.png").write_bytes(whole[:-40])
    (tmp_path / "set" / "train" / "bee" / "004.png").write_bytes(b"this is text")
    (tmp_path / "set" / "test" / "cat" / "000.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"2 broken images in folder:.*train/ant/001.png .*train/bee/004.png .*not an"):
        open_data(name, DataSettings(stream=True, size=8, holdout=0), "cpu")  # constants are fitted on all of them
    data = open_data(name, DataSettings(stream=True, size=8, holdout=0.9), "cpu")
    for split, words in ((data.holdout, "2 broken.*ant/001.*bee/004"), (data.test, "1 broken.*cat/000.*no bytes")):
        with pytest.raises(UsageError, match=words) as caught:
            list(split.batches(1000))
        assert "\n" not in str(caught.value)
        assert "dd data check" in str(caught.value)


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "set" / "train-0.parquet"
    write_parquet(path, 40)
    write_parquet(tmp_path / "set" / "test-0.parquet", 7)
    content = bytearray(path.read_bytes())
    content[200:900] = bytes(700)
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError, match=r"train-0\.parquet row 0") as caught:
        open_data(f"parquet:{tmp_path / 'set'}", DataSettings(stream=True, size=8, holdout=0), "cpu")
    assert "\n" not in str(caught.value)


def test_settings_that_cannot_be(tmp_path):
    name = write_folder(tmp_path / "set")
    for settings, words in (
        ({"size": 8, "preprocess": "zca"}, "data.preprocess=zca needs all images at once"),
        ({}, "differ in size .9 x 31 .* 40 x 40 .*data.size=32"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            open_data(name, DataSettings(stream=True, **settings), "cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"data.stream=true: fashion-mini comes as arrays"):
        open_data("fashion-mini", DataSettings(stream=True), "cpu")
    check = TypeAdapter(DataSettings).validate_python
    bad = {"size": 0, "stream": "maybe", "workers": 0}
    with pytest.raises(ValidationError) as caught:
        check(bad)
    assert {error["loc"][0] for error in caught.value.errors()} == set(bad)


def test_streamed_data_of_no_use_are_refused(tmp_path):
    with pytest.raises(UsageError, match="at least two"):
        open_data(write_folder(tmp_path / "one", ["a"]), DataSettings(stream=True, size=8), "cpu")
    name = write_folder(tmp_path / "two", ["a", "b"])
    (tmp_path / "two" / "train" / "empty").mkdir()
    (tmp_path / "two" / "test" / "a").rename(tmp_path / "two" / "test" / "empty")
    with pytest.raises(UsageError, match="no training images of empty"):
        open_data(name, DataSettings(stream=True, size=8), "cpu")


# ---------------------------------------------------------------- above the data


def test_a_check_reads_a_few_images_at_a_time(tmp_path, monkeypatch):
    name = write_folder(tmp_path / "set")
    raw, found = load_raw(name), []
    for at_once in (256, 4):
        monkeypatch.setattr(checking, "_AT_ONCE", at_once)
        found.append(checking.check_data(name))
    assert found[0] == found[1]
    assert found[0]["mean"] == [round(value, 4) for value in pixel_statistics(raw.train_images)[0]]
    assert found[0]["notes"] == raw.notes
    assert found[0]["test"] == {"total": 15, "per_class": {"ant": 5, "bee": 5, "cat": 5}}


@pytest.mark.skipif(not (REAL and list(Path(REAL).glob("tiny-imagenet*"))), reason="needs DD_DATA with Tiny-ImageNet")
def test_real_parquet_files_streamed_are_those_in_memory(monkeypatch):
    monkeypatch.setenv("DD_DATA", REAL)
    whole, flow = (open_data("tiny-imagenet", DataSettings(stream=stream), "cpu") for stream in (False, True))
    assert isinstance(flow.train, StreamedSplit)
    assert (flow.classes, flow.shape, len(flow.train)) == (whole.classes, whole.shape, len(whole.train))
    assert torch.equal(flow.train.labels, whole.train.labels)
    pairs = zip(flow.train.batches(256, generator(0)), whole.train.batches(256, generator(0)), strict=True)
    assert all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in islice(pairs, 12))


@pytest.mark.parametrize("method", ["dm", "random", "mtt", "sre2l", "rded"])
def test_methods_give_the_same_set_on_streamed_data(tmp_path, method):
    name = write_folder(tmp_path / "set", sizes=[(16, 16), (24, 16)], train=12)
    sets = []
    for stream in (False, True):
        small = {
            "dm": {"iterations": 3},
            "mtt": {"iterations": 2, "steps": 2, "start_max": 1, "span": 1, "lr_lr": 1e-9},
            "sre2l": {"iterations": 3, "roll": 2},
        }
        asked = {"method": method, "dataset": name, "ipc": 2, "device": "cpu", "compile": False}
        if method == "mtt":
            asked["experts"] = {"count": 1, "epochs": 2}
        if method in ("sre2l", "rded"):
            asked["squeeze"] = {"epochs": 60, "batch": 12, "lr": 0.05, "warmup": 0, "augment": False}
        asked |= small.get(method, {})
        student = {"arch": "convnet", "width": 4} | ({"norm": "batch"} if "squeeze" in asked else {})
        data = {"stream": stream, "size": 16} | (
            {"holdout": 0} if "squeeze" in asked else {}
        )  # what it has learnt by heart
        recipe = resolve(asked | {"data": data, "student": student})
        task = make_task(recipe)
        assert isinstance(task.data.train, StreamedSplit if stream else DeviceSplit)
        tried = recipe.method.settle(task)
        prepared = prepare(tried, task)
        syn = tried.start(task, prepared)
        before = syn.images.detach().clone()
        synthesise(tried, task, prepared, syn)
        assert method in ("random", "rded") or not torch.equal(syn.images, before)
        sets.append(syn.images.detach())
    assert torch.equal(*sets)
