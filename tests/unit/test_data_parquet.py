"""Images in parquet files: a user's own, and named sets in the Hugging Face layout."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dd.data.check import check
from dd.data.sources import load_raw
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
    assert sorted(item["file"] for item in check(name)["broken"]) == [
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
