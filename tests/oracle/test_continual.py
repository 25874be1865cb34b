"""`task=continual`: which classes a memory holds, what a student of it is tested on, and what is compared with what."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dd
from dd.errors import UsageError
from dd.evaluation import Protocol
from dd.evaluation.arms import Arm, control_arm, selection_arm, set_arm, shuffled
from dd.evaluation.downstream import TASKS, DownstreamReport
from dd.evaluation.downstream.continual import Continual, class_orders, restricted, seen_accuracy
from dd.evaluation.evaluate import Evaluator, evaluate, student_passes
from dd.rng import generator
from dd.runs.store import nothing_made
from dd.sets import DistilledSet
from dd.training.loop import Trainer

BRIEF = Protocol(steps=6, students=2, batch=8, lr=0.05, full=False)


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(holdout=8, noise=1.5))


def made(task, soft=False, lr=None):
    rng = generator(0, "set")
    labels = task.targets
    if soft:
        labels = 4 * F.one_hot(labels, 4).float() + torch.randn(len(labels), 4, generator=rng)
    return DistilledSet(
        images=torch.randn(len(task.targets), 1, 8, 8, generator=rng),
        labels=labels,
        label_kind="logits" if soft else "hard",
        classes=task.data.classes,
        source="blobs",
        source_fingerprint=task.data.fingerprint,
        space=task.data.preprocess.spec(),
        lr=lr,
    )


# --- class orders (check 34) -----------------------------------------------------------------------------------------


def test_the_orders_of_seeds_0_to_4_are_fixed():
    """Ten classes in five steps, as literal numbers: NumPy's legacy permutations, which public code draws."""
    found = class_orders(10, 5, 5)
    assert found[0] == ((2, 8), (4, 9), (1, 6), (7, 3), (0, 5))
    assert found[1] == ((2, 9), (6, 4), (0, 3), (1, 7), (8, 5))
    for seed, order in enumerate(found):
        np.random.seed(seed)  # noqa: NPY002  as the public code does
        assert [c for group in order for c in group] == np.random.permutation(10).tolist()  # noqa: NPY002
    assert class_orders(10, 5, 3) == found[:3]


@pytest.mark.parametrize(("classes", "steps"), [(100, 5), (100, 10), (10, 3), (7, 7), (4, 1)])
def test_every_class_arrives_once_in_steps_that_differ_by_one_class(classes, steps):
    for order in class_orders(classes, steps, 4):
        assert sorted(c for group in order for c in group) == list(range(classes))
        assert len(order) == steps
        assert max(map(len, order)) - min(map(len, order)) <= 1


def test_more_steps_than_classes():
    with pytest.raises(UsageError, match=r"continual\.steps=5, but there are 4 classes"):
        class_orders(4, 5, 1)


# --- the memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seen", [(3,), (2, 0), (1, 3, 0)])
def test_a_memory_is_the_images_of_the_classes_seen(seen, soft, lazy):
    """Against a loop over the images, in float64."""
    rng = generator(1, "memory")
    owners = torch.randint(4, (13,), generator=rng)
    images = torch.randn(13, 1, 2, 2, generator=rng)
    targets = torch.rand(13, 4, generator=rng, dtype=torch.float64) if soft else owners
    arm = Arm("it", lambda j: ["it", j], lambda _: ((lambda i: images[i]) if lazy else images, targets), 13)
    memory = restricted(arm, owners, seen)
    got, labels = memory.load(0)
    kept = [i for i in range(13) if int(owners[i]) in seen]
    assert memory.n == len(kept) == len(labels)
    if lazy:
        got = got(torch.arange(memory.n))
    for row, i in enumerate(kept):
        assert torch.equal(got[row], images[i])
        if not soft:
            assert int(labels[row]) == int(owners[i])  # the class keeps its number
            continue
        whole = sum(float(targets[i, c]) for c in seen)
        for c in range(4):
            share = float(targets[i, c]) / whole if c in seen else 0.0
            assert float(labels[row, c]) == pytest.approx(share, abs=1e-12)
    assert memory.key(3) == {"of": ["it", 3], "classes": sorted(seen)}
    assert restricted(arm, owners, (3, 1, 0, 2)) is arm


