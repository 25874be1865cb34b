"""Sets in other programs' forms, read back by those programs, and what each form says that it loses."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

import dd
from dd.cli.main import run_command_line
from dd.data import DataSettings, open_data
from dd.errors import RunError, UsageError
from dd.exchange.contents import Contents
from dd.exchange.export import MARK, class_folders_of, export_set
from dd.io import atomic_folder
from dd.sets import DistilledSet
from dd.sets.tiles import decode

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.5)
SPACE = {"kind": "standard", "mean": list(MEAN), "std": list(STD)}
CLASSES = ("zebra", "ant/bee", "Cat", "cat", "con")


def normalised(pixels):
    return (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def a_set(**changes) -> DistilledSet:
    """Ten images in no order of classes, with values below black and above white."""
    pixels = torch.linspace(-0.1, 1.1, 10 * 3 * 6 * 6).reshape(10, 3, 6, 6)
    fields = {
        "images": normalised(pixels),
        "labels": torch.tensor([4, 3, 2, 1, 0, 0, 1, 2, 3, 4]),
        "classes": CLASSES,
        "source": "toy",
        "space": SPACE,
    }
    return DistilledSet(**{**fields, **changes})


def shown(distilled):
    """The pixels as bytes, by definition."""
    pixels = distilled.images * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    return (pixels * 255).round().clamp(0, 255).byte()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("classes", "plain"),
    [
        (("ant", "bee", "cat"), True),
        (("n01440764", "n01443537"), True),
        (("cat", "bee"), False),
        (tuple(map(str, range(11))), False),
        (("Zoo", "ant"), False),
        (("a", "b/c"), False),
        (("aux", "b"), False),
        (("..", "b"), False),
        ((".a", "b"), False),
        (("a", "A"), False),
        (("", "b"), False),
        (tuple(f"é{c}" for c in "abc"), False),
        (tuple(f"class {c:04}" for c in range(1001)), True),
        (tuple(f"class{c}" for c in range(1001)), False),
    ],
)
def test_names_of_folders_sort_as_labels_do(classes, plain):
    names = class_folders_of(classes)
    assert sorted(names) == list(names)
    assert sorted(names, key=str.lower) == list(names)
    assert len({name.lower() for name in names}) == len(classes)
    assert (names == classes) is plain
    assert not any(name.startswith(".") or "/" in name for name in names)


def test_a_folder_is_read_by_torchvision_with_the_same_labels(tmp_path):
    distilled = a_set()
    done = dd.export(distilled, "folder", tmp_path / "out")
    found = ImageFolder(str(done.path))
    assert len(found) == done.images == 10
    for place, (file, label) in enumerate(sorted(found.samples, key=lambda sample: sample[0].rsplit("/", 1)[1])):
        assert label == int(distilled.labels[place])
        assert np.array_equal(np.asarray(Image.open(file)), shown(distilled)[place].permute(1, 2, 0).numpy())
    facts = json.loads((done.path / MARK).read_text())
    assert facts["classes"] == list(CLASSES)
    assert facts["space"] == SPACE
    assert facts["folders"] == found.classes


def test_parquet_is_what_the_hub_shows(tmp_path):
    distilled = a_set(
        label_kind="logits", labels=torch.randn(10, 5, generator=torch.Generator().manual_seed(0)), lr=0.02
    )
    done = dd.export(distilled, "parquet", tmp_path / "set.parquet")
    table = pq.read_table(done.path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": list(CLASSES)}
    assert torch.equal(torch.tensor(table["soft_label"].to_pylist()), distilled.labels)
    assert table["label"].to_pylist() == distilled.labels.argmax(1).tolist()
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_parquet(str(done.path), cache_dir=str(tmp_path / "cache"))
    assert found.features["label"].names == list(CLASSES)
    for place, row in enumerate(found):
        assert np.array_equal(np.asarray(row["image"]), shown(distilled)[place].permute(1, 2, 0).numpy())
        assert row["soft_label"] == pytest.approx(distilled.labels[place].tolist())


def test_parquet_is_a_data_source_of_ours_too(tmp_path):
    distilled = a_set(classes=tuple("abcde"))
    done = dd.export(replace(distilled, labels=distilled.labels.sort().values), "parquet", tmp_path / "set.parquet")
    data = open_data(f"parquet:{done.path}", DataSettings(holdout=0), "cpu")
    assert data.classes == tuple("abcde")
    assert len(data.train) + len(data.test) == 10


def test_pt_is_what_the_loaders_of_dc_read(tmp_path):
    """As their `main.py` and DC-BENCH's evaluator take it: `data[-1]`, images and int64 labels."""
    distilled = a_set()
    done = dd.export(distilled, "pt", tmp_path / "set.pt")
    read = torch.load(done.path, weights_only=True)
    assert list(read) == ["data", "accs_all_exps"]
    images, labels = read["data"][-1]
    assert torch.equal(images, distilled.images)
    assert torch.equal(labels, distilled.labels)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_bytes_are_normalised_in_pt_and_kept_elsewhere(tmp_path):
    pixels = torch.randint(256, (10, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    distilled = a_set(images=pixels)
    images, _ = torch.load(dd.export(distilled, "pt", tmp_path / "set.pt").path, weights_only=True)["data"][0]
    assert torch.allclose(images, normalised(pixels / 255), atol=1e-5)
    done = dd.export(distilled, "npz", tmp_path / "set.npz")
    with np.load(done.path) as arrays:
        assert np.array_equal(arrays["images"], pixels.permute(0, 2, 3, 1).numpy())
    assert done.lost == ()
    assert dd.export(distilled, "folder", tmp_path / "folder").lost == ()


def test_npz_needs_no_pickle(tmp_path):
    soft = torch.rand(10, 5, generator=torch.Generator().manual_seed(0))
    distilled = a_set(label_kind="probabilities", labels=soft, augment="flip")
    with np.load(dd.export(distilled, "npz", tmp_path / "set.npz").path, allow_pickle=False) as arrays:
        images, facts = arrays["images"], json.loads(str(arrays["facts"]))
        assert images.shape == (10, 6, 6, 3)
        assert np.allclose(images[0, 0, 0, 0], -0.1, atol=1e-6)  # not clamped
        assert arrays["classes"].tolist() == list(CLASSES)
        assert np.array_equal(arrays["soft_label"], soft.numpy())
        assert np.array_equal(arrays["labels"], soft.argmax(1).numpy())
    assert (facts["label_kind"], facts["augment"], facts["space"]) == ("probabilities", "flip", SPACE)


def test_tiles_leave_decoded_or_as_they_are(tmp_path):
    """A label per decoded image follows its tile."""
    per_tile = torch.arange(40) % 5  # tile t of image i is labelled (10 t + i) % 5 = i % 5
    distilled = a_set(image_kind="tiles", decode_factor=2, labels=per_tile)
    with np.load(dd.export(distilled, "npz", tmp_path / "a.npz").path) as arrays:
        images, labels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2), arrays["labels"]
    pixels = distilled.images * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    for i in range(10):
        assert torch.allclose(images[4 * i : 4 * i + 4], decode(pixels[i : i + 1], 2), atol=1e-6)
        assert labels[4 * i : 4 * i + 4].tolist() == [i % 5] * 4
    done = dd.export(distilled, "folder", tmp_path / "kept", tiles="kept")
    assert done.images == 10
    assert "the images are mosaics of 2 x 2 tiles, which a trainer has to decode" in done.lost
    assert json.loads((done.path / MARK).read_text())["decode_factor"] == 2


def test_what_is_lost_is_said(tmp_path):
    soft = torch.rand(10, 5, generator=torch.Generator().manual_seed(0))
    distilled = a_set(label_kind="probabilities", labels=soft, lr=0.0213, protocol={"protocol": "mtt"})
    lost = dd.export(distilled, "folder", tmp_path / "folder").lost
    # by hand: linspace(-.1, 1.1, 1080) has 89 values below -.5/255 and as many above 1 + .5/255
    step = 1.2 / 1079
    outside = 2 * sum(-0.1 + i * step < -0.5 / 255 for i in range(1080)) / 1080
    assert lost[0] == "values are rounded to 8 bits per channel"
    assert lost[1].startswith(f"{outside:.2%} of the values are darker")
    assert lost[2] == "soft labels (probabilities) become the most probable class"
    assert lost[-1] == "how its students are trained: protocol mtt, learned learning rate 0.0213"
    parquet = dd.export(distilled, "parquet", tmp_path / "set.parquet").lost
    assert "soft_label" in parquet[2]
    few = a_set(labels=torch.tensor([0] * 10))
    assert "4 of 5 classes have no image (ant/bee, Cat, cat, …)" in dd.export(few, "npz", tmp_path / "few.npz").lost


def test_values_that_are_bytes_lose_nothing(tmp_path):
    pixels = torch.randint(256, (10, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    distilled = a_set(images=normalised(pixels / 255))
    done = dd.export(distilled, "folder", tmp_path / "folder")
    assert done.lost == ()
    assert torch.equal(shown(distilled), pixels)


def test_indices_become_copies_of_their_images(tmp_path, blobs):
    data = blobs(classes=4, size=8)
    index = torch.tensor([5, 0, 17])
    distilled = DistilledSet(
        index, data.train.labels[index], data.classes, data.name, space=data.preprocess.spec(), image_kind="indices"
    )
    done = export_set(Contents(distilled, data), tmp_path / "set.npz", "npz")
    with np.load(done.path) as arrays:
        assert np.array_equal(arrays["images"][..., 0], data.train.raw(index)[:, 0].numpy())
    assert "copied from blobs" in done.lost[0]
    with pytest.raises(UsageError, match="beside its data set"):
        Contents(distilled)
    schedule = replace(distilled, images=index[None], labels=distilled.labels[None], image_kind="schedule")
    with pytest.raises(UsageError, match="other images in every epoch"):
        Contents(schedule, data)


def test_whitened_pixels_are_brought_back(tmp_path):
    """Written for loaders that normalise: pixels before whitening, with the data set's mean and deviation."""
    data = open_data("fashion-mini", DataSettings(preprocess="zca", holdout=0.9), "cpu")
    index = torch.arange(10)
    images, labels = data.train.images(index), data.train.labels[index]
    provenance = {"data": {"preprocess": "zca", "holdout": 0.9}}
    distilled = DistilledSet(
        images, labels, data.classes, data.name, space=data.preprocess.spec(), provenance=provenance
    )
    done = dd.export(distilled, "pt", tmp_path / "set.pt")
    written, _ = torch.load(done.path, weights_only=True)["data"][0]
    assert torch.allclose(written, (data.train.raw(index) / 255 - 0.2861) / 0.353, atol=1e-3)
    assert "whitened by ZCA" in done.lost[0]


def test_labels_of_views_stay_behind_and_are_told(tmp_path, blobs, make_task):
    from dd.labels import LabelSettings, LabelStore
    from dd.labels.spec import LabelSpec
    from dd.views import ViewPolicy

    labels = torch.tensor([0, 1, 2, 3])
    spec = LabelSpec(4, 4, 2, 4, (1, 8, 8), ViewPolicy(flip=True), LabelSettings())
    store = LabelStore(tmp_path, spec, labels)
    images = torch.rand(4, 1, 8, 8)
    for epoch in range(2):
        store.make(epoch, lambda index: images[index], lambda views, view, index: torch.eye(4)[labels[index]] * 5)
    space = {"kind": "standard", "mean": [0.5], "std": [0.5]}
    distilled = DistilledSet(
        images, labels, tuple("abcd"), "toy", space=space, label_kind="views", views=store.stated(), path=tmp_path / "s"
    )
    done = dd.export(distilled, "folder", tmp_path / "folder")
    assert any("labels of its views (2 epochs, " in line for line in done.lost)
    own = dd.export(distilled, "safetensors", tmp_path / "else" / "set.safetensors")
    assert own.lost == ()
    assert dd.load(own.path).label_store().digest() == store.digest()


def test_representations_name_no_class(tmp_path):
    distilled = a_set(label_kind="representations", labels=torch.rand(10, 7))
    for form in ("folder", "parquet", "pt", "npz"):
        with pytest.raises(UsageError, match="do not name a class"):
            dd.export(distilled, form, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_nothing_is_overwritten_silently(tmp_path):
    distilled = a_set()
    for form in ("folder", "parquet", "pt", "npz", "safetensors"):
        path = dd.export(distilled, form).path
        assert path.parent == tmp_path
        with pytest.raises(UsageError, match="force=true"):
            dd.export(distilled, form)
        assert dd.export(distilled, form, force=True).path == path
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    for form in ("folder", "npz"):
        with pytest.raises(UsageError, match="choose another name"):
            dd.export(distilled, form, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    import dd.exchange.export as module

    distilled, written = a_set(), dd.export(a_set(), "folder", tmp_path / "out")
    before = sorted(path.name for path in written.path.rglob("*"))

    def full(pixels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_png", full)
    for name in ("out", "new"):
        with pytest.raises(RunError, match="no space left"):
            dd.export(distilled, "folder", tmp_path / name, force=True)
    assert sorted(path.name for path in written.path.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    for number in range(2):
        with atomic_folder(tmp_path / "a") as folder:
            (folder / f"{number}").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["1"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a") as folder:
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_verb(tmp_path, capsys):
    distilled = a_set(lr=0.5)
    distilled.save(tmp_path / "set.safetensors")
    assert run_command_line(["export", "set.safetensors", "form=folder", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["form"], report["images"], report["path"]) == ("folder", 10, str(tmp_path / "toy-ipc2"))
    assert err.splitlines() == [f"lost: {line}" for line in report["lost"]]
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "toy-ipc2").rglob("*") if path.is_file())
    for words, said in (
        (["export", "set.safetensors"], "say the form"),
        (["export", "set.safetensors", "form=png"], "unknown form 'png'"),
        (["export", "set.safetensors", "form=folder", "tile=kept"], "did you mean 'tiles'"),
        (["export", "set.safetensors", "form=npz", "tiles=cut"], "known: decoded, kept"),
        (["export", "set.safetensors", "form=npz", "force=7"], "true or false"),
        (["export", "form=npz"], "name the set first"),
        (["export", "gone.safetensors", "form=npz"], "no set at"),
    ):
        assert run_command_line(words) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1


def test_a_path_in_somebody_elses_set_is_not_read(tmp_path):
    images = torch.arange(5)
    distilled = a_set(images=images, labels=images, image_kind="indices", source="folder:/etc")
    distilled.save(tmp_path / "set.safetensors")
    with pytest.raises(UsageError, match="dataset=folder:/etc"):
        dd.export(tmp_path / "set.safetensors", "folder")


def test_the_commands_of_the_page(tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs" / "pages" / "howto" / "export.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    a_set().save(tmp_path / "set.safetensors")
    for line in block.splitlines():
        assert run_command_line(line.split()[1:]) == 0
    assert {"toy-ipc2", "train.parquet", "res_DM.pt"} <= {path.name for path in tmp_path.iterdir()}
