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

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from dd.errors import RunError, UsageError
from dd.io import digest, sha256_file
from dd.labels import LabelSettings, LabelStore
from dd.labels.distances import dbr_loss
from dd.labels.forms import form_of
from dd.labels.spec import LabelSpec
from dd.pipeline.label import require_room
from dd.rng import generator
from dd.runs import Store
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


def a_spec(form="logits", replay="seed", top=5, **changes) -> LabelSpec:
    fields = {
        "n": N,
        "classes": CLASSES,
        "epochs": 3,
        "batch": 8,
        "shape": SHAPE,
        "policy": CUTMIX,
        "settings": LabelSettings(form=form, replay=replay, top=top),
        "teachers": ({"name": "linear", "sha256": "00"},),
    }
    return LabelSpec(**{**fields, **changes})


def opened(folder, spec=None, own=OWN) -> LabelStore:
    return LabelStore(folder, spec or a_spec(), own)


def written(folder, spec=None, label=label) -> LabelStore:
    store = opened(folder, spec)
    for epoch in store.missing():
        store.make(epoch, load, label)
    return opened(folder, spec)


def file_of(store, epoch) -> Path:
    return store.path / f"{digest(store.spec.key(epoch))}.safetensors"


def content(store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.path.glob("*.safetensors")}


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
    with pytest.raises(UsageError, match="23 images, but not of image 23"):
        store.at(0, 23)


@pytest.mark.parametrize("replay", ["seed", "records"])
@pytest.mark.parametrize("form", ["logits", "topk", "hard", "distances"])
def test_every_form_of_label_is_replayed_as_a_live_one_is(tmp_path, form, replay):
    spec = a_spec(form, replay, top=2)
    store = written(tmp_path, spec)
    for epoch in range(3):
        for number, (views, probabilities) in enumerate(store.batches(epoch, load)):
            images, view = spec.order(epoch)[8 * number : 8 * number + 8], spec.view(epoch, number)
            own, partner = store.pairs(images, view)
            assert torch.equal(views, view(load(images)))
            encoded = spec.form.encode(TEACHER(views), own, partner)
            assert torch.equal(probabilities, spec.form.decode(encoded, own, partner))


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
    last_rows = file_of(store, 1).read_bytes()[-60:]
    assert last_rows not in pickle.dumps(store)  # the open file is not sent along
    loader = DataLoader(_Epoch(pickle.loads(pickle.dumps(store))), batch_size=None, num_workers=2)
    for (views, probabilities), (other, wanted) in zip(loader, store.batches(1, load, 4.0), strict=True):
        assert torch.equal(views, other)
        assert torch.equal(probabilities, wanted)


def _read(path):
    torch.set_num_threads(1)  # a forked process has none of its parent's threads, and would wait for them
    store = opened(path)
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
    for ask in (lambda: next(store.epoch(4)), lambda: store.make(4, load, label)):
        with pytest.raises(UsageError, match=r"labels holds the labels of 3 epochs, but not of epoch 5") as error:
            ask()
        assert "\n" not in str(error.value)


# --- what belongs together -------------------------------------------------------------------------------------------


def test_another_batch_is_refused_with_the_reason(tmp_path):
    alone, together = opened(tmp_path / "alone"), opened(tmp_path / "together", a_spec(micro=4))
    alone.require(8, 2, "")
    together.require(8, 4, "")
    with pytest.raises(UsageError, match=r"batches of 8, not 16: mixed images .* with eval.batch=8, or .* `dd run`"):
        alone.require(16, 16, "")
    for micro in (8, 2):
        with pytest.raises(UsageError, match=rf"micro-batches of 4, not {micro}: .* eval.micro=4, or"):
            together.require(8, micro, "")


