"""The store of soft labels: what was labelled is replayed, whoever reads it, however often it was stopped."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from dd.errors import RunError, UsageError
from dd.labels import spec as labels_spec
from dd.labels import writer as labels_writer
from dd.labels.distances import dbr_loss
from dd.labels.forms import LabelForm, form_of
from dd.labels.spec import StoreSpec
from dd.labels.store import LabelStore, open_store
from dd.labels.writer import require_room, size_on_disk, writing
from dd.rng import generator
from dd.training.loop import pieces
from dd.views import ViewPolicy, draw_view
from dd.views.dsa import draw

N, CLASSES, SHAPE = 23, 5, (3, 8, 8)
RAW = torch.randint(256, (N, *SHAPE), generator=generator(0, "images"), dtype=torch.uint8)
OWN = torch.arange(N) % CLASSES
CUTMIX = ViewPolicy(crop=0.3, flip=True, mix="cutmix", mix_share=0.8)


def load(index):
    return RAW[index].float() / 255 - 0.5


def network():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    with torch.no_grad():
        net[1].weight.copy_(0.3 * torch.randn(CLASSES, 192, generator=generator(1, "teacher")))
        net[1].bias.zero_()
    return net.eval().requires_grad_(False)


TEACHER = network()


def label(views, view, images):
    assert len(views) == len(images)
    return TEACHER(views)


def a_spec(form="logits", parameters=(), **changes) -> StoreSpec:
    fields = {
        "n": N,
        "classes": tuple("abcde"),
        "epochs": 3,
        "batch": 8,
        "form": form if isinstance(form, LabelForm) else form_of(form, CLASSES, **dict(parameters)),
        "policy": CUTMIX,
        "shape": SHAPE,
        "teacher": {"names": ["linear"], "sha256": ["00"]},
    }
    return StoreSpec(**{**fields, **changes})


def written(folder, spec=None, label=label) -> LabelStore:
    with writing(folder, spec or a_spec(), OWN) as writer:
        for epoch in writer.missing_epochs():
            writer.write_epoch(epoch, load, label)
    return LabelStore(folder)


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# --- replay ----------------------------------------------------------------------------------------------------------

POLICIES = {
    "crops": ViewPolicy(crop=0.3, flip=True),
    "cutmix": CUTMIX,
    "mixup": ViewPolicy(crop=0.5, mix="mixup", mix_alpha=0.8),
    "only mixed": ViewPolicy(mix="cutmix", mix_share=0.5),
    "all": ViewPolicy(crop=0.3, flip=True, tiles=2, strategy="data", mix="cutmix"),
    "nothing": ViewPolicy(),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_replayed_view_equals_the_original_to_the_bit(tmp_path, policy):
    """Oracle 29, in any order of epochs, with both ways of replay."""
    seen = {}
    modes = ["seed"] if policy == "all" else ["seed", "records"]

    def note(views, view, images):
        seen[len(seen)] = (views.clone(), images, view.mixed(torch.eye(CLASSES)[OWN[images]]))
        return TEACHER(views)

    for mode in modes:
        seen.clear()
        spec = a_spec(policy=POLICIES[policy], strategy="color_crop_cutout", replay=mode)
        store = written(tmp_path / mode, spec, note)
        assert len(seen) == 9
        for epoch in (2, 0, 1):
            for number, batch in enumerate(store.epoch(epoch)):
                views, images, mixed = seen[3 * epoch + number]
                assert torch.equal(batch.images, images)
                assert torch.equal(batch.view(load(images)), views)
                assert torch.equal(batch.view.mixed(torch.eye(CLASSES)[OWN[images]]), mixed)
                assert torch.equal(batch.labels["logits"], TEACHER(views).half())
            replayed = list(store.batches(epoch, load, 4.0))
            for number, (views, probabilities) in enumerate(replayed):
                assert torch.equal(views, seen[3 * epoch + number][0])
                exact = (TEACHER(views) / 4).softmax(1)
                torch.testing.assert_close(probabilities, exact, rtol=1e-3, atol=1e-4)


def test_views_are_those_that_the_seed_draws(tmp_path):
    """Order and views by name of the generator, so that a live teacher can label the same ones."""
    spec = a_spec(seed=3)
    store = written(tmp_path, spec)
    order = torch.randperm(N, generator=generator(3, "views", "order", 1))
    parts = list(store.epoch(1))
    assert torch.equal(torch.cat([batch.images for batch in parts]), order)
    for number, batch in enumerate(parts):
        view = draw_view(CUTMIX, len(batch.images), SHAPE, generator(3, "views", 1, number))
        assert torch.equal(view(load(batch.images)), batch.view(load(batch.images)))


def test_orders_differ_between_epochs_and_show_every_image_once(tmp_path):
    """Oracles 30 and 42: also with a smaller last batch."""
    store = written(tmp_path)
    orders = [torch.cat([batch.images for batch in store.epoch(epoch)]) for epoch in range(3)]
    sizes = [len(batch.images) for batch in store.epoch(0)]
    assert sizes == [8, 8, 7]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(N))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])
    rows = [probabilities for _, probabilities in store.batches(0, load)]
    assert float(torch.cat(rows).sum()) == pytest.approx(N, abs=1e-4)


@pytest.mark.parametrize("mode", ["seed", "records"])
def test_one_image_in_one_epoch(tmp_path, mode):
    store = written(tmp_path, a_spec(replay=mode))
    for number, batch in enumerate(store.epoch(1)):
        for place, image in enumerate(batch.images.tolist()):
            found = store.at(1, image)
            assert (found["batch"], found["place"]) == (number, place)
            assert torch.equal(found["label"]["logits"], batch.labels["logits"][place])
            assert found["box"] == batch.view.boxes[place].tolist()
            assert found["flip"] == bool(batch.view.flips[place])
            assert (found["weight"], found["patch"]) == (batch.view.weight, batch.view.patch)
            if batch.view.partner is not None:
                assert found["partner"] == int(batch.images[batch.view.partner[place]])
    with pytest.raises(UsageError, match="23 images, and image 23"):
        store.at(0, 23)


@pytest.mark.parametrize("form", ["logits", "topk", "hard", "distances"])
def test_every_form_of_label_is_replayed_as_it_was_stored(tmp_path, form):
    spec = a_spec(form, [("k", 2)] if form == "topk" else ())
    with writing(tmp_path, spec, OWN) as writer:
        live = [list(writer.labelled_batches(epoch, load, label)) for epoch in range(3)]
        again = list(writer.labelled_batches(1, load, None))  # pyright: ignore[reportArgumentType]
    store = LabelStore(tmp_path)
    for epoch in range(3):
        for (views, probabilities), (other, replayed) in zip(live[epoch], store.batches(epoch, load), strict=True):
            assert torch.equal(views, other)
            assert torch.equal(probabilities, replayed)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(live[1], again, strict=True))


def test_the_two_distances_of_a_batch_are_the_teachers(tmp_path):
    """A student that is the teacher has only its hard loss left, by the area that clipping leaves (oracle 39)."""
    store = written(tmp_path, a_spec("distances"))
    for batch in store.epoch(0):
        logits = TEACHER(batch.view(load(batch.images)))
        own, partner = store.pairs(batch.images, batch.view)
        wanted = batch.labels["distances"]
        loss = dbr_loss(logits, wanted, own, partner, batch.view.weight, 10.0)
        hard = dbr_loss(logits, wanted, own, partner, batch.view.weight, 0.0)
        assert float(loss - hard) == pytest.approx(0, abs=0.03)
        top, left, height, width = batch.view.patch or (0, 0, 0, 0)
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        share = 1 - int(inside.sum()) / 64
        mixed = share * F.cross_entropy(logits, own) + (1 - share) * F.cross_entropy(logits, partner)
        assert float(hard) == pytest.approx(float(mixed), abs=1e-5)
        assert torch.equal(own, OWN[batch.images])
        assert torch.equal(partner, own if batch.view.partner is None else OWN[batch.images[batch.view.partner]])


def test_the_readers_copy_in_another_process_reads_the_same(tmp_path):
    """Two processes at once, and the workers of a DataLoader."""
    store = written(tmp_path)
    expected = [store.batch(1, number).labels["logits"].numpy().tobytes() for number in range(3)]
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        both = pool.map(_read, [tmp_path, tmp_path])
    assert both == [expected, expected]
    last_rows = (tmp_path / "epoch-00001.npy").read_bytes()[-60:]
    assert last_rows not in pickle.dumps(store)  # the open file is not sent along
    loader = DataLoader(_Epoch(pickle.loads(pickle.dumps(store))), batch_size=None, num_workers=2)
    for (views, probabilities), (other, wanted) in zip(loader, store.batches(1, load, 4.0), strict=True):
        assert torch.equal(views, other)
        assert torch.equal(probabilities, wanted)


def _read(path):
    torch.set_num_threads(1)  # a forked process has none of its parent's threads, and would wait for them
    store = LabelStore(path)
    return [batch.labels["logits"].numpy().tobytes() for batch in store.epoch(1)]


class _Epoch(torch.utils.data.Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return self.store.spec.batches

    def __getitem__(self, number):
        if number >= len(self):
            raise IndexError
        batch = self.store.batch(1, number)
        return batch.view(load(batch.images)), self.store.probabilities(batch, 4.0)


def test_more_epochs_than_there_are(tmp_path):
    store = written(tmp_path)
    with pytest.raises(UsageError, match=r"3 epochs, and epoch 5 is asked for.*wrap=True") as error:
        next(store.epoch(4))
    assert "\n" not in str(error.value)
    around = open_store(tmp_path, batch=8, wrap=True)
    for batch, other in zip(around.epoch(4), store.epoch(1), strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.view(load(batch.images)), other.view(load(batch.images)))
        assert torch.equal(batch.labels["logits"], other.labels["logits"])


# --- what belongs together -------------------------------------------------------------------------------------------


def test_another_batch_is_refused_with_the_reason(tmp_path):
    written(tmp_path / "alone")
    written(tmp_path / "together", a_spec(micro=4))
    assert open_store(tmp_path / "alone", batch=8, micro=2).spec.batch == 8
    assert open_store(tmp_path / "together", batch=8, micro=4).spec.micro == 4
    with pytest.raises(UsageError, match=r"batches of 8, not 16: images mixed .* with eval.batch=8, or .* `dd run`"):
        open_store(tmp_path / "alone", batch=16)
    for micro in (None, 8, 2):
        with pytest.raises(UsageError, match=rf"micro-batches of 4, not {micro or 8}: .* eval.micro=4, or"):
            open_store(tmp_path / "together", batch=8, micro=micro)


def test_other_images_are_refused(tmp_path):
    written(tmp_path, a_spec(images="a" * 64))
    open_store(tmp_path, batch=8, images="a" * 64)
    with pytest.raises(UsageError, match=r"other images .aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        open_store(tmp_path, batch=8, images="b" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"batch": 4}, "batch=8, not 4"),
        ({"policy": ViewPolicy(crop=0.3)}, "policy="),
        ({"form": form_of("hard", CLASSES)}, "form="),
        ({"teacher": {}}, "teacher="),
        ({"micro": 4}, "micro=null, not 4"),
    ],
)
def test_a_store_goes_on_only_with_what_it_holds(tmp_path, change, message):
    """Oracle 30: with another seed or batch it is another store."""
    written(tmp_path)
    before = content(tmp_path)
    with pytest.raises(UsageError, match=message), writing(tmp_path, a_spec(**change), OWN):
        pass
    with pytest.raises(UsageError, match="classes"), writing(tmp_path, a_spec(), OWN.flip(0)):
        pass
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"micro": 9}, "eval.micro=9 is out of range; it is from 2 to eval.batch, 8"),
        ({"micro": 2, "batch": 11}, "23 images in batches of 11 leave one alone"),
        ({"classes": ("a", "b")}, "5 classes, where there are 2"),
        ({"replay": "disk"}, "'disk'"),
        ({"replay": "records", "policy": ViewPolicy(tiles=2)}, "replay='seed'"),
        ({"replay": "records", "policy": ViewPolicy(strategy="flip")}, "replay='seed'"),
        ({"replay": "records", "policy": ViewPolicy(pad=2)}, "replay='seed'"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(change, message):
    with pytest.raises(UsageError, match=message) as error:
        a_spec(**change)
    assert "\n" not in str(error.value)


def test_pieces_of_a_batch():
    assert pieces(16, 8) == [8, 8]
    assert pieces(16, None) == [16]
    assert pieces(13, 8) == [8, 5]
    assert pieces(17, 8) == [8, 9]  # one image has no statistics
    assert pieces(9, 8) == [9]
    assert pieces(5, 8) == [5]
    for images in range(1, 80):
        for micro in range(2, 33):
            sizes = pieces(images, micro)
            assert sum(sizes) == images
            assert 1 not in sizes or images == 1
            assert max(sizes) <= micro + 1


def test_views_that_the_seed_no_longer_draws_are_noticed(tmp_path, monkeypatch):
    store = written(tmp_path)
    kept = written(tmp_path.with_name("kept"), a_spec(replay="records"))
    first = next(kept.epoch(0)).view(load(torch.arange(8)))

    def other(policy, n, shape, rng, *rest):
        draw("flip", n, shape, rng)
        return draw_view(policy, n, shape, rng, *rest)

    monkeypatch.setattr(labels_spec, "draw_view", other)
    with pytest.raises(RunError, match="draws other views"):
        next(LabelStore(store.path).epoch(0))
    assert torch.equal(next(LabelStore(kept.path).epoch(0)).view(load(torch.arange(8))), first)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "damaged"),
        ("[]", "no soft labels"),
        ('{"format": "x"}', "no soft labels"),
        ('{"format": "dd-soft-labels", "version": 2}', "another dd"),
        ('{"format": "dd-soft-labels", "version": 1, "spec": {}, "files": {}}', "damaged"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, manifest, message):
    with pytest.raises(
        UsageError, match=r"no soft labels in .*/labels \(No such file.*\); copy the folder labels/ beside"
    ):
        LabelStore(tmp_path / "labels")
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match=message):
        LabelStore(tmp_path)


def test_what_the_manifest_says(tmp_path):
    store = written(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["libraries"]["torch"] == torch.__version__
    assert manifest["spec"]["teacher"] == {"names": ["linear"], "sha256": ["00"]}
    assert manifest["spec"]["policy"]["mix"] == "cutmix"
    assert len(manifest["files"]["epoch-00002.npy"]["sha256"]) == 64
    assert StoreSpec.from_json(manifest["spec"]) == store.spec == a_spec()
    (tmp_path / "set").mkdir()
    said = store.reference(tmp_path / "set" / "set.safetensors")
    assert said == {"store": "..", "sha256": store.digest(), "bytes": store.bytes()}
    assert written(tmp_path.with_name("again")).digest() == store.digest()


# --- size ------------------------------------------------------------------------------------------------------------


def test_published_sizes():
    """Oracle 34."""
    logits, distances = form_of("logits", 1000), form_of("distances", 1000)
    for ipc, gigabytes in ((10, 6), (50, 30), (100, 60), (200, 120)):
        assert size_on_disk(1000 * ipc, 300, logits) / 1e9 == pytest.approx(gigabytes, rel=1e-4)
    for ipc, gigabytes in ((10, 655), (20, 1310)):
        size = size_on_disk(10_450 * ipc, 300, form_of("logits", 10_450))
        assert size / 1e9 == pytest.approx(gigabytes, rel=1e-3)
    for ipc, gigabytes in ((50, 0.4), (100, 0.8)):
        assert size_on_disk(200 * ipc, 100, form_of("logits", 200)) / 1e9 == pytest.approx(gigabytes, rel=1e-3)
    for classes in (10, 1000):
        assert (
            form_of("logits", classes).bytes_per_view() / form_of("distances", classes).bytes_per_view() == classes / 2
        )
    assert size_on_disk(200_000, 300, distances) / 1e9 == pytest.approx(0.24, rel=1e-3)
    assert form_of("topk", 1000, k=5).bytes_per_view() == 20
    records = size_on_disk(200_000, 300, distances, "records", ViewPolicy(crop=0.08, flip=True, mix="cutmix"))
    assert (records - size_on_disk(200_000, 300, distances)) / 1e9 == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("mode", ["seed", "records"])
@pytest.mark.parametrize("policy", ["cutmix", "mixup", "nothing"])
def test_the_size_is_known_before(tmp_path, policy, mode):
    spec = a_spec(policy=POLICIES[policy], replay=mode)
    written(tmp_path, spec)
    size = sum(path.stat().st_size for path in tmp_path.glob("epoch-*"))
    assert size == size_on_disk(N, 3, spec.form, mode, spec.policy)


def test_room_is_looked_at_before(tmp_path):
    folder = tmp_path / "not" / "there"
    assert "1.0 MB in" in require_room(folder, 1_000_000)
    assert "1.6 kB in" in require_room(folder, 1600)
    with pytest.raises(UsageError, match=r"1000000\.0 GB in .*labels\.form=topk.*labels\.mode=live") as error:
        require_room(folder, 10**15)
    assert "\n" not in str(error.value)
    assert not folder.exists()


# --- stopped, killed, damaged ----------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stopping(after):
    """A teacher that gives up after some batches."""
    count = [0]

    def stops(views, view, images):
        count[0] += 1
        if count[0] > after:
            raise Stopped
        return TEACHER(views)

    return stops


@pytest.mark.parametrize("after", [0, 2, 3, 4, 8])
def test_an_interrupted_store_goes_on_with_the_first_missing_epoch(tmp_path, after):
    expected = content(written(tmp_path / "whole").path)
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        written(folder, label=stopping(after))
    done = after // 3
    assert sorted(path.name for path in folder.glob("*epoch*")) == [f"epoch-{e:05d}.npy" for e in range(done)]
    seen = []

    def note(views, view, images):
        seen.append(images)
        return TEACHER(views)

    store = written(folder, label=note)
    assert len(seen) == 3 * (3 - done)
    assert content(folder) == expected
    assert store.finished == [0, 1, 2]


def test_an_epoch_that_training_leaves_is_not_kept(tmp_path):
    with writing(tmp_path, a_spec(), OWN) as writer:
        left = writer.labelled_batches(0, load, label)
        next(left)
        next(left)
        left.close()
        with pytest.raises(Stopped):
            list(writer.labelled_batches(0, load, stopping(2)))
        assert writer.missing_epochs() == [0, 1, 2]
        for _ in writer.labelled_batches(1, load, label):
            pass
        assert writer.missing_epochs() == [0, 2]
        reader = LabelStore(tmp_path)
        assert len(list(reader.epoch(1))) == 3
        with pytest.raises(UsageError, match="no labels of epoch 3 yet"):
            next(reader.epoch(2))
        writer.write_epoch(2, load, label)
        assert len(list(reader.epoch(2))) == 3  # a reader sees what is finished meanwhile
        with pytest.raises(UsageError, match="3 epochs, and epoch 4"):
            writer.write_epoch(3, load, label)


def _killed(folder):
    torch.set_num_threads(1)
    count = [0]

    def kills(views, view, images):
        count[0] += 1
        if count[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return TEACHER(views)

    written(folder, label=kills)


def test_a_killed_process_leaves_what_was_finished(tmp_path):
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert LabelStore(folder).finished == [0]
    assert list(folder.glob(".epoch-00001*"))  # half-written
    written(folder)
    assert content(folder) == content(written(tmp_path / "whole").path)


def damage_a_byte(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_a_byte, "its hash is wrong"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "bytes, not"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_damaged_epoch_is_named_and_made_anew(tmp_path, caplog, harm, words):
    store = written(tmp_path)
    before = content(tmp_path)
    assert len(list(store.epoch(1))) == 3
    harm(tmp_path / "epoch-00001.npy")
    assert list(store.verify()) == ["epoch-00001.npy"]
    assert words in store.verify()["epoch-00001.npy"]
    reader = LabelStore(tmp_path)
    assert len(list(reader.epoch(0))) == 3
    with pytest.raises(RunError, match=rf"epoch-00001\.npy is damaged: .*{words}"):
        next(reader.epoch(1))
    with writing(tmp_path, a_spec(), OWN) as writer:
        assert writer.missing_epochs() == [1]
        assert "epoch-00001.npy is damaged" in caplog.text
        for _ in writer.labelled_batches(1, load, label):
            pass
        assert writer.missing_epochs() == []
    assert content(tmp_path) == before
    assert LabelStore(tmp_path).verify() == {}


def test_damaged_classes_are_named_and_written_anew(tmp_path):
    written(tmp_path)
    before = content(tmp_path)
    damage_a_byte(tmp_path / "classes.npy")
    with pytest.raises(RunError, match=r"classes\.npy is damaged"):
        LabelStore(tmp_path)
    written(tmp_path)
    assert content(tmp_path) == before


def spoilt(text: str, how: str) -> str:
    at = text.index('"epoch-00001.npy"')
    return {
        "of one epoch": text[:at] + text[at:].replace('"sha256": "', '"sha256": "0', 1),
        "of the spec": text.replace('"seed": ', '"seed": 1'),
        "no JSON": text.replace("{", "(", 1),
        "cut off": text[: at - 5],
        "empty": "",
        "another JSON": "[]",
    }[how]


@pytest.mark.parametrize(
    ("how", "kept"),
    [("of one epoch", 2), ("of the spec", 3), ("no JSON", 3), ("cut off", 1), ("empty", 0), ("another JSON", 0)],
)
@pytest.mark.parametrize("replay", ["seed", "records"])
def test_a_damaged_manifest_is_named_and_written_anew(tmp_path, caplog, how, kept, replay):
    written(tmp_path, a_spec(replay=replay))
    before = content(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(spoilt(manifest.read_text(), how))
    with pytest.raises(UsageError, match=r"manifest\.json"):
        LabelStore(tmp_path)
    labelled = []

    def count(views, view, images):
        labelled.append(len(images))
        return label(views, view, images)

    written(tmp_path, a_spec(replay=replay), count)
    assert content(tmp_path) == before
    assert sum(labelled) == (3 - kept) * N
    assert any(str(manifest) in line for line in caplog.messages)


def test_broken_teachers_are_no_labels(tmp_path):
    with pytest.raises(RunError, match="NaN"):
        written(tmp_path, label=lambda views, view, images: TEACHER(views) * torch.nan)
    with pytest.raises(ValueError, match=r"\(8, 4\)"):
        written(tmp_path, label=lambda views, view, images: TEACHER(views)[:, :4])
    assert LabelStore(tmp_path).finished == []


def test_an_epoch_that_cannot_be_listed_is_not_kept(tmp_path, monkeypatch):
    def full(*_):
        raise RunError("no space left while writing manifest.json")

    with writing(tmp_path, a_spec(), OWN) as writer:
        writer.write_epoch(0, load, label)
        before = content(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(labels_writer, "write_manifest", full)
            with pytest.raises(RunError, match="no space left"):
                writer.write_epoch(1, load, label)
        assert content(tmp_path) == before
        assert writer.missing_epochs() == [1, 2]


def test_a_file_that_may_not_grow_loses_nothing(tmp_path):
    """A size limit on files is met in the middle of an epoch, as a full disk is."""
    large = 4000
    form = form_of("logits", CLASSES)
    spec = a_spec(n=large, batch=500, epochs=2, form=form)
    own, full = torch.arange(large) % CLASSES, size_on_disk(large, 1, form)

    def some(index):
        return load(index % N)

    with writing(tmp_path, spec, own) as writer:
        writer.write_epoch(0, some, label)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (full // 2, hard))
        try:
            with pytest.raises(RunError, match=r"file too large while writing .*epoch-00001\.npy; .*make room"):
                writer.write_epoch(1, some, label)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert sorted(path.name for path in tmp_path.glob("*epoch*")) == ["epoch-00000.npy"]
        assert writer.missing_epochs() == [1]
        writer.write_epoch(1, some, label)
    assert LabelStore(tmp_path).verify() == {}


# in a namespace of its own, with a disk that holds one epoch, and then more
FULL = """
import subprocess, sys
from pathlib import Path
import torch
from dd.views import ViewPolicy
from dd.errors import RunError
from dd.labels.forms import form_of
from dd.labels.spec import StoreSpec
from dd.labels.writer import writing
from dd.labels import LabelStore

place = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=56k", "tmpfs", place], check=True)
print("mounted", flush=True)
spec = StoreSpec(2300, tuple("abcde"), 4, 500, form_of("logits", 5), ViewPolicy(flip=True), (1, 2, 2))
def load(index):
    return index.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
def label(views, view, images):
    return views[:, 0, 0, :1] + torch.arange(5)
def go_on():
    with writing(Path(place) / "labels", spec, torch.arange(2300) % 5) as writer:
        print(writer.missing_epochs())
        for epoch in writer.missing_epochs():
            writer.write_epoch(epoch, load, label)
try:
    go_on()
except RunError as error:
    print(error)
print(sorted(path.name for path in (Path(place) / "labels").iterdir()))
subprocess.run(["mount", "-o", "remount,size=4m", place], check=True)
go_on()
print(LabelStore(Path(place) / "labels").verify())
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare")
def test_a_full_disk_loses_nothing(tmp_path):
    command = ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if "mounted" not in done.stdout:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    _, first, error, kept, then, damage = done.stdout.splitlines()
    assert first == "[0, 1, 2, 3]"
    assert error.startswith(f"no space left while writing {tmp_path / 'labels' / 'epoch-00001.npy'}; nothing was half")
    assert kept == "['.lock', 'classes.npy', 'epoch-00000.npy', 'manifest.json']"
    assert then == "[1, 2, 3]"
    assert damage == "{}"


def test_reading_maps_files_and_writing_seeks(tmp_path):
    """An epoch is never wholly in memory: rows are where their images are."""
    store = written(tmp_path)
    rows = np.load(tmp_path / "epoch-00001.npy", mmap_mode="r")
    for batch in store.epoch(1):
        assert np.array_equal(rows["logits"][batch.images.numpy()], batch.labels["logits"].numpy())
    assert isinstance(store._open(1).rows, np.memmap)
