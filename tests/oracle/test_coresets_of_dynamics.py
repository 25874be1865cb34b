"""Methods of training dynamics: what they choose from a record, against slow loops over what it holds."""

import logging
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from dd.methods.decoupled._crops import CropSettings, stitched_class

from dd.engine.method import prepare
from dd.engine.needs import Got
from dd.engine.registry import get
from dd.engine.selection import SELECTION
from dd.errors import UsageError
from dd.networks import NetworkSpec
from dd.runs import Store
from dd.training import loop
from dd.training.record import Recorded, RecordSettings
from dd.training.squeeze import SqueezeSettings

NET = NetworkSpec(depth=1, width=4, norm="batch")
RECORD = RecordSettings(epochs=6, lr=0.05, batch=24, augment=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("records"))


@pytest.fixture
def task(make_task, blobs, store):
    return make_task(
        blobs(spread=1.0, noise=1.0), ipc=3, student=NetworkSpec(depth=1, width=4, norm="batch"), store=store
    )


def method_of(name, task, **settings):
    return get(name)(**{"record": RECORD} | settings).settle(task)


def made(method, task):
    prepared = prepare(method, task)
    return method.finish(method.start(task, prepared), task, prepared)


def record_of(task, settings=RECORD):
    return Recorded(task, settings).fetch(Got())[0]


def best_by_hand(task, score, per_class=3):
    """The images of every class with the largest score, the lowest index first among equals."""
    labels = task.data.train.labels.tolist()
    found = []
    for c in range(4):
        own = [i for i in range(len(labels)) if labels[i] == c]
        found += sorted(own, key=lambda i: (-score[i], i))[:per_class]
    return found


def columns(rows):
    return [rows[:, i].tolist() for i in range(rows.shape[1])]


def events(sequence):
    if not any(sequence):
        return math.inf
    return sum(a and not b for a, b in pairwise(sequence))


SCORES = {
    "forgetting": lambda r: [events(column) for column in columns(r.correct)],
    "el2n": lambda r: r.el2n[-1].tolist(),
    "grand": lambda r: r.grand[-1].tolist(),
    "aum": lambda r: [-sum(column) / len(column) for column in columns(r.margin.double())],
}


@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize("name", SCORES)
def test_the_hardest_or_easiest_images_are_kept(task, name, keep):
    score = SCORES[name](record_of(task))
    expected = best_by_hand(task, score if keep == "hard" else [-value for value in score])
    found = made(method_of(name, task, keep=keep), task)
    assert found.images.tolist() == expected
    facts = found.provenance[SELECTION]
    assert (facts["score"], facts["keep"], facts["mode"], facts["epochs"]) == (name, keep, "train", 6)
    assert (facts["ties"], facts["records"]) == ("lowest index", record_of(task).key)


def test_hard_images_are_those_that_the_network_gets_wrong(task):
    """The direction: what is kept as hard has less of its class's probability than what is kept as easy."""
    p = record_of(task).log_p.exp().mean(0)
    for name in ("el2n", "grand", "aum"):
        hard, easy = (p[made(method_of(name, task, keep=keep), task).images].mean() for keep in ("hard", "easy"))
        assert hard < p.mean() < easy, name


def test_margins_of_probabilities_are_another_score(task):
    record = record_of(task)
    p, other = record.log_p.double().exp(), (record.log_p - record.margin).double().exp()
    score = (-(p - other).mean(0)).tolist()
    assert made(method_of("aum", task, margin="probability"), task).images.tolist() == best_by_hand(task, score)


def test_el2n_is_averaged_over_window_and_runs(task):
    settings = replace(RECORD, runs=2)
    runs = Recorded(task, settings).fetch(Got())
    score = sum(run.el2n[row].double() for run in runs for row in (2, 3)).tolist()
    found = made(method_of("el2n", task, record=settings, epoch=4, window=2), task)
    assert found.images.tolist() == best_by_hand(task, score)
    assert (found.provenance[SELECTION]["epoch"], found.provenance[SELECTION]["window"]) == (4, 2)