def test_other_images_are_refused(tmp_path):
    store = opened(tmp_path, a_spec(images="a" * 64))
    store.require(8, 8, "a" * 64)
    with pytest.raises(UsageError, match=r"other images .aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        store.require(8, 8, "b" * 64)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch": 4},
        {"policy": ViewPolicy(crop=0.3)},
        {"settings": LabelSettings(form="hard")},
        {"teachers": ()},
        {"weights": (1.0,)},
        {"micro": 4},
        {"images": "a" * 64},
    ],
)
def test_labels_of_another_spec_are_others(tmp_path, change):
    """Oracle 30: with another seed or batch it is another store; both may be in one folder."""
    store, other = written(tmp_path), opened(tmp_path, a_spec(**change))
    before = content(store)
    assert other.missing() == [0, 1, 2]
    with pytest.raises(UsageError, match="no soft labels in"):
        other.digest()
    other.make(1, load, label)
    assert store.verify() == {}
    assert content(store) == {**before, file_of(other, 1).name: file_of(other, 1).read_bytes()}
    store.remove_others()
    assert content(store) == before
    assert other.missing() == [0, 1, 2]


def test_more_epochs_go_on_with_those_that_are_there(tmp_path):
    before = content(written(tmp_path))
    more = opened(tmp_path, a_spec(epochs=5))
    assert more.missing() == [3, 4]
    assert opened(tmp_path, a_spec(epochs=2)).missing() == []
    assert before.items() <= content(written(tmp_path, a_spec(epochs=5))).items()


@pytest.mark.parametrize("own", [OWN[1:], OWN + 1, OWN - 1])
def test_every_image_has_a_class(tmp_path, own):
    with pytest.raises(UsageError, match="a class for each of 23 images, from 0 to 4"):
        opened(tmp_path, own=own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"micro": 9}, "eval.micro=9 is out of range; expected 2 to eval.batch, 8"),
        ({"micro": 2, "batch": 11}, "23 images in batches of 11 leave a batch of one"),
        ({"classes": 1}, "at least 2 classes"),
        ({"shape": (3, 0, 8)}, "shape is 0"),
        ({"policy": ViewPolicy(tiles=10**9)}, "1000000000 tiles"),
        ({"policy": ViewPolicy(pad=10**9)}, "a pad of 1000000000"),
        ({"replay": "records", "policy": ViewPolicy(tiles=2)}, "replay='seed'"),
        ({"replay": "records", "policy": ViewPolicy(strategy="flip")}, "replay='seed'"),
        ({"replay": "records", "policy": ViewPolicy(pad=2)}, "replay='seed'"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(change, message):
    with pytest.raises(UsageError, match=message) as error:
        _ = a_spec(**change).form
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
    written(tmp_path)
    kept = written(tmp_path.with_name("kept"), a_spec(replay="records"))
    first = next(kept.epoch(0)).view(load(torch.arange(8)))

    def other(policy, n, shape, rng, *rest):
        draw("flip", n, shape, rng)
        return draw_view(policy, n, shape, rng, *rest)

    monkeypatch.setattr("dd.labels.spec.draw_view", other)
    with pytest.raises(UsageError, match="draws other views"):
        next(opened(tmp_path).epoch(0))
    assert torch.equal(next(opened(kept.path.parent, kept.spec).epoch(0)).view(load(torch.arange(8))), first)


def test_where_nothing_can_be_written_the_line_says_what_to_do(tmp_path):
    (tmp_path / "labels").touch()
    with pytest.raises(UsageError, match=r"cannot write to .*/labels \(File exists\); choose another folder: out="):
        opened(tmp_path).make(0, load, label)


def test_labels_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"no soft labels in .*/labels of epoch 1 \(\w+\.json: no such file\);"):
        opened(tmp_path).digest()
    store = written(tmp_path)
    file_of(store, 1).with_suffix(".json").unlink()
    for ask in (store.digest, store.bytes, store.mean, lambda: next(store.epoch(1))):
        with pytest.raises(UsageError, match=r"of epoch 2 .* copy the folder labels/ beside the set that it was made"):
            ask()
    assert len(list(store.epoch(2))) == 3


