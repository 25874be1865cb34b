"""Arrays in one file, and data sets of some classes."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dd.data import DataSettings, list_sources, open_data
from dd.data.check import check_data
from dd.data.positions import stratified
from dd.data.sources import load_raw
from dd.data.sources.content import NO_TEST_PART, Arrays, only_classes
from dd.errors import UsageError
from dd.pipeline.plan import plan
from dd.recipes import parse_overrides, resolve
from dd.sets import load

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DD_RUNS", str(tmp_path / "runs"))


def pixels(count, *shape):
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count, classes=3, dtype=np.uint8):
    return (np.arange(count) % classes).astype(dtype)[:, None]


def medmnist(path, *shape, parts=("train", "val", "test"), count=30, **changed):
    arrays = {}
    for part in parts:
        arrays |= {f"{part}_images": pixels(count, *shape), f"{part}_labels": labels(count)}
    arrays |= changed
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return f"npz:{path}", arrays


@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 3)])
def test_arrays_as_medmnist_has_them(tmp_path, shape):
    name, arrays = medmnist(tmp_path / "med.npz", *shape)
    raw = load_raw(name)
    for part, images, numbers in (
        ("train", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        wanted = arrays[f"{part}_images"].reshape(30, 9, 9, -1)
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        for i in range(30):
            for c in range(wanted.shape[3]):
                assert np.array_equal(images[i, c].numpy(), wanted[i, :, :, c])
        assert numbers.tolist() == arrays[f"{part}_labels"][:, 0].tolist()
        assert numbers.dtype == torch.int64
    assert raw.classes == ("0", "1", "2")
    assert "val_images are not used" in raw.notes
    data = open_data(name, DataSettings(holdout=0.1), "cpu")
    assert (data.shape, len(data.train), len(data.holdout), len(data.test)) == (
        (raw.train_images.shape[1], 9, 9),
        27,
        3,
        30,
    )
    assert open_data(name, DataSettings(size=6), "cpu").size == 6
    assert check_data(name)["train"] == {"total": 30, "per_class": {"0": 10, "1": 10, "2": 10}}


def test_the_test_part_is_the_validation_part_or_a_fixed_fifth(tmp_path):
    name, arrays = medmnist(tmp_path / "a.npz", 8, 8, parts=("train", "val"))
    assert np.array_equal(load_raw(name).test_images[:, 0].numpy(), arrays["val_images"])
    name, arrays = medmnist(tmp_path / "b.npz", 8, 8, parts=("train",))
    raw = load_raw(name)
    kept, taken = stratified(torch.from_numpy(arrays["train_labels"][:, 0].astype(int)), 0.2, 0, "test part")
    assert np.array_equal(raw.test_images[:, 0].numpy(), arrays["train_images"][taken.numpy()])
    assert np.array_equal(raw.train_images[:, 0].numpy(), arrays["train_images"][kept.numpy()])
    assert raw.notes == NO_TEST_PART


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, ">i2"])
def test_labels_are_whole_numbers_in_one_column_or_none(tmp_path, dtype):
    name, _ = medmnist(tmp_path / "a.npz", 8, 8, train_labels=labels(30, dtype=dtype)[:, 0])
    assert load_raw(name).train_labels.tolist() == [0, 1, 2] * 10


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


ODD = {
    "lacks train_labels; it has": {"train_labels": None},
    "lacks train_images; it has": {"train_images": None},
    "lacks test_labels": {"test_labels": None},
    r"train_images are float32 \(30, 8, 8\); images are uint8": {"train_images": pixels(30, 8, 8).astype(np.float32)},
    "train_images have 16 bits per channel": {"train_images": pixels(30, 8, 8).astype(np.uint16)},
    r"train_images are uint8 \(30, 3, 8, 8\)": {"train_images": pixels(30, 3, 8, 8)},
    r"train_images are uint8 \(30, 8, 8, 4\)": {"train_images": pixels(30, 8, 8, 4)},
    r"train_images are uint8 \(30, 8, 8, 8, 1\)": {"train_images": pixels(30, 8, 8, 8, 1)},
    r"train_images are uint8 \(30, 0, 8\)": {"train_images": pixels(30, 0, 8)},
    r"train_images are uint8 \(\)": {"train_images": np.uint8(3)},
    r"\(30, 14\), 14 for each image \(multi-label": {"train_labels": np.zeros((30, 14), np.uint8)},
    "train_labels are float64": {"train_labels": np.zeros(30)},
    "train_labels are <U3": {"train_labels": np.array(["cat"] * 30)},
    "labels go from -1 to 2": {"train_labels": labels(30, dtype=np.int64) - np.eye(30, 1, dtype=np.int64)},
    "labels go from 0 to 4,000,000,000": {"test_labels": np.array([4_000_000_000] * 30)},
    "30 train_images do not go with 29 train_labels": {"train_labels": labels(29)},
    r"train_images are 1 x 8 x 8 .*, and test_images 3 x 8 x 8": {"test_images": pixels(30, 8, 8, 3)},
    r"train_images are 1 x 8 x 8 .*, and test_images 1 x 9 x 8": {"test_images": pixels(30, 9, 8)},
    "train_images hold no images": {"train_images": pixels(0, 8, 8), "train_labels": labels(0)},
    "no test images": {"test_images": pixels(0, 8, 8), "test_labels": labels(0)},
    "no training images of 1": {"train_labels": labels(30) // 2 * 2},
    "a single class": {"train_labels": labels(30, 1), "test_labels": labels(30, 1)},
    r"8 x 9 pixels; only square .*data\.size=8": {
        "train_images": pixels(30, 9, 8),
        "test_images": pixels(30, 9, 8),
    },
    r"large \(260 pixels.*data\.size=224": {
        "train_images": pixels(30, 260, 260),
        "test_images": pixels(30, 260, 260),
    },
    "train_images cannot be read: Object arrays": {"train_images": np.array([Harmful()] * 30, dtype=object)},
}


@pytest.mark.parametrize("words", ODD)
def test_odd_arrays_are_refused_in_one_line(tmp_path, words):
    name, _ = medmnist(tmp_path / "odd.npz", 8, 8, **ODD[words])
    with pytest.raises(UsageError, match=words) as caught:
        open_data(name, DataSettings(), "cpu")
    assert "\n" not in str(caught.value)
    assert "odd.npz" in str(caught.value)


def hostile(path, kind):
    medmnist(path, 8, 8)
    whole = path.read_bytes()
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harmful()))
    elif kind == "single":
        np.save(path.with_suffix(".npy"), pixels(3, 3))
        path.with_suffix(".npy").rename(path)
    elif kind == "claims":  # a header that asks for a petabyte
        header = io.BytesIO()
        shape = {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)}
        np.lib.format.write_array_header_1_0(header, shape)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("train_images.npy", header.getvalue() + b"short")
    elif kind == "evil header":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("train_images.npy", b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').abort()".ljust(32))
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}.get(kind, b""))
    if kind == "bits":
        path.write_bytes(whole[:600] + bytes(64) + whole[664:])


@pytest.mark.parametrize(
    "kind", ["pickle", "single", "claims", "evil header", "empty", "text", "cut", "bits", "folder", "nothing"]
)
def test_damaged_and_hostile_files_are_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "a.npz"
    if kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        hostile(path, kind)
    with pytest.raises(UsageError, match=r"a\.npz") as caught:
        load_raw(f"npz:{path}")
    assert "\n" not in str(caught.value)


def test_arrays_are_no_stream_and_are_listed(tmp_path):
    name, _ = medmnist(tmp_path / "a.npz", 8, 8)
    with pytest.raises(UsageError, match="comes as arrays"):
        open_data(name, DataSettings(stream=True), "cpu")
    assert "npz:PATH" in [source.name for source in list_sources()]
    assert (
        plan(resolve({"method": "random", "dataset": name, "ipc": 1, "device": "cpu"}))["name"] == f"random/{name}/ipc1"
    )
    with pytest.raises(UsageError, match=r"no such file: '.*nowhere\.npz'"):
        resolve({"method": "random", "dataset": "npz:nowhere.npz"})


# ---------------------------------------------------------------- some classes


def folder(root, names=("ant", "bee", "cat", "dog"), count=10):
    for part in ("train", "test"):
        for c, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (10 * c, i, 7)).save(root / part / name / f"{i}.png")
    return f"folder:{root}"


def shades(data):
    """(label, first channel) of every image, which tells the class it came from."""
    parts = [
        (part.labels.tolist(), part.raw(torch.arange(len(part)))) for part in (data.train, data.holdout, data.test)
    ]
    return sorted({pair for some, images in parts for pair in zip(some, images[:, 0, 0, 0].tolist(), strict=True)})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("classes", "names", "origin"),
    [
        (("cat", "ant"), ("cat", "ant"), [20, 0]),
        ((3, 1), ("dog", "bee"), [30, 10]),
        (("dog", 0, "2"), ("dog", "ant", "cat"), [30, 0, 20]),
        ((), ("ant", "bee", "cat", "dog"), [0, 10, 20, 30]),
    ],
)
def test_classes_are_taken_in_the_order_that_is_given(tmp_path, classes, names, origin, stream):
    name = folder(tmp_path / "set")
    recipe = resolve({"method": "random", "dataset": name, "data": {"classes": list(classes), "stream": stream}})
    data = open_data(name, recipe.data, "cpu")
    assert data.classes == names
    assert shades(data) == sorted(enumerate(origin))
    assert len(data.train) + len(data.holdout) == len(data.test) == 10 * len(names)
    whole = open_data(name, DataSettings(stream=stream), "cpu")
    assert (data.fingerprint == whole.fingerprint) == (not classes)
    assert list(check_data(name, recipe.data)["train"]["per_class"].items()) == [(c, 10) for c in names]


def test_classes_of_arrays(tmp_path):
    name, arrays = medmnist(tmp_path / "a.npz", 8, 8)
    data = open_data(name, DataSettings(classes=("2", "0"), holdout=0), "cpu")
    index = [i for i in range(30) if i % 3 != 1]
    assert data.classes == ("2", "0")
    assert data.train.labels.tolist() == [{2: 0, 0: 1}[i % 3] for i in index]
    assert np.array_equal(data.train.raw(torch.arange(20))[:, 0].numpy(), arrays["train_images"][index])
    mini = open_data("fashion-mini", DataSettings(classes=("Bag", "Ankle boot")), "cpu")
    assert (mini.classes, len(mini.train), len(mini.test)) == (("Bag", "Ankle boot"), 1800, 400)
    assert "a part of fashion-mini: 2 of its 10 classes" in mini.notes


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        ("data.classes=[0,1]", ("0", "1")),
        ("data.classes=[0, 1]", ("0", "1")),
        ("data.classes=0,1", ("0", "1")),
        ("data.classes=Bag,Ankle boot", ("Bag", "Ankle boot")),
        ("data.classes=[Bag, Ankle boot]", ("Bag", "Ankle boot")),
        ('data.classes=["Bag", 1]', ("Bag", "1")),
        ("data.classes=[]", ()),
        ("data.classes=7", ("7",)),
    ],
)
def test_classes_on_the_command_line(words, classes):
    recipe = resolve(parse_overrides(["method=random", words]))
    assert recipe.data.classes == classes
    again = recipe.to_toml()
    assert f"classes = {json.dumps(classes)}\n" in again
    plain = resolve({"method": "random"})
    assert recipe.identity()["data.classes"] == list(classes)
    assert (recipe.hash == plain.hash) == (not classes)


def test_a_depth_on_the_command_line(tmp_path):
    for word, depth16 in (("full", "full"), ("image", "image"), ("[0,4095]", (0, 4095)), ("null", None)):
        recipe = resolve(parse_overrides(["method=random", f"data.depth16={word}"]))
        assert recipe.data.depth16 == depth16
        assert recipe.identity()["data.depth16"] == (list(depth16) if isinstance(depth16, tuple) else depth16)
        path = tmp_path / "recipe.toml"
        path.write_text(recipe.to_toml())
        assert resolve({"recipe": str(path)}).hash == recipe.hash
    for word in ("[4095,0]", "[1,1]", "scale", "[1]", "[1,2,3]"):
        with pytest.raises(UsageError, match=r"data\.depth16"):
            resolve(parse_overrides(["method=random", f"data.depth16={word}"]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("cats", "dog"), r"unknown class in data\.classes: 'cats'; did you mean 'cat' .*, or a label from 0 to 3"),
        (("ant", "4"), "unknown class in data.classes: '4'"),
        (("ant", "-1"), "'-1'"),
        (("cat", "ant", "2"), r"cat more than once, by name and by label"),
        (("ant", "cat", "0"), r"ant more than once, by name and by label"),
        (("cat",), "a single class"),
    ],
)
def test_classes_that_cannot_be(tmp_path, classes, words, stream):
    with pytest.raises(UsageError, match=words) as caught:
        open_data(folder(tmp_path / "set"), DataSettings(classes=classes, stream=stream), "cpu")
    assert "\n" not in str(caught.value)


def test_a_class_is_named_once():
    with pytest.raises(UsageError, match=r"data\.classes names 0 more than once"):
        resolve(parse_overrides(["method=random", "data.classes=[0,1,0]"]))


def test_names_that_are_numbers_are_names(tmp_path):
    name = folder(tmp_path / "set", ("1", "10", "2"))
    assert open_data(name, DataSettings(classes=("2", "1")), "cpu").classes == ("2", "1")
    with pytest.raises(UsageError, match="'0'") as caught:
        open_data(name, DataSettings(classes=("0", "1")), "cpu")
    assert "label" not in str(caught.value)


def test_relabelled_by_hand():
    numbers = torch.tensor([0, 3, 1, 3, 2, 0])
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    found = only_classes(Arrays(images, numbers, images[:2], numbers[:2], ("a", "b", "c", "d")), ("d", "a"))
    assert isinstance(found, Arrays)
    assert found.train_images.flatten().tolist() == [0, 1, 3, 5]
    assert found.train_labels.tolist() == [1, 0, 0, 1]
    assert found.classes == ("d", "a")


def test_a_set_of_some_classes_is_evaluated_on_them(tmp_path):
    import dd

    outcome = dd.run(
        "random",
        dataset=folder(tmp_path / "set"),
        ipc=2,
        device="cpu",
        data={"classes": ["dog", "bee"], "holdout": 0.2},
        student={"width": 4},
        eval={"students": 1, "steps": 2, "epochs": None, "full": False, "probes": 0, "pilots": 1},
    )
    found = load(outcome.folder.set)
    assert found.classes == ("dog", "bee")
    assert dd.evaluate(found).accuracy.n == 1
