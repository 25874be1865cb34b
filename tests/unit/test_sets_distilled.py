import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dd.data.preprocess import Standard
from dd.data.real import DeviceSplit
from dd.errors import UsageError
from dd.labels import LabelSettings
from dd.labels.spec import LabelSpec, StoredLabels
from dd.sets import DistilledSet
from dd.views import ViewPolicy

SPACE = {"kind": "standard", "mean": [0.1, 0.2, 0.3], "std": [0.3, 0.3, 0.3]}


def a_set(**changes) -> DistilledSet:
    fields = {
        "images": torch.linspace(-1, 1, 4 * 3 * 2 * 2).reshape(4, 3, 2, 2),
        "labels": torch.tensor([0, 0, 1, 1]),
        "classes": ("cat", "dog"),
        "source": "toy",
        "space": SPACE,
    }
    return DistilledSet(**{**fields, **changes})


def data(**changes) -> Any:
    """What a set asks of the real data."""
    fields = {"name": "toy", "classes": ("cat", "dog"), "channels": 3, "size": 2, "fingerprint": "f" * 64}
    space, images = changes.pop("space", SPACE), changes.pop("images", 100)
    labels, standard = torch.arange(images) // 2 % 2, Standard(torch.full((3,), 0.5), torch.full((3,), 0.5))
    train = DeviceSplit(torch.zeros(images, 3, 2, 2, dtype=torch.uint8), labels, standard, 2)
    return SimpleNamespace(**{**fields, "train": train, **changes}, preprocess=SimpleNamespace(spec=lambda: space))


def test_numbers_of_a_set():
    assert (a_set().n, a_set().ipc) == (4, 2)
    assert a_set(images=a_set().images[:3], labels=torch.tensor([0, 0, 1])).ipc is None
    schedule = a_set(
        images=torch.zeros(5, 4, dtype=torch.int64), labels=torch.zeros(5, 4, dtype=torch.int64), image_kind="schedule"
    )
    assert (schedule.n, schedule.ipc) == (4, 2)
    assert "5 epochs of 4 images each, hard labels" in repr(schedule)
    with pytest.raises(UsageError, match=r"^a schedule does not hold the images"):
        schedule.as_dataset()
    assert a_set().bytes() == {"images": 4 * 4 * 12, "labels": 4 * 8, "total": 4 * 4 * 12 + 4 * 8}


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 6_144_000), (torch.uint8, 1_536_000)])
def test_the_bytes_of_fifty_images_of_each_class_of_cifar10(dtype, size):
    images = torch.zeros(500, 3, 32, 32, dtype=dtype)
    assert a_set(images=images, labels=torch.arange(10).repeat_interleave(50)).bytes()["images"] == size


def test_targets_of_every_label_kind():
    assert a_set().targets().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    logits = torch.tensor([[0.0, 1.0], [5.0, 5.0], [-1.0, 2.0], [90.0, 0.0]])
    slow = [[v / sum(e) for v in e] for e in [[2.718281828459045**x for x in row] for row in logits.tolist()]]
    torch.testing.assert_close(a_set(labels=logits, label_kind="logits").targets(), torch.tensor(slow))
    shares = torch.tensor([[1.0, 3.0], [0.0, 2.0], [0.5, 0.5], [1e-3, 0.0]])
    torch.testing.assert_close(
        a_set(labels=shares, label_kind="probabilities").targets(),
        torch.tensor([[0.25, 0.75], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]),
    )
    for kind in ("representations", "views"):
        with pytest.raises(UsageError, match=kind):
            a_set(label_kind=kind).targets()


def views(**changes) -> StoredLabels:
    fields = {"n": 4, "classes": 2, "epochs": 3, "batch": 2, "shape": (3, 2, 2)}
    spec = LabelSpec(**{**fields, **changes}, policy=ViewPolicy(), settings=LabelSettings())
    return StoredLabels(spec, "0" * 64, 1000)


VIEWS = {"label_kind": "views", "views": views()}


def test_the_bytes_of_a_label_store_are_bytes_of_labels():
    without = a_set().bytes()
    assert a_set(**VIEWS).bytes() == {
        "images": without["images"],
        "labels": without["labels"] + 1000,
        "total": without["total"] + 1000,
    }