def test_what_a_set_says_of_them(tmp_path):
    store = written(tmp_path)
    said = store.stated({"teachers": ["linear"]})
    assert (said.spec, said.sha256, said.bytes) == (a_spec(), store.digest(), store.bytes())
    assert said.bytes == sum(path.stat().st_size for path in store.path.glob("*.safetensors"))
    assert written(tmp_path.with_name("again")).digest() == store.digest()
    assert written(tmp_path.with_name("other"), a_spec(seed=1)).digest() != store.digest()
    manifest = json.loads(file_of(store, 2).with_suffix(".json").read_text())
    assert manifest["spec"] == a_spec().key(2)
    assert manifest["spec"]["teachers"] == [{"name": "linear", "sha256": "00"}]
    assert manifest["sha256"] == sha256_file(file_of(store, 2))


# --- size ------------------------------------------------------------------------------------------------------------


def test_published_sizes():
    """Oracle 34."""

    def size_on_disk(n, epochs, form, replay="seed", policy=POLICIES["nothing"]):
        settings = LabelSettings(form=form.name, top=5, replay=replay)
        return LabelSpec(n, form.classes, epochs, 100, (3, 224, 224), policy, settings).bytes()

    def bytes_per_view(form):
        return size_on_disk(1, 1, form)

    logits, distances = form_of("logits", 1000), form_of("distances", 1000)
    for ipc, gigabytes in ((10, 6), (50, 30), (100, 60), (200, 120)):
        assert size_on_disk(1000 * ipc, 300, logits) / 1e9 == pytest.approx(gigabytes, rel=1e-4)
    for ipc, gigabytes in ((10, 655), (20, 1310)):
        size = size_on_disk(10_450 * ipc, 300, form_of("logits", 10_450))
        assert size / 1e9 == pytest.approx(gigabytes, rel=1e-3)
    for ipc, gigabytes in ((50, 0.4), (100, 0.8)):
        assert size_on_disk(200 * ipc, 100, form_of("logits", 200)) / 1e9 == pytest.approx(gigabytes, rel=1e-3)
    for classes in (10, 1000):
        assert bytes_per_view(form_of("logits", classes)) / bytes_per_view(form_of("distances", classes)) == classes / 2
    assert size_on_disk(200_000, 300, distances) / 1e9 == pytest.approx(0.24, rel=1e-3)
    assert bytes_per_view(form_of("topk", 1000, k=5)) == 20
    records = size_on_disk(200_000, 300, distances, "records", ViewPolicy(crop=0.08, flip=True, mix="cutmix"))
    assert (records - size_on_disk(200_000, 300, distances)) / 1e9 == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("mode", ["seed", "records"])
@pytest.mark.parametrize("policy", ["cutmix", "mixup", "nothing"])
def test_the_size_is_known_before(tmp_path, policy, mode):
    spec = a_spec(policy=POLICIES[policy], replay=mode)
    store = written(tmp_path, spec)
    kept = [load_file(file_of(store, epoch)) for epoch in range(3)]
    assert sum(values.nbytes for epoch in kept for values in epoch.values()) == spec.bytes()
    assert 0 < store.bytes() - spec.bytes() < 3 * 1000  # what a file says of itself


def test_room_is_looked_at_before(tmp_path):
    folder = tmp_path / "not" / "there"
    assert "1.0 MB in" in require_room(folder, 1_000_000)
    assert "1.6 kB in" in require_room(folder, 1600)
    with pytest.raises(UsageError, match=r"1000000\.0 GB in .*labels\.form=topk.*labels\.mode=live") as error:
        require_room(folder, 10**15)
    assert "\n" not in str(error.value)
    assert not folder.exists()
    (tmp_path / "some").write_bytes(bytes(600))
    assert "400 B in" in require_room(tmp_path, 1000)


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
    expected = content(written(tmp_path / "whole"))
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        written(folder, label=stopping(after))
    done = after // 3
    assert opened(folder).missing() == list(range(done, 3))
    assert not [path for path in (folder / "labels").iterdir() if path.name.startswith(".")]
    seen = []

    def note(views, view, images):
        seen.append(images)
        return TEACHER(views)

    store = written(folder, label=note)
    assert len(seen) == 3 * (3 - done)
    assert content(store) == expected


