"""How images become squares: torchvision's transforms say what each way is, on files, in arrays, streamed and not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dd.data import DataSettings, open_data
from dd.data import preprocess as pre
from dd.data.real import DeviceSplit
from dd.data.sources.decoding import resized
from dd.data.sources.pixels import Header as Known
from dd.data.sources.pixels import Target, pixels_of, shorter_side
from dd.data.sources.survey import image_notes
from dd.data.streamed import StreamedSplit

SIZES = [(50, 37), (37, 50), (64, 64), (28, 28), (61, 33), (200, 31)]
SIDE = 28
WAYS = ("fit", "squash", "shorter")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))


def picture(size, seed=0, grey=False):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert("L" if grey else "RGB")


def theirs(way, side):
    """torchvision's transform of a picture, bilinear as it is unless it is told otherwise."""
    if way == "squash":
        return transforms.Resize((side, side))
    return transforms.Compose([transforms.Resize(side // 7 * 8), transforms.CenterCrop(side)])


def pixels(image):
    rows = np.asarray(image)
    return torch.from_numpy(rows.copy()[None] if rows.ndim == 2 else rows.transpose(2, 0, 1).copy())


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 12), ("test", 6)):
        for c, name in enumerate(("ant", "bee")):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for i in range(count):
                image = picture(SIZES[i % len(SIZES)], seed=100 * c + i, grey=i % 5 == 3)
                image.save(tmp_path / "set" / part / name / f"{i:02}.png")
    return tmp_path / "set"


@pytest.mark.parametrize("way", ["squash", "shorter"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("grey", [False, True])
def test_ways_are_torchvisions(tmp_path, way, size, grey):
    picture(size, grey=grey).save(tmp_path / "a.png")
    found = pixels_of(tmp_path / "a.png", Target(1 if grey else 3, SIDE, way))
    wanted = pixels(theirs(way, SIDE)(Image.open(tmp_path / "a.png")))
    assert torch.equal(torch.from_numpy(found.copy()), wanted)
    assert torch.equal(resized(pixels(picture(size, grey=grey))[None], SIDE, way)[0], wanted)


@pytest.mark.parametrize(("way", "share"), [("fit", 0.75), ("squash", 1.0), ("shorter", 0.57)])
def test_how_much_of_a_picture_is_shown(tmp_path, way, share):
    """On 500 x 375 pixels, whose colours say where they are: the first and last row and column that are seen."""
    across, down = np.meshgrid(np.linspace(0, 255, 500), np.linspace(0, 255, 375))
    Image.fromarray(np.stack([across, down, down], 2).round().astype(np.uint8)).save(tmp_path / "a.png")
    seen = pixels_of(tmp_path / "a.png", Target(3, 224, way)).astype(float) / 255
    spans = [seen[0].max() - seen[0].min(), seen[1].max() - seen[1].min()]
    assert spans[0] * spans[1] == pytest.approx(share, abs=0.015)


def test_the_centre_of_an_eighth_more():
    assert [shorter_side(side) for side in (224, 128, 64, 32)] == [256, 144, 72, 32]


def test_an_image_of_the_right_size_is_left_alone_but_for_the_test_transform(tmp_path):
    image = picture((56, 56))
    image.save(tmp_path / "a.png")
    for way in ("fit", "squash"):
        assert torch.equal(torch.from_numpy(pixels_of(tmp_path / "a.png", Target(3, 56, way)).copy()), pixels(image))
    assert not np.array_equal(
        pixels_of(tmp_path / "a.png", Target(3, 56, "shorter")), pixels_of(tmp_path / "a.png", Target(3, 56))
    )
    small = pixels(picture((32, 32)))[None]
    assert resized(small, 32, "shorter") is small


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("test", [None, *WAYS])
def test_streamed_and_whole_give_the_same_and_nothing_is_resized_twice(folder, way, test):
    settings = DataSettings(size=SIDE, resize=way, holdout=0.2)
    whole, stream = (open_data(f"folder:{folder}", replace(settings, stream=s), "cpu") for s in (False, True))
    files = sorted(folder.glob("test/*/*.png"))
    for data, kind in ((whole, DeviceSplit), (stream, StreamedSplit)):
        split = data.tested(test)
        assert isinstance(split, kind)
        assert split is data.tested(test)  # decoded once, however many students ask
        assert (split is data.test) == (test in (None, way))
        assert torch.equal(split.labels, data.test.labels)
        wanted = [torch.from_numpy(pixels_of(file, Target(3, SIDE, test or way)).copy()) for file in files]
        assert torch.equal(split.raw(torch.arange(12)), torch.stack(wanted))
    index = torch.arange(len(whole.train))
    assert torch.equal(whole.train.raw(index), stream.train.raw(index))
    assert torch.equal(whole.holdout.raw(torch.arange(4)), stream.holdout.raw(torch.arange(4)))


def test_the_way_is_part_of_the_data_and_that_of_the_test_images_is_not(folder):
    for stream in (False, True):
        prints = [
            open_data(f"folder:{folder}", DataSettings(size=SIDE, resize=way, stream=stream), "cpu").fingerprint
            for way in (*WAYS, *WAYS)  # from the cache, the second time
        ]
        assert prints[:3] == prints[3:]
        assert len(set(prints)) == 3
    data = open_data(f"folder:{folder}", DataSettings(size=SIDE), "cpu")
    before = data.fingerprint
    data.tested("shorter")
    assert data.fingerprint == before == open_data(f"folder:{folder}", DataSettings(size=SIDE), "cpu").fingerprint


def test_arrays_are_brought_to_size_as_files_are():
    ours = open_data("fashion-mini", DataSettings(size=20, resize="squash"), "cpu")
    raw = open_data("fashion-mini", DataSettings(), "cpu")
    assert torch.equal(ours.test.raw(torch.arange(3)), resized(raw.test.raw(torch.arange(3)), 20, "squash"))
    shorter = raw.tested("shorter").raw(torch.arange(3))
    for image, found in zip(raw.test.raw(torch.arange(3)), shorter, strict=True):
        assert torch.equal(found, pixels(theirs("shorter", 28)(Image.fromarray(image[0].numpy()))))


def test_notes_say_what_was_done():
    headers = [Known(32, 32, False, "PNG"), Known(50, 37, False, "PNG")]
    assert image_notes(headers, Target(3, 32)) == ["1 of 2 images were resized and centre-cropped to 32 x 32 pixels"]
    assert image_notes(headers, Target(3, 32, "squash")) == ["1 of 2 images were squashed to 32 x 32 pixels"]
    assert image_notes(headers, Target(3, 28, "shorter")) == [
        "2 of 2 images were resized and centre-cropped to 28 x 28 pixels"
    ]


def test_pixels_as_they_are(folder):
    for stream in (False, True):
        settings = DataSettings(size=SIDE, preprocess="none", stream=stream)
        data = open_data(f"folder:{folder}", settings, "cpu")
        raw = data.train.raw(torch.arange(5))
        assert torch.allclose(data.train.images(torch.arange(5)), raw.float() / 255)
        assert data.preprocess.spec() == {"kind": "standard", "mean": [0.0] * 3, "std": [1.0] * 3}
        assert data.black == (0.0, 0.0, 0.0)
    assert open_data(f"folder:{folder}", DataSettings(size=SIDE), "cpu").black == pytest.approx(
        tuple((-data_mean / data_std) for data_mean, data_std in zip(*statistics(folder), strict=True))
    )


def statistics(folder):
    data = open_data(f"folder:{folder}", DataSettings(size=SIDE), "cpu")
    return pre.pixel_statistics(data.train.raw(torch.arange(len(data.train))))
