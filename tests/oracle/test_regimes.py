"""Label regimes: what students of each row are trained on, the verdict, and what must be the same for all rows."""

import itertools
import json
import math
import statistics
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from dd.cli.show_report import show_report
from dd.errors import UsageError
from dd.evaluation import PROTOCOLS, Protocol, Report, Score
from dd.evaluation.arms import control_arm, equal_bytes_arm, fixed_arm, full_arm, noise_arm, set_arm, shared_out
from dd.evaluation.evaluate import Evaluator, arm_of, evaluate
from dd.evaluation.regimes import hardened, presented, same_presentations, score_regimes
from dd.evaluation.report import RegimeReport
from dd.evaluation.scores import gap_to_best
from dd.evaluation.suites import SUITES, Suite, suite_of
from dd.evaluation.verdict import verdict
from dd.labels import LabelSettings
from dd.networks import NetworkSpec
from dd.pipeline.meant import meant_for
from dd.pipeline.regimes import beside, selected, with_regimes
from dd.rng import generator
from dd.sets import DistilledSet
from dd.sets.tiles import decoded
from dd.training.loop import accuracy
from dd.training.relabel import TeacherLabeller
from dd.training.teachers import SqueezeSettings, teachers
from dd.views.dsa import augment

SQUEEZE = SqueezeSettings(epochs=8, lr=0.05, batch=16, augment=False)
DSA = "color_crop"
BRIEF = Protocol(steps=9, students=2, pilots=1, batch=3, lr=0.05, full_students=1, temperature=4.0)
ASKED = replace(BRIEF, labels=("hard", "soft", "views"))
VIEWS = {"augment": False, "optimiser": "adamw", "weight_decay": 0.01}


@pytest.fixture(scope="module")
def task(make_task, blobs):
    return make_task(blobs(strategy=DSA, holdout=8, noise=1.5), student=NetworkSpec(depth=2, width=4))


@pytest.fixture(scope="module")
def teacher(task):
    members = teachers(task, ("student", "convnet:depth=1:width=6"), SQUEEZE)
    return TeacherLabeller.of(task, members, SQUEEZE, LabelSettings(mode="live"))


@pytest.fixture
def suite(monkeypatch):
    """Three short protocols."""
    short = {
        "hard": replace(BRIEF, protocol="t-hard"),
        "soft": replace(BRIEF, protocol="t-soft", temperature_squared=True),
        "views": replace(BRIEF, protocol="t-views", **VIEWS, views=PROTOCOLS["quick-soft"].views),
    }
    for protocol in short.values():
        monkeypatch.setitem(PROTOCOLS.data, protocol.protocol, protocol)
    return Suite({regime: f"t-{regime}" for regime in short}, SQUEEZE)


def make_set(task, images=None, **facts):
    facts = {"labels": task.targets, "space": task.data.preprocess.spec(), **facts}
    return DistilledSet(
        images=task.data.train.images(task.real_indices("some")) if images is None else images,
        classes=task.data.classes,
        source="blobs",
        source_fingerprint=task.data.fingerprint,
        augment=task.data.augment,
        **facts,
    )


# --- labels of a regime ----------------------------------------------------------------------------------------------


def test_one_soft_label_for_each_image_is_the_teachers_of_the_image_as_it_is(task, teacher):
    arm = set_arm("it", make_set(task), task.data.preprocess)
    images, labels = fixed_arm(arm, teacher, 4.0).load(0)
    assert torch.equal(images, arm.load(0)[0])
    for image, label in zip(images, labels, strict=True):
        both = [member.network(image[None])[0] for member in teacher.teachers]
        assert torch.allclose(label, ((both[0] + both[1]) / 2 / 4.0).softmax(0), atol=1e-6)


