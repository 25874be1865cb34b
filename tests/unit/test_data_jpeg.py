"""JPEG files: decoded to the bits of Pillow, resized to its pixels within two levels, keyed by what resizes them."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dd.data import DataSettings, open_data, streamed
from dd.data.sources import jpeg, locate_data
from dd.data.sources.catalogue import CATALOGUE
from dd.data.sources.content import EncodedSet, EncodedSplit, ImageFiles
from dd.data.sources.locate import Located
from dd.data.sources.pixels import Target, original, pixels_of, shorter_side
from dd.io import digest

ORIENTATION = 0x0112
WAYS = ("fit", "squash", "shorter")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))


def photograph(width, height, seed=0):
    """Large shapes with some noise, like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image, form="JPEG", **how):
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


def rows(image):
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


KINDS = {
    "usual": {},
    "fine": {"quality": 100, "subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:1:1": {"subsampling": "4:1:1", "quality": 60},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True},
}


@pytest.mark.parametrize("size", [(97, 61), (64, 64), (1, 9)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "grey"])
def test_bits_are_pillows(kind, size):
    image = photograph(*size)
    data = encoded(image.convert("L")) if kind == "grey" else encoded(image, **KINDS[kind])
    with Image.open(io.BytesIO(data)) as theirs:
        colour, grey = theirs.convert("RGB"), theirs.convert("L")
    found = jpeg.decoded(data, grey=False)
    assert found is not None
    assert np.array_equal(found, np.asarray(colour))
    assert np.array_equal(np.asarray(original(data, 3)), np.asarray(colour))
    assert np.array_equal(np.asarray(original(data, 1)), np.asarray(grey))


def pillows(image, side, way):
    """What Pillow makes of decoded pixels, with the centre cut at whole pixels for "fit"."""
    if way == "squash":
        return image.resize((side, side), Image.Resampling.BILINEAR)
    width, height = image.size
    if way == "fit":
        least = min(width, height)
        left, top = (round((length - least) / 2) for length in image.size)
        return image.crop((left, top, left + least, top + least)).resize((side, side), Image.Resampling.BICUBIC)
    least = shorter_side(side)
    size = (least, int(least * height / width)) if width <= height else (int(least * width / height), least)
    left, top = (round((length - side) / 2) for length in size)
    return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(256, 256), (500, 375), (375, 500), (90, 91), (40, 30)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_pixels_are_pillows_within_two_levels(way, size, channels):
    image = photograph(*size)
    data = encoded(image if channels == 3 else image.convert("L"), quality=95)
    for side in (56, 64, 224):
        found = pixels_of(data, Target(channels, side, way)).astype(int)
        assert found.shape == (channels, side, side)
        apart = np.abs(found - rows(pillows(original(data, channels), side, way)))
        assert apart.max() <= 2
        assert (apart > 0).mean() < 0.08
        assert (apart > 1).mean() < 0.001


