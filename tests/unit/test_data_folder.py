"""A user's own images in folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from dd.data.check import check_data
from dd.data.sources import load_raw
from dd.errors import UsageError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))


def paint(path, value=0, size=(6, 6), mode="RGB"):
    """One image whose every value is `value`, but for its first pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), value, dtype=np.uint8)
    pixels[0, 0] = 255 - value
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_train_and_test_folders(tmp_path):
    for i in range(3):
        paint(tmp_path / "train" / "cat" / f"{i}.png", value=10 * i)
        paint(tmp_path / "train" / "ant" / "deep" / f"{i}.bmp", value=100 + i)
    paint(tmp_path / "test" / "cat" / "x.png", value=7)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    raw = load_raw(f"folder:{tmp_path}")
    assert raw.classes == ("ant", "cat")
    assert raw.train_images.shape == (6, 3, 6, 6)
    assert raw.train_images[:, 0, 3, 3].tolist() == [100, 101, 102, 0, 10, 20]
    assert raw.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert raw.test_labels.tolist() == [1]
    assert raw.test_images[0, 0, 3, 3] == 7
    assert raw.constants is None
    assert raw.notes == "no test images of ant"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_test_part(tmp_path, name):
    for part in ("train", name):
        for c in "ab":
            paint(tmp_path / part / c / "1.png")
    assert load_raw(f"folder:{tmp_path}").test_labels.tolist() == [0, 1]


def test_without_a_test_part_a_fixed_fifth_is_taken(tmp_path):
    for i in range(10):
        paint(tmp_path / "a" / f"{i}.png", value=i)
        paint(tmp_path / "b" / f"{i}.png", value=100 + i)
    raw = load_raw(f"folder:{tmp_path}")
    assert torch.bincount(raw.train_labels).tolist() == [8, 8]
    assert torch.bincount(raw.test_labels).tolist() == [2, 2]
    values = torch.cat([raw.train_images, raw.test_images])[:, 0, 3, 3]
    assert sorted(values.tolist()) == [*range(10), *range(100, 110)]
    assert "no test part was found: 20% of every class" in raw.notes
    assert torch.equal(load_raw(f"folder:{tmp_path}").test_images, raw.test_images)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "plane"):
        for i in range(2):
            paint(tmp_path / name / f"{i}.png")
    assert load_raw(f"folder:{tmp_path}").classes == ("plane", "train")


def test_images_of_other_sizes_are_resized_and_cropped(tmp_path):
    for i in range(3):
        paint(tmp_path / "a" / f"{i}.png", size=(8, 8))
    paint(tmp_path / "b" / "0.png", size=(8, 8), value=50)
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    wide[:, 15:25] = 200  # the centre square, and nothing else
    Image.fromarray(wide).save(tmp_path / "b" / "1.png")
    raw = load_raw(f"folder:{tmp_path}")
    assert raw.train_images.shape[1:] == (3, 8, 8)
    both = torch.cat([raw.train_images, raw.test_images])
    assert "1 of 5 images were resized and centre-cropped to 8 x 8 pixels" in raw.notes
    assert any((image[:, 2:-2, 2:-2] == 200).all() for image in both)


def test_oblong_images_become_square(tmp_path):
    for c in "ab":
        for i in range(3):
            paint(tmp_path / c / f"{i}.png", size=(9, 5))
    raw = load_raw(f"folder:{tmp_path}")
    assert raw.train_images.shape[1:] == (3, 5, 5)
    assert "6 of 6 images were resized" in raw.notes


def test_grey_images_have_one_channel_unless_there_is_colour(tmp_path):
    for c in "ab":
        for i in range(2):
            paint(tmp_path / "grey" / c / f"{i}.png", mode="L")
            paint(tmp_path / "mixed" / c / f"{i}.png", mode="RGB" if c == "a" else "L")
    assert load_raw(f"folder:{tmp_path / 'grey'}").train_images.shape[1] == 1
    mixed = load_raw(f"folder:{tmp_path / 'mixed'}")
    assert mixed.train_images.shape[1] == 3
    assert "2 grey images were turned into colour" in mixed.notes


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, caplog):
    caplog.set_level("INFO")
    for c in "ab":
        for i in range(2):
            paint(tmp_path / "set" / c / f"{i}.png", value=1)
    name = f"folder:{tmp_path / 'set'}"
    load_raw(name)
    assert "made the decoded images" in caplog.text
    caplog.clear()
    load_raw(name)
    assert "kept the decoded images" in caplog.text
    caplog.clear()
    for i in range(2):
        paint(tmp_path / "set" / "a" / f"{i}.png", value=222, size=(7, 7))
    changed = load_raw(name)
    assert "made the decoded images" in caplog.text
    assert 222 in changed.train_images


def damaged(tmp_path):
    for c in "ab":
        for i in range(3):
            paint(tmp_path / "train" / c / f"{i}.png", size=(32, 32))
        paint(tmp_path / "test" / c / "0.png", size=(32, 32))
    whole = (tmp_path / "train" / "a" / "0.png").read_bytes()
    (tmp_path / "train" / "a" / "1.png").write_bytes(whole[: len(whole) - 30])
    (tmp_path / "train" / "b" / "2.png").write_bytes(b"")
    (tmp_path / "test" / "a" / "0.png").write_bytes(b"this is text")
    return f"folder:{tmp_path}"


def test_broken_images_are_an_error_that_names_them(tmp_path):
    name = damaged(tmp_path)
    with pytest.raises(UsageError, match=r"3 broken images .*train/a/1.png.*train/b/2.png.*test/a/0.png") as caught:
        load_raw(name)
    assert "\n" not in str(caught.value)
    assert "dd data check" in str(caught.value)
    assert "0x" not in str(caught.value)


def test_check_lists_broken_images(tmp_path):
    found = check_data(damaged(tmp_path))
    reasons = {item["file"]: item["reason"] for item in found["broken"]}
    assert set(reasons) == {"train/a/1.png", "train/b/2.png", "test/a/0.png"}
    assert reasons["test/a/0.png"] == "not an image"
    assert found["train"] == {"total": 4, "per_class": {"a": 2, "b": 2}}
    assert found["test"] == {"total": 1, "per_class": {"a": 0, "b": 1}}
    assert (found["channels"], found["size"], found["classes"]) == (3, 32, 2)


def test_many_broken_images_are_counted(tmp_path):
    paint(tmp_path / "a" / "good.png")
    (tmp_path / "b").mkdir()
    for i in range(9):
        (tmp_path / "b" / f"{i}.png").write_bytes(b"?")
    with pytest.raises(UsageError, match=r"9 broken images .* and 4 more"):
        load_raw(f"folder:{tmp_path}")


def test_nothing_but_broken_images(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"?")
    with pytest.raises(UsageError, match="none of the 1 images"):
        check_data(f"folder:{tmp_path}")


def test_wrong_folders(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        load_raw(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(UsageError, match="no class folders"):
        load_raw(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="hold no images"):
        load_raw(f"folder:{tmp_path}")
    paint(tmp_path / "train" / "cat" / "1.png")
    paint(tmp_path / "test" / "cats" / "1.png")
    with pytest.raises(UsageError, match=r"'cats'; did you mean 'cat'\?"):
        load_raw(f"folder:{tmp_path}")
    with pytest.raises(UsageError, match="folder:PATH"):
        load_raw("folder:")