def test_a_student_of_one_soft_label_by_hand(task, teacher):
    """SGD on T^2 times the cross-entropy at temperature T, lr cut in the middle, DSA once per batch, labels fixed."""
    arm, protocol = fixed_arm(set_arm("it", make_set(task), task.data.preprocess), teacher, 4.0), BRIEF
    score = Evaluator(task, replace(protocol, temperature_squared=True)).score(arm, 0.05, 1)
    images, labels = arm.load(0)
    network, step = task.build(generator(0, "student", 0, "weights")), 0
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for done in range(3):
        draws, order = generator(0, "student", 0, "augment", done), generator(0, "student", 0, "order", done)
        for index in torch.randperm(8, generator=order).split(3):
            if step == 4:
                optimiser = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
            optimiser.zero_grad()
            logits = network(augment(DSA, images[index], draws)) / 4.0
            (-16 * (labels[index] * logits.log_softmax(1)).sum(1).mean()).backward()
            optimiser.step()
            step += 1
    assert step == 9
    assert score.values[0] == pytest.approx(accuracy(network, task.data.test.batches(512)), abs=1e-9)


def test_soft_labels_of_all_images_are_given_batch_by_batch(task, teacher):
    whole = full_arm(task.data, 50)
    soft = fixed_arm(whole, teacher, 2.0)
    for (images, own), (same, labels) in zip(
        whole.batches(generator(0), 0), soft.batches(generator(0), 0), strict=True
    ):
        assert torch.equal(images, same)
        assert torch.allclose(labels, (teacher.logits(images, own, None) / 2.0).softmax(1))


def test_what_determines_a_soft_label_is_in_the_key(task, teacher):
    arm = set_arm("it", make_set(task), task.data.preprocess)
    other = TeacherLabeller.of(task, teacher.teachers[:1], SQUEEZE, LabelSettings(mode="live"))
    keys = [arm.key(0), *(fixed_arm(arm, who, t).key(0) for who, t in ((teacher, 4.0), (teacher, 2.0), (other, 4.0)))]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 4


@pytest.mark.parametrize("kind", ["hard", "logits", "probabilities", "tiles"])
def test_a_set_keeps_its_images_and_the_class_of_each(task, kind):
    soft = F.one_hot(task.targets, 4) * 0.4 + 0.15
    given = {"hard": {}, "tiles": {"image_kind": "tiles", "decode_factor": 2}}.get(kind)
    made = make_set(task, **(given if given is not None else {"labels": soft, "label_kind": kind}))
    hard = hardened(made)
    hard.check()
    assert hard.label_kind == "hard"
    assert torch.equal(hard.labels, task.targets)
    assert torch.equal(hard.images, made.images)
    if kind == "tiles":
        images, labels = set_arm("it", hard, task.data.preprocess).load(0)
        assert torch.equal(images, decoded(made.images, 2, task.data.preprocess))
        assert torch.equal(torch.bincount(labels), 4 * torch.bincount(task.targets))


# --- references ------------------------------------------------------------------------------------------------------


def sizes_of_all(protocol, task_size, steps):
    """The images of each step of a student on all images: whole passes of batches, single images left out."""
    found = []
    while len(found) < steps:
        sizes = [min(protocol.batch, task_size - at) for at in range(0, task_size, protocol.batch)]
        found += [size for size in sizes if size > 1 or protocol.batch == 1]
    return found[:steps]


@pytest.mark.parametrize("batch", [1, 3, 16, 127, 128, 1000])
@pytest.mark.parametrize("length", [{"steps": 1}, {"steps": 77}, {"steps": None, "epochs": 40}])
@pytest.mark.parametrize("n", [4, 10, 129])
def test_all_images_are_presented_as_often_as_the_set_up_to_a_batch(batch, length, n):
    protocol = replace(BRIEF, batch=batch, **length)
    sizes = [min(batch, n - at) for at in range(0, n, batch)]
    shown = sum((sizes * protocol.total_steps(n))[: protocol.total_steps(n)])
    assert presented(protocol, n) == shown
    longer = same_presentations(protocol, n, 257)
    whole = sum(sizes_of_all(longer, 257, longer.total_steps(257)))
    assert abs(whole - shown) <= batch
    assert longer.epochs is None


