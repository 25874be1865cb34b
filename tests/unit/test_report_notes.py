"""What a report says beside its accuracies: classes, balance, and notes on what is odd."""

import json
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from dd.cli.show_report import show_report
from dd.data.preprocess import standard
from dd.engine.method import Synthetic
from dd.evaluation import Protocol, Report, Score
from dd.evaluation.evaluate import Evaluator, evaluate
from dd.evaluation.notes import notes_on
from dd.evaluation.scores import bootstrap, calibration_error
from dd.pipeline.show import judged, probes_note
from dd.recipes import resolve
from dd.runs import RunFolder, Store
from dd.runs.pictures import contact_sheet
from dd.sets import DistilledSet
from dd.training.loop import predict

BRIEF = Protocol(steps=12, students=3, batch=8, lr=0.05, full=False)


@pytest.fixture
def task(make_task, blobs):
    """Four classes, 32 test images of the first, 8 and 2 of the next, none of the last."""
    data = blobs(holdout=8, noise=3.0, test=32)
    index = torch.cat([data.test.of_class(c)[:size] for c, size in enumerate((32, 8, 2, 0))])
    test = replace(data.test, pixels=data.test.pixels[index], labels=data.test.labels[index])
    return make_task(replace(data, test=test))


def made(task, images=None):
    images = task.data.train.images(task.real_indices("some")) if images is None else images
    return DistilledSet(
        images=images,
        labels=task.targets,
        classes=task.data.classes,
        source="blobs",
        source_fingerprint=task.data.fingerprint,
        space=task.data.preprocess.spec(),
    )


def shown(report):
    text = StringIO()
    show_report(report, Console(file=text, width=400, highlight=False), {})
    return text.getvalue()


def test_recall_and_balance_are_those_of_slow_loops(task, monkeypatch):
    kept = []

    def remember(network, batches):
        logits, labels = predict(network, batches)
        kept.append((logits.argmax(1).tolist(), labels.tolist()))
        return logits, labels

    monkeypatch.setattr("dd.evaluation.evaluate.predict", remember)
    score = evaluate(made(task), None, Evaluator(task, BRIEF), controls=False).accuracy
    each = []
    for (predicted, labels), value, balanced in zip(kept, score.values, score.balanced, strict=True):
        pairs = list(zip(predicted, labels, strict=True))
        assert value == pytest.approx(100 * sum(p == y for p, y in pairs) / 42)
        rows = [[p == y for p, y in pairs if y == c] for c in range(3)]
        shares = [100 * sum(row) / len(row) for row in rows]
        assert balanced == pytest.approx(sum(shares) / 3)
        each.append(shares)
    assert score.classes[:3] == pytest.approx([sum(column) / 3 for column in zip(*each, strict=True)])
    assert score.classes[3] is None


def test_all_of_it_survives_json_and_reports_from_before_still_load(task):
    report = replace(evaluate(made(task), None, Evaluator(task, BRIEF)), notes=("a", "b"))
    value = json.loads(json.dumps(report.to_dict()))
    assert Report.from_dict(value) == report
    for name in ("classes", "outside", "notes"):
        del value[name]
    for arm in ("accuracy", "control"):
        del value[arm]["balanced"], value[arm]["classes"], value[arm]["calibration"], value[arm]["top5"]
    before = Report.from_dict(value)
    assert (before.classes, before.notes, before.outside, before.accuracy.balanced) == ((), (), None, ())
    assert "classes" not in shown(before)


def test_students_from_before_have_no_classes_and_keep_their_accuracy(task, tmp_path, monkeypatch):
    task = replace(task, store=Store(tmp_path))
    new = evaluate(made(task), None, Evaluator(task, BRIEF), controls=False).accuracy
    old = replace(task, store=Store(tmp_path / "old"))
    whole = Evaluator._train

    def before(self, *given):
        return {k: v for k, v in whole(self, *given).items() if k not in ("balanced", "classes", "calibration")}

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "_train", before)
        evaluate(made(old), None, Evaluator(old, BRIEF), controls=False)
    kept = evaluate(made(old), None, Evaluator(old, BRIEF), controls=False).accuracy
    assert kept.values == new.values
    assert (kept.balanced, kept.classes, kept.calibration) == ((), (), ())


