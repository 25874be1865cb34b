"""Students on a teacher's labels, stored and live, against loops by hand; what every arm of a report is labelled by."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dd.engine.method import prepare
from dd.engine.registry import get
from dd.errors import UsageError
from dd.evaluation import PROTOCOLS
from dd.evaluation.arms import control_arm, set_arm, stored_arm
from dd.evaluation.evaluate import Evaluator, evaluate
from dd.io import digest
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.pipeline.label import label, label_spec, stored_labels
from dd.rng import generator
from dd.runs import RunFolder
from dd.sets import DistilledSet
from dd.training.committee import batch_statistics, votes
from dd.training.loop import accuracy
from dd.training.relabel import TeacherLabeller
from dd.training.teachers import SqueezeSettings, teachers
from dd.views import draw_view

SQUEEZE = SqueezeSettings(epochs=8, lr=0.05, batch=16, augment=False)
PROTOCOL = replace(PROTOCOLS["quick-soft"], epochs=3, batch=3, students=1, full=False)
DSA = "color_crop"


@pytest.fixture(scope="module")
def task(make_task, blobs):
    return make_task(blobs(strategy=DSA, holdout=8, noise=1.5), student=NetworkSpec(depth=2, width=4, norm="batch"))


@pytest.fixture(scope="module")
def members(task):
    return teachers(task, ("student", "convnet:depth=1:width=6"), SQUEEZE)


def labeller(task, members, **settings):
    weights = [0.25, 0.75] if settings.get("ensemble") == "logit_weighted" else None
    return TeacherLabeller.of(task, members, SQUEEZE, LabelSettings(**settings), weights)


def make_set(task):
    return DistilledSet(
        images=task.data.train.raw(task.real_indices("some")),
        labels=task.targets,
        classes=task.data.classes,
        source="blobs",
        source_fingerprint=task.data.fingerprint,
        space=task.data.preprocess.spec(),
        augment=task.data.augment,
    )


def trained(task, batches_of, temperature, micro=None, steps=9):
    """A student by hand: AdamW with a cosine, vectors spared, -sum p log softmax(z / T)."""
    network = task.build(generator(0, "student", 0, "weights"))
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimiser, step = torch.optim.AdamW(groups, lr=2e-3), 0
    for number in range(3):
        for views, p in batches_of(number):
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * (1 + torch.cos(torch.tensor(torch.pi * step / steps, dtype=torch.float64))) / 2
            optimiser.zero_grad()
            for x, y in zip(views.split(micro or len(views)), p.split(micro or len(p)), strict=True):
                q = (network(x) / temperature).log_softmax(1)
                (-(y * q).sum() / len(views)).backward()
            optimiser.step()
            step += 1
    return network


def test_a_student_of_stored_labels_by_hand(task, members, tmp_path):
    small, teacher = make_set(task), members[0]
    who = labeller(task, members[:1])
    made, store = label(small, who, PROTOCOL, task, RunFolder(tmp_path))
    made.check()
    score = Evaluator(task, PROTOCOL).score(stored_arm("it", made, store, task, PROTOCOL), 2e-3, 1)

    def batches(number):
        order = torch.randperm(8, generator=generator(0, "views", "order", number))
        for place, index in enumerate(order.split(3)):
            view = draw_view(PROTOCOL.views, len(index), (1, 8, 8), generator(0, "views", number, place))
            views = view(task.data.preprocess(small.images[index]))
            with torch.no_grad():
                z = teacher.network(views)
            yield views, (z.half().float() / 4).softmax(1)

    network = trained(task, batches, 4.0)
    assert score.values[0] == pytest.approx(accuracy(network, task.data.test.batches(512)), abs=1e-9)
    assert score.holdout[0] == pytest.approx(accuracy(network, task.data.holdout.batches(512)), abs=1e-9)


@pytest.mark.parametrize("form", ["logits", "topk", "distances", "hard"])
def test_a_student_of_live_labels_by_hand(task, members, form):
    """Of two teachers that vote; forms but all logits are probabilities at T = 1."""
    small, settings = make_set(task), {"ensemble": "logit_weighted", "form": form, "top": 2}
    evaluator = Evaluator(task, PROTOCOL, labeller=labeller(task, members, **settings))
    score = evaluator.score(set_arm("it", small, task.data.preprocess), 2e-3, 1)
    temperature = 4.0 if form == "logits" else 1.0

    def batches(number):
        rng = generator(0, "student", 0, "order", number)
        for index in torch.randperm(8, generator=rng).split(3):
            view = draw_view(PROTOCOL.views, len(index), (1, 8, 8), rng)
            views, own = view(task.data.preprocess(small.images[index])), task.targets[index]
            partner = own[view.partner]
            with torch.no_grad():
                z = 0.25 * members[0].network(views) + 0.75 * members[1].network(views)
            yield views, _by_hand(form, z, own, partner, temperature)

    network = trained(task, batches, temperature)
    assert score.values[0] == pytest.approx(accuracy(network, task.data.test.batches(512)), abs=1e-9)


def _by_hand(form, z, own, partner, temperature):
    p = (z / temperature).softmax(1)
    if form == "logits":
        return (z.half().float() / temperature).softmax(1)
    if form == "hard":
        return F.one_hot(p.argmax(1), 4).float()
    rows = []
    for row, a, b in zip(p, own.tolist(), partner.tolist(), strict=True):
        kept = row.topk(2).indices.tolist() if form == "topk" else list({a, b})
        rest = (1 - sum(float(row[c]) for c in kept)) / (4 - len(kept))
        rows.append([float(row[c]) if c in kept else rest for c in range(4)])
    return torch.tensor(rows)


def test_batch_specific_labels_follow_the_students_halves(task, members, tmp_path):
    """Batches of 4 as two halves: the teacher normalises, and the student trains on, the same two images at a time."""
    small, teacher = make_set(task), members[0]
    protocol = replace(PROTOCOL, batch=4, micro=2)
    made, store = label(small, labeller(task, members[:1], teacher_mode="batch"), protocol, task, RunFolder(tmp_path))
    assert store.spec.micro == 2
    score = Evaluator(task, protocol).score(stored_arm("it", made, store, task, protocol), 2e-3, 1)
    buffers = {name: value.clone() for name, value in teacher.network.named_buffers()}

    def batches(number):
        order = torch.randperm(8, generator=generator(0, "views", "order", number))
        for place, index in enumerate(order.split(4)):
            view = draw_view(protocol.views, len(index), (1, 8, 8), generator(0, "views", number, place))
            views = view(task.data.preprocess(small.images[index]))
            with torch.no_grad(), batch_statistics(teacher.network):
                z = torch.cat([teacher.network(half) for half in views.split(2)])
            yield views, (z.half().float() / 4).softmax(1)

    network = trained(task, batches, 4.0, micro=2, steps=6)
    assert score.values[0] == pytest.approx(accuracy(network, task.data.test.batches(512)), abs=1e-9)
    assert all(torch.equal(value, buffers[name]) for name, value in teacher.network.named_buffers())
    with pytest.raises(UsageError, match="micro-batches of 2, not 4"):
        stored_labels(made, replace(protocol, micro=None))


def test_labels_of_halves_with_live_dropout_are_the_same_after_a_restart(task, members, tmp_path):
    """What drops follows from the batch: epochs that are written again hold the same labels."""
    network = nn.Sequential(members[0].network, nn.Dropout(0.5)).eval()
    drops = replace(members[0], network=network)
    small, protocol = make_set(task), replace(PROTOCOL, batch=4, micro=2)
    asked = labeller(task, [drops], teacher_mode="train")
    _, store = label(small, asked, protocol, task, RunFolder(tmp_path))
    files = [store.path / f"{digest(store.spec.key(epoch))}.safetensors" for epoch in range(2)]
    kept = [file.read_bytes() for file in files]
    assert kept[0] != kept[1]
    files[1].unlink()
    label(small, asked, protocol, task, RunFolder(tmp_path))
    assert [file.read_bytes() for file in files] == kept
    with pytest.raises(UsageError, match="leave a half batch of one image"):
        label_spec(LabelSettings(teacher_mode="train"), replace(PROTOCOL, batch=3), task)
    assert label_spec(LabelSettings(teacher_mode="train"), protocol, task).micro == 2


def test_every_arm_has_the_same_teachers_labels(task, members, tmp_path):
    who = labeller(task, members[:1])
    evaluator = Evaluator(task, PROTOCOL, labeller=who)
    made, store = label(make_set(task), who, PROTOCOL, task, RunFolder(tmp_path))
    report = evaluate(made, make_set(task), evaluator, store=store)
    assert report.labels["names"] == ["convnet:depth=2:width=4:norm=batch:pooling=avg:activation=relu"]
    assert report.labels["stored_epochs"] == 3
    # random real images: by hand with live labels they are the control, with their classes they are not
    soft = Evaluator(task, PROTOCOL, labeller=who).score(control_arm(task), PROTOCOL.lr, 1)
    hard = Evaluator(task, PROTOCOL).score(control_arm(task), PROTOCOL.lr, 1)
    assert report.control.values == soft.values
    assert (soft.values, soft.holdout) != (hard.values, hard.holdout)
    # without the teachers nothing is compared with other labels
    alone = evaluate(made, None, Evaluator(task, PROTOCOL), store=store)
    assert alone.accuracy.values == report.accuracy.values
    assert alone.control is None
    assert "missing here" in alone.missing["control"]


def test_a_labeller_is_made_anew_from_what_a_set_says(task, members):
    who = labeller(task, members, ensemble="logit_weighted")
    views, own = task.data.train.images(torch.arange(6)), task.data.train.labels[:6]
    again = TeacherLabeller.of_origin(replace(task, student=NetworkSpec(depth=1, width=3)), who.origin)
    assert torch.equal(again.logits(views, own, None), who.logits(views, own, None))
    assert again.facts == who.facts


def test_calibrated_labels_are_the_teachers_where_it_is_sure(task, members, tmp_path):
    """FerKD: stored and live alike, at T = 1; views that something is mixed into have no class to be sure of."""
    plain = replace(PROTOCOL, views=replace(PROTOCOL.views, mix="none"))
    who = labeller(task, members[:1], low=0.2, high=0.5, smooth=0.1)
    made, store = label(make_set(task), who, plain, task, RunFolder(tmp_path))
    kinds, batches = set(), stored_arm("it", made, store, task, plain).batches(generator(0), 0)
    for batch, (views, labels) in zip(store.epoch(0), batches, strict=True):
        with torch.no_grad():
            q = members[0].network(views).softmax(1)
        for row, found, c in zip(q, labels, task.targets[batch.images].tolist(), strict=True):
            kind = "background" if row[c] < 0.2 else "kept" if row[c] >= 0.5 else "class"
            smoothed = 0.9 * F.one_hot(torch.tensor(c), 4) + 0.1 / 4
            expected = {"kept": row, "background": torch.full((4,), 0.25), "class": smoothed}[kind]
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
            kinds.add(kind)
    assert len(kinds) > 1
    with pytest.raises(UsageError, match=r"needs eval\.views\.mix=none"):
        label_spec(who.settings, PROTOCOL, task)


def test_votes_weigh_the_labels_of_a_committee(task, members):
    method = get("cvdd")(teachers=("student", "convnet:depth=1:width=6"), squeeze=SQUEEZE, prior=(60.0, 70.0))
    prepared = prepare(method, replace(task, student=task.student))
    who = method.labeller(task, prepared)
    assert who.weights == pytest.approx(votes((60.0, 70.0), 10.0).tolist())
    assert get("cvdd")(labels=LabelSettings(mode="off")).labeller(task, prepared) is None


def test_what_cannot_be_labelled_is_said_before_it_is_tried(task):
    with pytest.raises(UsageError, match="augments images after teachers labelled"):
        label_spec(LabelSettings(), PROTOCOLS["quick"], task)
    with pytest.raises(UsageError, match="leave a batch of one"):
        label_spec(LabelSettings(teacher_mode="batch"), replace(PROTOCOL, batch=7), task)
    spec = label_spec(LabelSettings(form="topk", top=9), PROTOCOL, task)
    assert (spec.epochs, spec.batch, spec.form.k) == (3, 3, 4)
    assert asdict(spec.policy) == asdict(PROTOCOL.views)