def test_a_schedule_of_all_images_keeps_its_shape():
    protocol = replace(PROTOCOLS["sre2l-tiny"], batch=50)
    longer = same_presentations(protocol, 100, 1000)
    assert longer.steps == 200  # 100 passes over 100 images
    assert longer.warmup == round(5 / 100 * 200 / 20)
    one, other = protocol.fit(100, 0.2, "none"), longer.fit(1000, 0.2, "none")
    for share in (0.2, 0.5, 0.9):
        assert other.rate(int(share * 200)) == pytest.approx(one.rate(int(share * 200)), rel=0.2)


def test_noise_has_the_deviation_of_real_images_and_is_redrawn(task):
    arm = noise_arm(task)
    (one, labels), (other, _) = arm.load(0), arm.load(1)
    real = task.data.train.images(task.real_indices("control", 0))
    assert (one.mean().item(), one.std().item()) == (
        pytest.approx(real.mean().item(), abs=0.2),
        pytest.approx(real.std().item(), rel=0.15),
    )
    assert not torch.equal(one, other)
    assert torch.equal(labels, task.targets)
    assert arm.key(0) != arm.key(1)


def test_noise_with_hard_labels_is_at_chance(make_task, blobs):
    """The test images of a class look alike and share a prediction, so there are `classes * students` answers."""
    task = make_task(blobs(noise=0.3, test=4), ipc=2)
    students = 12
    score = Evaluator(task, replace(BRIEF, augment=False)).score(noise_arm(task), 0.05, students)
    assert abs(score.mean - 25) < 3 * 100 * math.sqrt(0.25 * 0.75 / (4 * students))


@pytest.mark.parametrize(("size", "counts"), [(71, None), (72, [1, 0, 0, 0]), (72 * 30, [8, 7, 8, 7])])
def test_real_images_of_equal_bytes_take_a_byte_per_value_and_eight_for_the_class(task, size, counts):
    arm = equal_bytes_arm(task, size)  # 8 x 8 images of one channel
    if counts is None:
        assert arm is None
        return
    assert arm.n == sum(counts)
    (one, labels), (other, _) = arm.load(0), arm.load(1)
    assert torch.bincount(labels, minlength=4).tolist() == counts
    assert sum(image.numel() + 8 for image in one) <= size < sum(image.numel() + 8 for image in one) + 72
    assert not torch.equal(one, other) or arm.n == 1
    where = {image.numpy().tobytes(): label for image, label in zip(*every(task), strict=True)}
    assert [where[image.numpy().tobytes()] for image in one] == labels.tolist()


def test_real_images_of_equal_bytes_are_at_most_all(task):
    arm = equal_bytes_arm(task, 10**18)
    assert arm.n == len(task.data.train)
    images, labels = arm.load(0)
    assert len(images.unique(dim=0)) == len(every(task)[0].unique(dim=0))
    assert torch.equal(torch.bincount(labels), torch.bincount(task.data.train.labels))


@pytest.mark.parametrize(
    ("n", "held"), [(10, [9, 9, 9]), (11, [2, 9, 9]), (20, [2, 3, 50]), (99, [2, 3, 4]), (5, [0, 7])]
)
def test_images_are_shared_out_as_evenly_as_the_classes_allow(n, held):
    counts = shared_out(n, torch.tensor(held)).tolist()
    assert sum(counts) == min(n, sum(held))
    assert all(count <= most for count, most in zip(counts, held, strict=True))
    free = [count for count, most in zip(counts, held, strict=True) if count < most]
    assert not free or max(counts) - min(free) <= 1


def every(task):
    return task.data.train.images(torch.arange(len(task.data.train))), task.data.train.labels.tolist()


def test_mixed_labels_are_half_the_class_and_half_the_teachers(task, teacher):
    arm = set_arm("it", make_set(task), task.data.preprocess)
    images, mixed = fixed_arm(arm, teacher, 4.0, hard=0.5).load(0)
    _, soft = fixed_arm(arm, teacher, 4.0).load(0)
    assert torch.equal(images, arm.load(0)[0])
    for label, given, c in zip(mixed, soft, task.targets, strict=True):
        wanted = [0.5 * float(p) + 0.5 * (k == int(c)) for k, p in enumerate(given)]
        assert label.tolist() == pytest.approx(wanted, abs=1e-6)
    assert fixed_arm(arm, teacher, 4.0, hard=0.5).key(0) != fixed_arm(arm, teacher, 4.0).key(0)