def test_a_reader_sees_what_is_made_meanwhile(tmp_path):
    store, reader = opened(tmp_path), opened(tmp_path)
    store.make(1, load, label)
    assert store.missing() == [0, 2]
    assert len(list(reader.epoch(1))) == 3
    with pytest.raises(UsageError, match="of epoch 3"):
        next(reader.epoch(2))
    store.make(2, load, label)
    assert len(list(reader.epoch(2))) == 3
    store.make(2, load, None)  # pyright: ignore[reportArgumentType]


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
    assert opened(folder).missing() == [1, 2]
    assert content(written(folder)) == content(written(tmp_path / "whole"))


def damage_a_byte(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-10])


def another_json(path):
    path.with_suffix(".json").write_text("[]")


def another_digit(path):
    manifest = path.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"batch": 8', '"batch": 9'))


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_a_byte, "the hash of its payload is wrong"),
        (cut_off, "the hash of its payload is wrong"),
        (Path.unlink, "its payload is missing"),
        (another_json, "TypeError"),
        (another_digit, "the hash of its facts is wrong"),
        (a_pipe, "its payload is not a file"),
    ],
)
@pytest.mark.parametrize("replay", ["seed", "records"])
def test_a_damaged_epoch_is_named_and_made_anew(tmp_path, caplog, harm, words, replay):
    store = written(tmp_path, a_spec(replay=replay))
    before = content(store)
    assert len(list(store.epoch(1))) == 3
    harm(file_of(store, 1))
    assert list(store.verify()) == [1]
    assert words in store.verify()[1]
    reader = opened(tmp_path, store.spec)
    assert len(list(reader.epoch(0))) == 3
    with pytest.raises(UsageError, match=rf"labels of epoch 2 are damaged \(.*\.json: .*{words}") as error:
        next(reader.epoch(1))
    assert "\n" not in str(error.value)
    again = opened(tmp_path, store.spec)
    assert again.missing() == [1]
    again.make(1, load, label)
    assert "labels of epoch 2 in" in caplog.text
    assert "is damaged" in caplog.text
    assert again.missing() == []
    assert content(again) == before
    assert opened(tmp_path, store.spec).verify() == {}


FULL_RANGE = {
    "logits": [("logits", (0, 0), float("nan"), "NaN or infinite")],
    "hard": [("classes", 3, CLASSES, "of no class"), ("classes", 3, -1, "of no class")],
    "topk": [("indices", (3, 0), CLASSES, "of no class"), ("values", (3, 0), float("inf"), "NaN or infinite")],
    "distances": [("distances", (3, 0), float("inf"), "NaN or infinite")],
}
RECORDED = [
    ("place", 0, 99, "not a permutation"),
    ("box", (2, 0), 7, "a box is not inside"),
    ("box", (2, 3), -1, "a box is not inside"),
    ("patch", (2, 2), 9, "a patch is not inside"),
    ("partner", 3, N, "another batch"),
    ("partner", 3, -2, "another batch"),
]


@pytest.mark.parametrize(
    ("form", "replay", "name", "place", "value", "words"),
    [(form, "seed", *case) for form, cases in FULL_RANGE.items() for case in cases]
    + [("hard", "records", *case) for case in RECORDED],
)
def test_labels_that_cannot_be_are_refused_whatever_their_hash(tmp_path, form, replay, name, place, value, words):
    """Written by a stranger, who can make hashes that are right."""
    spec = a_spec(form, replay, top=2)
    kept = load_file(file_of(written(tmp_path / "right", spec), 0))
    kept[name][place] = value
    Store(tmp_path / "wrong").tensors("labels", spec.key(0), lambda: (kept, {"drawn": spec.fingerprint(0)}))
    with pytest.raises(UsageError, match=rf"labels of epoch 1 are damaged \(.*{words}"):
        next(opened(tmp_path / "wrong", spec).epoch(0))