def test_the_memory_of_an_order_only_grows_and_control_draws_are_redrawn(task):
    """n_c times ipc images more at each step; the images of an earlier class stay what they were."""
    arm, owners = control_arm(task), task.targets
    for j in range(3):
        before = torch.empty(0, 1, 8, 8)
        for seen in ((2,), (2, 0), (2, 0, 3), (2, 0, 3, 1)):
            images, labels = restricted(arm, owners, seen).load(j)
            assert len(labels) == 2 * len(seen)
            for old in before:
                assert any(torch.equal(old, new) for new in images)
            before = images
    assert not torch.equal(arm.load(0)[0], arm.load(1)[0])


# --- what a student is tested on -------------------------------------------------------------------------------------


def test_accuracy_on_seen_classes_is_a_weighted_mean_of_their_recalls():
    rng = generator(2, "recall")
    labels, predicted = (torch.randint(5, (200,), generator=rng) for _ in range(2))
    counts = [int((labels == c).sum()) for c in range(5)]
    recalls = [100 * float((predicted[labels == c] == c).double().mean()) for c in range(5)]
    for seen in ((0,), (4, 1), (0, 1, 2, 3, 4)):
        hits = [int(p == y) for p, y in zip(predicted, labels, strict=True) if int(y) in seen]
        assert seen_accuracy(recalls, counts, seen) == pytest.approx(100 * sum(hits) / len(hits), rel=1e-12)
    # an untested class counts for nothing
    assert seen_accuracy([None, 40.0], [0, 10], (0, 1)) == 40.0


def test_a_student_by_hand_with_an_output_for_every_class(task):
    """A network of four outputs, trained on two classes; its predictions of the other two are errors."""
    small, protocol = made(task), replace(BRIEF, students=1, augment=False)
    report = Continual(steps=2, orders=1).measure(small, Evaluator(task, protocol))
    (first, _), *_ = report.orders
    kept = [i for i, c in enumerate(small.labels.tolist()) if c in first]
    images, labels = small.images[kept], small.labels[kept]
    network = task.build(generator(0, "any"))
    assert network(task.data.test.images(torch.arange(1))).shape == (1, 4)
    fit = protocol.fit(len(kept), protocol.lr, "none")
    batches = lambda rng, number: shuffled(images, labels, protocol.batch, rng, number)  # noqa: E731
    network = next(Trainer(task.build).train([(task.seed, "student", 0)], batches, fit)).eval()
    hits = []
    for i in range(len(task.data.test)):
        if int(task.data.test.labels[i]) in first:
            logits = network(task.data.test.images(torch.tensor([i])))
            hits.append(int(logits.argmax()) == int(task.data.test.labels[i]))
    assert report.scores["accuracy"][0].values == pytest.approx((100 * np.mean(hits),), rel=1e-9)


# --- the report ------------------------------------------------------------------------------------------------------


def test_steps_orders_and_students_of_set_and_control(task):
    report = Continual(steps=4, orders=3).measure(made(task, soft=True), Evaluator(task, BRIEF))
    assert report.memory == ((2, 4, 6, 8),) * 3
    assert set(report.scores) == {"accuracy", "control"}
    assert all(score.n == 3 * 2 for steps in report.scores.values() for score in steps)
    # one class: whoever predicts it is right
    values = [[score.values for score in steps] for steps in report.scores.values()]
    for steps, arm in zip(values, report.scores, strict=True):
        assert report.average(arm).values == pytest.approx(np.mean(steps, axis=0).tolist())
    for step in range(4):
        own, other = (np.reshape(report.scores[arm][step].values, (3, 2)) for arm in ("accuracy", "control"))
        assert report.gap(step).mean == pytest.approx((own - other).mean())
        assert report.gap(step).n == 3
        assert report.gap(step).low >= (own.mean(1) - other.mean(1)).min() - 1e-9
    assert report.gap().mean == pytest.approx(np.mean([report.gap(step).mean for step in range(4)]))
    assert [row[0] for row in report.rows()] == ["1", "2", "3", "4", "mean"]
    assert all(len(row) == len(report.headings()) for row in report.rows())
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["task"] == "continual"
    assert plain["scores"]["control"][3]["n"] == 6
    assert plain["average"]["accuracy"]["mean"] == pytest.approx(report.average("accuracy").mean)