@pytest.mark.parametrize("length", [{"steps": 9}, {"steps": None, "epochs": 3, "warmup": 2}])
def test_a_training_that_is_four_times_as_long_keeps_its_shape(length):
    protocol = replace(BRIEF, **length, decay_at=0.5, inclusive=False)
    longer = protocol.stretched(4)
    assert longer.total_steps(8) == 4 * protocol.total_steps(8)
    one, other = protocol.fit(8, 0.1, "none"), longer.fit(8, 0.1, "none")
    assert other.warmup == 4 * one.warmup
    assert other.decay_at[0] / other.steps == pytest.approx(one.decay_at[0] / one.steps, abs=0.2)
    assert protocol.stretched(0.01).total_steps(8) == (1 if protocol.steps else protocol.passes_to_steps(8))


# --- reports ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(task, teacher, suite):
    start = make_set(task, images=task.data.train.images(task.real_indices("begin")))
    coresets = {"picked": make_set(task, images=task.real_indices("picked"), image_kind="indices")}
    evaluator = Evaluator(task, ASKED)
    return score_regimes(make_set(task, lr=0.02), start, coresets, evaluator, suite, teacher)


def test_every_row_of_a_regime_has_its_labels_protocol_and_students(task, teacher, suite, scored):
    assert [one.regime for one in scored] == ["hard", "soft", "views"]
    assert [one.protocol["protocol"] for one in scored] == ["t-hard", "t-soft", "t-views"]
    assert len({one.fingerprint for one in scored}) == 3
    for one in scored:
        own = {"hard": {"bytes"}, "soft": {"mixed"}, "views": set()}[one.regime]
        assert set(one.rows) == {"accuracy", "control", "coreset", "start", "noise", "full"} | own
        assert {name: score.n for name, score in one.rows.items()} == dict.fromkeys(one.rows, 2) | {"full": 1}
        notes = {score.note for name, score in one.rows.items() if name != "full"}
        assert all(note.startswith("better of") for note in notes) == (one.regime != "views")  # AdamW has no learned lr
    hard, soft, views = scored
    evaluator = Evaluator(task, suite.protocol("hard", ASKED))
    assert hard.rows["control"] == evaluator.better_lr(control_arm(task), [0.05, 0.02], 2)
    arm = fixed_arm(control_arm(task), teacher, 4.0)
    assert soft.rows["control"] == Evaluator(task, suite.protocol("soft", ASKED)).better_lr(arm, [0.05, 0.02], 2)
    asked = Evaluator(task, suite.protocol("views", ASKED), labeller=teacher)
    assert views.rows["control"] == asked.score(control_arm(task), 0.05, 2, "the protocol's lr")
    assert (hard.labels, hard.bytes["teacher"], soft.bytes["teacher"]) == (None, 0, 0)
    weights = sum(v.numel() * v.element_size() for t in teacher.teachers for v in t.network.state_dict().values())
    assert views.bytes == {"images": 8 * 64 * 4, "labels": 0, "teacher": weights, "total": 8 * 64 * 4 + weights}
    assert soft.bytes["labels"] == 8 * 4 * 4
    assert [one.spent["queries"] for one in scored] == [0, 8, 24]
    assert {one.spent["images"] for one in scored} == {24}  # 9 steps of 3, 3, 2 images


def test_hard_labels_under_the_sets_own_protocol_are_the_sets_own_score(task, suite):
    protocol = replace(ASKED, labels=("hard",), protocol="t-hard")
    made, evaluator = make_set(task), Evaluator(task, protocol)
    own = evaluate(made, None, evaluator)
    (hard,) = score_regimes(made, None, {}, evaluator, suite, None)
    assert hard.rows["accuracy"].values == own.accuracy.values
    assert hard.rows["control"].values == own.control.values
    assert hard.fingerprint == own.fingerprint
    assert set(hard.missing) == {"coreset", "start"}