def test_one_record_serves_all_methods(task, caplog, monkeypatch):
    record_of(task)
    monkeypatch.setattr(loop.Trainer, "__init__", lambda *_: pytest.fail("a network is trained"))
    caplog.set_level(logging.INFO)
    caplog.clear()
    for name in (*SCORES, "ccs", "tdds", "cad"):
        extra = {"tdds": {"window": 4}, "cad": {"matched": False}}.get(name, {})
        made(method_of(name, task, **extra | {"balanced": True}), task)
    assert caplog.text.count("kept recorded training run") == 7
    assert "made" not in caplog.text


def test_the_share_of_ties_is_stored(task):
    score = SCORES["forgetting"](record_of(task))
    found = made(method_of("forgetting", task), task)
    labels, kept = task.data.train.labels.tolist(), found.images.tolist()
    decided = 0
    for i in kept:
        left = [score[j] for j in range(128) if labels[j] == labels[i] and j not in kept]
        decided += score[i] <= max(left)
    assert found.provenance[SELECTION]["tied_at_the_cut"] == pytest.approx(decided / 12, abs=1e-4)


# ---- over all classes ---------------------------------------------------------------------------------------------


def test_tdds_keeps_the_largest_of_all_classes(make_task, task, store):
    more = make_task(task.data, ipc=16, student=task.student, store=store)
    rows = record_of(more).change[1:].double()
    score = torch.zeros(128, dtype=torch.float64)
    for k in range(3):  # T = 6, L = 4
        some = rows[k : k + 3]
        score += 0.9 * 0.1 ** (2 - k) * ((some - some.mean(0)) ** 2).sum(0).sqrt()
    order = sorted(range(128), key=lambda i: (-score[i].item(), i))[:64]
    labels = more.data.train.labels.tolist()
    found = made(method_of("tdds", more, window=4), more)
    assert found.images.tolist() == sorted(order, key=lambda i: labels[i])
    assert found.labels.tolist() == [labels[i] for i in found.images.tolist()]
    facts = found.provenance[SELECTION]
    counts = torch.bincount(found.labels, minlength=4)
    assert (facts["fewest_of_a_class"], facts["most_of_a_class"]) == (int(counts.min()), int(counts.max()))


def test_a_class_without_images_is_refused(make_task, blobs):
    alone = make_task(blobs(noise=0.1), ipc=1, student=NET)
    with pytest.raises(UsageError, match=r"has none of the 4 images that tdds chooses.*balanced=true"):
        made(method_of("tdds", alone, window=4), alone)


@pytest.mark.parametrize("score", ["aum", "forgetting", "el2n"])
def test_ccs_drops_the_lowest_margins(make_task, task, store, score):
    more = make_task(task.data, ipc=16, student=task.student, store=store)
    record = record_of(more)
    margin = (record.log_p.double().exp() - (record.log_p - record.margin).double().exp()).mean(0)
    dropped = sorted(range(128), key=lambda i: (margin[i].item(), i))[:38]
    found = made(method_of("ccs", more, score=score, strata=10), more)
    assert len(found.images.unique()) == 64
    assert not set(found.images.tolist()) & set(dropped)
    other = made(method_of("ccs", replace(more, seed=1), score=score, strata=10), replace(more, seed=1))
    assert not torch.equal(found.images, other.images)


def test_balanced_ccs_has_the_budget_of_each_class(make_task, task, store):
    uneven = replace(task, targets=torch.tensor([0, 1, 1, 1, 2, 2, 3]))
    found = made(method_of("ccs", uneven, balanced=True), uneven)
    assert found.labels.tolist() == uneven.targets.tolist()
    record = record_of(uneven)
    margin = (record.log_p.double().exp() - (record.log_p - record.margin).double().exp()).mean(0)
    for c in range(4):
        own = task.data.train.of_class(c).tolist()
        dropped = sorted(own, key=lambda i: (margin[i].item(), i))[: int(0.3 * len(own))]
        assert not set(found.images[found.labels == c].tolist()) & set(dropped)


# ---- CAD ----------------------------------------------------------------------------------------------------------


class Sized:
    """A task of which only numbers of images matter."""

    def __init__(self, images, chosen):
        self.targets = range(chosen)
        self.data = type("Data", (), {"train": range(images)})