def test_the_last_step_is_the_ordinary_evaluation_and_everything_is_kept(task):
    small, evaluator = made(task), Evaluator(task, BRIEF)
    whole = evaluate(small, None, evaluator)
    report = Continual(steps=2, orders=2).measure(small, evaluator)
    last = report.scores["accuracy"][-1].values
    assert last[:2] == pytest.approx(whole.accuracy.values)
    assert report.scores["control"][-1].values[:2] == pytest.approx(whole.control.values)
    with nothing_made():  # the same command again trains nobody
        assert Continual(steps=2, orders=2).measure(small, Evaluator(task, BRIEF)).scores == report.scores
        fewer = Continual(steps=2, orders=1).measure(small, Evaluator(task, BRIEF))
    assert fewer.scores["accuracy"][-1].values == last[:2]
    assert fewer.fingerprint != report.fingerprint


def test_the_lr_of_the_control_is_chosen_on_held_out_images(task):
    report = Continual(steps=2, orders=1).measure(made(task, lr=1e-6), Evaluator(task, BRIEF))
    assert {score.lr for score in report.scores["accuracy"]} == {1e-6}
    assert {score.lr for score in report.scores["control"]} <= {1e-6, BRIEF.lr}
    assert "on held-out images" in report.scores["control"][0].note


def test_mosaics_have_a_decoded_control_too(make_task, blobs):
    task = make_task(blobs(holdout=8))
    tiles = replace(made(task), image_kind="tiles", decode_factor=2)
    report = Continual(steps=2, orders=1).measure(tiles, Evaluator(task, BRIEF))
    assert list(report.scores) == ["accuracy", "control", "decoded"]
    images, targets = restricted(
        set_arm("it", tiles, task.data.preprocess), task.targets.repeat(4), report.orders[0][0]
    ).load(0)
    assert len(images) == len(targets) == 4 * report.memory[0][0]


def test_the_work_is_that_of_every_student(task):
    evaluator = Evaluator(task, BRIEF)
    ((one, images),) = Continual(steps=2, orders=3).work(made(task), evaluator)
    assert one is evaluator
    assert images == 3 * 2 * 2 * (student_passes(evaluator, 4) + student_passes(evaluator, 8))


def test_teachers_labels_are_refused(task):
    with pytest.raises(UsageError, match="the teachers have seen the classes of every step"):
        Continual(steps=2).require_usable(made(task), taught=True)


def test_indices_are_a_memory_and_a_schedule_is_not(task):
    chosen = replace(made(task), images=task.real_indices("some"), image_kind="indices")
    report = Continual(steps=2, orders=1).measure(chosen, Evaluator(task, BRIEF))
    assert report.notes == ()
    arm = restricted(selection_arm("it", chosen, task.data), task.targets, report.orders[0][0])
    kept = [i for i, c in enumerate(task.targets.tolist()) if c in report.orders[0][0]]
    assert torch.equal(arm.load(0)[0], task.data.train.images(chosen.images[kept]))
    rounds = replace(chosen, images=chosen.images[None], labels=chosen.labels[None], image_kind="schedule")
    with pytest.raises(UsageError, match="cannot use a schedule"):
        Continual(steps=2).require_usable(rounds, taught=False)


# --- the front -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_every_setting_of_a_task_is_explained(name):
    from dd.recipes.schema import explained, leaves

    assert set(explained(TASKS[name](), f"{name}.")) == set(leaves(TASKS[name](), f"{name}."))


def test_from_python_and_with_wrong_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path))
    tiny = {"student": {"width": 4, "depth": 1}, "eval": {"students": 1, "steps": 3}, "device": "cpu"}
    report = dd.evaluate("dm/fashion-mini-ipc1", task="continual", continual={"steps": 2, "orders": 1}, **tiny)
    assert isinstance(report, DownstreamReport)
    assert report.settings == {"steps": 2, "orders": 1}
    assert "<td>10</td>" in report._repr_html_()
    for settings, words in (
        ({"task": "contin"}, "unknown task 'contin'; did you mean 'continual'"),
        ({"continual": {"steps": 2}}, r"continual\.steps=2 is a setting of another task: it needs task=continual"),
        ({"task": "continual", "continual": {"stesp": 2}}, r"did you mean 'continual\.steps'"),
        ({"task": "continual", "continual": {"steps": 11}}, "there are 10 classes"),
    ):
        with pytest.raises(UsageError, match=words):
            dd.evaluate("dm/fashion-mini-ipc1", **settings, **tiny)
