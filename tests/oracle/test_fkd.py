"""Label files as SRe2L and EDC write them, by torch's sampler and torchvision's crops: what students are shown."""

import os
import shutil
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image
from torch.utils.data import BatchSampler, RandomSampler
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from dd.errors import UsageError
from dd.exchange.draft import Asked
from dd.exchange.fkd import image_order, view_files, with_labels
from dd.exchange.readers import drafts
from dd.exchange.source import ForeignFiles
from dd.sets import DistilledSet

N, K, SIDE, BATCH, EPOCHS = 30, 5, 16, 8, 3
LABELS = torch.arange(N) // (N // K)


def images():
    corners = torch.rand(N, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(corners, size=(SIDE, SIDE), mode="bilinear") * 255).round().byte()


def today(n, epochs):
    """What `DataLoader(sampler=RandomSampler(generator=seed 42))` yields, epoch after epoch."""
    sampler = BatchSampler(RandomSampler(range(n), generator=torch.Generator().manual_seed(42)), BATCH, False)
    return [list(sampler) for _ in range(epochs)]


def formerly(n, epochs):
    """As torch 1.10 did: one permutation an epoch."""
    rng = torch.Generator().manual_seed(42)
    return [[part.tolist() for part in torch.randperm(n, generator=rng).split(BATCH)] for _ in range(epochs)]


