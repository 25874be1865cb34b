"""Folders, label files, tables and selections from their files to a report; sets that leave and come back."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, RandomSampler
from torchvision.transforms import RandomResizedCrop

import dd
from dd.data import open_data
from dd.data.preprocess import from_state
from dd.errors import UsageError

from .conftest import Place

TINY = ("device=cpu", "compile=false", "eval.students=1", "eval.full=false", "eval.pilots=1")
STUDENT = ("student.depth=1", "student.width=8")
IPC, CLASSES, SIDE = 4, 5, 12


@pytest.fixture(scope="module")
def real(pictures):
    """Images of the data set, class by class, uint8 (n, 3, h, w)."""
    data = open_data(pictures.removeprefix("dataset="), dd.DataSettings(holdout=0), "cpu")
    return torch.cat([data.train.raw(data.train.of_class(c)[:IPC]) for c in range(CLASSES)])


def folder_of(root, images, name=lambda c: f"new{c:03}", file=lambda c, i: f"class{c:03}_id{i:03}"):
    for place, image in enumerate(images):
        c, i = divmod(place, IPC)
        (root / name(c)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(root / name(c) / f"{file(c, i)}.png")
    return root


def relabelled(folder, epochs=3, batch=8):
    """Label files of a teacher that knows the classes, with CutMix."""
    rng, labels = np.random.default_rng(0), torch.arange(CLASSES).repeat_interleave(IPC)
    sampler = RandomSampler(labels, generator=torch.Generator().manual_seed(42))
    for epoch in range(epochs):
        for number, index in enumerate(BatchSampler(sampler, batch, False)):
            crops = [RandomResizedCrop.get_params(torch.empty(1, SIDE, SIDE), (0.08, 1), (3 / 4, 4 / 3)) for _ in index]
            box = [np.int64(v) for v in (2, 3, 2 + rng.integers(1, 8), 3 + rng.integers(1, 8))]
            logits = 6 * torch.nn.functional.one_hot(labels[index], CLASSES) + torch.randn(len(index), CLASSES)
            kept = [torch.tensor(crops) / SIDE, torch.rand(len(index)) < 0.5, torch.randperm(len(index))]
            (folder / f"epoch_{epoch}").mkdir(parents=True, exist_ok=True)
            torch.save([*kept, np.float64(0.5), box, logits.half()], folder / f"epoch_{epoch}" / f"batch_{number}.tar")
    return folder


def test_a_folder_becomes_a_set_and_is_scored(place, pictures, real):
    folder_of(place.path / "syn", real)
    done = place.dd("import", "syn", pictures, "out=syn.safetensors", "--json")
    assert done.code == 0, done.err
    (said,) = done.report["sets"]
    assert (said["format"], said["ipc"], said["protocol"], said["label_kind"]) == ("sre2l", IPC, "sre2l", "hard")
    made = dd.load(place.path / "syn.safetensors")
    assert torch.equal(made.images, real)
    assert made.labels.tolist() == [c for c in range(CLASSES) for _ in range(IPC)]
    scored = place.dd("eval", "syn.safetensors", *TINY, *STUDENT, "eval.protocol=smoke", "--json")
    assert scored.code == 0, scored.err
    assert scored.report["accuracy"]["mean"] > 30  # five classes


def test_label_files_become_a_store_that_students_replay(place, pictures, real):
    folder_of(place.path / "syn" / "images", real)
    relabelled(place.path / "syn" / "FKD_cutmix_fp16")
    done = place.dd("import", "syn", pictures, "out=made/")
    assert done.code == 0, done.err
    assert "% of the labels agree with the classes of their images" in done.out
    assert "two permutations an epoch" in done.out
    (file,) = (place.path / "made").glob("*.safetensors")
    made = dd.load(file)
    assert (made.label_kind, made.views.spec.epochs, made.views.spec.batch) == ("views", 3, 8)
    assert (made.protocol["epochs"], made.protocol["batch"], made.protocol["views"]["mix"]) == (3, 8, "cutmix")
    scored = place.dd("eval", str(file), *TINY, *STUDENT, "--json")
    assert scored.code == 0, scored.err
    assert scored.report["labels"]["stored_epochs"] == 3
    before = place.files()
    again = place.dd("import", "syn", pictures, "out=made/")  # the same command once more changes nothing
    assert (again.code, place.files()) == (0, before)
    relabelled(place.path / "syn" / "FKD_cutmix_fp16", batch=7)
    assert place.dd("import", "syn", pictures, "out=other/").code == 0
    folder_of(place.path / "syn" / "images", real.flip(0))  # images of other classes than were labelled
    wrong = place.dd("import", "syn", pictures, "class_order=data", "out=wrong/")
    assert wrong.code == 0  # a teacher's labels that agree with the folders


def test_label_files_of_other_images_write_nothing(place, pictures, real):
    folder_of(place.path / "images", real, name=lambda c: f"new{(c * 2) % CLASSES:03}", file=lambda c, i: f"{i}")
    relabelled(place.path / "FKD")
    labels = sorted((place.path / "FKD").rglob("*.tar"))
    for one in labels:  # a teacher of something else
        kept = torch.load(one, weights_only=False)
        torch.save([*kept[:5], torch.randn_like(kept[5])], one)
    before = place.files()
    done = place.dd("import", "images", "FKD", pictures, "class_order=0,2,4,1,3", "out=made/")
    assert done.code == 2
    assert "these labels are of other images" in done.err
    assert place.files() - before == {file for file in place.files() if file.startswith("home/")}


def test_an_unknown_order_of_classes_is_found_out(place, pictures, real):
    """Folders whose numbers are not the labels of the data set: refused with the order that fits."""
    swapped = [2, 0, 3, 4, 1]
    folder_of(
        place.path / "syn", real, name=lambda c: f"{swapped[c]:05}", file=lambda c, i: f"class{swapped[c]:05}_id{i:05}"
    )
    done = place.dd("import", "syn", pictures, "out=made/")
    assert done.code == 2
    assert "class_order=1,4,0,2,3" in done.err
    done = place.dd("import", "syn", pictures, "class_order=1,4,0,2,3", "out=made/")
    assert done.code == 0, done.err
    (file,) = (place.path / "made").glob("*.safetensors")
    made = dd.load(file)
    for c in range(CLASSES):
        assert torch.equal(made.images[made.labels == c], real[IPC * c : IPC * c + IPC])


def test_a_table_and_its_teacher(place, pictures, real):
    """As rethinkdc's: scored by classes, or with the labels of a teacher that is named."""
    out = folder_of(place.path / "png", real)
    cells = [{"bytes": file.read_bytes(), "path": None} for file in sorted(out.rglob("*.png"))]
    labels = [c for c in range(CLASSES) for _ in range(IPC)]
    table = pa.table({"image": cells, "class_id": pa.array(labels, pa.int32())})
    pq.write_table(table, place.path / "train-00000-of-00001.parquet")
    done = place.dd("import", "train-00000-of-00001.parquet", pictures, "out=hard.safetensors", "--json")
    assert done.code == 0, done.err
    assert done.report["sets"][0]["protocol"] == "rethinkdc-hard"
    assert torch.equal(dd.load(place.path / "hard.safetensors").images, real)
    words = (
        "import",
        "train-00000-of-00001.parquet",
        pictures,
        "teachers=torchvision:resnet18",
        "out=soft.safetensors",
    )
    assert place.dd(*words).code == 0
    made = dd.load(place.path / "soft.safetensors")
    assert made.protocol["protocol"] == "rethinkdc-soft"
    assert made.provenance["labeller"]["teachers"] == ["torchvision:resnet18"]


