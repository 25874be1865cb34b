"""Experts as artefacts: what decides one, what does not, and what is kept of it."""

import json
import logging
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from dd.errors import RunError, UsageError
from dd.networks import Functional, NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.training import Experts, ExpertSettings, expert_logits, trajectories
from dd.training.experts import expert_spec
from dd.views.dsa import augment

DSA = "color_crop_cutout_flip_scale_rotate"
SETTINGS = ExpertSettings(count=2, epochs=3, lr=0.05, batch=24)  # 128 images: five batches of 24 and one of 8


class Unreadable:
    """A split that may not be read."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getattr__(self, name):
        raise AssertionError(f"{name} was read")


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(strategy=DSA))


def fresh(task, member, seed=0):
    """The network of an expert before its first step, as a vector."""
    return task.functional().flatten(task.build(generator(seed, "expert", member, "weights")))


def accuracy_by_hand(network, theta, split):
    right = 0
    for i in range(len(split)):
        z = network(theta, split.images(torch.tensor([i])))[0]
        right += int(z.argmax()) == int(split.labels[i])
    return 100 * right / len(split)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_snapshots_begin_with_the_fresh_network_and_follow_every_epoch(task):
    pool, size = trajectories(task, SETTINGS), task.functional().size
    assert len(pool) == 2
    for member in range(2):
        kept = pool.snapshots[member]
        assert kept.shape == (4, size)
        assert kept.dtype == torch.float32
        assert torch.equal(kept[0], fresh(task, member))
        # views of live parameters would all be the last epoch
        assert all((kept[i] - kept[j]).norm() > 1e-4 for i in range(4) for j in range(i))
    assert not torch.equal(pool.snapshots[0], pool.snapshots[1])


@pytest.mark.parametrize(("kind", "drops"), [("sgd", ()), ("ftd", ()), ("sgd", (0.34, 0.7))])
def test_an_expert_by_hand(task, kind, drops):
    settings = replace(SETTINGS, kind=kind, momentum=0.5, weight_decay=0.01, rho=0.2, alpha=0.3, drops=drops, drop=0.1)
    kept = trajectories(task, settings).snapshots[1]
    network, theta, velocity = task.functional(), fresh(task, 1), None
    assert torch.equal(kept[0], theta)

    def gradient(theta, images, labels):
        leaf = theta.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(network(leaf, images), labels), leaf)[0]

    for epoch in range(3):
        draws = generator(0, "expert", 1, "augment", epoch)
        order = torch.randperm(128, generator=generator(0, "expert", 1, "order", epoch))
        for index in order.split(24):
            images, labels = augment(DSA, task.data.train.images(index), draws), task.data.train.labels[index]
            g = gradient(theta, images, labels)
            if kind == "ftd":
                sharp = gradient(theta + 0.2 * theta**2 * g / (theta.abs() * g).norm(), images, labels)
                g = sharp - 0.3 * (g - (g @ sharp) / (sharp @ sharp) * sharp)
            g = g + 0.01 * theta
            velocity = g if velocity is None else 0.5 * velocity + g
            theta = theta - 0.05 * 0.1 ** (epoch if drops else 0) * velocity  # after one and two epochs of three
        assert (kept[epoch + 1] - theta).norm() < 1e-4 * (theta - kept[0]).norm()


def test_the_accuracy_on_held_out_images_is_that_of_the_last_snapshot(task):
    pool, network = trajectories(task, SETTINGS), task.functional()
    for member in range(2):
        expected = accuracy_by_hand(network, pool.last(member, task.device), task.data.holdout)
        assert pool.holdout[member] == expected
    again = trajectories(replace(task, store=Store(task.store.root)), SETTINGS)
    assert again.holdout == pool.holdout
    assert again.seconds == pool.seconds > 0
    assert all(torch.equal(a, b) for a, b in zip(again.snapshots, pool.snapshots, strict=True))


def test_without_held_out_images_there_is_no_accuracy(make_task, blobs):
    pool = trajectories(make_task(blobs(holdout=0)), SETTINGS)
    assert pool.holdout == (None, None)


def test_experts_learn(make_task, blobs):
    task = make_task(blobs(per_class=64))
    settings = replace(SETTINGS, epochs=6)
    pool, network = trajectories(task, settings), task.functional()
    images, labels = task.data.train.images(torch.arange(256)), task.data.train.labels
    losses = [F.cross_entropy(network(theta, images), labels).item() for theta in pool.snapshots[0]]
    assert losses == sorted(losses, reverse=True)  # still falling at every snapshot that may be a target
    assert losses[-1] < 0.5 * losses[0]
    assert min(pool.holdout) > 80


def test_a_snapshot_is_a_copy(task):
    pool = trajectories(task, SETTINGS)
    before = pool.snapshots[0].clone()
    pool.snapshot(0, 1, task.device).zero_()
    pool.last(0, task.device).zero_()
    assert torch.equal(pool.snapshots[0], before)
    assert torch.equal(pool.last(0, task.device), before[3])
    assert torch.equal(pool.snapshot(0, 1, task.device), before[1])


def test_logits_of_experts_by_hand(task):
    pool, network = trajectories(task, replace(SETTINGS, count=3)), task.functional()
    index = torch.tensor([5, 100, 0, 5])
    found = expert_logits(task, pool, index)
    assert found.shape == (3, 4, 4)
    for member in range(3):
        for row, i in enumerate(index.tolist()):
            expected = network(pool.snapshots[member][-1], task.data.train.images(torch.tensor([i])))[0]
            assert torch.allclose(found[member, row], expected, atol=1e-5)
    assert torch.equal(expert_logits(task, pool, index, [2, 0]), found[[2, 0]])
    assert torch.equal(found[:, 0], found[:, 3])


# --- what decides an expert, and what does not -----------------------------------------------------------------------


def test_a_larger_pool_keeps_the_experts_of_a_smaller_one(task, caplog):
    caplog.set_level(logging.INFO, logger="dd.runs")
    small = trajectories(task, SETTINGS)
    large = trajectories(task, replace(SETTINGS, count=5))
    said = [record.getMessage().split(" (")[0] for record in caplog.records]
    made = [f"made expert {m} of {count}" for count, m in ((2, 1), (2, 2), (5, 3), (5, 4), (5, 5))]
    assert [line for line in said if line.startswith("made")] == made
    assert all(torch.equal(a, b) for a, b in zip(small.snapshots, large.snapshots, strict=False))
    few, many = (Experts(task, replace(SETTINGS, count=count)).artefacts() for count in (2, 5))
    paths = [task.store.path(kind, spec) for kind, spec, _ in many]
    assert [task.store.path(kind, spec) for kind, spec, _ in few] == paths[:2]
    assert len(set(paths)) == 5
    assert all(path.is_file() for path in paths)


def test_an_expert_does_not_depend_on_the_company_it_is_made_in(task, tmp_path):
    whole = trajectories(task, replace(SETTINGS, count=3))
    # another process had made the first and the last: only the middle one is trained here
    store = Store(tmp_path)
    part = replace(task, store=store)
    for number, (kind, spec, _) in enumerate(Experts(task, replace(SETTINGS, count=3)).artefacts()):
        if number != 1:
            found = task.store.peek(kind, spec)
            store.tensors(kind, spec, lambda found=found: (found.tensors, found.info))
    again = trajectories(part, replace(SETTINGS, count=3))
    assert all(torch.equal(a, b) for a, b in zip(whole.snapshots, again.snapshots, strict=True))


def test_the_seed_of_the_pool_decides_and_the_seed_of_the_run_does_not(task, tmp_path):
    pool = trajectories(task, SETTINGS)
    other_run = trajectories(replace(task, seed=7, targets=torch.arange(4), store=Store(tmp_path)), SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(pool.snapshots, other_run.snapshots, strict=True))
    other_pool = trajectories(task, replace(SETTINGS, seed=1))
    assert torch.equal(other_pool.snapshots[0][0], fresh(task, 0, seed=1))
    assert all(not torch.equal(a[0], b[0]) for a, b in zip(pool.snapshots, other_pool.snapshots, strict=True))


def test_held_out_and_test_images_are_never_seen(task, tmp_path):
    pool = trajectories(task, replace(SETTINGS, count=1))
    # test images are not even read
    guarded = replace(task.data, test=Unreadable(task.data.test))
    again = trajectories(replace(task, data=guarded, store=Store(tmp_path / "guarded")), replace(SETTINGS, count=1))
    assert torch.equal(pool.snapshots[0], again.snapshots[0])
    # held-out images are scored on, and change nothing but the score
    held = task.data.holdout
    relabelled = replace(held, pixels=255 - held.pixels, labels=(held.labels + 1) % 4)
    other = replace(task, data=replace(task.data, holdout=relabelled), store=Store(tmp_path / "relabelled"))
    changed = trajectories(other, replace(SETTINGS, count=1))
    assert torch.equal(pool.snapshots[0], changed.snapshots[0])
    assert pool.holdout != changed.holdout
    # the training images do change them
    train = task.data.train
    inverted = replace(task.data, train=replace(train, pixels=255 - train.pixels))
    third = trajectories(replace(task, data=inverted, store=Store(tmp_path / "inverted")), replace(SETTINGS, count=1))
    assert not torch.equal(pool.snapshots[0], third.snapshots[0])


CHANGES = {
    "epochs": 4,
    "lr": 0.04,
    "momentum": 0.5,
    "weight_decay": 1e-3,
    "batch": 25,
    "augment": False,
    "kind": "ftd",
    "seed": 1,
    "store": "bfloat16",
    "stack": 2,
    "drops": (0.5,),
}
OF_KIND = {"ftd": {"rho": 0.5, "alpha": 0.9}, "ast": {"clip": 1, "penalty": 0.5, "decay": 0.3}}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_is_part_of_the_key_and_of_the_result(task, name):
    changed = replace(SETTINGS, **{name: CHANGES[name]})
    assert expert_spec(task, changed, 0) != expert_spec(task, SETTINGS, 0)
    one, other = (trajectories(task, replace(s, count=1)).snapshots[0] for s in (SETTINGS, changed))
    assert one.shape != other.shape or not torch.equal(one[:4], other[:4])


def test_settings_without_a_part_in_the_result_have_none_in_the_key(task):
    own = {name for names in OF_KIND.values() for name in names}
    assert set(CHANGES) | {"count", "from_", "drop"} | own == set(asdict(SETTINGS))
    assert expert_spec(task, replace(SETTINGS, drop=0.5), 0) == expert_spec(task, SETTINGS, 0)  # where nothing drops
    falling = replace(SETTINGS, drops=(0.5,))
    assert expert_spec(task, replace(falling, drop=0.5), 0) != expert_spec(task, falling, 0)
    for kind in ("sgd", *OF_KIND):
        settings = replace(SETTINGS, kind=kind)
        spec = expert_spec(task, settings, 0)
        assert expert_spec(task, replace(settings, count=9), 0) == spec
        for other, changes in OF_KIND.items():
            for name, value in changes.items():
                same = expert_spec(task, replace(settings, **{name: value}), 0) == spec
                assert same == (kind != other), (kind, name)
    spec = expert_spec(task, SETTINGS, 0)
    assert expert_spec(task, SETTINGS, 1) != spec
    # how many are trained at once does not matter, only whether there are several
    assert expert_spec(task, replace(SETTINGS, stack=1), 0) == spec
    stacked = [expert_spec(task, replace(SETTINGS, stack=count), 0) for count in (2, 3)]
    assert stacked[0] == stacked[1] != spec
    json.dumps(spec)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in OF_KIND.items() for name in names])
def test_every_setting_of_a_kind_changes_its_experts(task, kind, name):
    settings = replace(SETTINGS, kind=kind, count=1, epochs=5)  # lr falls before the last one
    changed = replace(settings, **{name: OF_KIND[kind][name]})
    one, other = (trajectories(task, s).snapshots[0] for s in (settings, changed))
    assert not torch.equal(one, other)


def test_data_network_and_numerics_are_part_of_the_key(task, make_task, blobs):
    spec = expert_spec(task, SETTINGS, 0)
    others = [
        make_task(blobs(strategy="none")),
        make_task(blobs(strategy=DSA, seed=1)),
        replace(task, student=NetworkSpec(depth=1, width=5)),
        replace(task, compile=True),
        replace(task, precision="bf16"),
        replace(task, device=torch.device("cuda")),
    ]
    assert all(expert_spec(other, replace(SETTINGS, stack=1), 0) != spec for other in others)
    assert expert_spec(replace(task, seed=5, targets=torch.arange(4)), SETTINGS, 0) == spec
    # without augmentation the strategy of the data is of no account
    quiet = replace(SETTINGS, augment=False)
    stripped = replace(task, data=replace(task.data, augment="none"))
    assert expert_spec(stripped, quiet, 0) == expert_spec(task, quiet, 0)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_damaged_expert_is_noticed_and_made_again_alike(task, caplog):
    caplog.set_level(logging.INFO, logger="dd.runs")
    pool = trajectories(task, SETTINGS)
    before = [kept.clone() for kept in pool.snapshots]
    payloads = sorted(task.store.root.glob("experts/*.safetensors"))
    assert len(payloads) == 2
    raw = bytearray(payloads[0].read_bytes())
    raw[-9] ^= 64
    payloads[0].write_bytes(raw)
    caplog.clear()
    # within a process a payload is verified once; a new one notices
    again = trajectories(replace(task, store=Store(task.store.root)), SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(again.snapshots, before, strict=True))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "expert" in warning
    assert "is damaged" in warning
    said = [r.getMessage().split()[0] for r in caplog.records if r.levelno == logging.INFO]
    assert sorted(said) == ["kept", "made"]


def test_an_expert_of_another_network_is_refused(task):
    ((kind, spec, _), _) = Experts(task, SETTINGS).artefacts()
    wide = Functional(replace(task, student=NetworkSpec(depth=1, width=5)).network("other"))
    info = {"header": wide.header(), "holdout": None, "data": "blobs"}
    task.store.tensors(kind, spec, lambda: ({"snapshots": torch.zeros(4, wide.size)}, info))
    with pytest.raises(UsageError, match=r"\.safetensors do not fit this network: layer 0"):
        trajectories(task, SETTINGS)


def test_an_expert_that_diverges_is_an_error_and_not_kept(task):
    with pytest.raises(RunError, match=r"expert 0 diverged.*lower experts\.lr=1e\+30"):
        trajectories(task, replace(SETTINGS, lr=1e30, augment=False))
    assert not list(task.store.root.glob("experts/*.json"))


def test_an_interrupted_pool_goes_on_with_the_next_expert(task, caplog):
    caplog.set_level(logging.INFO, logger="dd.runs")
    expected = [kept.clone() for kept in trajectories(task, replace(SETTINGS, count=3)).snapshots]
    kept = sorted(task.store.root.glob("experts/*"))
    (_, spec, _) = Experts(task, replace(SETTINGS, count=3)).artefacts()[1]
    stem = task.store.path("experts", spec).stem
    for path in kept:
        if path.stem == stem and path.suffix == ".json":
            path.unlink()  # killed while the second was made: no manifest, no artefact
    caplog.clear()
    again = trajectories(replace(task, store=Store(task.store.root)), replace(SETTINGS, count=3))
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said == ["kept", "made", "kept"]
    assert all(torch.equal(a, b) for a, b in zip(again.snapshots, expected, strict=True))
