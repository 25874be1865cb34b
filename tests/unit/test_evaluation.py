"""The evaluator: what numbers are made of, what they are compared with, and what they must share to be compared."""

import json
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dd.engine.method import Synthetic, prepare
from dd.engine.registry import get
from dd.errors import UsageError
from dd.evaluation import PROTOCOLS, Protocol, Report, Score, arms
from dd.evaluation.arms import Arm, control_arm, decoded_arm, full_arm, set_arm
from dd.evaluation.evaluate import Evaluator, evaluate, making
from dd.evaluation.protocols import default_protocol
from dd.networks import NetworkSpec
from dd.rng import generator
from dd.runs import Store
from dd.sets import DistilledSet
from dd.sets.tiles import decode
from dd.training import ExpertSettings
from dd.training.loop import accuracy
from dd.views import ViewPolicy
from dd.views.dsa import apply, augment, draw_sequence

DSA = "color_crop_cutout_flip_scale_rotate"
BRIEF = Protocol(steps=12, students=3, batch=8, lr=0.05, full=False)


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(strategy=DSA, holdout=8, noise=1.5))


def make_set(task, lr=0.02, soft=False, seed=0, **facts):
    rng = generator(seed, "set")
    labels = task.targets
    if soft:
        labels = 3 * F.one_hot(labels, 4).float() + torch.randn(8, 4, generator=rng)
    return DistilledSet(
        images=task.data.train.images(task.real_indices("some", seed)) + 0.1 * torch.randn(8, 1, 8, 8, generator=rng),
        labels=labels,
        label_kind="logits" if soft else "hard",
        classes=task.data.classes,
        source="blobs",
        source_fingerprint=task.data.fingerprint,
        space=task.data.preprocess.spec(),
        augment=task.data.augment,
        lr=lr,
        **facts,
    )


class Watched:
    """A split that counts how often it is read."""

    def __init__(self, split):
        self.split, self.passes = split, 0

    def __len__(self):
        return len(self.split)

    def __getattr__(self, name):
        return getattr(self.split, name)

    def batches(self, *arguments):
        self.passes += 1
        return self.split.batches(*arguments)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_mean_and_standard_deviation_are_numpys(n):
    values = (50 + 10 * torch.randn(n, generator=generator(n), dtype=torch.float64)).tolist()
    score = Score(tuple(values), (1.0, 2.0), 0.1, "note")
    assert score.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert score.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert score.std > np.std(values) * 1.01
    assert (score.n, score.values) == (n, tuple(values))


def test_one_student_has_no_standard_deviation():
    assert (Score((50.0,)).mean, Score((50.0,)).std, Score((50.0,)).n) == (50.0, None, 1)
    assert Score((50.0, 50.0)).std == 0.0


def make_report(**changes):
    given = {
        "accuracy": Score((70.0, 72.5, 71.0), (69.0, 1 / 3, 2.0), 0.013, "learned by the method"),
        "control": Score((60.0, 66.0), (50.0, 51.0), 0.01, "better of ..."),
        "start": Score((61.5,), (), 0.01, "the protocol's lr"),
        "full": None,
        "missing": {"full": "eval.full=false"},
        "protocol": PROTOCOLS["mtt"].to_dict(),
        "fingerprint": "abc",
        "student": asdict(NetworkSpec()),
        "dataset": {"name": "blobs", "notes": "é"},
        "bytes": {"images": 10, "labels": 2, "total": 12},
        "cost": {"evaluate": {"seconds": 1.5, "peak_memory": None}},
        "expected": {"accuracy": [60.0, 70.0], "verified": False},
        "provenance": {"method": "mtt", "seed": 3},
        "versions": {"torch": "2"},
        "name": "n",
        "device": "cpu",
        "recipe_hash": "h",
        "command": "dd run",
        "verdict": "inside",
        "verdict_note": "why",
    }
    return Report(**given | changes)


def test_gap_gain_and_pooled_standard_deviation_by_hand():
    report = make_report()
    assert report.gap == pytest.approx(213.5 / 3 - 63.0)
    assert report.gain == pytest.approx(213.5 / 3 - 61.5)
    one, other = np.var([70.0, 72.5, 71.0], ddof=1), np.var([60.0, 66.0], ddof=1)
    assert report.pooled_std == pytest.approx(math.sqrt((one + other) / 2))
    alone = make_report(control=None, start=None)
    assert (alone.gap, alone.gain, alone.pooled_std) == (None, None, None)
    assert make_report(control=Score((50.0,))).pooled_std is None
    assert make_report(accuracy=Score((50.0,))).pooled_std is None