def test_guesses_and_calibration_are_those_of_the_students_logits(make_task, blobs, monkeypatch):
    kept = []
    task = make_task(blobs(classes=7, noise=3.0), ipc=1)
    monkeypatch.setattr("dd.evaluation.evaluate.predict", lambda *given: kept.append(predict(*given)) or kept[-1])
    report = evaluate(made(task), None, Evaluator(task, BRIEF))
    for (logits, labels), top5, error in zip(kept, report.accuracy.top5, report.accuracy.calibration, strict=False):
        order = logits.argsort(1, descending=True).tolist()
        hits = sum(label in row[:5] for row, label in zip(order, labels.tolist(), strict=True))
        assert top5 == pytest.approx(100 * hits / len(labels))
        assert error == pytest.approx(100 * calibration_error(logits, labels))
    assert len(report.accuracy.top5) == len(report.accuracy.calibration) == 3
    gaps = [a - b for a, b in zip(report.accuracy.values, report.control.values, strict=True)]
    assert report.gap_interval == bootstrap(gaps)
    assert report.gap_interval.mean == pytest.approx(report.gap)
    assert report.to_dict()["gap_interval"]["low"] == report.gap_interval.low
    assert f"scores     {report.gap:+.2f} [{report.gap_interval.low:+.2f}, " in shown(report)
    assert f"top-5 {sum(report.accuracy.top5) / 3:.2f} %; calibration error " in shown(report)


def test_few_classes_have_no_top_5_and_unequal_numbers_no_interval(task):
    report = evaluate(made(task), None, Evaluator(task, BRIEF))
    assert report.accuracy.top5 == ()
    assert "top-5" not in shown(report)
    assert report.recovery is None  # nothing was trained on all real images
    fewer = replace(report, control=Score(report.control.values[:2]), full=Score((80.0, 90.0)))
    assert fewer.gap_interval is None
    assert fewer.recovery == pytest.approx(report.accuracy.mean / 85)


def test_what_is_printed_of_classes(task, capsys):
    report = evaluate(made(task), None, Evaluator(task, BRIEF))
    text = shown(report)
    assert "balanced %" in capsys.readouterr().out  # tables go straight there
    assert "no test images of class 3: accuracies do not cover it" in text
    worst, c = min((s, c) for c, s in enumerate(report.accuracy.classes) if s is not None)
    assert report.control is not None
    assert f"classes    class {c} {worst:.1f} ({report.control.classes[c]:.1f})" in text
    level = replace(report, accuracy=replace(report.accuracy, balanced=report.accuracy.values))
    shown(level)
    assert "balanced %" not in capsys.readouterr().out
    many = tuple(float(c) for c in range(30))
    wide = replace(report, classes=tuple(f"c{c}" for c in range(30)), control=None)
    assert "c0 0.0, c1 1.0, c2 2.0, c3 3.0, c4 4.0; the worst of 30, all in report.json" in shown(
        replace(wide, accuracy=replace(report.accuracy, classes=many))
    )


def test_the_share_out_of_range_is_counted(task):
    space = standard(torch.empty(0), ((0.5,), (0.25,)))  # black is -2, white is 2
    images = torch.zeros(8, 1, 8, 8)
    images[0] = 2.007  # by less than half a grey level, 0.0078 in this space
    images[1], images[2, 0, 0] = 2.1, -2.1
    distilled = made(task, images)
    assert distilled.outside(space) == (64 + 8) / 512
    assert distilled.outside(task.data.preprocess) == 0.0
    assert replace(distilled, images=images.to(torch.uint8)).outside(space) == 0.0
    indices = replace(distilled, image_kind="indices", images=torch.arange(8))
    assert indices.outside(space) is None


