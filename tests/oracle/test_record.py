"""A recorded training run: what is stored is what a loop by hand sees, it is trained once, and it survives a kill."""

import logging
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.data.positions import pass_order
from dd.engine.needs import Got
from dd.errors import RunError, UsageError
from dd.networks import NetworkSpec, build_network
from dd.networks.features import embed
from dd.rng import generator
from dd.runs import Store
from dd.training import loop
from dd.training.compiled import can_compile
from dd.training.record import Recorded, RecordSettings, record_fit
from dd.views import ViewPolicy, draw_view

SETTINGS = RecordSettings(epochs=4, lr=0.05, batch=24)  # 128 images: five batches of 24 and one of 8
PAD = ViewPolicy(pad=4, flip=True)


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(spread=1.0), student=NetworkSpec(depth=1, width=8, norm="batch"))


def recorded(task, settings=SETTINGS, **changes):
    return Recorded(task, replace(settings, **changes)).fetch(Got())


def rows_of(network, images, labels, before, rows, at):
    """One row for a batch, in float64 and without a helper of ours; returns the probabilities."""
    for i, (logits, h, y) in enumerate(
        zip(network(images).double(), embed(network, images).double(), labels, strict=True)
    ):
        p, y, place = logits.softmax(0), int(y), int(at[i])
        others = [logits[c].item() for c in range(len(p)) if c != y]
        delta = p - F.one_hot(torch.tensor(y), len(p))
        rows["log_p"][place] = math.log(p[y].item())
        rows["margin"][place] = logits[y].item() - max(others)
        rows["correct"][place] = bool(logits[y] > max(others))
        rows["el2n"][place] = delta.norm().item()
        rows["grand"][place] = torch.outer(delta, torch.cat([h, h.new_ones(1)])).norm().item()
        old = before.get(place)
        rows["change"][place] = 0.0 if old is None else (p * ((p + 1e-8).log() - (old + 1e-8).log())).abs().sum().item()
        before[place] = p


def by_hand(task, settings):
    """The loop that everybody writes, with Nesterov's momentum and a cosine over all epochs."""
    data, (seed, epochs) = task.data, (settings.seed, settings.recorded)
    build = {"channels": 1, "size": 8, "classes": 4, "generator": generator(seed, "record", 0, "weights")}
    network = build_network(task.student, **build).train()
    optimiser = torch.optim.SGD(network.parameters(), settings.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * 6, eta_min=1e-4)
    all_rows, before = [], {}
    for epoch in range(epochs):
        rows = {name: [None] * 128 for name in ("log_p", "margin", "correct", "el2n", "grand", "change")}
        rng = generator(seed, "record", 0, "order", epoch)
        for at in pass_order(128, rng).split(24):
            view = draw_view(PAD, len(at), data.shape, rng, "none", data.black)
            images, labels = view(data.train.images(at)), data.train.labels[at]
            if settings.mode == "train":
                with torch.no_grad():
                    state = {name: value.clone() for name, value in network.state_dict().items()}
                    rows_of(network, images, labels, before, rows, at)
                    network.load_state_dict(state)  # the running statistics see each batch once
            optimiser.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimiser.step()
            schedule.step()
        if settings.mode == "clean":
            with torch.no_grad():
                rows_of(
                    network.eval(), data.train.images(torch.arange(128)), data.train.labels, before, rows, range(128)
                )
            network.train()
        all_rows.append(rows)
    return {name: torch.tensor([rows[name] for rows in all_rows]) for name in all_rows[0]}


@pytest.mark.parametrize("mode", ["train", "clean"])
@pytest.mark.parametrize("stop", [None, 3])
def test_a_record_holds_what_a_loop_by_hand_sees(task, mode, stop):
    settings = replace(SETTINGS, mode=mode, stop=stop)
    (record,) = recorded(task, settings)
    expected = by_hand(task, settings)
    for name, rows in expected.items():
        found = getattr(record, name)
        assert found.shape == (stop or 4, 128)
        assert torch.allclose(found.double(), rows.double(), rtol=1e-3, atol=1e-4), name
    assert 0 < record.correct.double().mean() < 1


def test_a_second_score_of_a_record_trains_nothing(task, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first = recorded(task)
    assert "made recorded training run (train, blobs, 4 epochs)" in caplog.text
    monkeypatch.setattr(loop.Trainer, "__init__", lambda *_: pytest.fail("a network is trained"))
    caplog.clear()
    again = recorded(replace(task, seed=7))
    assert "kept recorded training run" in caplog.text
    assert "made" not in caplog.text
    assert torch.equal(first[0].el2n, again[0].el2n)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "clean"},
        {"stop": 3},
        {"lr": 0.1},
        {"augment": False},
        {"seed": 1},
        {"proxy": "convnet:width=5:depth=1"},
    ],
)
def test_what_determines_a_record_is_in_its_key(task, changes):
    (ours,), (other,) = (Recorded(task, replace(SETTINGS, **c)).artefacts() for c in ({}, changes))
    assert ours.spec != other.spec


