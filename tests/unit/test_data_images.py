"""What becomes of an image file, whatever its mode, format, orientation, depth and size: Pillow is the oracle."""

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader

from dd.cli.main import run_command_line
from dd.data import DataSettings, open_data, streamed
from dd.data.check import check_data
from dd.data.sources import locate_data
from dd.data.sources.content import EncodedSet, EncodedSplit, ImageFiles, Listing
from dd.data.sources.decoding import decode_listing, headers
from dd.data.sources.pixels import Header, Target, pixels_of
from dd.data.sources.survey import Survey, image_notes, jpegs, questions, suggested, survey
from dd.data.sources.walk import READABLE
from dd.errors import UsageError
from dd.io import digest
from dd.pipeline.plan import plan
from dd.recipes import resolve

RNG = np.random.default_rng(0)
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))


def colours(width=12, height=12):
    """Smooth and different in every corner."""
    corners = RNG.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def with_alpha(image):
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    return image


def palette(image, **settings):
    found = image.quantize(16)
    found.info.update(settings)
    return found


KINDS = {
    "grey.png": lambda: colours().convert("L"),
    "grey.jpg": lambda: colours().convert("L"),
    "grey-alpha.png": lambda: with_alpha(colours().convert("L")),
    "one-bit.png": lambda: colours().convert("1"),
    "one-bit.tif": lambda: colours().convert("1"),
    "colour.png": colours,
    "colour.bmp": colours,
    "colour.ppm": colours,
    "colour.tga": colours,
    "colour.jfif": colours,
    "colour.jpe": colours,
    "colour.webp": colours,
    "alpha.png": lambda: with_alpha(colours()),
    "alpha.webp": lambda: with_alpha(colours()),
    "palette.png": lambda: palette(colours()),
    "palette.gif": lambda: palette(colours()),
    "palette-clear.png": lambda: palette(colours(), transparency=3),
    "palette-alpha.png": lambda: palette(colours(), transparency=bytes(range(0, 256, 16))),
    "palette-clear.gif": lambda: palette(colours(), transparency=3),
    "grey.gif": lambda: colours().convert("L"),
    "grey-palette.png": lambda: palette(colours().convert("L").convert("RGB")),
    "grey-palette.bmp": lambda: palette(colours().convert("L").convert("RGB")),
    "cmyk.jpg": lambda: colours().convert("CMYK"),
    "cmyk.tif": lambda: colours().convert("CMYK"),
    "ycbcr.tif": lambda: colours().convert("YCbCr"),
    "grey.pgm": lambda: colours().convert("L"),
    "colour.jp2": colours,
    "colour.avif": colours,
}
MISSING = {"avif": "avif", "jp2": "jpg_2000", "webp": "webp"}  # what a Pillow may be built without


def written(folder, name):
    suffix = name.rsplit(".", 1)[1]
    if suffix in MISSING and not features.check(MISSING[suffix]):
        pytest.skip(f"Pillow here lacks {suffix}")
    path = folder / name
    form = {"jfif": "JPEG", "jpe": "JPEG"}.get(suffix)
    image = KINDS[name]()
    how = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    if image.mode == "YCbCr":  # Pillow 12 cannot read back the ones that it writes without compression
        how["compression"] = "tiff_lzw"
    image.save(path, form, **how)
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", KINDS)
def test_pixels_of_every_kind_are_pillows(tmp_path, name):
    path = written(tmp_path, name)
    colour, grey = (pixels_of(path, Target(channels, 12)) for channels in (3, 1))
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # of palettes, which is why the decoder must not warn
        assert np.array_equal(colour, np.asarray(pil_loader(str(path))).transpose(2, 0, 1))
        assert np.array_equal(grey[0], np.asarray(image.convert("L")))
    assert np.array_equal(pixels_of(path.read_bytes(), Target(3, 12)), colour)
    (header,) = headers(ImageFiles(tmp_path, [name]), [0])
    assert isinstance(header, Header)
    assert (header.width, header.height, header.turned, header.frames, header.deep) == (12, 12, False, False, False)
    assert header.grey == name.startswith(("grey", "one-bit"))
    assert path.suffix in READABLE


def test_all_that_torchvision_reads_is_readable():
    assert set(IMG_EXTENSIONS) <= set(READABLE)
    assert set(READABLE) <= set(Image.registered_extensions())


@pytest.mark.parametrize("form", ["gif", "webp", "apng", "tif"])
def test_of_several_frames_the_first_is_taken(tmp_path, form):
    frames = [Image.new("RGB", (8, 8), (shade, 10, 200 - shade)) for shade in (20, 90, 200)]
    path = tmp_path / f"moving.{form}"
    frames[0].save(path, "PNG" if form == "apng" else None, save_all=True, append_images=frames[1:])
    (header,) = headers(ImageFiles(tmp_path, [path.name]), [0])
    assert header.frames
    assert np.abs(pixels_of(path, Target(3, 8)).astype(int) - np.array([20, 10, 180])[:, None, None]).max() < 8
    assert "of 1 images with several frames the first was taken" in image_notes([header], Target(3, 8))


