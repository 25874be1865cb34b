"""A set as torch data, where its labels are found, and how it is saved and shown."""

import copy
import json
import os
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dd.errors import UsageError
from dd.io import digest, save_tensors, sealed
from dd.labels import LabelSettings, LabelStore
from dd.labels.spec import LabelSpec
from dd.rng import generator
from dd.sets import DistilledSet, load, save
from dd.views import ViewPolicy

SPACE = {"kind": "standard", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}
N, K, EPOCHS = 7, 3, 2
BYTES = torch.randint(256, (N, 3, 6, 6), generator=generator(0, "bytes"), dtype=torch.uint8)
OWN = torch.arange(N) % K


def a_set(**changes) -> DistilledSet:
    fields = {"images": BYTES, "labels": OWN, "classes": tuple("abc"), "source": "toy", "space": SPACE}
    return DistilledSet(**{**fields, **changes})


def in_space(images):
    mean, std = (torch.tensor(SPACE[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (images / 255 - mean) / std


@pytest.fixture
def taught(tmp_path):
    """A set in a file with a store of labels of views that are mixed in batches of 3, 3 and 1."""
    policy, folder = ViewPolicy(crop=0.3, flip=True, mix="cutmix"), tmp_path / "made"
    store = LabelStore(folder, LabelSpec(N, K, EPOCHS, 3, (3, 6, 6), policy, LabelSettings()), OWN)
    weights = torch.randn(108, K, generator=generator(0, "teacher"))
    for epoch in range(EPOCHS):
        store.make(epoch, lambda i: in_space(BYTES[i]), lambda views, *_: 0.3 * views.flatten(1) @ weights)
    file = folder / "set.safetensors"
    save(a_set(label_kind="views", views=store.stated()), file)
    return load(file)


def collected(dataset, **loader):
    images, labels = zip(*DataLoader(dataset, **loader), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_images_with_hard_labels():
    data = a_set().as_dataset()
    assert isinstance(data, Dataset)
    images, labels = collected(data, batch_size=3)
    torch.testing.assert_close(images, in_space(BYTES))
    assert torch.equal(labels, OWN)
    assert labels.dtype == torch.int64
    assert len(list(data)) == len(data) == N  # a plain loop ends
    floats = a_set(images=torch.randn(N, 3, 6, 6), space={"kind": "zca", "eps": 0.1, "fitted_on": "x"})
    assert torch.equal(collected(floats.as_dataset(), batch_size=2)[0], floats.images)  # they are where they belong


def test_soft_labels_are_probabilities():
    logits = torch.randn(N, K, generator=generator(0, "logits"))
    _, labels = collected(a_set(labels=logits, label_kind="logits").as_dataset(), batch_size=4)
    torch.testing.assert_close(labels, logits.exp() / logits.exp().sum(1, keepdim=True))


def test_tiles_are_decoded():
    data = a_set(image_kind="tiles", decode_factor=2, space={**SPACE, "std": [1.0, 1.0, 1.0]}).as_dataset()
    assert len(data) == 4 * N
    for place in (0, N - 1, N, 4 * N - 1):
        row, column = divmod(place // N, 2)
        tile = in_space(BYTES)[place % N, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        tile = tile * torch.tensor(SPACE["std"]).view(-1, 1, 1)
        enlarged = torch.nn.functional.interpolate(tile[None], size=(6, 6), mode="bilinear", align_corners=False)[0]
        image, label = data[place]
        torch.testing.assert_close(image, enlarged)
        assert int(label) == int(OWN[place % N])


def test_stored_views_are_those_students_are_shown(taught):
    for temperature in (1.0, 4.0):
        batches = [taught.label_store().batches(e, lambda i: in_space(BYTES[i]), temperature) for e in range(EPOCHS)]
        shown = [[torch.cat(part) for part in zip(*epoch, strict=True)] for epoch in batches]
        whole = taught.as_dataset(temperature=temperature)
        assert len(whole) == EPOCHS * N
        images, labels = collected(whole, batch_size=5)
        torch.testing.assert_close(images, torch.cat([views for views, _ in shown]))
        torch.testing.assert_close(labels, torch.cat([soft for _, soft in shown]))
        for epoch in range(EPOCHS):
            views, soft = collected(taught.as_dataset(epoch=epoch, temperature=temperature), batch_size=N)
            torch.testing.assert_close((views, soft), tuple(shown[epoch]))
    order = torch.randperm(2 * N, generator=generator(1)).tolist()
    shuffled = [whole[place] for place in order]
    assert all(
        torch.equal(images[p], image) and torch.equal(labels[p], label)
        for p, (image, label) in zip(order, shuffled, strict=True)
    )
    assert torch.equal(pickle.loads(pickle.dumps(whole))[3][0], images[3])  # as workers get it


def test_targets_are_the_mean_over_stored_views(taught):
    total, store = torch.zeros(N, K), taught.label_store()
    for epoch in range(EPOCHS):
        for image in range(N):
            logits = store.at(epoch, image)["label"]["logits"].float()
            total[image] += logits.exp() / logits.exp().sum()
    torch.testing.assert_close(taught.targets(), total / EPOCHS, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("of", ["targets", "as_dataset", "label_store"])
def test_a_set_without_its_labels_says_so_in_one_line(taught, tmp_path, of):
    moved = tmp_path / "moved.safetensors"
    shutil.copyfile(taught.path, moved)
    with pytest.raises(UsageError, match=r"no soft labels in .*copy the folder labels/ beside the set") as caught:
        getattr(load(moved), of)()
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="in a store beside its file: load the file") as caught:
        getattr(replace(taught, path=None), of)()
    with pytest.raises(UsageError, match="holds other labels than"):
        getattr(replace(taught, views=replace(taught.views, sha256="0" * 64)), of)()


def test_what_has_no_views_has_no_epochs(taught):
    with pytest.raises(UsageError, match=r"holds its labels itself \(hard\): it has no label store"):
        a_set().label_store()
    for asked in ({"epoch": 0}, {"temperature": 2.0}):
        with pytest.raises(UsageError, match="apply to labelled views"):
            a_set().as_dataset(**asked)
    with pytest.raises(UsageError, match="labels of 2 epochs, counted from 0, but not of epoch 2"):
        taught.as_dataset(epoch=2)
    with pytest.raises(UsageError, match="a set of indices does not hold the images"):
        a_set(images=OWN, image_kind="indices").as_dataset()
    zca = a_set(space={"kind": "zca", "eps": 0.1, "fitted_on": "x"})
    with pytest.raises(UsageError, match="ZCA"):
        zca.as_dataset()


def test_saving_takes_the_labels_along(taught, tmp_path):
    file = tmp_path / "elsewhere" / "small.safetensors"
    taught.save(file)
    shutil.rmtree(taught.path.parent)
    again = load(file)
    assert again.path == file
    assert again.digest() == taught.digest()
    assert again.label_store().verify() == {}
    assert again.targets().shape == (N, K)
    with pytest.raises(UsageError, match="no soft labels in"):
        taught.targets()
    again.save(file)  # where they are already
    again.save(tmp_path / "elsewhere" / "second.safetensors")
    assert load(tmp_path / "elsewhere" / "second.safetensors").label_store().digest() == again.views.sha256
    with pytest.raises(UsageError, match="no soft labels in"):
        taught.save(tmp_path / "third" / "set.safetensors")
    assert not (tmp_path / "third" / "set.safetensors").exists()


def test_other_labels_are_not_written_over(taught, tmp_path):
    other = tmp_path / "other"
    store = LabelStore(other, taught.views.spec, OWN)
    for epoch in range(EPOCHS):
        store.make(epoch, lambda i: in_space(BYTES[i]), lambda views, *_: views.flatten(1)[:, :K])
    before = store.digest()
    with pytest.raises(UsageError, match="holds other labels than"):
        taught.save(other / "set.safetensors")
    assert store.digest() == before
    assert not (other / "set.safetensors").exists()


def test_two_sets_of_a_folder_have_their_labels_in_one(taught, tmp_path):
    other = LabelStore(taught.path.parent, replace(taught.views.spec, seed=1), OWN)
    for epoch in range(EPOCHS):
        other.make(epoch, lambda i: in_space(BYTES[i]), lambda views, *_: views.flatten(1)[:, :K])
    second = tmp_path / "made" / "second.safetensors"
    save(replace(taught, views=other.stated()), second)
    assert load(second).label_store().digest() == other.digest()
    assert load(taught.path).label_store().digest() == taught.views.sha256


def test_a_folder_stands_for_the_set_in_it(taught, tmp_path):
    assert load(taught.path.parent).digest() == taught.digest()
    with pytest.raises(UsageError, match="is a folder without a set"):
        load(tmp_path)


def test_where_it_was_read_from_is_no_part_of_it(taught):
    assert taught.path.is_absolute()
    unknown = replace(taught, path=None)
    assert (unknown.digest(), unknown.facts()) == (taught.digest(), taught.facts())
    assert copy.copy(taught).path == taught.path


def test_it_is_shown_in_a_line_and_as_a_picture(taught):
    assert repr(taught) == "<DistilledSet toy: 7 pixels of 3x6x6, views labels, 3 classes>"
    assert repr(taught.label_store()).endswith("labels: logits of 7 images in 2 epochs>")
    floats = torch.randn(N, 3, 6, 6)
    for shown in (
        taught,
        a_set(images=floats),
        a_set(images=floats, space={"kind": "zca", "eps": 0.1, "fitted_on": "x"}),
    ):
        assert shown._repr_png_().startswith(b"\x89PNG")
    assert a_set(images=OWN, image_kind="indices")._repr_png_() is None


def test_the_picture_shows_the_pixels():
    import io

    import numpy as np
    from PIL import Image

    flat = torch.tensor([10, 90, 200], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 6, 6)
    for shown in (a_set(images=flat, labels=torch.arange(3)), a_set(images=in_space(flat), labels=torch.arange(3))):
        pixels = np.asarray(Image.open(io.BytesIO(shown._repr_png_())).convert("L"))[-10]
        assert {10, 90, 200} <= set(pixels.tolist())


# --- from a stranger -------------------------------------------------------------------------------------------------

ODD = [None, -1, 0.5, float("nan"), 10**15, 10**400, "x", "../../etc", "\x1b[2J", [], [[1]], {}, {"a": 1}, True]
FIELDS = {
    *("", "spec", "sha256", "bytes", "spec.n", "spec.classes", "spec.epochs", "spec.batch", "spec.shape"),
    *("spec.policy", "spec.settings", "spec.seed", "spec.micro", "spec.strategy", "spec.black", "spec.images"),
    *("spec.teachers", "spec.weights", "spec.policy.crop", "spec.policy.stretch", "spec.policy.tiles"),
    *("spec.policy.pad", "spec.policy.strategy", "spec.policy.mix", "spec.policy.mix_alpha", "spec.settings.form"),
    *("spec.settings.top", "spec.settings.replay", "spec.settings.high", "store", "spec.path", "spec.policy.more"),
    "spec.settings.more",
}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_what_a_stranger_writes_of_labels_is_refused_in_a_line_or_changes_nothing(taught, name):
    expected = taught.targets()
    for value in ODD:
        facts = taught.facts()
        inner, (*levels, last) = facts, ["views", *filter(None, name.split("."))]
        for level in levels:
            inner = inner[level]
        inner[last] = value
        manifest = {"format": "dd-distilled-set", "version": "1", "manifest": json.dumps(facts)}
        save_tensors(taught.path, {"images": taught.images, "labels": taught.labels}, manifest)
        found = read(taught.path)
        if isinstance(found, str):
            assert "\n" not in found
            assert len(found) < 1000
        else:
            assert torch.equal(found, expected)


def read(path) -> torch.Tensor | str:
    """The targets of a set whose views can be had, or the line that refuses it."""
    try:
        found = load(path)
        views, _ = found.as_dataset()[0]
        assert views.shape == (3, 6, 6)
        return found.targets()
    except UsageError as error:
        return str(error)


def facts_of(manifest, **changes):
    """A manifest with other facts and a seal that is right."""
    facts = {**json.loads(manifest.read_text()), **changes}
    manifest.write_text(json.dumps(sealed({name: fact for name, fact in facts.items() if name != "seal"})))


def swapped(first, second):
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def piped(path):
    path.unlink()
    os.mkfifo(path)


# of two epochs: manifests a and b, and their payloads
FOLDERS = {
    "no folder": lambda a, b: shutil.rmtree(a.parent),
    "a link to elsewhere": lambda a, b: (shutil.rmtree(a.parent), a.parent.symlink_to("/etc")),
    "an epoch is missing": lambda a, b: (a.unlink(), payload(a).unlink()),
    "a payload is missing": lambda a, b: payload(b).unlink(),
    "payloads of one another": lambda a, b: swapped(payload(a), payload(b)),
    "manifests of one another": swapped,
    "no JSON": lambda a, b: a.write_text("{"),
    "no text": lambda a, b: a.write_bytes(b"\xff\xfe\x00"),
    "deep": lambda a, b: a.write_text("[" * 200_000),
    "a long number": lambda a, b: a.write_text('{"spec": ' + "9" * 5000 + "}"),
    "bytes as text": lambda a, b: facts_of(a, bytes="x"),
    "fewer bytes than none": lambda a, b: facts_of(a, bytes=-1),
    "no hash": lambda a, b: facts_of(a, sha256=5),
    "facts in a list": lambda a, b: facts_of(a, info=[1]),
    "views of another kind": lambda a, b: facts_of(a, info={"drawn": {"a": 1}}),
    "an escape sequence": lambda a, b: facts_of(a, seconds="\x1b[2J"),
    "a value": lambda a, b: facts_of(a, value=1),
    "another spec": lambda a, b: facts_of(a, spec=[]),
    "a pipe": lambda a, b: piped(a),
    "a pipe of labels": lambda a, b: piped(payload(a)),
    "nothing": lambda a, b: payload(a).write_bytes(b""),
    "a long header": lambda a, b: payload(a).write_bytes((2**62).to_bytes(8, "little") + bytes(99)),
}


def payload(manifest):
    return manifest.with_suffix(".safetensors")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_strangers_folder_of_labels_is_refused_in_a_line(taught, name):
    a, b = (taught.path.parent / "labels" / f"{digest(taught.views.spec.key(epoch))}.json" for epoch in range(EPOCHS))
    FOLDERS[name](a, b)
    with pytest.raises(UsageError) as caught:
        load(taught.path).targets()
    assert "\n" not in str(caught.value)


def test_a_link_of_another_place_is_no_label(taught, tmp_path):
    """What is not what the set names by hash is not read as labels, wherever it lies."""
    payload = next(taught.path.parent.glob("labels/*.safetensors"))
    (tmp_path / "secret").write_bytes(payload.read_bytes()[:-1] + b"x")
    payload.unlink()
    payload.symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="the hash of its payload is wrong"):
        load(taught.path).targets()