def test_swapping_set_and_reference_flips_every_gap(scored):
    for one in scored:
        rows = {name: score for name, score in one.rows.items() if name != "coreset"}
        there = replace(one, rows=rows)
        back = replace(one, rows=rows | {"accuracy": rows["control"], "control": rows["accuracy"]})
        assert there.gap.mean == pytest.approx(-back.gap.mean)
        assert (there.gap.low, there.gap.high) == (pytest.approx(-back.gap.high), pytest.approx(-back.gap.low))


def test_regimes_survive_json_and_reports_without_them_still_load(task, scored):
    report = replace(evaluate(make_set(task), None, Evaluator(task, BRIEF)), regimes=scored)
    value = json.loads(json.dumps(report.to_dict()))
    again = Report.from_dict(value)
    assert json.loads(json.dumps(again.to_dict())) == value
    assert [one.rows for one in again.regimes] == [one.rows for one in scored]
    assert value["regimes"][0]["gap"]["mean"] == pytest.approx(scored[0].gap.mean)
    expected = report.ranking
    hlr = scored[0].rows["full"].mean - scored[0].rows["accuracy"].mean
    assert expected.hlr == pytest.approx(hlr / 100)
    assert expected.ior == pytest.approx(report.gap / 100)
    assert value["ranking"]["lrs"]["mean"] == expected.lrs.mean
    del value["regimes"]
    assert Report.from_dict(value).regimes == ()


def test_what_is_printed_and_shown_in_a_notebook(task, scored, capsys):
    from io import StringIO

    from rich.console import Console

    report = replace(evaluate(make_set(task), None, Evaluator(task, BRIEF)), regimes=scored)
    text = StringIO()
    show_report(report, Console(file=text, width=400, highlight=False), {})
    table, lines = capsys.readouterr().out, text.getvalue()
    rows = {line.split("  ")[0]: line for line in table.splitlines()}
    for name in ("the coreset (picked)", "noise", "all real images, as many shown", "fingerprint", "teacher"):
        assert name in rows
    assert all(one.fingerprint in rows["fingerprint"] for one in scored)
    assert "t-hard" in rows["protocol"]
    assert f"verdict    {verdict(scored)}" in lines
    assert "DD-Ranking HLR" in lines
    assert verdict(scored) in report._repr_html_()


# --- the verdict -----------------------------------------------------------------------------------------------------


def told(**gaps):
    """Regimes whose set is ahead of random images by the given points, with a little spread."""

    def one(regime, gap, n=5):
        base = [50 + j for j in range(n)]
        set_ = Score(tuple(value + gap + 0.1 * (-1) ** j for j, value in enumerate(base)))
        rows = {"accuracy": set_, "control": Score(tuple(base))}
        return RegimeReport(regime, rows, {}, asdict(BRIEF), "f")

    return [one(regime, gap) for regime, gap in gaps.items()]


@pytest.mark.parametrize(
    ("gaps", "head"),
    [
        ({"hard": 3, "soft": 0, "views": 0}, "the images help; against random real images they add +3.02"),
        ({"hard": 0, "soft": 2, "views": 0}, "the images help"),
        ({"hard": 0, "soft": 0, "views": 2}, "a teacher or compute effect, not one of the images"),
        ({"hard": -3, "soft": 0, "views": 2}, "a teacher or compute effect, not one of the images"),
        ({"hard": 0, "soft": 0, "views": 0}, "the images add nothing that as many real ones would not"),
        ({"hard": -3, "soft": -2}, "the images are worse than as many real ones"),
        ({"views": 2}, "a teacher asked on every view cannot show what images add"),
        ({"hard": 3}, "the images help"),
    ],
    ids=str,
)
def test_the_verdict(gaps, head):
    text = verdict(told(**gaps))
    assert text.startswith(head)
    assert ("nothing measurable" in text) == (0 in gaps.values())
    assert "students" not in text
    assert verdict([]) == ""


