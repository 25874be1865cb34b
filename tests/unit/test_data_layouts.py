"""How a user's folders are laid out: parts, classes, junk, links, and what is refused."""

import io
import os
import re
import socket

import pytest
from PIL import Image

from dd.data import DataSettings, open_data
from dd.data.check import check_data
from dd.data.sources import load_raw
from dd.data.sources.folder import read_folder
from dd.data.sources.split_names import split_of, strict
from dd.errors import UsageError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))


def picture(form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 99, 200)).save(file, form)
    return file.getvalue()


PNG = picture()


def plant(root, *names):
    """Files below `root`: images, or texts where the suffix is that of a text; a name that ends in / is a folder."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"text" if path.suffix in (".txt", ".csv", ".svg") else PNG)
    return root


def each(*folders, names=("1.png", "2.png")):
    return [f"{folder}/{name}" for folder in folders for name in names]


def parts(root):
    """Images by class of the training and of the test part, and notes; a test part that was drawn is None."""
    listing = read_folder(root).listing()
    found = []
    for part in (listing.train, listing.test):
        by_class = {}
        for i, label in enumerate(part.labels.tolist()):
            by_class.setdefault(listing.classes[label], []).append(part.items.name(i))
        found.append(by_class)
    drawn = any("no test part was found" in note for note in listing.notes)
    if drawn:
        found[0] = {name: sorted(found[0][name] + found[1].get(name, [])) for name in found[0]}
    return listing.classes, found[0], None if drawn else found[1], listing.notes


# ---------------------------------------------------------------- what names stand for

NAMES = {
    "train": [
        "train",
        "Train",
        "TRAINING",
        "train2017",
        "my_train",
        "partial-train",
        "train_val",
        "trainSet",
        "1 train",
    ],
    "validation": ["val", "valid", "dev", "Validation", "val_2", "my.dev.1", "valset"],
    "test": ["test", "Testing", "eval", "evaluation", "seg_test", "test-00000-of-00001", "split=test"],
    None: [
        "contest",
        "constrain",
        "trains",
        "testimony",
        "evaluations",
        "device",
        "invalid",
        "cat",
        "",
        "train-test",
        "0",
    ],
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_the_split_of_a_name(split, name):
    assert split_of(name) == split
    assert strict(name) in (split, None)


def test_names_that_say_nothing_else():
    assert [strict(name) for name in ("Train", "val2017", "split=test")] == ["train", "validation", "test"]
    assert [strict(name) for name in ("test_tube", "my-train", "cat")] == [None] * 3


# ---------------------------------------------------------------- layouts that are read

# files; the folders of each class in the training part and in the test part (None: drawn); what notes say
BOTH = ("a", "b")
READ = {
    "a brain-MRI set": (
        each("Training/glioma", "Training/no_tumor", "Testing/glioma", "Testing/no_tumor"),
        {"glioma": ["Training/glioma"], "no_tumor": ["Training/no_tumor"]},
        {"glioma": ["Testing/glioma"], "no_tumor": ["Testing/no_tumor"]},
        [],
    ),
    "train and testing": (
        each("train/a", "train/b", "testing/a", "testing/b"),
        {"a": ["train/a"], "b": ["train/b"]},
        {"a": ["testing/a"], "b": ["testing/b"]},
        [],
    ),
    "compound names": (
        each(
            "seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a", "seg_test/seg_test/b", "seg_pred"
        ),
        {"a": ["seg_train/seg_train/a"], "b": ["seg_train/seg_train/b"]},
        {"a": ["seg_test/seg_test/a"], "b": ["seg_test/seg_test/b"]},
        ["not used: seg_pred"],
    ),
    "upper case": (
        each("TRAIN/a", "TRAIN/b", "TEST/a", "TEST/b"),
        {"a": ["TRAIN/a"], "b": ["TRAIN/b"]},
        {"a": ["TEST/a"], "b": ["TEST/b"]},
        [],
    ),
    "a validation part that is not used": (
        each("train/a", "train/b", "valid/a", "valid/b", "test/a", "test/b"),
        {"a": ["train/a"], "b": ["train/b"]},
        {"a": ["test/a"], "b": ["test/b"]},
        ["not used: valid, the validation part"],
    ),
    "a validation part alone": (
        each("train/a", "train/b", "dev/a", "dev/b"),
        {"a": ["train/a"], "b": ["train/b"]},
        {"a": ["dev/a"], "b": ["dev/b"]},
        [],
    ),
    "a flat test part": (
        each("train/a", "train/b", "val/a", "val/b", "test"),
        {"a": ["train/a"], "b": ["train/b"]},
        {"a": ["val/a"], "b": ["val/b"]},
        ["not used: test, 2 images without class folders and so without labels"],
    ),
    "a test part in a folder that is no class": (
        each("train/a", "train/b", "test/unknown"),
        {"a": ["train/a"], "b": ["train/b"]},
        None,
        ["not used: test, 2 images", "no test part was found"],
    ),
    "an empty test part": (
        [*each("train/a", "train/b"), "test/a/"],
        {"a": ["train/a"], "b": ["train/b"]},
        None,
        ["not used: test (no images)", "no test part was found"],
    ),
    "two training parts": (
        each("train_1/a", "train_1/b", "train_2/b", "test/a", "test/b"),
        {"a": ["train_1/a"], "b": ["train_1/b", "train_2/b"]},
        {"a": ["test/a"], "b": ["test/b"]},
        [],
    ),
    "a wrapper": (
        each("flowers/rose", "flowers/tulip"),
        {"rose": ["flowers/rose"], "tulip": ["flowers/tulip"]},
        None,
        ["read from the folder flowers"],
    ),
    "wrappers around parts": (
        each("archive/set/train/a", "archive/set/train/b", "archive/set/test/a", "archive/set/test/b"),
        {"a": ["archive/set/train/a"], "b": ["archive/set/train/b"]},
        {"a": ["archive/set/test/a"], "b": ["archive/set/test/b"]},
        ["read from the folder archive/set"],
    ),
    "a wrapper within parts": (
        each("train/images/a", "train/images/b", "test/images/a", "test/images/b"),
        {"a": ["train/images/a"], "b": ["train/images/b"]},
        {"a": ["test/images/a"], "b": ["test/images/b"]},
        [],
    ),
    "images beside annotations": (
        [*each("images/a", "images/b"), "annotations/1.txt", "classes.txt"],
        {"a": ["images/a"], "b": ["images/b"]},
        None,
        ["read from the folder images"],
    ),
    "parts within classes": (
        each("a/train", "b/train", "a/test", "b/test", "b/val"),
        {"a": ["a/train"], "b": ["b/train"]},
        {"a": ["a/test"], "b": ["b/test"]},
        ["not used: b/val"],
    ),
    "a vehicle": (each("plane", "train"), {"plane": ["plane"], "train": ["train"]}, None, []),
    "classes that hold a keyword": (
        each("test_tube", "flask", "train station"),
        {"flask": ["flask"], "test_tube": ["test_tube"], "train station": ["train station"]},
        None,
        [],
    ),
    "classes deep in folders": (
        each("train/a/x", "train/a/y/z", "train/b", "test/a", "test/b/q"),
        {"a": ["train/a/x", "train/a/y/z"], "b": ["train/b"]},
        {"a": ["test/a"], "b": ["test/b/q"]},
        [],
    ),
    "hidden and empty things": (
        [
            *each("a", "b", ".ipynb_checkpoints", "__MACOSX/a", "a/.cache"),
            "a/._1.png",
            "b/._2.png",
            "a/.DS_Store",
            "c/",
            "d/e/",
        ],
        {"a": ["a"], "b": ["b"]},
        None,
        ["without images, so no class: c, d", "hidden and not read: 2 of the names of images"],
    ),
    "other files": (
        [*each("a", "b"), "a/1.svg", "a/2.SVG", "b/3.heic", "a/notes.txt", "README", "0001"],
        {"a": ["a"], "b": ["b"]},
        None,
        ["4 files not read: 2 .svg, 1 without a suffix, 1 .heic"],
    ),
    "a folder of other files": (
        [*each("a", "b"), *(f"drawings/{i}.svg" for i in range(4))],
        {"a": ["a"], "b": ["b"]},
        None,
        ["4 files not read: .svg", "no class: drawings"],
    ),
    "images beside classes": (
        [*each("a", "b"), "overview.png"],
        {"a": ["a"], "b": ["b"]},
        None,
        ["not read: 1 images beside the class folders"],
    ),
    "names of all kinds": (
        each("ärger", "[b]*", "c d", "n'e", "日本"),
        {name: [name] for name in ("[b]*", "c d", "n'e", "ärger", "日本")},
        None,
        [],
    ),
    "one image in a class": ([*each("a"), "b/1.png"], {"a": ["a"], "b": ["b"]}, None, []),
}


@pytest.mark.parametrize("case", READ)
def test_layouts_that_are_read(tmp_path, case):
    files, train, test, said = READ[case]
    root = plant(tmp_path / "test set", *files)  # whatever the root is called
    classes, found_train, found_test, notes = parts(root)
    assert classes == tuple(train)

    def images(folders):
        return sorted(n for n in files for folder in folders if os.path.dirname(n) == folder and n[-1] != "/")

    def by_class(wanted):
        shown = {name: images(folders) for name, folders in wanted.items()}
        return {name: [n for n in names if n.endswith(".png") and "/." not in n] for name, names in shown.items()}

    assert found_train == by_class(train)
    assert found_test == (None if test is None else by_class(test))
    rest = [note for note in notes if not note.startswith("no test part")]
    for words in said:
        assert any(words in note for note in notes), (words, notes)
    assert len(rest) == len([words for words in said if not words.startswith("no test part")])
    assert len(load_raw(f"folder:{root}").train_labels)


def test_the_original_tree_of_tiny_imagenet(tmp_path):
    root = plant(tmp_path, *each("train/n1/images", "train/n2/images", "val/images"), "test/images/0.png")
    (root / "val" / "val_annotations.txt").write_text("1.png\tn2\t0\n2.png\tn1\t0\n")
    (root / "train" / "n1" / "n1_boxes.txt").write_text("1.png 0 0")
    classes, train, test, notes = parts(root)
    assert classes == ("n1", "n2")
    assert train["n2"] == ["train/n2/images/1.png", "train/n2/images/2.png"]
    assert test == {"n2": ["val/images/1.png"], "n1": ["val/images/2.png"]}
    assert notes == ("not used: test, 1 images without class folders and so without labels",)
    (root / "val" / "val_annotations.txt").write_text("1.png\tn9\t0\n")
    with pytest.raises(UsageError, match=r"val_annotations.txt does not go with the class folders .*n9"):
        read_folder(root)


# ---------------------------------------------------------------- layouts that are refused

REFUSED = {
    "parts without classes": (each("Training", "Testing"), r"Training holds 2 images and no class folders"),
    "parts without classes in one folder": (each("x/train", "x/test"), r"x/train holds 2 images and no class folders"),
    "class names that are parts": (each("train", "test", "plane"), r"test, train in .* are parts by their names"),
    "a part beside classes": (each("a", "b", "test"), r"holds test, by its name a part, beside class folders \(a, b\)"),
    "an ambiguous training part": (each("train/a", "train/b", "plane"), r"beside plane, which may be classes"),
    "no training part": (each("test/a", "test/b", "val/a", "val/b"), r"no training part, only test, val"),
    "classes in file names": (
        [f"train/{kind}.{i}.jpg" for kind in ("cat", "dog") for i in range(3)],
        r"6 images and no class folders .*named by class, like cat\.0\.jpg: move them into folders, as cat/cat\.0\.jpg",
    ),
    "breeds in file names": (
        [f"{kind}_{i}.jpg" for kind in ("Abyssinian", "great_pyrenees") for i in range(3)],
        r"named by class, like Abyssinian_0\.jpg",
    ),
    "a table beside images": (
        [*(f"images/{i:04}.png" for i in range(4)), "images/labels.csv"],
        r"4 images and no class folders .*beside labels\.csv, which is not read.*parquet file with columns image",
    ),
    "a table above a part": ([*each("train", "test"), "train.csv"], r"beside train\.csv, which is not read"),
    "images alone": (["1.png", "2.png"], r"2 images and no class folders .*move them into a folder for each class"),
    "several data sets": (
        each("x/train/a", "x/train/b", "x/test/a", "y/train/a", "y/test/a"),
        r"holds several data sets: x, y; name one",
    ),
    "parts in some classes": (each("a/train", "a/test", "b"), r"some of its folders hold a training part \(a\)"),
    "a class of the test part alone": (each("train/cat", "train/dog", "test/cats"), r"'cats'; did you mean 'cat'\?"),
    "nothing": (["a/", "b/"], r"the 2 folders in .* hold no images"),
    "parquet files": (["x.parquet"], r"dataset=parquet:.* reads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layouts_that_are_refused(tmp_path, case):
    files, words = REFUSED[case]
    root = plant(tmp_path / "set", *files)
    errors = []
    for look in (lambda name: open_data(name, DataSettings(), "cpu"), check_data):
        with pytest.raises(UsageError, match=words) as caught:
            look(f"folder:{root}")
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "\n" not in errors[0]


@pytest.mark.parametrize("root", ["no/such/place", "a file"])
def test_no_folder_at_all(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("text")
    with pytest.raises(UsageError, match=re.escape(f"dataset=folder:{root}: no such folder")) as caught:
        load_raw(f"folder:{root}")
    assert ("it is a file" in str(caught.value)) is (root == "a file")


# ---------------------------------------------------------------- links and other things


def test_links_that_lead_back_are_followed_once(tmp_path):
    root = plant(tmp_path / "set", *each("train/a", "train/b", "test/a", "test/b"))
    for part in ("train", "test"):
        for name in BOTH:
            (root / part / name / "latest").symlink_to(".")
            (root / part / name / "up").symlink_to("../../..")
    (root / "train" / "a" / "also").symlink_to("../b")
    (root / "test" / "b" / "stolen").symlink_to("../../train/b")
    classes, train, test, notes = parts(root)
    assert classes == BOTH
    assert train == {name: each(f"train/{name}") for name in BOTH}
    assert test == {name: each(f"test/{name}") for name in BOTH}
    (note,) = notes
    assert note.startswith("links to what is read anyway, not followed: ")
    assert note.endswith("and 7 more")


def test_links_to_elsewhere_are_followed(tmp_path):
    plant(tmp_path / "disk", *each("rose"), "x.png")
    root = plant(tmp_path / "set", *each("tulip"))
    (root / "rose").symlink_to(tmp_path / "disk" / "rose")
    (root / "tulip" / "x.png").symlink_to(tmp_path / "disk" / "x.png")
    (root / "tulip" / "y.png").symlink_to("x.png")  # the same image again
    (root / "scarlet").symlink_to("rose")  # the same class again
    _, train, _, notes = parts(root)
    assert train == {"rose": each("rose"), "tulip": [*each("tulip"), "tulip/x.png"]}
    assert "links to what is read anyway, not followed: scarlet, tulip/y.png" in notes
    link = tmp_path / "link to it"
    link.symlink_to(root)
    assert parts(link)[1] == train


def test_a_link_to_the_training_part_is_no_test_part(tmp_path):
    root = plant(tmp_path / "set", *each("train/a", "train/b"))
    (root / "test").symlink_to("train")
    _, train, test, notes = parts(root)
    assert test is None
    assert train == {name: each(f"train/{name}") for name in BOTH}
    assert "links to what is read anyway, not followed: test" in notes


def test_a_link_that_leads_nowhere_is_a_broken_image(tmp_path):
    root = plant(tmp_path / "set", *each("a", "b"))
    (root / "a" / "dead.jpg").symlink_to("nowhere.jpg")
    (root / "c").symlink_to("no folder")
    name = f"folder:{root}"
    with pytest.raises(UsageError, match=r"1 broken images .*a/dead\.jpg \(a link that leads nowhere\)") as caught:
        load_raw(name)
    found = check_data(name)
    assert found["broken"] == [{"file": "a/dead.jpg", "reason": "a link that leads nowhere"}]
    assert found["problems"] == [str(caught.value)]


def test_pipes_and_sockets_are_not_read(tmp_path, monkeypatch):
    root = plant(tmp_path / "set", *each("a", "b"))
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "link.png").symlink_to("../a/pipe.png")
    monkeypatch.chdir(root / "b")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.png")
        _, train, _, notes = parts(root)
    assert train == {"a": each("a"), "b": each("b")}
    assert "not regular files and not read: a/pipe.png, b/link.png, b/socket.png" in notes


def test_names_that_are_no_text(tmp_path):
    root = plant(tmp_path / "set", *each("a", "b"))
    with open(os.path.join(os.fsencode(root / "a"), b"mai\xe9.png"), "wb") as file:
        file.write(b"?")
    assert check_data(f"folder:{root}")["broken"] == [{"file": "a/mai\\udce9.png", "reason": "not an image"}]
    os.rename(os.fsencode(root / "a"), os.fsencode(root) + b"/\xe9")
    with pytest.raises(UsageError, match="not text"):
        read_folder(root)


def test_what_is_not_read_is_said_again_when_it_changes(tmp_path):
    root = plant(tmp_path / "set", *each("a", "b"))
    name = f"folder:{root}"
    assert "not read" not in load_raw(name).notes
    plant(root, "a/1.heic")
    assert "1 file not read: .heic" in load_raw(name).notes


# ---------------------------------------------------------------- what a check says


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (each("a"), r"a single class \(a\)"),
        ([*each("train/a", "train/b", "test/c"), "train/c/"], "no training images of c"),
        (["a/1.png", "b/1.png"], "no test images; "),
    ],
)
def test_a_check_finds_what_a_run_refuses(tmp_path, files, words):
    name = f"folder:{plant(tmp_path / 'set', *files)}"
    with pytest.raises(UsageError, match=words) as caught:
        open_data(name, DataSettings(), "cpu")
    assert check_data(name)["problems"] == [str(caught.value)]


def test_a_class_without_test_images_is_noted(tmp_path):
    name = f"folder:{plant(tmp_path / 'set', *each('train/a', 'train/b', 'test/a'))}"
    assert open_data(name, DataSettings(), "cpu").notes == "no test images of b"
    found = check_data(name)
    assert (found["notes"], found["problems"]) == ("no test images of b", [])
