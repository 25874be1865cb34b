"""Learning curves of students: what is measured and when, that it changes nothing, and the time to an accuracy."""

import json
import statistics
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from dd.cli.show_report import show_report
from dd.data import RealData
from dd.errors import UsageError
from dd.evaluation import Protocol, Report, Score, curve
from dd.evaluation.arms import control_arm, full_arm, set_arm
from dd.evaluation.curve import Curve, CurveRecorder
from dd.evaluation.evaluate import Evaluator, evaluate
from dd.evaluation.learners import Learner
from dd.evaluation.table import headings, rows
from dd.io.typed import typed
from dd.networks import NetworkSpec
from dd.pipeline import evaluate as evaluate_set
from dd.pipeline.meant import meant_for
from dd.rng import generator
from dd.runs import Store
from dd.sets import DistilledSet
from dd.training.loop import accuracy
from dd.views.dsa import augment

DSA = "color_crop"
BRIEF = Protocol(steps=11, students=2, pilots=1, batch=3, lr=0.05, full=False)
CURVED = replace(BRIEF, curve=4)
POINTS = (2, 5, 8, 11)  # floor(11 k / 4)


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(strategy=DSA, holdout=8, noise=1.5), student=NetworkSpec(depth=1, width=4, norm="batch"))


def make_set(task, **facts):
    return DistilledSet(
        images=task.data.train.images(task.real_indices("some")),
        labels=task.targets,
        classes=task.data.classes,
        source="blobs",
        source_fingerprint=task.data.fingerprint,
        space=task.data.preprocess.spec(),
        augment=task.data.augment,
        **facts,
    )


def arm_of_set(task):
    return set_arm("it", make_set(task), task.data.preprocess)


class Kept(Learner):
    """A classifier whose weights and statistics are kept each time that it is scored."""

    def __init__(self, task):
        super().__init__(task)
        self.seen = []

    def classifier(self, network):
        self.seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return network


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "count"), [(11, 4), (11, 1), (11, 11), (11, 50), (1, 3), (300, 20), (7, 3)])
def test_the_times_of_a_curve_are_evenly_spaced_and_end_with_the_training(steps, count):
    found = replace(BRIEF, steps=steps, curve=count).curve_steps(8)
    assert len(found) == min(steps, count)
    assert found[-1] == steps
    gaps = [later - earlier for earlier, later in zip((0, *found), found, strict=False)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1
    assert replace(BRIEF, steps=steps).curve_steps(8) == ()


def test_the_times_of_a_curve_of_epochs():
    assert replace(BRIEF, steps=None, epochs=4, inclusive=False, curve=2).curve_steps(8) == (6, 12)


def test_a_curve_by_hand(task):
    """SGD, lr cut in the middle, DSA once per batch; the network is scored aside after the steps of the curve."""
    score = Evaluator(task, CURVED).score(arm_of_set(task), 0.05, 1)
    (found,) = score.curves
    images, labels = arm_of_set(task).load(0)
    network, step, shown = task.build(generator(0, "student", 0, "weights")), 0, 0
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    points = []
    for done in range(4):
        draws, order = generator(0, "student", 0, "augment", done), generator(0, "student", 0, "order", done)
        for index in torch.randperm(8, generator=order).split(3):
            if step == 11:
                break
            if step == 5:
                optimiser = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(augment(DSA, images[index], draws)), labels[index])
            loss.backward()
            optimiser.step()
            step, shown = step + 1, shown + len(index)
            if step in POINTS:
                aside = task.build(generator(1))
                aside.load_state_dict(network.state_dict())
                parts = (task.data.test, task.data.holdout)
                points.append((step, shown, *(accuracy(aside, part.batches(512)) for part in parts)))
    assert list(zip(found.steps, found.images, found.test, found.holdout, strict=True)) == points
    assert found.steps == POINTS
    assert found.images == (6, 14, 22, 30)  # of batches of 3, 3, 2
    assert len(set(found.test)) > 1
    assert list(found.seconds) == sorted(found.seconds)
    assert found.test[-1] == score.values[0]
    assert found.holdout[-1] == score.holdout[0]