def test_the_better_reference_counts_and_few_students_are_said():
    (one,) = told(hard=3)
    better = replace(one, rows=one.rows | {"coreset": Score(tuple(v + 5 for v in one.rows["control"].values))})
    assert verdict([better]).startswith(
        "the images are worse than as many real ones; against the better of random real"
    )
    assert better.gap.mean == pytest.approx(-1.98)
    two = replace(one, rows={name: Score(score.values[:2]) for name, score in one.rows.items()})
    assert verdict([two]).endswith("(only 2 students: eval.students=5 or more)")


def test_the_gap_to_the_best_is_that_of_all_samples():
    rng = generator(0, "gap")
    own, *others = (torch.rand(4, generator=rng, dtype=torch.float64).tolist() for _ in range(3))
    found, samples = gap_to_best(own, others), []
    for index in itertools.product(range(4), repeat=4):
        means = [statistics.fmean(column[i] for i in index) for column in (own, *others)]
        samples.append(means[0] - max(means[1:]))
    samples.sort()
    assert found.mean == pytest.approx(statistics.fmean(own) - max(map(statistics.fmean, others)))
    assert found.low == pytest.approx(samples[int(0.025 * 256)], abs=0.02)
    assert found.high == pytest.approx(samples[int(0.975 * 256)], abs=0.02)
    with pytest.raises(UsageError, match="as many students"):
        gap_to_best(own, [others[0][:3]])
    with pytest.raises(UsageError, match="needs references"):
        gap_to_best(own, [])


# --- suites and coresets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_the_protocols_of_a_suite_fit_their_regimes(suite):
    assert set(suite.protocols) == {"hard", "soft", "views"}
    for regime in suite.protocols:
        protocol = suite.protocol(regime, replace(BRIEF, students=7, full=True))
        assert protocol.training() == PROTOCOLS[suite.protocols[regime]].training()
        assert (protocol.students, protocol.full, protocol.pilots) == (7, True, BRIEF.pilots)
        assert regime != "views" or not protocol.augment  # a teacher must label what a student sees
        assert regime != "hard" or protocol.temperature == 1


def test_suites_of_data_sets():
    assert suite_of(None, "cifar10") is SUITES["hardtruths"]
    assert suite_of(None, "fashion-mini") is SUITES["quick"]
    assert suite_of("smoke", "cifar10") is SUITES["smoke"]
    with pytest.raises(UsageError, match=r"unknown eval\.suite 'quik'; did you mean 'quick'"):
        suite_of("quik", "cifar10")


class Unread:
    """A split that must not be read."""

    def __len__(self):
        raise AssertionError("test images were read")

    batches = __len__


def test_the_best_coreset_is_chosen_on_held_out_images(task, suite):
    good = make_set(task, images=task.real_indices("some"), image_kind="indices")
    bad = make_set(task, images=task.real_indices("some"), image_kind="indices", labels=(task.targets + 1) % 4)
    asked = replace(ASKED, labels=("hard",), pilots=2)
    for names in (("good", "bad"), ("bad", "good")):
        coresets = {name: {"good": good, "bad": bad}[name] for name in names}
        (hard,) = score_regimes(make_set(task), None, coresets, Evaluator(task, asked), suite, None)
        assert hard.coreset == "good"
    from dd.evaluation.regimes import _best as best

    data = replace(task.data, test=Unread(), fingerprint="unread")  # no stored student is found
    blind = replace(task, data=data)
    assert best({"bad": bad, "good": good}, Evaluator(blind, suite.protocol("hard", asked)))[0] == "good"


def make_schedule(task, rounds=3, **facts):
    """Rounds of random images that share some, with their classes."""
    images = torch.stack([task.real_indices("some", j) for j in range(rounds)])
    images[1, :3] = images[0, :3]
    labels = task.data.train.labels[images]
    return make_set(task, images=images, image_kind="schedule", **{"labels": labels} | facts)