def test_photographs_of_telephones_are_jpeg_and_have_one_frame(tmp_path):
    colours().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[colours()])
    (header,) = headers(ImageFiles(tmp_path, ["a.jpg"]), [0])
    assert (header.format, header.frames, jpegs([header])) == ("MPO", False, 1)


# ---------------------------------------------------------------- orientation


def turned(path, orientation, image):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif.tobytes(), **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation, form):
    if form in MISSING and not features.check(MISSING[form]):
        pytest.skip(f"Pillow here lacks {form}")
    path = turned(tmp_path / f"a.{form}", orientation, colours(24, 16))
    with Image.open(path) as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    (header,) = headers(ImageFiles(tmp_path, [path.name]), [0])
    assert (header.width, header.height) == wanted.size == ((24, 16) if orientation < 5 else (16, 24))
    assert header.turned == (orientation > 1)
    assert np.array_equal(pixels_of(path, Target(3, 16)), np.asarray(ImageOps.fit(wanted, (16, 16))).transpose(2, 0, 1))


def test_the_left_half_of_an_image_on_its_side_is_on_top(tmp_path):
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    found = pixels_of(turned(tmp_path / "a.jpg", 6, Image.fromarray(pixels)), Target(1, 16))[0]
    assert (found[:8] > 250).all()
    assert (found[8:] < 5).all()


def test_damaged_exif_leaves_the_pixels_alone(tmp_path):
    image = colours()
    for i, exif in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0")):
        image.save(tmp_path / f"{i}.png", exif=exif)
        assert np.array_equal(pixels_of(tmp_path / f"{i}.png", Target(3, 12)), np.asarray(image).transpose(2, 0, 1))
    for value in (0, 9, 77):
        turned(tmp_path / "odd.png", value, image)
        assert np.array_equal(pixels_of(tmp_path / "odd.png", Target(3, 12)), np.asarray(image).transpose(2, 0, 1))


def photographs(root, orientation, count=6):
    for part in ("train", "test"):
        for c in "ab":
            (root / part / c).mkdir(parents=True)
            for i in range(count):
                turned(root / part / c / f"{i}.jpg", orientation if i % 2 else 1, colours(24, 16))
    return f"folder:{root}"


def test_turned_images_are_counted_and_alike_streamed_and_whole(tmp_path):
    name = photographs(tmp_path / "set", 6)
    whole, flow = (open_data(name, DataSettings(stream=stream, holdout=0), "cpu") for stream in (False, True))
    assert whole.shape == flow.shape == (3, 16, 16)
    index = torch.arange(len(whole.train))
    assert torch.equal(whole.train.raw(index), flow.train.raw(index))
    assert "12 images were turned upright, as their EXIF says" in whole.notes
    assert "12 images were turned upright, as their EXIF says" in check_data(name)["notes"]
    assert "turned upright" in flow.notes


@pytest.mark.parametrize("orientation", [1, 6])
def test_streamed_images_that_were_always_upright_keep_their_identity(tmp_path, orientation):
    located = locate_data(photographs(tmp_path / "set", orientation))
    content = located.read()
    assert isinstance(content, EncodedSet)
    opened, _ = streamed.open_streamed(located, content, DataSettings(stream=True), torch.device("cpu"))
    before = digest({"files": content.key, "channels": 3, "side": 16}, length=64)
    assert (opened.content == before) == (orientation == 1)


# ---------------------------------------------------------------- more than 8 bits


def deep(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


VALUES = np.array([[0, 1, 128, 129], [255, 256, 385, 386], [4095, 4096, 32767, 32768], [65407, 65408, 65534, 65535]])


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "<i4")])
@pytest.mark.parametrize("depth16", ["full", "image", (0.0, 4095.0), (100.0, 40000.0)])
def test_values_of_16_bits_are_scaled_linearly(tmp_path, suffix, dtype, depth16):
    values = VALUES[:3] if depth16 == "image" else VALUES
    values = np.concatenate([values, values[:1]]) if len(values) < 4 else values
    path = deep(tmp_path / f"a.{suffix}", values.astype(dtype))
    low, high = {"full": (0, 65535), "image": (0, 32768)}.get(depth16, depth16)
    wanted = [[min(255, max(0, round((int(v) - low) * 255 / (high - low)))) for v in row] for row in values]
    assert pixels_of(path, Target(1, 4, depth16=depth16))[0].tolist() == wanted
    assert pixels_of(path, Target(3, 4, depth16=depth16)).tolist() == [wanted] * 3
    (header,) = headers(ImageFiles(tmp_path, [path.name]), [0])
    assert (header.deep, header.grey) == (True, True)