def test_a_curve_changes_no_bit_of_a_student(task):
    weights, values = [], []
    for protocol in (BRIEF, CURVED, replace(BRIEF, curve=11)):
        learner = Kept(task)
        evaluator = Evaluator(task, protocol, force=True, learner=learner)
        values.append([evaluator.score(arm, 0.05, 2).values for arm in (arm_of_set(task), control_arm(task))])
        weights.append(learner.seen)
    assert [len(seen) for seen in weights] == [4, 4 * 5, 4 * 12]
    assert values[0] == values[1] == values[2]
    for plain, *others in zip(weights[0], weights[1][4::5], weights[2][11::12], strict=True):
        for other in others:
            assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_images_of_passes_with_other_batches_are_counted_as_shown(task):
    arm = full_arm(task.data, 127)  # 128 images: a batch of one is left out
    (found,) = Evaluator(task, replace(BRIEF, steps=3, curve=3, batch=127)).score(arm, 0.05, 1).curves
    assert found.images == (127, 254, 381)


def test_without_held_out_images_there_is_no_curve_on_them(make_task, blobs):
    task = make_task(blobs(holdout=0))
    (found,) = Evaluator(task, CURVED).score(arm_of_set(task), 0.05, 1).curves
    assert (found.holdout, len(found.test)) == ((), 4)


def test_the_seconds_are_those_of_the_training_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(curve.time, "perf_counter", lambda: now[0])
    network = torch.nn.BatchNorm1d(2)

    def measure(measured):
        now[0] += 1000.0
        measured.eval()  # as a learner may leave it
        return 50.0, None

    recorder = CurveRecorder((2, 3, 6), measure, torch.device("cpu"), 90.0)
    batches = recorder.counted(lambda rng, number: iter([(torch.zeros(5, 2), torch.zeros(5))] * 6))
    for step, _ in enumerate(batches(generator(0), 0), 1):
        now[0] += 1.0
        recorder(step, network)
        assert network.training
    found = recorder.curve()
    assert (found.steps, found.seconds, found.images) == ((2, 3, 6), (12.0, 13.0, 16.0), (10, 15, 30))


# --- what is stored --------------------------------------------------------------------------------------------------


def test_a_stored_student_is_trained_again_only_for_a_curve_that_it_lacks(task):
    arm, learner = arm_of_set(task), Kept(task)

    def trained(protocol):
        """How often students are scored, each once and as often as its curve says; and their score."""
        before = len(learner.seen)
        score = Evaluator(task, protocol, learner=learner).score(arm, 0.05, 2)
        return len(learner.seen) - before, score

    scored, plain = trained(BRIEF)
    assert (scored, plain.curves) == (2, ())
    scored, curved = trained(CURVED)
    assert scored == 2 * 5
    assert trained(CURVED) == (0, curved)
    assert trained(BRIEF) == (0, plain)  # as if it had no curve
    assert replace(curved, curves=()) == plain
    assert trained(replace(BRIEF, curve=2))[0] == 2 * 3
    assert trained(BRIEF) == (0, plain)
    assert len(list(task.store.root.glob("students/*.json"))) == 2


def test_held_out_scores_alone_have_no_curve(task):
    learner = Kept(task)
    held = Evaluator(task, CURVED, learner=learner).held_out(arm_of_set(task), 0.05, 2)
    assert len(learner.seen) == 2
    assert held == Evaluator(task, CURVED).score(arm_of_set(task), 0.05, 2).holdout


def test_test_images_choose_nothing_along_a_curve(task, tmp_path):
    chosen = []
    for name, shift in (("true", 0), ("shifted", 1)):
        data = replace(task.data, test=replace(task.data.test, labels=(task.data.test.labels + shift) % 4))
        assert isinstance(data, RealData)
        evaluator = Evaluator(replace(task, data=data, store=Store(tmp_path / name)), CURVED)
        report = evaluate(make_set(task, lr=0.2), make_set(task, lr=0.2), evaluator)
        chosen.append([(s.lr, s.note, s.holdout) for s in (report.accuracy, report.control, report.start)])
        assert all(len(s.curves) == 2 for s in (report.accuracy, report.control, report.start))
    assert chosen[0] == chosen[1]


# --- the time to an accuracy -----------------------------------------------------------------------------------------

RISING = Curve((10, 20, 30), (100, 200, 300), (1.0, 2.0, 3.0), (40.0, 60.0, 50.0), (41.0, 42.0, 43.0))
LATE = Curve((10, 20, 30), (100, 200, 290), (1.5, 2.5, 4.0), (10.0, 20.0, 60.0))
NEVER = Curve((10, 20, 30), (100, 200, 300), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))