def test_the_class_of_every_image_whatever_the_labels():
    classes = [0, 0, 1, 1]
    assert a_set().own_classes().tolist() == classes
    assert a_set(**VIEWS).own_classes().tolist() == classes
    logits = torch.tensor([[2.0, 1.0], [5.0, -5.0], [-1.0, 2.0], [90.0, 91.0]])
    assert a_set(labels=logits, label_kind="logits").own_classes().tolist() == classes
    assert a_set(labels=logits.softmax(1), label_kind="probabilities").own_classes().tolist() == classes
    with pytest.raises(UsageError, match="representations"):
        a_set(labels=logits, label_kind="representations").own_classes()


def test_pixels_of_bytes_and_of_floats_are_in_model_space():
    raw = torch.randint(256, (4, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(SPACE[name]) for name in ("mean", "std"))
    preprocess = Standard(mean, std)
    small = a_set(images=raw)
    small.check()
    assert small.bytes()["images"] == 4 * 3 * 2 * 2
    wanted = (raw.double() / 255 - mean.double().view(-1, 1, 1)) / std.double().view(-1, 1, 1)
    torch.testing.assert_close(small.pixels(preprocess).double(), wanted, rtol=0, atol=1e-6)
    index = torch.tensor([3, 1])
    assert torch.equal(small.pixels(preprocess, index), small.pixels(preprocess)[index])
    assert torch.equal(a_set().pixels(preprocess), a_set().images)
    assert torch.equal(a_set().pixels(preprocess, index), a_set().images[index])
    with pytest.raises(UsageError, match="indices"):
        a_set(images=torch.arange(4), image_kind="indices").pixels(preprocess)


def test_digest_is_identity_without_provenance():
    base = a_set().digest()
    assert len(base) == 64
    assert a_set(provenance={"seed": 3}).digest() == base
    assert a_set(space=dict(reversed(SPACE.items())), classes=["cat", "dog"]).digest() == base
    images = a_set().images.clone()
    images[0, 0, 0, 0] += 1e-7
    others = [
        a_set(images=images),
        a_set(labels=torch.tensor([0, 0, 1, 0])),
        a_set(lr=0.01),
        a_set(lr=0.02),
        a_set(classes=("dog", "cat")),
        a_set(space={**SPACE, "kind": "zca"}),
        a_set(augment="flip"),
        a_set(protocol={"name": "mtt"}),
        a_set(label_kind="views", views=views()),
        a_set(label_kind="views", views=views(seed=1)),
        a_set(label_kind="views", views=replace(views(), sha256="1" * 64)),
    ]
    assert len({base, *(other.digest() for other in others)}) == len(others) + 1


LOGITS = torch.zeros(4, 2)
BROKEN = {
    "image_kind": {"image_kind": "paintings"},
    "label_kind": {"label_kind": "guesses"},
    "classes": {"classes": ()},
    "classes ": {"classes": ("cat", "cat")},
    "space": {"space": {}},
    "decode_factor": {"decode_factor": 2},
    "decode_factor ": {"image_kind": "tiles"},
    "decode_factor  ": {"decode_factor": 0},
    "views": {"label_kind": "views"},
    "views ": {"views": views()},
    "views  ": {"label_kind": "views", "views": views(n=5)},
    "views   ": {"label_kind": "views", "views": views(classes=3)},
    "views    ": {"label_kind": "views", "views": views(shape=(1, 2, 2))},
    "views      ": {"label_kind": "views", "views": views(teachers=({"seed": 2**63},))},
    "views     ": {"label_kind": "views", "views": views(weights=(0.5, float("inf")))},
    "provenance": {"provenance": {"path": Path()}},
    "protocol": {"protocol": {"t": torch.zeros(2)}},
    "images": {"images": torch.tensor(1.0)},
    "images ": {"images": torch.zeros(0, 3, 2, 2)},
    "images  ": {"images": torch.zeros(4, 0, 2, 2)},
    "images   ": {"images": torch.zeros(4, 3, 2, 2, dtype=torch.float64)},
    "images    ": {"images": torch.full((4, 3, 2, 2), float("nan"))},
    "images     ": {"images": torch.tensor([0, 1, 2, -1]), "image_kind": "indices"},
    "images      ": {"images": torch.zeros(4), "image_kind": "indices"},
    "images        ": {"images": torch.tensor([0, 1, 2, 1]), "image_kind": "indices"},
    "images       ": {"images": torch.zeros(4, dtype=torch.int64), "image_kind": "schedule"},
    "labels": {"labels": torch.tensor(0)},
    "labels ": {"labels": torch.tensor([0, 0, 1])},
    "labels  ": {"labels": torch.tensor([0, 0, 1, 2])},
    "labels   ": {"labels": torch.tensor([0, 0, 1, -1])},
    "labels    ": {"labels": torch.zeros(4, dtype=torch.int32)},
    "labels     ": {"labels": LOGITS},
    "labels      ": {"labels": LOGITS.double(), "label_kind": "logits"},
    "labels       ": {"labels": torch.zeros(4, 3), "label_kind": "logits"},
    "labels        ": {"labels": torch.zeros(4), "label_kind": "logits"},
    "labels         ": {"labels": torch.zeros(4, 0), "label_kind": "representations"},
    "labels          ": {"labels": LOGITS / 0, "label_kind": "logits"},
    "labels           ": {"labels": LOGITS, "label_kind": "probabilities"},
    "labels            ": {"labels": torch.tensor([[2.0, -1.0]] * 4), "label_kind": "probabilities"},
    "labels              ": {"labels": torch.tensor([0, 0, 1, 2]), **VIEWS},
    "labels             ": {"images": torch.zeros(2, 4, dtype=torch.int64), "image_kind": "schedule"},
    "lr": {"lr": float("nan")},
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_names_the_broken_field(name):
    a_set().check()
    with pytest.raises(UsageError, match=rf"\b{name.strip()}\b") as error:
        a_set(**BROKEN[name]).check()
    assert "\n" not in str(error.value)


def test_a_set_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_set().lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("dog", "cat")}, "'classes'.*'cat' as label 0.*'dog'.*another order"),
        ({"classes": ("cat", "dog", "emu")}, "'classes'.* 2 .* 3 "),
        ({"classes": ("cat", "emu")}, "'classes'.*'dog'.*'emu'"),
        ({"channels": 1}, "'channels'.*3.*1"),
        ({"size": 28}, "'size'.*2x2.*28x28"),
        ({"space": {**SPACE, "kind": "zca"}}, r"'space\.kind'.*standard.*zca.*data\.preprocess=standard"),
        ({"space": {**SPACE, "mean": [0.1, 0.2, 0.4]}}, r"'space\.mean'.*0\.3.*0\.4"),
        ({"space": {**SPACE, "eps": 0.1}}, r"'space\.eps'.*null.*0\.1"),
        ({"space": {"kind": "standard", "mean": [0.1], "std": SPACE["std"]}}, r"'space\.mean'"),
    ],
)
def test_a_mismatch_with_the_data_names_field_and_both_values(changes, message):
    a_set().require_match(data())
    with pytest.raises(UsageError, match=message) as error:
        a_set().require_match(data(**changes))
    assert "\n" not in str(error.value)


def test_a_match_forgives_names_of_other_sources_and_the_last_bits_of_constants():
    nearly = {"kind": "standard", "mean": (0.1 + 1e-9, 0.2, 0.3), "std": (0.3, 0.3, 0.3)}
    a_set().require_match(data(name="other", fingerprint="0", space=nearly, classes=["cat", "dog"]))


def test_indices_belong_to_one_data_set():
    indices = a_set(images=torch.arange(4), image_kind="indices", source_fingerprint="f" * 64)
    indices.require_match(data())
    for changes, message in [
        ({"name": "other"}, "'source'.*'toy'.*'other'"),
        ({"fingerprint": "0" * 64}, "'source_fingerprint'.*ffff.*0000"),
        ({"images": 3}, "'images'.*index 3.*only 3"),
    ]:
        with pytest.raises(UsageError, match=message):
            indices.require_match(data(**changes))
    elsewhere = a_set(images=torch.tensor([0, 2, 4, 6]), image_kind="indices", source_fingerprint="f" * 64)
    with pytest.raises(UsageError, match=r"'labels'.*other classes for 2 of the 4 images"):
        elsewhere.require_match(data())