def test_what_does_not_matter_is_not_in_its_key(task):
    (ours,) = Recorded(task, SETTINGS).artefacts()
    changed = replace(SETTINGS, runs=3, drop=0.5, drops=(0.2,))  # a cosine has no drops
    assert Recorded(replace(task, seed=9), changed).artefacts()[0].spec == ours.spec


def test_more_runs_keep_those_of_fewer(task, caplog):
    caplog.set_level(logging.INFO)
    (one,) = recorded(task, epochs=1)
    caplog.clear()
    two = recorded(task, epochs=1, runs=2)
    assert caplog.text.count("kept recorded") == caplog.text.count("made recorded") == 1
    assert torch.equal(one.el2n, two[0].el2n)
    assert not torch.equal(two[0].el2n, two[1].el2n)


@pytest.mark.parametrize("mode", ["train", "clean"])
def test_a_killed_run_resumes_with_the_same_bits(task, tmp_path, monkeypatch, caplog, mode):
    (whole,) = recorded(task, mode=mode)
    plain, steps = loop.at_step, 0

    def stopping(*given):
        nonlocal steps
        steps += 1
        if steps > 14:  # in the third epoch
            raise KeyboardInterrupt
        return plain(*given)

    there = replace(task, store=Store(tmp_path))
    monkeypatch.setattr(loop, "at_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        recorded(there, mode=mode)
    monkeypatch.setattr(loop, "at_step", plain)
    caplog.set_level(logging.INFO)
    (resumed,) = recorded(there, mode=mode)
    assert "after pass 2" in caplog.text
    for name in ("log_p", "margin", "correct", "el2n", "grand", "change"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name
    assert not list(tmp_path.rglob("*.unfinished*"))


def test_lr_follows_the_schedule_of_all_epochs():
    whole = record_fit(RecordSettings(), 1000, "none")
    short = record_fit(RecordSettings(stop=30), 1000, "none")
    assert (whole.steps, short.steps) == (800, 120)
    assert [short.rate(t) for t in range(120)] == pytest.approx([whole.rate(t) for t in range(120)])
    assert whole.rate(800) == pytest.approx(1e-4)
    steps = record_fit(RecordSettings(schedule="steps", drops=(151 / 300,), epochs=30, lr=0.01), 1000, "none")
    assert [steps.rate(t) for t in (0, 59, 60, 119)] == pytest.approx([0.01, 0.01, 0.001, 0.001])  # after 15 epochs


def test_a_last_batch_of_one_image_is_refused_in_training_mode_only(task):
    with pytest.raises(UsageError, match=r"record\.batch=127 leaves a single one of 128 training images"):
        recorded(task, epochs=1, batch=127)
    (record,) = recorded(task, epochs=1, batch=127, mode="clean")
    assert record.log_p.lt(0).all()


def test_a_run_that_diverges_is_not_stored(task):
    with pytest.raises(RunError, match=r"diverged in epoch 1; lower record\.lr=1000"):
        recorded(task, lr=1000.0, augment=False, batch=8)
    assert not list(task.store.root.rglob("*.safetensors"))


@pytest.mark.parametrize("proxy", ["resnet.pt@convnet", "torchvision:resnet18.IMAGENET1K_V1"])
def test_a_proxy_is_trained_here(task, proxy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="is trained already"):
        recorded(task, proxy=proxy)


def test_a_record_cannot_stop_after_its_end():
    with pytest.raises(ValueError, match=r"record\.stop=5 must be at most record\.epochs=4"):
        replace(SETTINGS, stop=5)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.parametrize("mode", ["train", "clean"])
def test_a_compiled_network_is_recorded_like_any_other(task, mode, monkeypatch):
    (plain,) = recorded(task, mode=mode, epochs=2)
    monkeypatch.setattr("dd.training.compiled.WORTH_FLOPS", 0.0)
    (fast,) = recorded(replace(task, compile=True), mode=mode, epochs=2)
    assert plain.key != fast.key
    for name in ("log_p", "margin", "el2n", "grand", "change"):
        assert torch.allclose(getattr(plain, name), getattr(fast, name), rtol=1e-3, atol=1e-4), name