def student_of_rounds(task, made, labels_of, temperature=1.0):
    """Accuracy of student 0 under `BRIEF`: pass t is over the images of round t, with `labels_of` of each image."""
    network, step = task.build(generator(0, "student", 0, "weights")), 0
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for done, indices in enumerate(made.images):
        images = task.data.train.images(indices)
        draws, order = generator(0, "student", 0, "augment", done), generator(0, "student", 0, "order", done)
        for index in torch.randperm(8, generator=order).split(3):
            if step == 4:
                optimiser = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
            optimiser.zero_grad()
            labels = torch.stack([labels_of(images[i], indices[i]) for i in index])
            logits = network(augment(DSA, images[index], draws)) / temperature
            (-(temperature**2) * (labels * logits.log_softmax(1)).sum(1).mean()).backward()
            optimiser.step()
            step += 1
    assert step == 9
    return accuracy(network, task.data.test.batches(512))


def test_a_schedule_under_hard_and_soft_labels_by_hand(task, teacher, suite):
    made = make_schedule(task)
    asked = replace(ASKED, students=1, full=False)
    hard, soft, views = score_regimes(made, None, {}, Evaluator(task, asked), suite, teacher)

    def own(_, index):
        return F.one_hot(task.data.train.labels[index], 4).float()

    def taught(image, _):
        both = [member.network(image[None])[0].detach() for member in teacher.teachers]
        return ((both[0] + both[1]) / 2 / 4.0).softmax(0)

    assert hard.rows["accuracy"].values[0] == pytest.approx(student_of_rounds(task, made, own), abs=1e-9)
    assert soft.rows["accuracy"].values[0] == pytest.approx(student_of_rounds(task, made, taught, 4.0), abs=1e-9)
    viewing = Evaluator(task, suite.protocol("views", asked), labeller=teacher)
    assert views.rows["accuracy"].values == viewing.score(arm_of("it", made, viewing), 0.05, 1).values
    # the control is of the size of a round
    assert (
        hard.rows["control"].values
        == Evaluator(task, suite.protocol("hard", asked)).score(control_arm(task), 0.05, 1).values
    )
    different = len(set(made.images.flatten().tolist()))
    assert 8 < different < 24
    assert [one.spent["queries"] for one in (hard, soft, views)] == [0, different, 24]
    assert [one.bytes["labels"] for one in (hard, soft, views)] == [different * 8, different * 4 * 4, 0]
    assert {one.bytes["images"] for one in (hard, soft, views)} == {3 * 8 * 8}


def test_a_schedule_with_soft_labels_keeps_the_class_of_every_image_of_every_round(task):
    made = make_schedule(task)
    soft = 0.4 * F.one_hot(made.labels, 4) + 0.15
    for kind in ("probabilities", "logits"):
        hard = hardened(make_schedule(task, labels=soft, label_kind=kind))
        hard.check()
        assert torch.equal(hard.labels, made.labels)
        assert torch.equal(hard.images, made.images)


def test_only_the_rounds_that_a_student_sees_are_counted(task, suite):
    asked = replace(ASKED, labels=("hard",), full=False, references=())
    (hard,) = score_regimes(make_schedule(task, 9), None, {}, Evaluator(task, asked), suite, None)
    assert hard.bytes["labels"] == 8 * len(make_schedule(task, 3).images.unique())


def test_a_schedule_of_too_few_rounds_is_refused_before_a_student_is_trained(task, suite, monkeypatch):
    monkeypatch.setitem(SUITES, "t", suite)
    asked = replace(ASKED, suite="t", labels=("soft", "hard"))
    with pytest.raises(
        UsageError, match=r"in 2 passes, but 3 are needed: eval\.labels=soft trains by the protocol t-soft"
    ):
        beside(make_schedule(task, 2), Evaluator(task, asked), "fashion-mini")
    longer = replace(asked, labels=("hard",), lengths=(2.0,))
    with pytest.raises(UsageError, match=r"in 5 passes, but 6 are needed: .* or shorter eval\.lengths"):
        beside(make_schedule(task, 5), Evaluator(task, longer), "fashion-mini")
    found = score_regimes(make_schedule(task, 6), None, {}, Evaluator(task, longer), suite, None)
    assert set(found[0].lengths["2"]) == {"accuracy", "control"}
    assert found[0].missing["bytes"] == "the set holds indices, which need the real images"