def test_of_a_square_fit_is_pillows_own_within_two_levels():
    data = encoded(photograph(256, 256))
    for side in (64, 224):
        theirs = rows(ImageOps.fit(original(data, 3), (side, side), method=Image.Resampling.BICUBIC))
        assert np.abs(pixels_of(data, Target(3, side)).astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("size", [(64, 64), (97, 64), (64, 96)], ids=str)
def test_what_is_not_scaled_is_cut_by_pillow(size):
    data = encoded(photograph(*size))
    assert np.array_equal(pixels_of(data, Target(3, 64)), rows(ImageOps.fit(original(data, 3), (64, 64))))


def turned(image, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, exif=exif.tobytes())


def test_pillow_resizes_what_it_decodes():
    """CMYK, images on their side, colour read as grey, and JPEG files with several images."""
    image = photograph(50, 36)
    several = encoded(image, "MPO", save_all=True, append_images=[image])
    for data, channels in (
        (encoded(image.convert("CMYK")), 3),
        (turned(image, 6), 3),
        (encoded(image), 1),
        (several, 3),
    ):
        theirs = rows(ImageOps.fit(original(data, channels), (24, 24), method=Image.Resampling.BICUBIC))
        assert np.array_equal(pixels_of(data, Target(channels, 24)), theirs)
    upright = turned(image, 1)
    assert np.array_equal(pixels_of(upright, Target(3, 24)), pixels_of(encoded(image), Target(3, 24)))


def outcome(read):
    try:
        return np.asarray(read())
    # a damaged file can make Pillow raise almost any exception
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def pillows_own(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def test_damaged_files_are_what_pillow_makes_of_them():
    """The same pixels, or the same error."""
    whole, random_ = encoded(photograph(97, 61)), random.Random(0)
    damaged = [whole[:cut] for cut in (300, len(whole) // 2, len(whole) - 2, len(whole) - 1)]
    damaged += [whole[:cut] + b"\xff\xd9" for cut in (len(whole) // 2, len(whole) - 40)]
    damaged += [whole + b"junk" * 5]
    for _ in range(300):
        data = bytearray(whole)
        data[random_.randrange(20, len(data))] = random_.randrange(256)
        damaged.append(bytes(data))
    seen = {"pixels": 0, "errors": 0}
    for data in damaged:
        ours, theirs = outcome(lambda data=data: original(data, 3)), outcome(lambda data=data: pillows_own(data))
        if isinstance(theirs, str):
            # Pillow's own message of an unknown file holds an address, which ours leaves out
            assert isinstance(ours, str)
            assert ours == theirs or "not an image" in ours
            seen["errors"] += 1
        else:
            assert np.array_equal(ours, theirs)
            seen["pixels"] += 1
    assert min(seen.values()) > 5


def folder(root, sizes, form="jpg"):
    for part in ("train", "test"):
        for c in "ab":
            (root / part / c).mkdir(parents=True)
            for i in range(4):
                photograph(*sizes[i % len(sizes)], seed=i).save(root / part / c / f"{i}.{form}")
    return f"folder:{root}"


def test_streamed_and_whole_are_alike(tmp_path):
    name = folder(tmp_path / "set", [(40, 31), (64, 48), (30, 30)])
    for way in WAYS:
        whole, flow = (
            open_data(name, DataSettings(size=24, resize=way, stream=stream, holdout=0), "cpu")
            for stream in (False, True)
        )
        index = torch.arange(len(whole.train))
        assert torch.equal(whole.train.raw(index), flow.train.raw(index))
        assert torch.equal(whole.test.raw(index[:8]), flow.test.raw(index[:8]))


@pytest.mark.parametrize(
    ("form", "sizes", "size", "changed"),
    [
        ("jpg", [(40, 31), (64, 48)], 24, True),
        ("jpg", [(32, 32)], 24, True),
        ("jpg", [(32, 32)], 32, False),
        ("jpg", [(45, 32), (32, 40)], None, False),
        ("png", [(40, 31), (64, 48)], 24, False),
    ],
)
def test_the_key_changes_where_pixels_do(tmp_path, form, sizes, size, changed):
    located = locate_data(folder(tmp_path / "set", sizes, form))
    content = located.read()
    assert isinstance(content, EncodedSet)
    opened, _ = streamed.open_streamed(located, content, DataSettings(stream=True, size=size), torch.device("cpu"))
    before = {"files": content.key, "channels": 3, "side": size or 32}
    assert opened.content == digest(before | ({"jpeg": "torch"} if changed else {}), length=64)


@pytest.mark.parametrize(
    ("name", "form", "side", "way", "changed"),
    [
        ("imagenet-1k", "jpg", 224, "fit", True),
        ("tiny-imagenet", "jpg", 64, "fit", False),
        ("tiny-imagenet", "jpg", 64, "shorter", True),
        ("tiny-imagenet", "jpg", 32, "fit", True),
        ("cifar10", "png", 64, "fit", False),
        ("cifar10", "jpg", 64, "fit", True),
        ("cifar10", "jpg", 32, "fit", False),
    ],
)
def test_of_known_data_the_key_changes_where_pixels_do(tmp_path, name, form, side, way, changed):
    photograph(32, 32).save(tmp_path / f"a.{form}")
    part = EncodedSplit(ImageFiles(tmp_path, [f"a.{form}"]), torch.zeros(1, dtype=torch.int64))
    located = Located(name, str(tmp_path), CATALOGUE[name], lambda: pytest.fail("need not be read"))
    assert streamed._scales_jpegs(located, part, Target(3, side, way), None) == changed