@pytest.mark.parametrize("changes", [{}, {"full": Score((90.0, 91.0), (), 0.01, "")}, {"expected": None}])
def test_a_report_survives_json(changes):
    report = make_report(**changes)
    assert {f.name for f in fields(Report)} <= set(report.to_dict())
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert again.to_dict() == report.to_dict()
    assert (again.gap, again.pooled_std) == (report.gap, report.pooled_std)


def test_a_report_in_json_says_everything_that_is_derived():
    value = make_report().to_dict()
    assert value["format"] == 1
    assert list(value["accuracy"])[:4] == ["mean", "std", "n", "values"]
    assert value["accuracy"]["mean"] == pytest.approx(213.5 / 3)
    assert value["accuracy"]["n"] == 3
    assert value["control"]["std"] == pytest.approx(math.sqrt(18))
    assert value["gap"] == pytest.approx(213.5 / 3 - 63.0)
    assert value["full"] is None


# --- protocols -------------------------------------------------------------------------------------------------------

COUNTS = {
    "steps": 301,
    "batch": 129,
    "lr": 0.02,
    "momentum": 0.8,
    "weight_decay": 1e-3,
    "decay_at": 0.6,
    "decay": 0.2,
    "momentum_after": 0.5,
    "augment": False,
    "optimiser": "adamw",
    "cosine": 1.0,
    "min_lr": 1e-4,
    "keep_state": True,
    "spare_vectors": True,
    "inclusive": False,
    "warmup": 3,
    "views": ViewPolicy(flip=True),
    "temperature": 2.0,
    "temperature_squared": True,
    "micro": 8,
    "test_resize": "fit",
}
DOES_NOT = {
    "protocol": "mine",
    "students": 6,
    "pilots": 3,
    "full": True,
    "full_students": 3,
    "full_budget": 1,
    "probes": 1,
    "probe_steps": 7,
    "probe_students": 2,
    "curve": 3,
    "target": 50.0,
    "references": (),
    "lengths": (4.0,),
    "labels": ("hard",),
    "suite": "quick",
    "teachers": ("student",),
    "coreset": ("random",),
}


def test_the_fingerprint_changes_with_every_field_that_counts_and_with_no_other():
    assert set(COUNTS) | set(DOES_NOT) | {"epochs"} == {f.name for f in fields(Protocol)}
    protocol, student = PROTOCOLS["quick"], asdict(NetworkSpec())
    changed = [replace(protocol, **{name: value}) for name, value in COUNTS.items()]
    changed += [replace(protocol, steps=None, epochs=n) for n in (299, 300)]
    prints = [p.fingerprint(student, DSA) for p in (protocol, *changed)]
    assert len(set(prints)) == len(prints)
    for name, value in DOES_NOT.items():
        assert getattr(protocol, name) != value
        assert replace(protocol, **{"curve": 3, name: value}).fingerprint(student, DSA) == prints[0]


def test_fingerprints_are_those_of_the_recorded_rows():
    student = asdict(NetworkSpec(depth=3, width=32))
    assert PROTOCOLS["quick"].fingerprint(student, DSA) == "d4ee4b8b13c89f04"
    assert PROTOCOLS["mtt"].fingerprint(student, DSA) == "d9fe28a5f5185237"


def test_the_fingerprint_knows_network_and_augmentation():
    protocol, spec = PROTOCOLS["quick"], NetworkSpec(depth=3, width=128)
    other = {"arch": "resnet18", "depth": 4, "width": 64, "norm": "batch", "pooling": "max", "activation": "sigmoid"}
    assert set(other) == {f.name for f in fields(NetworkSpec)}
    prints = [protocol.fingerprint(asdict(spec), DSA), protocol.fingerprint(asdict(spec), "flip")]
    prints += [protocol.fingerprint(asdict(replace(spec, **{k: v})), DSA) for k, v in other.items()]
    assert len(set(prints)) == len(prints)
    # without augmentation the strategy of the data is of no account
    off = replace(protocol, augment=False)
    assert off.fingerprint(asdict(spec), DSA) == off.fingerprint(asdict(spec), "flip")
    # order and source of the fields are of no account either
    assert protocol.fingerprint(dict(reversed(asdict(spec).items())), DSA) == prints[0]
    assert Protocol(batch=128).fingerprint(asdict(spec), DSA) == prints[0]


@pytest.mark.parametrize("given", [{"steps": None}, {"steps": 10, "epochs": 10}])
def test_a_protocol_counts_steps_or_epochs(given):
    with pytest.raises(ValueError, match="give one of steps and epochs"):
        Protocol(**given)