@pytest.mark.parametrize(("images", "classes"), [(50_000, 100), (100_000, 200)])
@pytest.mark.parametrize(("ipc", "epochs"), [(10, 6), (50, 30), (100, 60)])
def test_the_recorded_run_is_as_long_as_a_students(images, classes, ipc, epochs):
    settled = get("cad")().settle(Sized(images, classes * ipc))
    assert (settled.record.recorded, settled.window, settled.windows) == (epochs, epochs - 2, 2)
    assert settled.settle(Sized(images, classes * ipc)) == settled
    assert settled.record.drops == (151 / 300,)


def test_too_short_a_run_is_refused_before_it_is_trained():
    with pytest.raises(
        UsageError, match=r"10000 images match 2 epochs of all 1281167, fewer than the 8 .* matched=false"
    ):
        get("cad")(window=6).settle(Sized(1_281_167, 10_000))
    with pytest.raises(ValueError, match=r"record\.epochs=7, fewer than the 8"):
        get("cad")(matched=False, window=6, record=RecordSettings(epochs=7))


@pytest.mark.parametrize("of", ["probability", "el2n"])
def test_cad_keeps_what_varies_most(task, of):
    record = record_of(task)
    rows = (record.log_p.exp() if of == "probability" else record.el2n).double()
    score = ((rows[0:4].std(0) + rows[1:5].std(0)) / 2).tolist()  # K = 6, J = 4, W = 2
    assert made(method_of("cad", task, matched=False, of=of), task).images.tolist() == best_by_hand(task, score)


def test_fewer_images_are_a_prefix_of_more(make_task, task, store):
    few, many = (make_task(task.data, ipc=ipc, student=task.student, store=store) for ipc in (2, 7))
    for name in ("cad", "forgetting"):
        extra = {"matched": False} if name == "cad" else {}
        less, more = (made(method_of(name, t, **extra), t).images for t in (few, many))
        assert torch.equal(less.view(4, 2), more.view(4, 7)[:, :2]), name


# ---- CA2D ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def crops():
    """Crops that are whole images, so that the images they come from can be told."""
    return {
        "matched": False,
        "crops": CropSettings(crops=2, candidates=8, least=1.0),
        "squeeze": SqueezeSettings(epochs=6, batch=16, lr=0.05, augment=False),
    }


@pytest.fixture
def easy(make_task, blobs, store):
    """A task whose teacher is good enough to be trusted."""
    return make_task(blobs(), ipc=3, student=NetworkSpec(depth=2, width=8, norm="batch"), store=store)


def test_ca2d_crops_the_images_with_the_largest_cad(easy, crops):
    method = method_of("ca2d", easy, **crops)
    prepared = prepare(method, easy)
    found = method.finish(method.start(easy, prepared), easy, prepared)
    record = record_of(easy)
    rows = record.log_p.exp().double()
    score = ((rows[0:4].std(0) + rows[1:5].std(0)) / 2).tolist()
    pool = best_by_hand(easy, score, 8)
    logits = prepared.teachers[0].network(easy.data.train.images(torch.arange(128)))
    loss = torch.nn.functional.cross_entropy(logits, easy.data.train.labels, reduction="none")
    labels = easy.data.train.labels.tolist()
    expected = [
        i for c in range(4) for i in sorted((j for j in pool if labels[j] == c), key=lambda j: loss[j].item())[:3]
    ]
    assert torch.equal(found.images, easy.data.train.raw(torch.tensor(expected)))
    assert (found.image_kind, found.label_kind, method.labeller(easy, prepared)) == ("pixels", "hard", None)


def test_rded_without_a_pool_draws_at_random_as_before(easy, crops):
    teacher = prepare(method_of("ca2d", easy, **crops), easy).teachers[0].network
    settings = crops["crops"]
    drawn = stitched_class(easy, settings, [teacher], 1, 3)
    own = easy.data.train.of_class(1)
    given = own[torch.randperm(len(own), generator=easy.common("patches", 1))[:8]]
    images = {tuple(image.flatten().tolist()) for image in easy.data.train.raw(given)}
    assert all(tuple(image.flatten().tolist()) in images for image in drawn)