@pytest.mark.parametrize(
    "payload",
    [
        {"others": torch.zeros(N, CLASSES, dtype=torch.float16)},
        {"logits": torch.zeros(N, CLASSES)},
        {"logits": torch.zeros(N, CLASSES + 1, dtype=torch.float16)},
        {"logits": torch.zeros(N, CLASSES, dtype=torch.float16), "more": torch.zeros(1)},
    ],
)
def test_other_arrays_are_refused_whatever_their_hash(tmp_path, payload):
    Store(tmp_path).tensors("labels", a_spec().key(0), lambda: (payload, {"drawn": a_spec().fingerprint(0)}))
    with pytest.raises(UsageError, match="the wrong names, types or shapes"):
        next(opened(tmp_path).epoch(0))


def test_a_plain_value_is_no_epoch(tmp_path):
    Store(tmp_path).value("labels", a_spec().key(0), lambda: 1)
    for ask in (opened(tmp_path).digest, lambda: next(opened(tmp_path).epoch(0))):
        with pytest.raises(UsageError, match="it holds no labels"):
            ask()


def test_broken_teachers_are_no_labels(tmp_path):
    with pytest.raises(RunError, match="NaN"):
        written(tmp_path, label=lambda views, view, images: TEACHER(views) * torch.nan)
    with pytest.raises(ValueError, match=r"\(8, 4\)"):
        written(tmp_path, label=lambda views, view, images: TEACHER(views)[:, :4])
    assert opened(tmp_path).missing() == [0, 1, 2]


def test_a_file_that_may_not_grow_loses_nothing(tmp_path):
    """A size limit on files is met in the middle of an epoch, as a full disk is."""
    large = 4000
    spec = a_spec(n=large, batch=500, epochs=2)
    store = opened(tmp_path, spec, torch.arange(large) % CLASSES)

    def some(index):
        return load(index % N)

    store.make(0, some, label)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spec.bytes() // 4, hard))
    try:
        with pytest.raises(RunError, match=r"file too large while writing .*\.safetensors; .*make room"):
            store.make(1, some, label)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(content(store)) == [file_of(store, 0).name]
    assert store.missing() == [1]
    store.make(1, some, label)
    assert store.verify() == {}


# in a namespace of its own, with a disk that holds one epoch, and then more
FULL = """
import subprocess, sys
from pathlib import Path
import torch
from dd.errors import RunError
from dd.labels import LabelSettings, LabelStore
from dd.labels.spec import LabelSpec
from dd.views import ViewPolicy

place = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=52k", "tmpfs", place], check=True)
print("mounted", flush=True)
spec = LabelSpec(2300, 5, 4, 500, (1, 2, 2), ViewPolicy(flip=True), LabelSettings())
def load(index):
    return index.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
def label(views, view, images):
    return views[:, 0, 0, :1] + torch.arange(5)
store = LabelStore(Path(place), spec, torch.arange(2300) % 5)
def go_on():
    print(store.missing())
    for epoch in store.missing():
        store.make(epoch, load, label)
try:
    go_on()
except RunError as error:
    print(error)
print(sorted(path.suffix for path in store.path.iterdir()))
subprocess.run(["mount", "-o", "remount,size=4m", place], check=True)
go_on()
print(store.verify())
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare")
def test_a_full_disk_loses_nothing(tmp_path):
    command = ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if "mounted" not in done.stdout:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    _, first, error, kept, then, damage = done.stdout.splitlines()
    assert first == "[0, 1, 2, 3]"
    assert error.startswith(f"no space left while writing {tmp_path / 'labels'}/")
    assert "; nothing was half-written" in error
    assert kept == "['.json', '.lock', '.lock', '.safetensors']"
    assert then == "[1, 2, 3]"
    assert damage == "{}"


def test_a_row_is_where_its_image_is(tmp_path):
    store = written(tmp_path)
    rows = load_file(file_of(store, 1))
    for batch in store.epoch(1):
        assert torch.equal(rows["logits"][batch.images], batch.labels["logits"])