def test_methods_that_select_no_images_are_refused(make_task, blobs):
    task = make_task(blobs())
    with pytest.raises(UsageError, match=r"eval\.coreset=dm is no selection method"):
        selected("dm", task, "fashion-mini")
    found = hardened(selected("random", task, "fashion-mini"))
    assert torch.equal(found.labels, task.targets)


def test_a_report_gets_the_regimes_that_are_asked_for(task, suite, monkeypatch):
    monkeypatch.setitem(SUITES, "t", suite)
    made = make_set(task)
    report = evaluate(made, None, Evaluator(task, BRIEF))
    plain = Evaluator(task, BRIEF)
    assert with_regimes(report, made, None, plain, beside(made, plain, "fashion-mini")) is report
    asked = replace(
        BRIEF, labels=("soft", "hard"), suite="t", coreset=("random",), teachers=("convnet:depth=1:width=6",)
    )
    evaluator = Evaluator(task, asked)
    found = with_regimes(report, made, None, evaluator, beside(made, evaluator, "fashion-mini")).regimes
    assert [one.regime for one in found] == ["soft", "hard"]
    assert "noise" in found[0].rows
    evaluator = Evaluator(task, replace(asked, references=()))
    few = with_regimes(report, made, made, evaluator, beside(made, evaluator, "fashion-mini")).regimes
    assert [set(one.rows) for one in few] == [{"accuracy", "control", "coreset", "full"}] * 2
    assert [few[0].rows[name] for name in few[0].rows] == [found[0].rows[name] for name in few[0].rows]
    assert few[0].missing["start"] == "left out of eval.references"
    assert evaluate(made, made, evaluator).missing["start"] == "left out of eval.references"
    assert [one.regime for one in found] == ["soft", "hard"]
    assert found[0].labels["names"] == ["convnet:depth=1:width=6"]
    assert found[0].coreset == "random"


def test_other_lengths_are_those_of_longer_protocols(task, suite, teacher):
    asked = replace(ASKED, labels=("hard", "soft"), references=(), lengths=(1, 3), full=False)
    made = make_set(task)
    found = score_regimes(made, None, {}, Evaluator(task, asked), suite, teacher)
    for one in found:
        assert one.lengths["1"] == {name: one.rows[name] for name in ("accuracy", "control")}
        longer = replace(suite.protocol(one.regime, asked), steps=27)
        arm = set_arm("it", made, task.data.preprocess)
        arm = arm if one.regime == "hard" else fixed_arm(arm, teacher, 4.0)
        assert one.lengths["3"]["accuracy"].values == Evaluator(task, longer).score(arm, 0.05, 2).values
        own, random = (one.lengths["3"][name].mean for name in ("accuracy", "control"))
        assert one.gap_at("3").mean == pytest.approx(own - random)
        read = RegimeReport.from_dict(json.loads(json.dumps(one.to_dict())))
        assert read.lengths == one.lengths


def test_indices_have_no_row_of_equal_bytes(task, suite):
    made = make_set(task, images=task.real_indices("some"), image_kind="indices")
    asked = replace(ASKED, labels=("hard",), references=("bytes",), full=False)
    (hard,) = score_regimes(made, None, {}, Evaluator(task, asked), suite, None)
    assert "bytes" not in hard.rows
    assert hard.missing["bytes"] == "the set holds indices, which need the real images"


def test_what_a_run_asked_for_is_not_what_its_set_is_for(task):
    asked = replace(BRIEF, labels=("hard",), coreset=("random",), teachers=("/a/file.pt",), suite="quick")
    asked = replace(asked, lengths=(2.0,))
    meant = meant_for(make_set(task, protocol=json.loads(json.dumps(asdict(asked)))))
    assert meant.protocol == BRIEF
    assert asked.training() == BRIEF.training()  # which rows are asked for changes no number