@pytest.mark.parametrize("given", [{"momentum": 0.0}, {"momentum_after": 0.0}])
def test_nesterov_needs_momentum(given):
    with pytest.raises(ValueError, match="without momentum, use optimiser=sgd"):
        Protocol(optimiser="nesterov", **given)


def test_protocols_of_data_sets():
    for name, protocol in PROTOCOLS.items():
        assert protocol.protocol == name
    assert default_protocol("cifar10") == PROTOCOLS["mtt"]
    assert default_protocol("fashion-mini") == default_protocol("folder:x") == PROTOCOLS["quick"]
    assert (PROTOCOLS["mtt"].epochs, PROTOCOLS["mtt"].batch) == (1000, 256)
    assert (PROTOCOLS["datm"].epochs, PROTOCOLS["datm"].batch) == (1000, 128)


@pytest.mark.parametrize(("n", "batch", "passes"), [(1, 256, 1), (256, 256, 1), (257, 256, 2), (1000, 100, 10)])
def test_steps_of_a_protocol(n, batch, passes):
    assert Protocol(steps=77, batch=batch).total_steps(n) == 77
    assert Protocol(steps=None, epochs=5, batch=batch).total_steps(n) == 6 * passes
    assert Protocol(batch=batch).passes_to_steps(n) == passes