def test_numbers_with_a_point_want_a_range(tmp_path):
    path = deep(tmp_path / "a.tif", np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4))
    assert pixels_of(path, Target(1, 4, depth16=(-1.0, 1.0)))[0].flatten().tolist() == [
        round(255 * i / 15) for i in range(16)
    ]
    assert pixels_of(path, Target(1, 4, depth16="image"))[0, 3, 3] == 255
    with pytest.raises(ValueError, match=r"from -1 to 1, beyond"):
        pixels_of(path, Target(1, 4, depth16="full"))
    with pytest.raises(ValueError, match="not numbers"):
        pixels_of(deep(path, np.full((4, 4), np.nan, np.float32)), Target(1, 4, depth16="image"))
    assert not pixels_of(deep(path, np.full((4, 4), 7.0, np.float32)), Target(1, 4, depth16="image")).any()


def xrays(root, sizes, deep_ones=True, count=4):
    for c in "ab":
        for i in range(count):
            width, height = sizes[i % len(sizes)]
            shade = 1000 * i + (500 if c == "b" else 0)
            if deep_ones:
                deep(root / c / f"{i}.png", np.full((height, width), shade, np.uint16))
            else:
                (root / c).mkdir(parents=True, exist_ok=True)
                Image.new("L", (width, height), shade // 100).save(root / c / f"{i}.png")
    return f"folder:{root}"


@pytest.mark.parametrize("stream", [False, True])
def test_16_bits_are_asked_about_and_never_broken(tmp_path, stream):
    name = xrays(tmp_path / "set", [(16, 16)])
    with pytest.raises(
        UsageError, match=r"8 of 8 images .* more than 8 bits .*data\.depth16=full .*image .*LOW"
    ) as said:
        open_data(name, DataSettings(stream=stream), "cpu")
    assert "broken" not in str(said.value)
    with pytest.raises(UsageError, match=r"more than 8 bits"):
        check_data(name)
    Image.new("L", (16, 16), 9).save(tmp_path / "set" / "a" / "0.png")
    found = check_data(name)
    assert found["broken"] == []
    with pytest.raises(UsageError) as said:
        open_data(name, DataSettings(stream=stream), "cpu")
    assert found["problems"] == [str(said.value)]
    assert check_data(name, DataSettings(depth16="image"))["problems"] == []
    data = open_data(name, DataSettings(stream=stream, depth16=(0, 3500), holdout=0), "cpu")
    assert data.shape == (1, 16, 16)
    shades = {round(x * 255 / 3500) for x in (1000, 2000, 3000, 500, 1500, 2500, 3500)} | {9}
    seen = [part.raw(torch.arange(len(part))).unique().tolist() for part in (data.train, data.test)]
    assert set(seen[0] + seen[1]) == shades
    prints = [open_data(name, DataSettings(stream=stream, depth16=d), "cpu").fingerprint for d in ("full", "image")]
    assert len({*prints, data.fingerprint}) == 3
    if not stream:
        assert "7 images were brought to 8 bits, data.depth16=[0, 3500]" in data.notes


def test_a_16_bit_image_that_no_survey_met_is_not_called_broken(tmp_path, monkeypatch):
    name = xrays(tmp_path / "set", [(16, 16)], deep_ones=False, count=40)
    monkeypatch.setattr(streamed, "FIT_IMAGES", 4)
    data = open_data(name, DataSettings(stream=True, size=8), "cpu")
    deep(tmp_path / "set" / "a" / "7.png", np.zeros((16, 16), np.uint16))
    said = []
    for part in (data.train, data.holdout, data.test):
        try:
            part.raw(torch.arange(len(part)))
        except UsageError as error:
            said.append(str(error))
    (line,) = said
    assert line.startswith(f"a/7.png in {name} has more than 8 bits per channel")
    assert "data.depth16=full" in line
    assert "broken" not in line


# ---------------------------------------------------------------- sizes


def asked(name, **settings):
    """What a run, its plan and a check say; all the same."""
    said = []
    for stream in (False, True):
        with pytest.raises(UsageError) as caught:
            open_data(name, DataSettings(stream=stream, **settings), "cpu")
        said.append(str(caught.value))
    recipe = resolve({"method": "random", "dataset": name, "ipc": 1, "device": "cpu", "data": settings})
    with pytest.raises(UsageError) as caught:
        plan(recipe)
    said.append(str(caught.value))
    said.append("\n".join(check_data(name, DataSettings(**settings))["problems"]))
    assert len(set(said)) == 1
    return said[0]


def test_sizes_that_vary_are_asked_about(tmp_path):
    name = xrays(tmp_path / "set", [(480 + 65 * i, 500 + 64 * i) for i in range(24)], deep_ones=False, count=12)
    Image.new("L", (24, 18)).save(tmp_path / "set" / "a" / "thumbnail.png")
    said = asked(name)
    assert "differ in size (24 x 18 and 1195 x 1204 pixels among them)" in said
    assert "data.size=224" in said
    assert "\n" not in said
    assert open_data(name, DataSettings(size=32), "cpu").shape == (1, 32, 32)
    assert check_data(name, DataSettings(size=32))["size"] == 32
    assert check_data(name)["size"] == 224


@pytest.mark.parametrize("side", [384, 300])
def test_images_larger_than_networks_take_are_asked_about(tmp_path, side):
    name = xrays(tmp_path / "set", [(side, side + 20)], deep_ones=False)
    said = asked(name)
    assert f"are large ({side} pixels" in said
    assert f"such as data.size=224, or data.size={side} to keep them" in said
    assert open_data(name, DataSettings(size=side), "cpu").shape == (1, side, side)


def test_what_is_asked_is_asked_at_once(tmp_path):
    name = xrays(tmp_path / "set", [(300, 300)])
    Image.new("L", (300, 300)).save(tmp_path / "set" / "a" / "0.png")
    lines = asked(name).splitlines()
    assert len(lines) == 2
    assert "data.depth16" in lines[0]
    assert "data.size" in lines[1]


def test_most_images_of_one_size_settle_it(tmp_path):
    def header(side):
        return Header(side, side + 5, False, "PNG")

    for sizes, clear in (
        ([32] * 6 + [500] * 5, True),
        ([32] * 5 + [500] * 5, False),
        ([20, 24, 28, 30], True),
        ([20, 31, 50, 70], False),
        ([256] * 3, True),
        ([257] * 3, False),
    ):
        found = survey([header(side) for side in sizes])
        assert (questions(found, "x", None, None) == []) == clear
        assert questions(found, "x", 64, None) == []
        assert (questions(found, "x", None, None, exact=True) == []) == (sizes == [256] * 3)
    assert [suggested(side) for side in (3024, 224, 223, 70, 32, 20)] == [224, 224, 128, 64, 32, 32]


def test_a_survey_of_parts_is_kept_as_it_was(tmp_path):
    found = survey([Header(4, 6, True, "PNG"), Header(9, 5, True, "PNG", turned=True)])
    assert found == Survey(2, True, 4, [(4, 6), (9, 5)], 5, False, True, 1, 0)
    assert replace(found, deep=1) != found


def test_a_listing_is_decoded_whatever_its_files_are_called(tmp_path):
    names = [name for name in KINDS if name.rsplit(".", 1)[1] not in MISSING]
    for name in names:
        written(tmp_path, name)
    part = EncodedSplit(ImageFiles(tmp_path, names), torch.arange(len(names)))
    arrays, broken = decode_listing(Listing(part, part, tuple(names)), "x")
    assert broken == []
    for name, pixels in zip(names, arrays.train_images, strict=True):
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pil_loader(str(tmp_path / name)).save(buffer, "PNG")
        assert np.array_equal(pixels.numpy(), np.asarray(Image.open(buffer)).transpose(2, 0, 1))


def test_a_check_takes_the_settings_of_a_run(tmp_path, capsys):
    name = xrays(tmp_path / "set", [(300, 310)])
    assert run_command_line(["data", "check", name, "data.size=16", "data.depth16=image", "data.classes=b,a"]) == 0
    out = capsys.readouterr().out
    assert "2 classes of images of 1 x 16 x 16" in out
    assert "data.depth16=image" in out
    assert out.index("\nb  ") < out.index("\na  ")
    Image.new("L", (300, 310)).save(tmp_path / "set" / "a" / "0.png")
    run_command_line(["data", "check", name, "data.depth16=full"])
    assert "are large (300 pixels" in " ".join("".join(capsys.readouterr()).split())
    assert run_command_line(["data", "check", name, "data.sizes=16"]) == 2
    assert "data.size" in capsys.readouterr().err


def test_a_plan_takes_sizes_that_a_run_takes(tmp_path):
    name = xrays(tmp_path / "set", [(20, 20), (24, 24), (22, 28), (26, 21)], deep_ones=False)
    planned = plan(resolve({"method": "random", "dataset": name, "ipc": 1, "device": "cpu"}))
    assert [artefact["what"] for artefact in planned["stages"][0]["artefacts"]] == [f"the decoded images of {name}"]
    assert open_data(name, DataSettings(stream=False), "cpu").size == 20
    with pytest.raises(UsageError, match="differ in size"):  # of streamed images only a sample of headers is read
        open_data(name, DataSettings(stream=True), "cpu")