def told(*curves, **facts):
    score = Score(tuple(one.test[-1] for one in curves), curves=curves)
    given = {"accuracy": score, "control": None, "start": None, "full": None, "missing": {}, "fingerprint": "f"}
    given |= {"protocol": replace(CURVED, target=55.0).to_dict(), "student": {}, "dataset": {}, "bytes": {}}
    return Report(**given | facts)


def test_the_time_to_an_accuracy_is_the_mean_over_the_students_that_reach_it():
    cost = {"prepare": {"seconds": 1.0, "artefact_seconds": 30.0}, "synthesise": {"seconds": 10.0}}
    report = told(RISING, LATE, NEVER, cost=cost | {"evaluate": {"seconds": 1e6}})
    assert report.making_seconds == 40.0
    found = report.times_to_target["accuracy"]
    assert (found.target, found.students, found.reached) == (55.0, 3, 2)
    assert (found.steps, found.images, found.seconds) == (25.0, 245.0, 3.0)
    assert found.with_making == 43.0
    assert told(RISING, LATE).times_to_target["accuracy"].with_making is None  # what the set took is not known
    never = told(NEVER, cost=cost).times_to_target["accuracy"]
    assert (never.reached, never.steps, never.seconds, never.with_making) == (0, None, None, None)
    control = Score((60.0,), curves=(LATE,))
    assert told(RISING, control=control, cost=cost).times_to_target["control"].with_making == 4.0  # nothing is made
    assert told(RISING, protocol=CURVED.to_dict()).times_to_target == {}


def test_best_and_last_stand_beside_each_other_and_the_best_is_marked():
    report = told(RISING, LATE, control=Score((30.0,), curves=(NEVER,)), start=Score((1.0,)))
    assert report.accuracy.values == (50.0, 60.0)
    assert report.accuracy.best.values == (60.0, 60.0)
    table = dict(zip(headings(report), zip(*rows(report), strict=True), strict=True))
    assert table["test accuracy %"][0] == "55.00 ± 7.07"
    assert table["best on test, not an estimate %"] == ("60.00 ± 0.00", "30.00", "-", "")
    assert "best on test, not an estimate %" not in headings(told(RISING, accuracy=Score((50.0,))))
    assert report.gap == 25.0  # of the last


def test_what_is_printed(capsys):
    text = StringIO()
    cost = {"prepare": {"seconds": 0.0}, "synthesise": {"seconds": 100.0}}
    report = told(RISING, LATE, NEVER, control=Score((30.0,), curves=(NEVER,)), cost=cost)
    show_report(report, Console(file=text, width=400, highlight=False), {})
    assert "best on test, not an estimate" in capsys.readouterr().out
    lines = text.getvalue().splitlines()
    words = "25 steps, 245 images, 3 s (2 of 3 students); 103 s with the making of the set"
    assert f"target     the distilled set at 55 %: {words}" in lines
    assert "target     random real images, same ipc at 55 %: never (0 of 1 students)" in lines


def test_curves_survive_json_and_reports_without_them_still_load(task):
    protocol = replace(CURVED, target=30.0)
    report = evaluate(make_set(task), None, Evaluator(task, protocol))
    value = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(value) == report
    assert value["accuracy"]["curves"][0]["steps"] == list(POINTS)
    best = value["accuracy"]["best_on_test"]
    assert best["values"] == [max(one["test"]) for one in value["accuracy"]["curves"]]
    assert best["mean"] == pytest.approx(statistics.fmean(best["values"]))
    assert set(value["times_to_target"]) == {"accuracy", "control"}
    plain = json.loads(json.dumps(evaluate(make_set(task), None, Evaluator(task, BRIEF)).to_dict()))
    assert {"curves", "best_on_test"}.isdisjoint(plain["accuracy"])
    assert Report.from_dict(plain).accuracy == replace(report.accuracy, curves=())


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_a_target_needs_a_curve():
    with pytest.raises(UsageError, match="target=50 needs a learning curve"):
        typed(Protocol, {"target": 50.0}, "protocol")


def test_a_curve_is_no_part_of_what_a_set_is_for_nor_of_a_downstream_task(task):
    made = make_set(task, protocol=replace(CURVED, target=50.0).to_dict())
    assert meant_for(made).protocol == BRIEF
    with pytest.raises(UsageError, match=r"eval\.curve .*leave it out with task="):
        evaluate_set(make_set(task), task="continual", eval={"curve": 2})