def mixed(views, mix, rng):
    """By the definitions of `utils_fkd.py`: in place, the box's first axis is the height."""
    if mix is None:
        return views, None, None, None
    index, weight = torch.randperm(len(views)), float(rng.beta(1, 1))
    if mix == "mixup":
        return weight * views + (1 - weight) * views[index], index, np.float64(weight), None
    cut = int(SIDE * np.sqrt(1 - weight))
    x, y = rng.integers(SIDE), rng.integers(SIDE)
    box = [np.clip(v, 0, SIDE) for v in (x - cut // 2, y - cut // 2, x + cut // 2, y + cut // 2)]
    out = views.clone()
    out[:, :, box[0] : box[2], box[1] : box[3]] = views[index, :, box[0] : box[2], box[1] : box[3]]
    return out, index, np.float64(weight), box


def relabelled(folder, orders, mix="cutmix", fields=6, right=0.9, source=None, classes=K, permuted=None):
    """Label files of an imagined teacher that is right about so many views; returns the views it was shown."""
    source, rng, shown = images() if source is None else source, np.random.default_rng(0), []
    torch.manual_seed(0)
    for epoch, batches in enumerate(orders):
        for number, index in enumerate(batches):
            views, coords, flips = [], [], torch.rand(len(index)) < 0.5
            for place, image in enumerate(index):
                i, j, h, w = RandomResizedCrop.get_params(source[image], (0.08, 1.0), (3 / 4, 4 / 3))
                view = source[image].float() / 255
                view = tv.resized_crop(view, i, j, h, w, [SIDE, SIDE], InterpolationMode.BILINEAR, antialias=False)
                views.append(tv.hflip(view) if flips[place] else view)
                coords.append([i / SIDE, j / SIDE, h / SIDE, w / SIDE])
            views, partner, weight, box = mixed(torch.stack(views), mix, rng)
            said = LABELS[index].clone()
            wrong = torch.rand(len(index)) > right
            said[wrong] = torch.randint(classes, (int(wrong.sum()),))
            logits = torch.randn(len(index), classes) + 8 * torch.nn.functional.one_hot(said, classes)
            logits = logits if permuted is None else logits[:, permuted]
            kept = [torch.tensor(coords, dtype=torch.float32), flips, partner, weight, box, logits.half()]
            if fields == 8:
                kept += [torch.tensor(index), torch.zeros(len(index), 2, 2, dtype=torch.int32)]
            path = folder / f"epoch_{epoch}" / f"batch_{number}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(kept, path)
            shown.append((epoch, index, views, logits.half()))
    return shown


def a_set(**changes):
    classes = tuple("abcde")
    space = {"kind": "standard", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    made = DistilledSet(images(), LABELS.clone(), classes, "toy", space=space)
    return replace(made, **changes)


@pytest.mark.parametrize("mix", [None, "mixup", "cutmix"])
@pytest.mark.parametrize(("sampled", "draws"), [(today, 2), (formerly, 1)])
def test_students_are_shown_what_the_teacher_was(tmp_path, mix, sampled, draws):
    """Batch by batch the images, the views to rounding, and the logits to the bit."""
    shown = relabelled(tmp_path / "FKD", sampled(N, EPOCHS), mix)
    order = image_order(view_files(tmp_path / "FKD"), LABELS)
    assert order.draws == draws
    assert order.agreement > 0.8
    assert order.chance < 0.5
    made = with_labels(a_set(), order, torch.arange(K), tmp_path)
    made.check()
    store = made.label_store()
    assert (store.spec.epochs, store.spec.batch, store.spec.policy.mix) == (EPOCHS, BATCH, mix or "none")
    mean, std = (torch.tensor(made.space[name]).view(-1, 1, 1) for name in ("mean", "std"))
    load = lambda index: (made.images[index].float() / 255 - mean) / std  # noqa: E731
    stored = [(epoch, batch) for epoch in range(EPOCHS) for batch in store.epoch(epoch)]
    for (epoch, batch), (whose, index, views, logits) in zip(stored, shown, strict=True):
        assert (epoch, batch.images.tolist()) == (whose, index)
        assert torch.equal(batch.labels["logits"], logits)
        assert torch.allclose(batch.view(load(batch.images)), (views - mean) / std, atol=2e-5)


def test_the_draws_of_the_sampler():
    """Epochs 0, 1, 2 of 7 images are permutations 0, 2, 4 from seed 42 today; formerly 0, 1, 2."""
    rng = torch.Generator().manual_seed(42)
    drawn = [torch.randperm(7, generator=rng).tolist() for _ in range(5)]
    assert [list(chain(*epoch)) for epoch in today(7, 3)] == [drawn[0], drawn[2], drawn[4]]
    assert [list(chain(*epoch)) for epoch in formerly(7, 3)] == drawn[:3]


def test_the_wrong_order_is_at_chance(tmp_path):
    relabelled(tmp_path / "FKD", today(N, EPOCHS))
    from dd.exchange.fkd import _tried

    right, wrong = (_tried(view_files(tmp_path / "FKD"), LABELS, draws) for draws in (2, 1))
    assert right.agreement > 0.85
    assert abs(wrong.agreement - wrong.chance) < 3 * (wrong.chance * (1 - wrong.chance) / (2 * N)) ** 0.5


def test_edc_says_which_images_they_are(tmp_path):
    """An order of its own, which no seed gives: a permutation in every epoch."""
    rng = torch.Generator().manual_seed(7)
    orders = [[part.tolist() for part in torch.randperm(N, generator=rng).split(BATCH)] for _ in range(2)]
    shown = relabelled(tmp_path / "FKD", orders, fields=8)
    order = image_order(view_files(tmp_path / "FKD"), LABELS)
    assert order.draws == 0
    store = with_labels(a_set(), order, torch.arange(K), tmp_path).label_store()
    batches = [batch for epoch in range(2) for batch in store.epoch(epoch)]
    assert [batch.images.tolist() for batch in batches] == [index for _, index, _, _ in shown]
    relabelled(tmp_path / "twice", [[[0] * BATCH, *orders[0][1:]]], fields=8)
    with pytest.raises(UsageError, match="each of 30 once"):
        image_order(view_files(tmp_path / "twice"), LABELS)


def test_classes_in_another_order(tmp_path):
    """Columns of the logits go with the labels of the file; the set numbers its classes otherwise."""
    relabelled(tmp_path / "FKD", today(N, 2), None, right=1.0)
    files = view_files(tmp_path / "FKD")
    order, classes = image_order(files, LABELS), torch.tensor([3, 1, 4, 0, 2])
    made = with_labels(a_set(labels=classes[LABELS]), order, classes, tmp_path)
    assert torch.equal(made.targets().argmax(1), classes[LABELS])


def test_labels_of_other_images_are_refused(tmp_path):
    """Shuffled images, another teacher's classes, another number of images, crops of another size."""
    relabelled(tmp_path / "FKD", today(N, EPOCHS))
    files = view_files(tmp_path / "FKD")
    for labels in (LABELS[torch.randperm(N, generator=torch.Generator().manual_seed(1))], (LABELS + 1) % K):
        with pytest.raises(UsageError, match="of other images, or in another order"):
            image_order(files, labels)
    with pytest.raises(UsageError, match="of 30 images, and there are 25"):
        image_order(files, LABELS[:25])
    order = image_order(files, LABELS)
    larger = torch.nn.functional.interpolate(images().float(), size=(21, 21)).byte()
    with pytest.raises(UsageError, match="not whole pixels of images of 21 x 21"):
        with_labels(a_set(images=larger), order, torch.arange(K), tmp_path / "a")
    with pytest.raises(UsageError, match="are of 5 classes, and toy has 6"):
        with_labels(a_set(classes=tuple("abcdef")), order, torch.arange(6), tmp_path / "b")


def test_an_epoch_of_another_run(tmp_path):
    """Labelling that was restarted begins the sampler anew: its epochs do not fit, and are named."""
    relabelled(tmp_path / "FKD", [*today(N, 6), *today(N, 1)])
    order = image_order(view_files(tmp_path / "FKD"), LABELS)
    with pytest.raises(UsageError, match="the labels of epoch 6 agree with"):
        with_labels(a_set(), order, torch.arange(K), tmp_path)


def test_damage_anywhere_in_a_label_file_is_one_line(tmp_path):
    """Bytes changed at random places: the labels are refused, or are those of before."""
    relabelled(tmp_path / "FKD", today(N, 1))
    path, rng = tmp_path / "FKD" / "epoch_0" / "batch_2.tar", np.random.default_rng(0)
    whole = path.read_bytes()
    for number in range(40):
        spoilt = bytearray(whole)
        start = int(rng.integers(len(whole)))
        spoilt[start : start + 20] = rng.bytes(min(20, len(whole) - start))
        path.write_bytes(spoilt)
        said = ""
        try:
            order = image_order(view_files(tmp_path / "FKD"), LABELS)
            made = with_labels(a_set(), order, torch.arange(K), tmp_path / f"{number}")
        except UsageError as error:
            said = str(error)
        else:
            assert made.label_store().verify() == {}
        assert len(said.splitlines()) <= 1


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_label_file_that_would_run_code(tmp_path, monkeypatch):
    """The last of them, when others are made already: nothing is run, and nothing left."""
    monkeypatch.chdir(tmp_path)
    relabelled(tmp_path / "FKD", today(N, 8))
    order = image_order(view_files(tmp_path / "FKD"), LABELS)
    torch.save([Runs()] * 6, tmp_path / "FKD" / "epoch_7" / "batch_3.tar")
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "made", tmp_path):
        with pytest.raises(UsageError, match="nothing in it was run"):
            with_labels(a_set(), order, torch.arange(K), folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_of_another_kind(tmp_path):
    relabelled(tmp_path / "FKD", today(N, 1))
    path = tmp_path / "FKD" / "epoch_0" / "batch_1.tar"
    good = torch.load(path, weights_only=False)
    for number, (spoilt, said) in enumerate(
        (
            (good[:5], "5 fields"),
            ([*good, torch.arange(BATCH)], "7 fields"),
            ({"a": 1}, "no list"),
            ([*good[:2], torch.zeros(BATCH, dtype=torch.int64), *good[3:]], "not a permutation"),
            ([*good[:4], [0, 0, 99, 4], good[5]], "not inside images"),
            ([good[0] + 2, *good[1:]], "not inside its image"),
            ([*good[:5], good[5][:, :3]], "of 3 classes, and 8 of 5 are expected"),
            ([*good[:5], good[5] * float("nan")], "NaN or infinite"),
        )
    ):
        torch.save(spoilt, path)
        with pytest.raises(UsageError, match=said):
            with_labels(
                a_set(), image_order(view_files(tmp_path / "FKD"), LABELS), torch.arange(K), tmp_path / f"{number}"
            )
    path.unlink()
    with pytest.raises(UsageError, match=r"batch_1.tar is missing, and there are 2 after it"):
        image_order(view_files(tmp_path / "FKD"), LABELS)


def folder_of(root):
    for place, image in enumerate(images()):
        path = root / f"new{int(LABELS[place]):03}" / f"class{int(LABELS[place]):03}_id{place % (N // K):03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.mark.parametrize("how", ["apart", "together", "zipped"])
def test_a_folder_and_its_label_files_are_recognised(tmp_path, how):
    folder_of(tmp_path / "syn" / "images")
    relabelled(tmp_path / "syn" / "FKD_cutmix_fp16", today(N, 2))
    named = (
        (tmp_path / "syn" / "FKD_cutmix_fp16", tmp_path / "syn" / "images") if how == "apart" else (tmp_path / "syn",)
    )
    if how == "zipped":
        shutil.make_archive(str(tmp_path / "images"), "zip", tmp_path / "syn" / "images")
        named = (tmp_path / "images.zip", tmp_path / "syn" / "FKD_cutmix_fp16")
    (draft,) = drafts(ForeignFiles(named), Asked())
    assert (draft.format, draft.views.epochs, draft.views.batches) == ("sre2l", 2, 4)
    assert torch.equal(draft.images, images())
    assert any("labels of views in 2 x 4 files" in line for line in draft.evidence)
    assert image_order(draft.views, draft.labels).agreement > 0.8