@pytest.mark.parametrize(
    ("set_", "start", "words"),
    [
        ((13.6, 13.8), (54.0, 54.2), "the set collapsed: 13.7 % against 54.1 at its start (chance 25.0)"),
        ((38.0, 38.2), (54.0, 54.2), "the set collapsed: 38.1 %"),  # 13 above chance, from 29
        ((46.0, 46.2), (54.0, 54.2), "the iterations made the set worse: 46.1 % against 54.1 at its start"),
        ((46.0, 60.0), (58.0, 58.2), ""),  # within its students' spread
        ((53.0, 53.1), (54.0, 54.1), ""),  # surely, but by a point
        ((46.0,), (54.0,), "made the set worse"),
        ((50.0,), (54.0,), ""),
        ((60.0, 60.1), (54.0, 54.1), ""),
    ],
)
def test_a_set_that_fell_behind_its_own_start_is_noted(set_, start, words, blobs):
    notes = notes_on(Score(set_), Score(start), None, blobs())
    assert (words in notes[0]) if words else not notes
    assert notes_on(Score(set_), None, None, blobs()) == ()


def test_pixels_out_of_range_are_noted_from_a_hundredth_on(blobs):
    assert notes_on(Score((50.0,)), None, 0.009, blobs()) == ()
    (line,) = notes_on(Score((50.0,)), None, 0.428, blobs())
    assert line.startswith("42.8 % of the set's pixel values are darker than black or brighter than white")


def test_the_caption_stands_below_the_images(tmp_path):
    from PIL import Image

    rows = [("real", torch.zeros(4, 1, 8, 8), torch.arange(4))]
    for name, caption in (("without", ""), ("with", "42.8 % are out of range")):
        contact_sheet(tmp_path / f"{name}.png", rows, ["a", "b", "c", "d"], caption)
    one, other = (Image.open(tmp_path / f"{name}.png").convert("L") for name in ("without", "with"))
    assert other.height == one.height + 20
    assert min(other.crop((0, other.height - 19, other.width, other.height)).tobytes()) < 100  # letters
    assert (
        other.crop((0, 0, one.width, one.height - 2)).tobytes() == one.crop((0, 0, one.width, one.height - 2)).tobytes()
    )


@pytest.mark.parametrize(
    ("probes", "settings", "words"),
    [
        (2, {}, ""),
        (1, {"eval.probes": 1}, "one probe of held-out accuracy during synthesis (eval.probes=1, 20 iterations)"),
        (0, {"eval.probes": 0}, "no probes of held-out accuracy during synthesis (eval.probes=0, 20 iterations)"),
        (0, {"data.holdout": 0}, "(nothing is held out)"),
        (0, {"iterations": 0}, ""),
    ],
)
def test_fewer_than_two_probes_are_noted(probes, settings, words, make_task, blobs, tmp_path):
    recipe = resolve({"method": "dm", "ipc": 2, "device": "cpu", "iterations": 20, **settings})
    task = make_task(blobs(holdout=0 if "data.holdout" in settings else 4))
    rows = [f"{it},0.5,{50.0 if it < probes else ''}" for it in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["it,loss,probe", *rows]) + "\n")
    note = probes_note(recipe, task, RunFolder(tmp_path))
    assert (words in note) if words else not note
    report = evaluate(made(task), None, Evaluator(task, BRIEF), controls=False)
    assert judged(report, recipe, "dd", note).notes == (*report.notes, *([note] if note else []))


def test_a_set_in_model_space_says_where_it_left_the_range(task):
    syn = Synthetic(torch.full((8, 1, 8, 8), 9.0), task.targets)  # 128 + 9 * 16 = 272 of 255
    report = evaluate(made(task, syn.images.detach()), None, Evaluator(task, BRIEF), controls=False)
    assert report.outside == 1.0
    assert any("100.0 % of the set's pixel values" in line for line in report.notes)