def test_a_selection_is_scored(place, pictures):
    index = np.array([0, 3, 41, 44, 81, 85, 121, 125, 161, 199])
    np.save(place.path / "select_indices_X_0.05.npy", index)
    done = place.dd("import", "select_indices_X_0.05.npy", pictures, "out=dq.safetensors")
    assert done.code == 0, done.err
    made = dd.load(place.path / "dq.safetensors")
    assert made.images.tolist() == index.tolist()
    assert made.labels.tolist() == [place // 40 for place in index.tolist()]
    scored = place.dd("eval", "dq.safetensors", *TINY, *STUDENT, "eval.protocol=smoke", "--json")
    assert scored.code == 0, scored.err
    np.save(place.path / "far.npy", index + 1)
    assert "do not fit the 200 training images" in place.dd("import", "far.npy", pictures).err
    np.save(place.path / "rounds.npy", np.stack([index, index[::-1]]))
    assert place.dd("import", "rounds.npy", pictures, "out=rs2.safetensors").code == 0
    assert dd.load(place.path / "rs2.safetensors").image_kind == "schedule"


@pytest.fixture(scope="module")
def made(tmp_path_factory, pictures):
    """A set of a run, three images per class."""
    place = Place(tmp_path_factory.mktemp("made"))
    done = place.dd(
        "run",
        "method=random",
        pictures,
        *TINY,
        *STUDENT,
        "ipc=3",
        "eval.protocol=smoke",
        "eval.steps=3",
        "eval.probes=0",
    )
    assert done.code == 0, done.err
    return place.folder()


@pytest.mark.parametrize("form", ["folder", "parquet", "pt", "npz"])
def test_a_set_that_leaves_comes_back(place, pictures, made, form):
    """To the pixels of before, rounded where the form is of bytes."""
    file = "left" if form == "folder" else f"left.{form}"
    left = place.dd("export", str(made), f"form={form}", f"out={file}")
    assert left.code == 0, left.err
    back = place.dd("import", file, pictures, "out=back.safetensors")
    assert back.code == 0, back.err
    before, after = dd.load(made), dd.load(place.path / "back.safetensors")
    order, theirs = before.labels.argsort(stable=True), after.labels.argsort(stable=True)
    assert torch.equal(before.labels[order], after.labels[theirs])
    space = from_state(before.space)
    ours, again = (space.invert(one.pixels(space)[at]) for one, at in ((before, order), (after, theirs)))
    assert torch.allclose(ours, again, atol=0.51 / 255 if form in ("folder", "parquet") else 1e-5)


def test_names_of_classes_in_another_spelling(place, pictures, real):
    names = ["Class 0", "CLASS_1", "class2", "class.3", "class-4"]
    folder_of(place.path / "syn", real, name=lambda c: names[c])
    (found,) = dd.import_sets(place.path / "syn", dataset=pictures.removeprefix("dataset="))
    assert found.labels[found.images.flatten(1).sum(1).argmax()] == real.flatten(1).sum(1).argmax() // IPC
    folder_of(place.path / "other", real, name=lambda c: "abcde"[c] * 3)  # names of something else, in the same order
    (found,) = dd.import_sets(place.path / "other", dataset=pictures.removeprefix("dataset="))
    assert any("they are taken in its order" in line for line in found.provenance["imported"]["assumed"])
    folder_of(place.path / "half", real, name=lambda c: f"class-{c}" if c else "thing")
    with pytest.raises(UsageError, match="thing"):
        dd.import_sets(place.path / "half", dataset=pictures.removeprefix("dataset="))


def test_labels_of_views_from_python(place, pictures, real):
    folder_of(place.path / "syn" / "images", real)
    relabelled(place.path / "syn" / "FKD", epochs=2)
    with pytest.raises(UsageError, match="beside=FOLDER"):
        dd.import_sets(place.path / "syn", dataset=pictures.removeprefix("dataset="))
    (found,) = dd.import_sets(place.path / "syn", dataset=pictures.removeprefix("dataset="), beside=place.path / "made")
    assert found.label_store().path == place.path / "made" / "labels"
    found.save(place.path / "made" / "set.safetensors")
    assert torch.equal(dd.load(place.path / "made" / "set.safetensors").targets().argmax(1), found.labels)
