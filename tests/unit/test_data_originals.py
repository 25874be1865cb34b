"""Crops of files as they are: cut from whole pictures as torchvision cuts them, in whatever threads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from dd.data import DataSettings, open_data
from dd.data.sources.pixels import Target, pixels_of
from dd.errors import UsageError
from dd.rng import generator
from dd.views import draw_boxes, draw_shares

SIZES = [(50, 37), (37, 50), (64, 64), (91, 33)]
SIDE = 16


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 2)):
        for name in ("ant", "bee"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i in range(count):
                size = SIZES[i % len(SIZES)]
                image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
                form = "CMYK" if i % 5 == 4 else "L" if i % 5 == 3 else "RGB"
                image.convert(form).save(tmp_path / "set" / part / name / f"{i:02}.jpg")
    return tmp_path / "set"


def both(folder, **settings):
    plain = DataSettings(size=SIDE, holdout=0.2, **settings)
    return [open_data(f"folder:{folder}", replace(plain, stream=stream), "cpu") for stream in (False, True)]


def kept(folder, data):
    """The files of the training images, found by their pixels' order: sorted names without those set aside."""
    files = sorted((folder / "train").glob("*/*.jpg"))
    assert len(files) == len(data.train) + len(data.holdout)
    return [file for file in files if _position(data, file) is not None]


def _position(data, file):
    mine = torch.from_numpy(np.ascontiguousarray(pixels_of(file, Target(3, SIDE))))
    found = (data.train.raw(torch.arange(len(data.train))) == mine).flatten(1).all(1).nonzero()
    return int(found[0]) if len(found) else None


def test_crops_are_torchvisions_of_the_file(folder):
    index = torch.tensor([7, 0, 31, 7])
    for data in both(folder):
        files = kept(folder, data)
        draw = draw_shares(4 * 3, (0.08, 1.0), generator(1), stretch=1)
        crops, boxes, sizes = data.train.originals.crops(index, draw, 9)
        assert crops.shape == (4, 3, 3, 9, 9)
        assert boxes.shape == (4, 3, 4)
        for i, at in enumerate(index.tolist()):
            image = Image.open(files[at]).convert("RGB")
            assert sizes[i].tolist() == [image.height, image.width]
            assert torch.equal(boxes[i], draw.of(3 * i, 3 * i + 3).boxes((image.height, image.width)))
            for j in range(3):
                wanted = tv.resized_crop(image, *boxes[i, j].tolist(), size=[9, 9])
                assert torch.equal(crops[i, j], tv.pil_to_tensor(wanted))


def test_whole_pictures_squashed(folder):
    data = both(folder)[1]
    for at, file in enumerate(kept(folder, data)[:5]):
        wanted = tv.resize(Image.open(file).convert("RGB"), [SIDE, SIDE])
        assert torch.equal(data.train.originals.squashed(torch.tensor([at]), SIDE)[0], tv.pil_to_tensor(wanted))


def test_crops_reach_outside_the_square(folder):
    """RDED's of wide pictures do for the most part; those of the squares cannot."""
    data = both(folder)[0]
    index = torch.arange(len(data.train))
    _, boxes, sizes = data.train.originals.crops(index, draw_shares(len(index) * 20, (0.08, 1.0), generator(1), 1), 4)
    least = sizes.min(1).values
    outside = 0.0
    for box, size, side in zip(boxes, sizes, least, strict=True):
        margin = (size - side) // 2
        ends = box[:, :2] + box[:, 2:]
        outside += float(((box[:, :2] < margin) | (ends > margin + side + 1)).any(1).double().mean())
    assert outside / len(index) > 0.3


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_pass_shows_each_file_once_cut_and_mirrored_by_hand(folder, size):
    whole, stream = both(folder)
    files = kept(folder, whole)
    passes = [
        list(data.train.originals.batches(size, generator(3), 12, 0.08))
        for data in (whole, stream, both(folder, workers=5)[1])
    ]
    rng = generator(3)
    order = torch.randperm(len(files), generator=rng)
    for number, index in enumerate(order.split(size)):
        draw = draw_shares(len(index), (0.08, 1.0), rng)
        flips = torch.rand(len(index), generator=rng) < 0.5
        for found in passes:
            images, labels = found[number]
            assert torch.equal(labels, whole.train.labels[index])
            for i, at in enumerate(index.tolist()):
                image = Image.open(files[at]).convert("RGB")
                (box,) = draw.of(i, i + 1).boxes((image.height, image.width)).tolist()
                crop = tv.resized_crop(image, *box, size=[12, 12])
                wanted = tv.pil_to_tensor(tv.hflip(crop) if flips[i] else crop)
                assert torch.equal(images[i], whole.preprocess(wanted[None])[0])
    assert len(passes[0]) == -(-len(files) // size)


def test_where_images_are_the_files_there_is_nothing_else(folder):
    assert open_data("fashion-mini", DataSettings(), "cpu").train.originals is None
    for name in ("ant", "bee"):  # all of one size, which nobody asked for
        for part in ("train", "test"):
            for i, file in enumerate(sorted((folder / part / name).iterdir())):
                Image.new("RGB", (20, 20), (i, 0, 0)).save(file)
    for stream in (False, True):
        assert open_data(f"folder:{folder}", DataSettings(stream=stream), "cpu").train.originals is None


def test_broken_files_are_named(folder):
    data = both(folder)[1]
    file = kept(folder, data)[0]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UsageError, match=rf"1 broken images in folder:.*{file.name}"):
        data.train.originals.crops(torch.arange(3), draw_shares(3, (0.08, 1.0), generator(1)), 4)
    with pytest.raises(UsageError, match="1 broken"):
        list(data.train.originals.batches(4, generator(0), 8, 0.08))


def test_boxes_drawn_before_their_size_is_known_are_those_drawn_after():
    for size in ((32, 32), (37, 50), (200, 9)):
        before = draw_shares(300, (0.08, 1.0), generator(4)).boxes(size)
        assert torch.equal(before, draw_boxes(300, size, (0.08, 1.0), generator(4)))
        assert bool((before[:, :2] >= 0).all())
        assert bool((before[:, :2] + before[:, 2:] <= torch.tensor(size)).all())