# --- students --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_student_of_ncfms_protocol_by_hand(task, soft):
    """AdamW, every image augmented and half the batches cut and mixed, labels by the area that is left."""
    small = make_set(task, soft=soft)
    protocol = replace(PROTOCOLS["ncfm"], epochs=None, steps=10, batch=3, lr=0.01, students=1, full=False)
    score = Evaluator(task, protocol).score(set_arm("it", small, task.data.preprocess), 0.01, 1)
    y = small.labels.softmax(1) if soft else F.one_hot(small.labels, 4).float()
    network = task.build(generator(0, "student", 0, "weights"))
    optimiser, step, mixed = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01), 0, 0
    for done in range(4):
        order = generator(0, "student", 0, "order", done)
        for index in torch.randperm(8, generator=order).split(3):
            if step == 10:
                break
            images, targets = small.images[index], y[index]
            for one in draw_sequence("color_crop_flip_scale_rotate", len(index), (1, 8, 8), order):
                images = apply(one, images)
            if float(torch.rand((), generator=order)) < 0.5:
                mixed += 1
                partner = torch.randperm(len(index), generator=order)
                share = float(torch.rand((), generator=order))
                (r, top), (c, left) = ((int(8 * math.sqrt(1 - share)), int(8 * x)) for x in _two(order))
                inside = torch.zeros(8, 8, dtype=torch.bool)
                inside[max(0, top - r // 2) : top + r // 2, max(0, left - c // 2) : left + c // 2] = True
                images = torch.where(inside, images[partner], images)
                own = 1 - float(inside.sum()) / 64
                targets = own * targets + (1 - own) * targets[partner]
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * 0.5 ** (step // 2)
            optimiser.zero_grad()
            F.cross_entropy(network(images), targets).backward()
            optimiser.step()
            step += 1
    assert 0 < mixed < 10
    assert score.values[0] == pytest.approx(accuracy(network, task.data.test.batches(512)), abs=1e-9)
    assert score.holdout[0] == pytest.approx(accuracy(network, task.data.holdout.batches(512)), abs=1e-9)


def _two(rng):
    return torch.rand(2, generator=rng).tolist()


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_student_by_hand(task, soft):
    small, test, holdout = make_set(task, soft=soft), Watched(task.data.test), Watched(task.data.holdout)
    watched = replace(task, data=replace(task.data, test=test, holdout=holdout))
    protocol = replace(BRIEF, batch=3, steps=10)
    score = Evaluator(watched, protocol).score(set_arm("it", small, task.data.preprocess), 0.02, 2, "why")
    assert (score.lr, score.note, score.n) == (0.02, "why", 2)
    assert test.passes == holdout.passes == 2  # once each, after the last step
    y = small.labels.softmax(1) if soft else small.labels
    for j in range(2):
        network = task.build(generator(0, "student", j, "weights"))
        optimiser, lr, step = None, 0.02, 0
        for done in range(4):
            draws, order = generator(0, "student", j, "augment", done), generator(0, "student", j, "order", done)
            for index in torch.randperm(8, generator=order).split(3):
                if step == 10:
                    break
                if step in (0, 5):  # half way the rate falls and the momentum is lost
                    lr = 0.02 if step == 0 else 0.02 * 0.1
                    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
                optimiser.zero_grad()
                F.cross_entropy(network(augment(DSA, small.images[index], draws)), y[index]).backward()
                optimiser.step()
                step += 1
        assert score.values[j] == accuracy(network, task.data.test.batches(512))
        assert score.holdout[j] == accuracy(network, task.data.holdout.batches(512))
    assert len({*score.values, *score.holdout}) > 2


def test_students_are_kept_and_do_not_depend_on_their_number(task, tmp_path):
    arm = set_arm("it", make_set(task), task.data.preprocess)
    five = Evaluator(task, BRIEF).score(arm, 0.02, 5)
    data = replace(task.data, test=Watched(task.data.test))
    kept = Evaluator(replace(task, data=data), BRIEF)
    assert kept.score(arm, 0.02, 3).values == five.values[:3]
    assert data.test.passes == 0
    forced = Evaluator(replace(task, data=data), BRIEF, force=True)
    assert forced.score(arm, 0.02, 3).values == five.values[:3]
    assert data.test.passes == 3
    alone = Evaluator(replace(task, store=Store(tmp_path)), BRIEF).score(arm, 0.02, 2)
    assert alone.values == five.values[:2]


def test_another_seed_set_protocol_or_rate_is_another_student(task):
    def students(task_=task, protocol=BRIEF, lr=0.02, **of):
        arm = set_arm("it", make_set(task, **of), task.data.preprocess)
        Evaluator(task_, protocol).score(arm, lr, 1)
        return len(list(task.store.root.glob("students/*.json")))

    seen = [students(), students()]
    seen.append(students(replace(task, seed=1)))
    seen.append(students(seed=1))
    seen.append(students(soft=True))
    seen.append(students(lr=0.03))
    seen += [students(protocol=replace(BRIEF, **{k: v})) for k, v in COUNTS.items()]
    seen.append(students(replace(task, student=NetworkSpec(depth=1, width=5))))
    seen.append(students(replace(task, precision="bf16")))
    assert seen == [1, *range(1, len(seen))]
    # what has no part in the number asks for no new student
    assert students(protocol=replace(BRIEF, **DOES_NOT)) == seen[-1]
    meant_for = {"protocol": PROTOCOLS["mtt"].to_dict(), "student": asdict(NetworkSpec())}
    relabelled = make_set(task, provenance={"method": "whatever"}, **meant_for)
    Evaluator(task, BRIEF).score(set_arm("another name", relabelled, task.data.preprocess), 0.02, 1)
    assert len(list(task.store.root.glob("students/*.json"))) == seen[-1]


def test_an_interrupted_evaluation_goes_on_with_the_next_student(task, tmp_path):
    arm = set_arm("it", make_set(task), task.data.preprocess)
    expected = Evaluator(replace(task, store=Store(tmp_path)), BRIEF).score(arm, 0.02, 3)

    def load(j):
        if j == 2:
            raise KeyboardInterrupt
        return arm.load(j)

    with pytest.raises(KeyboardInterrupt):
        Evaluator(task, BRIEF).score(replace(arm, load=load), 0.02, 3)
    loaded = []

    def note(j):
        loaded.append(j)
        return arm.load(j)

    assert Evaluator(task, BRIEF).score(replace(arm, load=note), 0.02, 3) == expected
    assert loaded == [2]


@pytest.mark.parametrize("lr", [0.0, -1e-4])
def test_a_learned_rate_that_is_not_positive_is_one_clear_line(task, lr):
    with pytest.raises(UsageError, match=r"the set's learned lr is .*smaller lr_lr"):
        evaluate(make_set(task, lr=lr), None, Evaluator(task, BRIEF))


def test_a_probe_is_the_held_out_accuracy_of_one_brief_student(task):
    small = make_set(task)
    protocol = replace(BRIEF, steps=None, epochs=50, probe_steps=9)
    test = Watched(task.data.test)
    found = Evaluator(replace(task, data=replace(task.data, test=test)), protocol).probe(small)
    brief = Evaluator(task, replace(protocol, steps=9, epochs=None))
    assert found == brief.score(set_arm("it", small, task.data.preprocess), 0.02, 1).holdout
    # no more steps than a student of the protocol has
    short = replace(BRIEF, steps=4, probe_steps=100)
    again = Evaluator(task, short).score(set_arm("it", small, task.data.preprocess), 0.02, 1)
    assert Evaluator(task, short).probe(small) == again.holdout
    several = Evaluator(task, replace(short, probe_students=2)).probe(small)
    assert several[:1] == again.holdout
    assert len(several) == 2


# --- control and start -----------------------------------------------------------------------------------------------


def test_the_control_is_drawn_afresh_for_every_student(task):
    arm, draws = control_arm(task), []
    assert arm.n == 8
    for j in range(6):
        images, labels = arm.load(j)
        assert torch.equal(labels, task.targets)  # as many of each class, hard labels
        whole = task.data.train.images(torch.arange(len(task.data.train)))
        where = [(whole == image).flatten(1).all(1).nonzero().item() for image in images]
        assert len(set(where)) == 8
        assert torch.equal(task.data.train.labels[where], task.targets)
        draws.append(frozenset(where))
    assert len(set(draws)) == 6
    assert len(frozenset.union(*draws)) > 24  # nearly disjoint: 48 draws of 128 images
    # the same for all methods of one seed, another one under another
    assert torch.equal(control_arm(task).load(2)[0], arm.load(2)[0])
    assert not torch.equal(control_arm(replace(task, seed=1)).load(2)[0], arm.load(2)[0])
    assert len({json.dumps(arm.key(j)) for j in range(6)}) == 6


def test_controls_are_shared_by_methods(task):
    for seed in (0, 1):  # two sets, one control
        evaluate(make_set(task, lr=None, seed=seed), None, Evaluator(task, BRIEF))
    assert len(list(task.store.root.glob("students/*.json"))) == 3 * (2 + 1)


def test_a_set_of_the_controls_images_has_the_controls_score(task):
    """Nothing but the images differs: size, labels, protocol and the seeds of the students are the same."""
    control, evaluator = control_arm(task), Evaluator(task, BRIEF)
    wanted = evaluator.score(control, 0.02, 3)
    assert len(set(wanted.values)) > 1
    for j in range(3):
        same = replace(make_set(task), images=control.load(j)[0])
        found = evaluator.score(set_arm("it", same, task.data.preprocess), 0.02, 3)
        assert (found.values[j], found.holdout[j]) == (wanted.values[j], wanted.holdout[j])


def scripted_by(test_of, holdout_of):
    """An evaluator whose students' accuracies are functions of (rate, student), and what it was asked for."""

    class Scripted(Evaluator):
        def _student(self, arm, lr, j, *, tested=True):
            asked.append((lr, j))
            return {"holdout": holdout_of(lr, j), "test": test_of(lr, j)}

    asked = []
    return Scripted, asked


def test_the_better_rate_is_chosen_on_held_out_images_by_the_pilots(task):
    holdout = {0.1: [50.0, 52.0, 90.0], 0.2: [51.0, 52.0, 10.0]}
    test = {0.1: [80.0, 81.0, 82.0], 0.2: [30.0, 31.0, 35.0]}
    scripted, asked = scripted_by(lambda lr, j: test[lr][j], lambda lr, j: holdout[lr][j])
    arm = Arm("it", lambda j: j, lambda j: None, 8)
    score = scripted(task, replace(BRIEF, pilots=2)).better_lr(arm, [0.1, 0.2], 3)
    # 51.5 against 51 on the first two students, whatever the third or the test images say
    assert (score.lr, score.values, score.holdout) == (0.2, (30.0, 31.0, 35.0), (51.0, 52.0, 10.0))
    assert score.note == "better of 0.1: 51.0 %, 0.2: 51.5 % on held-out images"
    assert {j for lr, j in asked if lr == 0.1} == {0, 1}
    # all students are pilots
    assert scripted(task, replace(BRIEF, pilots=9)).better_lr(arm, [0.1, 0.2], 3).lr == 0.1
    # a tie goes to the protocol's
    tied, _ = scripted_by(lambda lr, j: 100 * lr, lambda lr, j: 50.0)
    assert tied(task, BRIEF).better_lr(arm, [0.1, 0.2], 3).lr == 0.1
    assert tied(task, BRIEF).better_lr(arm, [0.2, 0.1], 3).lr == 0.2


def test_one_candidate_or_no_held_out_images_leave_no_choice(task, make_task, blobs):
    scripted, asked = scripted_by(lambda lr, j: 100 * lr, lambda lr, j: 100 * lr)
    arm = Arm("it", lambda j: j, lambda j: None, 8)
    score = scripted(task, BRIEF).better_lr(arm, [0.2], 3)
    assert (score.lr, score.note) == (0.2, "the protocol's lr")
    assert asked == [(0.2, 0), (0.2, 1), (0.2, 2)]
    without = make_task(blobs(holdout=0))
    score = scripted(without, BRIEF).better_lr(arm, [0.1, 0.2], 3)
    assert (score.lr, score.note) == (0.1, "the protocol's lr: no held-out images to choose with")


@pytest.mark.parametrize("rates", [(0.05, 1e-6), (1e-6, 0.05)])
def test_control_and_start_get_the_better_of_two_rates(task, rates):
    # one of the two does not train at all
    protocol = replace(BRIEF, lr=rates[0], steps=40)
    small, start = make_set(task, lr=rates[1]), make_set(task, lr=rates[1], seed=1)
    report = evaluate(small, start, Evaluator(task, protocol))
    assert report.accuracy.lr == rates[1]  # the set itself is scored at its own, whichever it is
    assert report.accuracy.note == "learned by the method"
    assert report.control.lr == report.start.lr == 0.05
    assert report.control.note.startswith(f"better of {rates[0]:.4g}: ")
    assert report.control.values == Evaluator(task, protocol).score(control_arm(task), 0.05, 3).values
    arm = set_arm("start", start, task.data.preprocess)
    assert report.start.values == Evaluator(task, protocol).score(arm, 0.05, 3).values


def test_test_labels_have_no_say_in_any_choice(task, tmp_path):
    rates, chosen, values = [0.01, 0.05, 0.2], [], []
    test = task.data.test
    order = torch.randperm(len(test), generator=generator(4))
    for name, labels in (("true", test.labels), ("permuted", test.labels[order]), ("shifted", (test.labels + 1) % 4)):
        data = replace(task.data, test=replace(test, labels=labels))
        evaluator = Evaluator(replace(task, data=data, store=Store(tmp_path / name)), BRIEF)
        scores = [evaluator.better_lr(control_arm(task), pair, 3) for pair in ((0.01, 0.05), (0.05, 0.2), rates)]
        report = evaluate(make_set(task), make_set(task, seed=1), evaluator)
        everything = (*scores, report.control, report.start, report.accuracy)
        chosen.append([(s.lr, s.note, s.holdout) for s in everything])
        values.append([s.values for s in everything])
    assert chosen[0] == chosen[1] == chosen[2]
    assert values[0] != values[1]
    assert all(a != b for a, b in zip(values[0], values[2], strict=True))


def test_a_set_without_a_rate_of_its_own_leaves_nothing_to_choose(task):
    report = evaluate(make_set(task, lr=None), make_set(task, lr=None, seed=1), Evaluator(task, BRIEF))
    assert report.accuracy.lr == report.control.lr == report.start.lr == BRIEF.lr
    assert {report.accuracy.note, report.control.note, report.start.note} == {"the protocol's lr"}


@pytest.mark.parametrize("name", ["mtt", "datm"])
def test_the_start_is_the_set_at_iteration_0_with_its_own_labels(task, name):
    cls, experts = get(name), ExpertSettings(count=2, epochs=2, lr=0.05, batch=32)
    method = cls(iterations=1, steps=2, span=1, start_max=1, experts=experts).settle(task)
    prepared = prepare(method, task)
    syn = method.start(task, prepared)
    start = method.finish(syn, task, prepared)
    arm = set_arm("start", start, task.data.preprocess)
    images, targets = arm.load(0)
    assert torch.equal(images, syn.images)
    if name == "mtt":
        assert torch.equal(targets, task.targets)
    else:
        # what soft labels alone are worth is not credited to the images
        assert torch.equal(targets, syn.labels.detach().softmax(1))
        hard = replace(start, labels=task.targets, label_kind="hard")
        protocol = replace(BRIEF, steps=60)
        soft_score = Evaluator(task, protocol).score(arm, 0.05, 3)
        hard_score = Evaluator(task, protocol).score(set_arm("hard", hard, task.data.preprocess), 0.05, 3)
        assert soft_score.values != hard_score.values
        report = evaluate(start, start, Evaluator(task, replace(protocol, lr=start.lr)))
        assert report.start.values == report.accuracy.values
        assert report.gain == 0


def test_targets_of_an_arm_are_probabilities_once(task):
    soft = make_set(task, soft=True)
    probabilities = replace(soft, labels=soft.labels.softmax(1), label_kind="probabilities")
    for small in (soft, probabilities):
        _, targets = set_arm("it", small, task.data.preprocess).load(3)
        assert torch.allclose(targets, soft.labels.softmax(1), atol=1e-6)
    broken = replace(soft, labels=torch.full_like(soft.labels, math.nan))
    with pytest.raises(UsageError):
        set_arm("it", broken, task.data.preprocess)


# --- labels in a fingerprint -----------------------------------------------------------------------------------------


def fingerprint(**labels):
    base = {"teachers": [{}], "form": "logits", "teacher_mode": "eval", "top": 5, "ensemble": "logit_mean"}
    made = making(base | {"low": 0.0, "high": 0.0, "smooth": 0.1, "names": ["a"], "stored_epochs": None} | labels)
    return BRIEF.fingerprint({}, "none", made)


def test_how_labels_are_made_is_in_the_fingerprint():
    assert making(None) is None
    assert BRIEF.fingerprint({}, "none", None) == BRIEF.fingerprint({}, "none") != fingerprint()
    told_apart = [
        {},
        {"form": "hard"},
        {"form": "topk"},
        {"form": "topk", "top": 3},
        {"teacher_mode": "batch"},
        {"high": 0.5},
        {"high": 0.5, "low": 0.1},
        {"high": 0.5, "smooth": 0.2},
        {"teachers": [{}, {}]},
        {"teachers": [{}, {}], "ensemble": "prob_mean"},
    ]
    assert len({fingerprint(**one) for one in told_apart}) == len(told_apart)


@pytest.mark.parametrize(
    "other",
    [{"top": 3}, {"ensemble": "prob_mean"}, {"low": 0.0, "smooth": 0.2}, {"names": None}, {"stored_epochs": 9},
     {"teachers": [{"trained": "another"}]}, {"weights": None}],
)  # fmt: skip
def test_what_decides_no_number_is_not_in_the_fingerprint(other):
    assert fingerprint(**other) == fingerprint()


# --- all images ------------------------------------------------------------------------------------------------------


def test_the_full_reference_trains_on_all_training_images_at_the_protocols_rate(task):
    protocol = replace(BRIEF, full=True, full_students=2, batch=50, steps=7)
    report = evaluate(make_set(task), None, Evaluator(task, protocol))
    assert (report.full.lr, report.full.n, report.full.note) == (protocol.lr, 2, "the protocol's lr")
    network = task.build(generator(0, "student", 1, "weights"))
    train, step = task.data.train, 0
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for done in range(3):
        draws, order = generator(0, "student", 1, "augment", done), generator(0, "student", 1, "order", done)
        for index in torch.randperm(128, generator=order).split(50):
            if step == 3:
                optimiser = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
            if step < 7:
                optimiser.zero_grad()
                F.cross_entropy(network(augment(DSA, train.images(index), draws)), train.labels[index]).backward()
                optimiser.step()
                step += 1
    assert report.full.values[1] == accuracy(network, task.data.test.batches(512))
    arm = full_arm(task.data, 50)
    assert arm.n == 128
    assert [len(x) for x, _ in arm.batches(generator(0), 0)] == [50, 50, 28]
    with pytest.raises(NotImplementedError):
        arm.load(0)


@pytest.mark.parametrize(("batch", "sizes"), [(127, [127]), (1, [1] * 128), (63, [63, 63, 2])])
def test_a_single_image_that_is_left_over_has_no_batch_statistics_and_is_left_out(task, batch, sizes):
    arm = full_arm(task.data, batch)
    for number in range(2):
        assert [len(x) for x, _ in arm.batches(generator(0), number)] == sizes


@pytest.mark.parametrize(
    ("protocol", "passes"),
    [
        ({"steps": 12, "batch": 8}, 12 * 8 * 2),
        ({"steps": 12, "batch": 8, "full_students": 1}, 12 * 8),
        ({"steps": 3, "batch": 1000}, 3 * 128 * 2),
        ({"steps": None, "epochs": 2, "batch": 50}, 3 * 3 * 50 * 2),
    ],
)
def test_the_full_reference_is_bounded_by_a_budget_of_image_passes(task, protocol, passes):
    small, protocol = make_set(task, lr=None), replace(BRIEF, full=None, students=1, **protocol)
    within = evaluate(small, None, Evaluator(task, replace(protocol, full_budget=passes)))
    assert within.full.n == protocol.full_students
    assert "full" not in within.missing
    above = evaluate(small, None, Evaluator(task, replace(protocol, full_budget=passes - 1)))
    assert above.full is None
    assert above.missing["full"] == (
        f"{passes:,} image passes are above eval.full_budget={passes - 1:,}; request it with eval.full=true"
    )
    asked = evaluate(small, None, Evaluator(task, replace(protocol, full_budget=0, full=True)))
    assert asked.full == within.full
    never = evaluate(small, None, Evaluator(task, replace(protocol, full_budget=passes, full=False)))
    assert (never.full, never.missing["full"]) == (None, "eval.full=false")


# --- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_of_a_set(task):
    small, start = make_set(task, soft=True, provenance={"method": "datm"}), make_set(task, soft=True, seed=1)
    report = evaluate(small, start, Evaluator(task, BRIEF))
    assert report.missing == {"full": "eval.full=false"}
    assert [s.n for s in (report.accuracy, report.control, report.start)] == [3, 3, 3]
    assert all(len(s.holdout) == 3 for s in (report.accuracy, report.control, report.start))
    assert report.protocol == BRIEF.to_dict()
    assert report.fingerprint == BRIEF.fingerprint(asdict(task.student), DSA)
    assert report.student == asdict(task.student)
    assert report.dataset["fingerprint"] == task.data.fingerprint
    assert report.bytes == {"images": 8 * 64 * 4, "labels": 8 * 4 * 4, "total": 8 * 68 * 4}
    assert report.provenance == {"method": "datm"}
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_what_is_not_there_is_said(task, make_task, blobs):
    report = evaluate(make_set(task), None, Evaluator(task, BRIEF))
    assert (report.start, report.missing["start"]) == (None, "the set at iteration 0 is not stored")
    assert report.gain is None
    alone = evaluate(make_set(task), make_set(task), Evaluator(task, BRIEF), controls=False)
    assert (alone.control, alone.start, alone.full) == (None, None, None)
    assert alone.missing == dict.fromkeys(("control", "start", "full"), "not requested")
    assert alone.accuracy == report.accuracy
    without = make_task(blobs(holdout=0))
    bare = evaluate(make_set(without), make_set(without, seed=1), Evaluator(without, BRIEF))
    assert bare.accuracy.holdout == bare.control.holdout == ()
    assert bare.control.lr == bare.start.lr == BRIEF.lr
    assert "no held-out images" in bare.control.note


def test_evaluation_changes_neither_the_set_nor_the_global_generator(task):
    small = make_set(task, soft=True)
    digest, state = small.digest(), torch.get_rng_state()
    evaluate(small, small, Evaluator(task, replace(BRIEF, full=True)))
    assert small.digest() == digest
    assert torch.equal(torch.get_rng_state(), state)


def test_a_set_made_of_variables_is_scored_as_it_was_then(task):
    syn = Synthetic(torch.zeros(8, 1, 8, 8), task.targets)
    small = get("mtt")().finish(syn, task, None)
    arm = set_arm("it", small, task.data.preprocess)
    with torch.no_grad():
        syn.images.add_(1)
    assert not arm.load(0)[0].any()


def test_a_set_of_bytes_is_seen_in_model_space_by_students(task):
    index = task.real_indices("some")
    raw = task.data.train.raw(index)
    small = replace(make_set(task), images=raw)
    images, _ = set_arm("bytes", small, task.data.preprocess).load(0)
    assert torch.equal(images, task.data.train.images(index))
    score = evaluate(small, None, Evaluator(task, BRIEF), controls=False).accuracy
    assert score == evaluate(replace(small, images=images), None, Evaluator(task, BRIEF), controls=False).accuracy


# --- sets of tiles ---------------------------------------------------------------------------------------------------


def test_tiles_are_decoded_for_students_and_have_a_control_that_is_too(task):
    plain = make_set(task)
    tiles = replace(plain, image_kind="tiles", decode_factor=2)
    arm = set_arm("tiles", tiles, task.data.preprocess)
    images, targets = arm.load(0)
    assert len(images) == len(targets) == arm.n == 4 * plain.n
    assert torch.equal(images, decode(tiles.images, 2))
    assert torch.equal(targets, plain.labels.repeat(4))

    control = decoded_arm(task, 2)
    (one, labels), (other, _) = control.load(0), control.load(1)
    assert len(one) == len(labels) == control.n == 4 * len(task.targets)
    assert torch.equal(labels, task.targets.repeat(4))
    assert not torch.equal(one, other)
    again = decoded_arm(task, 2)
    assert torch.equal(again.load(0)[0], one)
    # every tile is a real image of its class, made smaller and enlarged again
    small = F.interpolate(task.data.train.images(task.data.train.of_class(0)), size=(4, 4), mode="nearest")
    large = F.interpolate(small, size=(8, 8), mode="bilinear", align_corners=False)
    for image in one[labels == 0]:
        assert (image - large).flatten(1).norm(dim=1).min() < 1e-4

    report = evaluate(tiles, plain, Evaluator(task, Protocol(steps=4, students=2, full=False)))
    assert report.decoded is not None
    assert report.decoded.n == 2
    assert report.decoded_gap == pytest.approx(report.accuracy.mean - report.decoded.mean)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert evaluate(plain, None, Evaluator(task, Protocol(steps=4, students=2, full=False))).decoded is None


def test_images_that_are_too_many_for_one_tensor_are_the_same_batch_by_batch(task, monkeypatch):
    small, found = make_set(task), []
    for limit in (arms.AT_ONCE, 0):
        monkeypatch.setattr(arms, "AT_ONCE", limit)
        both = set_arm("it", small, task.data.preprocess), control_arm(task)
        found.append([Evaluator(replace(task, seed=2), BRIEF)._train(arm, 0.05, 1)["test"] for arm in both])
        assert [callable(arm.load(0)[0]) for arm in both] == [limit == 0] * 2
    assert found[0] == found[1]
