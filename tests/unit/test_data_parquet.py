"""Images in parquet files: a user's own, and named sets in the Hugging Face layout."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dd.data.check import check_data
from dd.data.sources import load_raw
from dd.data.sources.parquet import parquet_at
from dd.errors import UsageError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("DD_DATA", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def png(value, size=4, mode="RGB", format="PNG"):
    pixels = np.full((size, size, 3), value, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


def write(path, values, labels, image="image", label="label", names=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(v, **options), "path": f"{v}.png"} for v in values]
    table = pa.table({image: pa.array(rows), label: labels, "id": pa.array([f"x{v}" for v in values])})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_two_splits_with_names_in_the_metadata(tmp_path):
    write(tmp_path / "p" / "data" / "train-00000-of-00002.parquet", [1, 2], [0, 1], names=["zebra", "ant"])
    write(tmp_path / "p" / "data" / "train-00001-of-00002.parquet", [3], [1], names=["zebra", "ant"])
    write(tmp_path / "p" / "data" / "validation-00000-of-00001.parquet", [8], [0], names=["zebra", "ant"])
    write(tmp_path / "p" / "data" / "test-00000-of-00001.parquet", [9], [1], names=["zebra", "ant"])
    raw = load_raw(f"parquet:{tmp_path / 'p'}")
    assert raw.classes == ("zebra", "ant")  # the data's own order
    assert raw.train_images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert raw.train_labels.tolist() == [0, 1, 1]
    assert (raw.test_images[0, 0, 0, 0], raw.test_labels.tolist()) == (9, [1])
    assert raw.notes == (
        "not used: data/validation-00000-of-00001.parquet, the validation part; no test images of zebra"
    )


def test_splits_told_by_folders(tmp_path):
    write(tmp_path / "default" / "train" / "0000.parquet", [1, 2], [0, 1])
    write(tmp_path / "default" / "valid" / "0000.parquet", [3], [1])
    assert load_raw(f"parquet:{tmp_path}").test_images[0, 0, 0, 0] == 3


def test_a_single_file_gets_a_test_part(tmp_path):
    path = write(tmp_path / "all.parquet", range(20), [0, 1] * 10)
    raw = load_raw(f"parquet:{path}")
    assert torch.bincount(raw.train_labels).tolist() == [8, 8]
    assert torch.bincount(raw.test_labels).tolist() == [2, 2]
    assert "no test part" in raw.notes
    assert raw.classes == ("0", "1")
    for image, label in zip(raw.train_images, raw.train_labels, strict=True):
        assert image[0, 0, 0] % 2 == label


def test_text_labels_are_sorted(tmp_path):
    raw = load_raw(f"parquet:{write(tmp_path / 'x.parquet', [1, 2, 3, 4], ['b', 'a', 'b', 'a'])}")
    assert raw.classes == ("a", "b")
    assert sorted(zip(raw.train_images[:, 0, 0, 0].tolist(), raw.train_labels.tolist(), strict=True))


def test_plain_bytes_and_other_column_names(tmp_path):
    table = pa.table({"photo": pa.array([png(1), png(2), png(3), png(4)]), "kind": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert load_raw(f"parquet:{tmp_path / 'x.parquet'}").classes == ("0", "1")


def test_images_by_path(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    rows = pa.array(
        [{"bytes": None, "path": f"{i}.png"} for i in range(4)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": rows, "label": [0, 0, 1, 1]}), tmp_path / "x.parquet")
    raw = load_raw(f"parquet:{tmp_path / 'x.parquet'}")
    assert sorted(torch.cat([raw.train_images, raw.test_images])[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]


def test_broken_rows_are_named(tmp_path):
    rows = pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate([png(1), b"?", png(2), None])])
    pq.write_table(pa.table({"image": rows, "label": [0, 0, 1, 1]}), tmp_path / "x.parquet")
    name = f"parquet:{tmp_path / 'x.parquet'}"
    with pytest.raises(UsageError, match=r"x\.parquet row 1 \(1\.png\) \(not an image\)"):
        load_raw(name)
    assert sorted(item["file"] for item in check_data(name)["broken"]) == [
        "x.parquet row 1 (1.png)",
        "x.parquet row 3 (3.png)",
    ]


def test_what_cannot_be_used_is_said(tmp_path):
    with pytest.raises(UsageError, match="no parquet file"):
        load_raw(f"parquet:{tmp_path}")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        load_raw(f"parquet:{tmp_path / 'bad.parquet'}")
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "words.parquet")
    with pytest.raises(UsageError, match=r"lacks a column of images .* it has text, label"):
        load_raw(f"parquet:{tmp_path / 'words.parquet'}")
    with pytest.raises(UsageError, match="row 1 has the label -1"):
        load_raw(f"parquet:{write(tmp_path / 'y.parquet', [1, 2], [0, -1])}")
    with pytest.raises(UsageError, match="row 1 has the label 7"):
        load_raw(f"parquet:{write(tmp_path / 'z.parquet', [1, 2], [0, 7], names=['a', 'b'])}")
    for config in ("one", "two"):
        write(tmp_path / "many" / config / "train-0.parquet", [1], [0])
    with pytest.raises(UsageError, match="several data sets"):
        load_raw(f"parquet:{tmp_path / 'many'}")


def cifar(root, **options):
    names = options.pop("names", None)
    write(root / "train-00000-of-00001.parquet", range(20), [*range(10)] * 2, image="img", names=names, **options)
    write(root / "test-00000-of-00001.parquet", range(10), [*range(10)], image="img", names=names, **options)


def test_a_named_set_in_dd_data(tmp_path, monkeypatch):
    cifar(tmp_path / "sets" / "cifar10" / "plain_text", size=32, format="JPEG")
    monkeypatch.setenv("DD_DATA", f"{tmp_path / 'nowhere'}:{tmp_path / 'sets'}")
    raw = load_raw("cifar10")
    assert raw.classes[:2] == ("airplane", "automobile")
    assert raw.train_images.shape == (20, 3, 32, 32)
    assert raw.constants == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert raw.where == str(tmp_path / "sets" / "cifar10")
    assert "decoded from a JPEG copy" in raw.notes
    monkeypatch.setenv("DD_DATA", str(tmp_path / "sets" / "cifar10"))
    assert torch.equal(load_raw("cifar10").train_images, raw.train_images)


def test_lossless_copies_need_no_note(tmp_path, monkeypatch):
    cifar(tmp_path / "cifar10", size=32)
    monkeypatch.setenv("DD_DATA", str(tmp_path))
    assert load_raw("cifar10").notes == ""


def test_a_named_set_in_the_hub_cache(tmp_path):
    base = tmp_path / "me" / ".cache" / "huggingface" / "hub" / "datasets--uoft-cs--cifar10" / "snapshots"
    cifar(base / "0f00" / "plain_text", size=32)
    assert load_raw("cifar10").where == str(base / "0f00")


def test_published_names_win_over_a_copys_spelling(tmp_path, monkeypatch):
    names = ["T - shirt / top", *map(str, range(9))]
    write(tmp_path / "mnist" / "train-0.parquet", range(20), [*range(10)] * 2, names=names, mode="L", size=28)
    write(tmp_path / "mnist" / "test-0.parquet", range(10), [*range(10)], names=names, mode="RGB", size=28)
    monkeypatch.setenv("DD_DATA", str(tmp_path))
    raw = load_raw("mnist")
    assert raw.classes == tuple("0123456789")
    assert raw.train_images.shape == (20, 1, 28, 28)
    assert raw.augment == "color_crop_cutout_scale_rotate"


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    for split in ("train", "test"):
        path = write(tmp_path / "cifar100" / f"{split}-0.parquet", [1, 2], [0, 1], label="fine_label", size=32)
        table = pq.read_table(path)
        pq.write_table(table.append_column("coarse_label", pa.array([5, 6])), path)
    monkeypatch.setenv("DD_DATA", str(tmp_path))
    raw = load_raw("cifar100")
    assert raw.train_labels.tolist() == [0, 1]
    assert "CIFAR-10's constants" in raw.notes
    assert "2 of its 100 classes" in raw.notes


def test_a_part_of_tiny_imagenet_says_so(tmp_path, monkeypatch):
    names = ["n01", "n02"]
    for split in ("train", "valid"):
        write(tmp_path / "tiny-imagenet-20" / "data" / f"{split}-0.parquet", [1, 2], [0, 1], names=names, size=64)
    monkeypatch.setenv("DD_DATA", str(tmp_path))
    raw = load_raw("tiny-imagenet")
    assert raw.classes == ("n01", "n02")
    assert raw.notes == "a part of tiny-imagenet: 2 of its 200 classes"


# ---------------------------------------------------------------- parts

# files; the training part, the parts that may be the test part, and those that no name tells a part of.  Parts are as
# datasets 5.2 finds them, but for the last four: it heeds case and not "=", takes train_val twice and knows no "set"
LAYOUTS = {
    "signs_train signs_test": ("signs_train", [("test", "signs_test")], ""),
    "training testing": ("training", [("test", "testing")], ""),
    "train test validation": ("train", [("test", "test"), ("validation", "validation")], ""),
    "default/partial-train/0 default/partial-test/0": (
        "default/partial-train/0",
        [("test", "default/partial-test/0")],
        "",
    ),
    "default/train/0 default/valid/0": ("default/train/0", [("validation", "default/valid/0")], ""),
    "data/train-00000-of-00001 data/extra-00000-of-00001": (
        "data/train-00000-of-00001",
        [],
        "data/extra-00000-of-00001",
    ),
    "train2017 val2017": ("train2017", [("validation", "val2017")], ""),
    "a_eval_b a_train_b": ("a_train_b", [("test", "a_eval_b")], ""),
    "evaluation train.0": ("train.0", [("test", "evaluation")], ""),
    "contest constrain": ("constrain contest", [], ""),
    "0 1": ("0 1", [], ""),
    "train/part-test-0 test/part-train-0": ("train/part-test-0", [("test", "test/part-train-0")], ""),
    "train/0 test/0 more": ("train/0", [("test", "test/0")], "more"),
    "train test more": ("train", [("test", "test")], "more"),
    "train/a a/test/b": ("train/a", [("test", "a/test/b")], ""),
    "x/train y/test": ("x/train", [("test", "y/test")], ""),
    "train .test": ("train", [], ""),
    "train __MACOSX/test .hidden/test": ("train", [], ""),
    "Train TEST": ("Train", [("test", "TEST")], ""),
    "split=train/0 split=test/0": ("split=train/0", [("test", "split=test/0")], ""),
    "train_val test": ("train_val", [("test", "test")], ""),
    "trainSet testSet": ("trainSet", [("test", "testSet")], ""),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_parts_of_files(tmp_path, case):
    root = tmp_path / "test data"
    for name in case.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.parquet").touch()
    files, (train, tests, unread) = parquet_at(root), LAYOUTS[case]

    def names(paths):
        return " ".join(path.relative_to(root).as_posix().removesuffix(".parquet") for path in paths)

    assert names(files.train) == train
    assert [(split, names(paths)) for split, paths in files.tests] == tests
    assert names(files.unread) == unread


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("test", "holds no training part, only test.parquet"),
        ("a/train b/train", "several data sets"),
        ("a/train a/test b/test", "several data sets"),
        ("pipe", "pipe.parquet is not a regular file"),
        ("dead", "dead.parquet cannot be read"),
        ("", "there is no parquet file"),
    ],
)
def test_files_that_are_refused(tmp_path, files, words):
    for name in files.split():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "pipe":
            os.mkfifo(tmp_path / "p" / "pipe.parquet")
        elif name == "dead":
            (tmp_path / "p" / "dead.parquet").symlink_to("nowhere")
        else:
            (tmp_path / "p" / f"{name}.parquet").touch()
    (tmp_path / "p").mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=words):
        load_raw(f"parquet:{tmp_path / 'p'}")


def test_files_that_tell_no_part_are_named(tmp_path):
    for name in ("train", "test", "more"):
        write(tmp_path / f"{name}.parquet", [1, 2], [0, 1])
    assert load_raw(f"parquet:{tmp_path}").notes == "not used: more.parquet, which no name tells a part of"


@pytest.mark.parametrize("unknown", [[-1, -1], [None, None]])
def test_a_test_part_without_labels_falls_back(tmp_path, unknown):
    unknown = pa.array(unknown, pa.int64())
    write(tmp_path / "train.parquet", range(10), [0, 1] * 5, names=["a", "b"])
    write(tmp_path / "test.parquet", [7, 8], unknown, names=["a", "b"])
    raw = load_raw(f"parquet:{tmp_path}")
    assert (len(raw.train_labels), len(raw.test_labels)) == (8, 2)
    assert "not used: test.parquet, the test part, which has no labels; no test part was found" in raw.notes
    write(tmp_path / "val.parquet", [5, 6], [1, 0], names=["a", "b"])
    raw = load_raw(f"parquet:{tmp_path}")
    assert raw.test_labels.tolist() == [1, 0]
    assert raw.notes == "not used: test.parquet, the test part, which has no labels"


def with_column(path, values, labels, split, name="split"):
    table = pq.read_table(write(path, values, labels))
    pq.write_table(table.append_column(name, pa.array(split)), path)
    return f"parquet:{path}"


def test_a_column_tells_the_parts(tmp_path):
    split = ["train", "test", "validation", "train", "Testing", "other"]
    name = with_column(tmp_path / "x.parquet", range(6), [0, 1, 1, 1, 0, 0], split)
    raw = load_raw(name)
    assert raw.train_images[:, 0, 1, 1].tolist() == [0, 3]
    assert raw.test_images[:, 0, 1, 1].tolist() == [1, 4]
    assert (raw.train_labels.tolist(), raw.test_labels.tolist()) == ([0, 1], [1, 0])
    assert raw.notes == "not used: 1 rows of split validation, 1 rows of split other"
    assert check_data(name)["train"]["total"] == 2


def test_a_column_of_categories_and_a_test_part_without_labels(tmp_path):
    split = pa.array(["train", "train", "train", "test", "val"]).dictionary_encode()
    raw = load_raw(with_column(tmp_path / "x.parquet", range(5), [0, 1, 1, -1, 0], split, "Split"))
    assert (raw.train_labels.tolist(), raw.test_labels.tolist()) == ([0, 1, 1], [0])
    assert "not used: 1 rows of split test" in raw.notes


def test_a_column_that_tells_no_parts(tmp_path):
    raw = load_raw(with_column(tmp_path / "x.parquet", range(4), [0, 1, 0, 1], ["a", "b", "b", "a"]))
    assert "the column split tells no training part (a, b) and is not used; no test part was found" in raw.notes


def test_a_row_without_a_label_is_counted_in_its_file(tmp_path):
    name = with_column(tmp_path / "x.parquet", range(4), [0, 1, 0, -1], ["test", "train", "train", "train"])
    with pytest.raises(UsageError, match="row 3 has the label -1"):
        load_raw(name)


# ---------------------------------------------------------------- labels

LABELS = {
    "categories": (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), [1, 0, 1, 0]),
    "categories of numbers": (pa.array([5, 4, 5, 4]).dictionary_encode(), ("4", "5"), [1, 0, 1, 0]),
    "booleans": (pa.array([True, False, True, False]), ("False", "True"), [1, 0, 1, 0]),
    "from 1": (pa.array([2, 1, 2, 1], pa.uint8()), ("1", "2"), [1, 0, 1, 0]),
    "holes": (pa.array([100, 3, 7, 3, 7, 100]), ("3", "7", "100"), [2, 0, 1, 0, 1, 2]),
    "large numbers": (pa.array([10**12, 3, 10**12, 3]), ("3", str(10**12)), [1, 0, 1, 0]),
    "large texts": (pa.array(["b", "a", "b", "a"], pa.large_string()), ("a", "b"), [1, 0, 1, 0]),
    "numbers as texts": (pa.array(["10", "9", "10", "9"]), ("10", "9"), [0, 1, 0, 1]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_all_kinds(tmp_path, case):
    labels, classes, numbers = LABELS[case]
    for split in ("train", "test"):
        write(tmp_path / "set" / f"{split}.parquet", range(len(labels)), labels)
    name = f"parquet:{tmp_path / 'set'}"
    raw = load_raw(name)
    assert (raw.classes, raw.train_labels.tolist(), raw.test_labels.tolist()) == (classes, numbers, numbers)
    assert check_data(name)["problems"] == []


WRONG = {
    "floats": ("label", pa.array([0.0, 1.0]), r"column label of .* holds numbers with fractions \(double\)"),
    "lists": ("label", pa.array([[0], [1, 2]]), r"column label of .* holds lists \(list<.*int64>\)"),
    "dates": ("label", pa.array([0, 1], pa.timestamp("s")), r"column label of .* holds values of the type timestamp"),
    "paths": ("image", pa.array(["a.png", "b.png"]), r"column image of .* holds text; it must hold encoded images"),
    "pixels": ("image", pa.array([[1, 2], [3, 4]]), r"column image of .* holds lists"),
}


@pytest.mark.parametrize("case", WRONG)
def test_columns_are_refused_for_what_they_hold(tmp_path, case):
    column, values, words = WRONG[case]
    table = pq.read_table(write(tmp_path / "x.parquet", [1, 2], [0, 1]))
    table = table.set_column(table.schema.get_field_index(column), column, values)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=words) as caught:
        load_raw(f"parquet:{tmp_path / 'x.parquet'}")
    assert "lacks" not in str(caught.value)


def test_files_that_do_not_go_together(tmp_path):
    write(tmp_path / "train.parquet", [1, 2], [0, 1])
    write(tmp_path / "test.parquet", [1, 2], ["a", "b"])
    with pytest.raises(UsageError, match="partly text and partly numbers"):
        load_raw(f"parquet:{tmp_path}")
    (tmp_path / "test.parquet").unlink()
    write(tmp_path / "train-2.parquet", [1, 2], [0, 1], image="img")
    with pytest.raises(UsageError, match=r"columns image and label, train-2\.parquet img and label"):
        load_raw(f"parquet:{tmp_path}")
    path = write(tmp_path / "none.parquet", [1], [0])
    pq.write_table(pq.read_table(path)[:0], path)
    with pytest.raises(UsageError, match=r"none\.parquet holds no rows"):
        load_raw(f"parquet:{path}")


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("form", ["pq/str", "./pq/str", "pq/../pq/str", "~/pq/str", "pq/str/", "~/a [1] b", "link"])
def test_paths_of_all_forms(tmp_path, monkeypatch, form):
    (tmp_path / "me").mkdir()
    monkeypatch.chdir(tmp_path / "me")
    write(tmp_path / "me" / "pq" / "str" / "train.parquet", [1, 2], [0, 1])
    write(tmp_path / "me" / "pq" / "str" / "test.parquet", [3, 4], [0, 1])
    (tmp_path / "me" / "a [1] b").symlink_to(tmp_path / "me" / "pq" / "str")
    (tmp_path / "me" / "link").symlink_to("pq/str")
    raw = load_raw(f"parquet:{form}")
    assert raw.train_images[:, 0, 0, 0].tolist() == [1, 2]
    assert raw.test_images[:, 0, 0, 0].tolist() == [3, 4]
    assert check_data(f"parquet:{form}/train.parquet")["train"]["total"]


@pytest.mark.parametrize("value", ["sets", "./sets", "~/sets", "here:sets"])
def test_folders_of_data_sets_of_all_forms(tmp_path, monkeypatch, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cifar(tmp_path / "sets" / "cifar10", size=32)
    monkeypatch.setenv("DD_DATA", value)
    assert len(load_raw("cifar10").train_labels) == 20
    monkeypatch.delenv("DD_DATA")
    (tmp_path / "sets").rename(tmp_path / "data")
    assert load_raw("cifar10").where == str(tmp_path / "data" / "cifar10")
