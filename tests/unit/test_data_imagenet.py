"""ImageNet and its named subsets: which classes in which order, and where they are read from."""

import io
import tomllib
from importlib.resources import files

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from dd.cli.main import run_command_line
from dd.data import DataSettings, list_sources, open_data
from dd.data.sources import load_raw, pixels
from dd.data.sources.catalogue import CATALOGUE
from dd.data.streamed import StreamedSplit
from dd.errors import UsageError

IDS = ImageNetInfo().label_names()
# positions among the sorted ids, in label order, as the paper that introduced the sets wrote them down (MTT's utils.py)
POSITIONS = {
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "imagemeow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "imagesquawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "imagefruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "imageyellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
}
LISTS = tomllib.loads(files("dd.data.sources").joinpath("imagenet_subsets.toml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("DD_DATA", str(tmp_path / "sets"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def picture(value, size=(20, 16)):
    return Image.new("RGB", size, (value,) * 3)


def write_folders(root, ids, train=3, val=1):
    """Images of class number c of ImageNet-1K are of the grey c / 4."""
    for part, count in (("train", train), ("val", val)):
        for name in ids:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(IDS.index(name) // 4).save(root / part / name / f"{name}_{i}.JPEG", "PNG")


def write_parquet(path, labels, names=None, values=None):
    rows = []
    for label in values or labels:
        buffer = io.BytesIO()
        picture(max(label, 0) // 4).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": pa.array(rows), "label": labels})
    if names:
        info = f'{{"info": {{"features": {{"label": {{"names": {list(names)}}}}}}}}}'.replace("'", '"')
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)


@pytest.mark.parametrize("name", POSITIONS)
def test_lists_are_those_of_the_paper(name):
    assert LISTS[name]["classes"].split() == [IDS[i] for i in POSITIONS[name]]


def test_lists_are_complete_and_have_a_source():
    sizes = {name: len(row["classes"].split()) for name, row in LISTS.items()}
    assert sizes == dict.fromkeys(POSITIONS, 10) | {"imagenet-10": 10, "imagenet-100": 100}
    for row in LISTS.values():
        ids = row["classes"].split()
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(IDS)
        assert "github.com/" in row["source"]
    assert LISTS["imagenet-100"]["classes"].split()[:10] == LISTS["imagenet-10"]["classes"].split()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["imagenette", "imagesquawk"])
def test_a_subset_is_read_from_the_folders_of_the_whole(tmp_path, name, stream):
    wanted = [IDS[i] for i in POSITIONS[name]]
    write_folders(tmp_path / "sets" / "imagenet-1k", [*wanted, *IDS[600:603]])
    data = open_data(name, DataSettings(size=8, holdout=0.3, stream=stream), "cpu")
    assert data.classes == tuple(wanted)
    assert data.shape == (3, 8, 8)
    assert isinstance(data.train, StreamedSplit) is stream
    for split, count in ((data.train, 2), (data.holdout, 1), (data.test, 1)):
        assert torch.bincount(split.labels).tolist() == [count] * 10
        greys = split.raw(torch.arange(len(split)))[:, 0, 4, 4]
        assert greys.tolist() == [POSITIONS[name][label] // 4 for label in split.labels.tolist()]
    assert data.preprocess.spec()["mean"] == [pytest.approx(v) for v in (0.485, 0.456, 0.406)]


def test_the_whole_in_folders_says_how_much_of_it_is_there(tmp_path, monkeypatch):
    write_folders(tmp_path / "sets" / "imagenet", IDS[5:2:-1])
    monkeypatch.setenv("DD_DATA", str(tmp_path / "sets" / "imagenet"))  # the folder itself
    data = open_data("imagenet-1k", DataSettings(size=8), "cpu")
    assert data.classes == tuple(IDS[3:6])
    assert "3 of its 1000 classes" in data.notes


@pytest.mark.parametrize("layout", ["hub names", "ids in an order of their own", "ids as labels"])
def test_a_subset_is_read_from_the_hubs_layout(tmp_path, layout):
    wanted, numbers = [IDS[i] for i in POSITIONS["imagemeow"]], [*POSITIONS["imagemeow"], 3, 999]
    base = tmp_path / "sets" / "imagenet-1k" / "data"
    if layout == "ids as labels":
        labels, names = [IDS[i] for i in numbers], None
    elif layout == "hub names":
        labels, names = numbers, [f"name {i}" for i in range(1000)]
    else:
        labels, names = [999 - i for i in numbers], IDS[::-1]
    write_parquet(base / "train-00000-of-00002.parquet", labels, names, numbers)
    write_parquet(base / "train-00001-of-00002.parquet", labels[::-1], names, numbers[::-1])
    write_parquet(base / "validation-00000-of-00001.parquet", labels[3:] + labels[:3], names, numbers[3:] + numbers[:3])
    if layout == "hub names":  # the test part has no labels
        write_parquet(base / "test-00000-of-00001.parquet", [-1, -1], names)
    raw = load_raw("imagemeow")
    assert raw.classes == tuple(wanted)
    assert raw.train_labels.tolist() == [*range(10), *range(9, -1, -1)]
    assert sorted(raw.test_labels.tolist()) == list(range(10))
    for images, labels in ((raw.train_images, raw.train_labels), (raw.test_images, raw.test_labels)):
        assert images[:, 0, 5, 5].tolist() == [POSITIONS["imagemeow"][label] // 4 for label in labels.tolist()]


def test_missing_classes_are_named(tmp_path):
    write_folders(tmp_path / "sets" / "imagenet-1k", IDS[:2], train=1)
    with pytest.raises(UsageError, match="lacks 9 classes of imagenette: n02102040, n02979186") as caught:
        open_data("imagenette", DataSettings(size=8), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["imagenet-1k", "imagenet-21k", "imagenette", "imagenet-100"])
def test_one_line_says_where_to_get_it_and_nothing_is_downloaded(tmp_path, name):
    with pytest.raises(UsageError) as caught:
        open_data(name, DataSettings(size=8), "cpu")
    line = str(caught.value)
    assert "\n" not in line
    whole = "imagenet-21k" if name == "imagenet-21k" else "imagenet-1k"
    for part in (
        name,
        "never downloaded",
        "https://image-net.org",
        f"{whole}/train/WNID/",
        "$DD_DATA",
        "train-*.parquet",
    ):
        assert part in line
    assert not (tmp_path / "home").exists()


def test_sizes_must_be_said(tmp_path):
    write_folders(tmp_path / "sets" / "imagenet-1k", [IDS[i] for i in POSITIONS["imagewoof"]])
    with pytest.raises(UsageError, match=r"imagewoof differ in size; say what they are resized to, such as data\.size"):
        open_data("imagewoof", DataSettings(), "cpu")


def test_the_list_of_sources_opens_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "_open", None)
    root = tmp_path / "sets" / "imagenet-1k"
    write_folders(root, [IDS[0]])
    rows = {row.name: row for row in list_sources()}
    assert list(rows) == [*CATALOGUE, "folder:PATH", "parquet:PATH", "npz:PATH"]
    assert {rows[name].where for name in ("imagenet-1k", *LISTS)} == {str(root)}
    assert {rows[name].bytes for name in ("imagenet-1k", "imagenet-21k", *LISTS)} == {None}
    assert rows["imagenet-21k"].where is None
    assert rows["imagenet-21k"].page
    assert not rows["cifar10"].page


@pytest.mark.parametrize("layout", ["folders", "parquet"])
def test_the_list_of_sources_counts_classes(tmp_path, capsys, monkeypatch, layout):
    monkeypatch.setenv("COLUMNS", "600")
    wanted = LISTS["imagenet-100"]["classes"].split()
    root = tmp_path / "sets" / "imagenet-1k"
    if layout == "folders":
        write_folders(root, wanted[:2], train=1)
    else:
        write_parquet(root / "train-0.parquet", [0, 1], wanted[:2])
        write_parquet(root / "validation-0.parquet", [0, 1], wanted[:2])
    rows = {row.name: row for row in list_sources()}
    assert (rows["imagenet-100"].classes, rows["imagenet-100"].lacks, rows["imagenet-100"].usable) == (100, 98, False)
    assert (rows["imagenet-1k"].lacks, rows["imagenet-1k"].usable) == (998, True)
    assert (rows["fashion-mini"].lacks, rows["fashion-mini"].usable) == (0, True)
    assert run_command_line(["data"]) == 0
    out = capsys.readouterr().out
    assert f"not found; {root} has 2 of its 100 classes" in out
    assert f"{root} (2 of its 1,000 classes)" in out


def test_the_flat_validation_part_of_ilsvrc_is_told(tmp_path):
    root = tmp_path / "sets" / "imagenet-1k"
    write_folders(root, IDS[:2], val=0)
    for name in IDS[:2]:
        (root / "val" / name).rmdir()
    picture(0).save(root / "val" / "ILSVRC2012_val_00000001.JPEG", "PNG")
    with pytest.raises(UsageError, match=r"lie in no class folders, as ILSVRC2012 ships them; sort them into val/WNID"):
        open_data("imagenet-1k", DataSettings(size=8), "cpu")


def test_ten_thousand_classes_are_listed_without_opening_a_file(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(pixels, "_open", opened.append)
    train = tmp_path / "sets" / "imagenet-21k" / "train"
    train.mkdir(parents=True)
    names = [f"n{i:08}" for i in range(10_000)]
    for i, name in enumerate(names):
        (train / name).mkdir()
        (train / name / f"{name}_0.JPEG").touch()
        if i % 100 == 0:
            (train / name / f"{name}_1.JPEG").touch()
    data = open_data("imagenet-21k", DataSettings(size=224, stream=True), "cpu")
    assert data.classes == tuple(names)
    assert (len(data.train), len(data.holdout), len(data.test)) == (10_000, 0, 100)
    assert torch.equal(data.train.labels, torch.arange(10_000))
    assert torch.equal(data.test.labels, torch.arange(0, 10_000, 100))
    assert data.train.of_class(9_999).tolist() == [9_999]
    assert "20% of every class" in data.notes
    assert opened == []
