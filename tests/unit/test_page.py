"""The parts of a page: reading reports, pictures, curves, and what several runs share."""

import base64
import io
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from dd.data import DataSettings, open_data
from dd.errors import RunError, UsageError
from dd.evaluation import PROTOCOLS, Report, Score
from dd.evaluation.compare import compare
from dd.evaluation.curve import Curve
from dd.evaluation.read import read_report, report_from
from dd.evaluation.report import RegimeReport
from dd.networks import NetworkSpec
from dd.page import charts, pictures
from dd.page.page import page
from dd.page.subject import ReportedSet
from dd.sets import DistilledSet
from dd.sets.tiles import decode

QUICK = PROTOCOLS["quick"]


@pytest.fixture(scope="module")
def fashion():
    return open_data("fashion-mini", DataSettings(), "cpu")


def report(name="dm", values=(70.0, 71.0, 72.0), student=None, **changes):
    student = student or asdict(NetworkSpec(depth=3, width=32))
    given = {
        "accuracy": Score(tuple(values), holdout=(60.0, 64.0)),
        "control": Score((60.0, 61.5, 62.0)),
        "start": Score((50.0,), holdout=(40.0,)),
        "full": None,
        "missing": {"full": "eval.full=false"},
        "protocol": QUICK.to_dict(),
        "fingerprint": QUICK.fingerprint(student, "flip"),
        "student": student,
        "dataset": {"name": "blobs", "fingerprint": "d"},
        "bytes": {"images": 10, "labels": 2, "total": 12},
        "provenance": {"name": name, "seed": 0, "series": f"recipe of {name}", "iterations": 20},
        "cost": {"evaluate": {"seconds": 70.0, "peak_memory": 10**9}},
    }
    return Report(**given | changes)


def regime(kind="hard", values=(70.0, 71.0, 72.0)):
    rows = {"accuracy": Score(tuple(values)), "control": Score((60.0, 61.5, 62.0))}
    size, spent = {"images": 10, "labels": 4, "teacher": 0, "total": 14}, {"steps": 5, "images": 50, "queries": 0}
    return RegimeReport(kind, rows, {}, QUICK.to_dict(), "f00d", bytes=size, spent=spent)


def made(fashion, images, **changes):
    given = {
        "labels": torch.arange(len(images)) % 10,
        "classes": fashion.classes,
        "source": "fashion-mini",
        "source_fingerprint": fashion.fingerprint,
        "space": fashion.preprocess.spec(),
    }
    distilled = DistilledSet(images, **given | changes)
    distilled.check()
    return distilled


def pixels(uri: str) -> np.ndarray:
    head, _, text = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def shown(card: pictures.Card, what: str) -> np.ndarray:
    (found,) = [one for one in card.pictures if one.what == what]
    return pixels(found.uri)


# --- reports ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path):
    written = report(regimes=(regime(),), classes=("a", "b"))
    file = tmp_path / "report.json"
    file.write_text(json.dumps(written.to_dict() | {"added by a newer version": 1}))
    assert read_report(file) == replace(written, **{k: getattr(read_report(file), k) for k in ("provenance",)})
    assert read_report(file).to_dict() == written.to_dict()


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (("accuracy", "values"), [], "values"),
        (("accuracy", "values"), [float("nan")], "finite"),
        (("accuracy", "values"), [101.0], "100"),
        (("control", "values"), "70", "control"),
        (("accuracy", "classes"), [50.0], "1 classes"),
        (("accuracy",), None, "accuracy"),
        (("cost",), {"evaluate": {"seconds": "<b>"}}, "cost.evaluate"),
        (("bytes",), {"total": -1}, "bytes"),
        (("bytes",), {"images": 1}, "total"),
        (("student",), {"arch": ["convnet"]}, "student"),
        (("student",), {"arch": "a linear head on x", "encoder": "x"}, "encoder"),
        (("provenance",), {"seed": "0"}, "seed"),
        (("regimes",), {}, "regimes"),
        (("regimes", 0, "rows"), {}, "rows"),
        (("regimes", 0, "regime"), "<i>", "unknown"),
        (("regimes", 0, "rows", "control", "values"), [60.0], "paired"),
        (("regimes", 0, "spent"), {}, "spent"),
        (("notes",), [1], "notes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_report_with_something_wrong_is_refused_in_one_line(place, value, why):
    found = report(regimes=(regime(),), classes=("a", "b")).to_dict()
    holder = found = json.loads(json.dumps(found))
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(UsageError, match=why) as error:
        report_from(found)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"task": "nas"}', "{}", "[" * 100_000], ids=range(6))
def test_what_is_no_report_is_refused_in_one_line(text, tmp_path):
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(RunError, match=r"report\.json cannot be read as a report: ") as error:
        read_report(file)
    assert len(str(error.value).splitlines()) == 1


def test_one_set_under_two_networks_differs_by_place():
    deep = asdict(NetworkSpec(depth=4, width=32))
    found = compare({"a.json": report(), "b.json": report(student=deep), "c": report("mtt")})
    assert found.differs["own"]["student.depth"] == {"a.json": 3, "b.json": 4, "mtt": 3}


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_the_pixels_of_its_image(channels):
    image = torch.rand(channels, 5, 7) * 1.4 - 0.2
    expected = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert (pixels(pictures.data_uri(image)) == (expected if channels == 3 else expected[..., 0])).all()


def test_a_large_picture_is_reduced_by_averaging():
    image = torch.rand(3, 2 * pictures.SIDE, 2 * pictures.SIDE)
    blocks = image.view(3, pictures.SIDE, 2, pictures.SIDE, 2).mean((2, 4))
    expected = (blocks * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(pictures.data_uri(image)).astype(float) - expected).max() <= 1


def test_each_image_is_beside_its_start_and_a_real_one(fashion):
    values = torch.randn(20, 1, 28, 28) * 2
    now, start = made(fashion, values), made(fashion, values.roll(1, 0))
    ((gallery,), remarks) = pictures.galleries(ReportedSet("x", report(), now, start), pictures.Room())
    assert (len(gallery.cards), gallery.left_out, remarks) == (20, "", [])
    for at, card in enumerate(gallery.cards):
        c, which = divmod(at, 2)  # class by class
        assert [one.what for one in card.pictures] == ["start", "distilled", "stretched", "real"]
        assert card.name == fashion.classes[c]
        in_range = fashion.preprocess.invert(values[c + 10 * which][None])[0, 0]
        expected = (in_range.clamp(0, 1) * 255).round().byte().numpy()
        assert np.abs(shown(card, "distilled").astype(int) - expected).max() <= 1
        real = fashion.train.raw(fashion.train.of_class(c)[which : which + 1])[0, 0].numpy()
        assert (shown(card, "real") == real).all()
        outside = sum(v < -1 / 510 or v > 1 + 1 / 510 for v in in_range.flatten().tolist())
        assert card.clipped == f"{100 * outside / 784:.1f} % clipped"
        assert shown(card, "stretched").min() == 0
        assert shown(card, "stretched").max() == 255
    assert (shown(gallery.cards[0], "start") == shown(gallery.cards[19], "distilled")).all()


def test_tiles_are_shown_decoded(fashion):
    values = torch.rand(10, 1, 28, 28)
    tiled = made(fashion, fashion.preprocess.encode(values), image_kind="tiles", decode_factor=2)
    ((gallery,), _) = pictures.galleries(ReportedSet("x", report(), tiled, None), pictures.Room())
    every = decode(values, 2)  # first tile of all images, then the second
    assert len(gallery.cards) == 40
    assert "Each stored image holds 4" in gallery.left_out
    for c in range(10):
        for tile in range(4):
            expected = (every[tile * 10 + c, 0] * 255).round().numpy()
            assert np.abs(shown(gallery.cards[4 * c + tile], "distilled") - expected).max() <= 1


def test_indices_show_the_images_that_were_chosen(fashion):
    chosen = torch.stack([fashion.train.of_class(c)[-1] for c in range(10)])
    ((gallery,), _) = pictures.galleries(
        ReportedSet("x", report(), made(fashion, chosen, image_kind="indices")), pictures.Room()
    )
    for card, index in zip(gallery.cards, chosen, strict=True):
        assert [one.what for one in card.pictures] == ["chosen", "real"]
        assert (shown(card, "chosen") == fashion.train.raw(index[None])[0, 0].numpy()).all()


def test_a_schedule_shows_its_first_rounds(fashion):
    rounds = torch.stack([torch.stack([fashion.train.of_class(c)[e] for c in range(10)]) for e in range(7)])
    schedule = made(fashion, rounds, image_kind="schedule", labels=torch.arange(10).repeat(7, 1))
    found, _ = pictures.galleries(ReportedSet("x", report(), schedule), pictures.Room())
    assert [one.title for one in found] == ["Round 1 of 7", "Round 2 of 7", "Round 3 of 7"]
    assert (shown(found[2].cards[4], "chosen") == fashion.train.raw(rounds[2, 4:5])[0, 0].numpy()).all()


def test_many_images_are_bounded_and_counted(fashion):
    many = made(fashion, torch.randn(500, 1, 28, 28))
    ((gallery,), _) = pictures.galleries(ReportedSet("x", report(), many), pictures.Room())
    assert len(gallery.cards) == 100
    assert gallery.left_out == "100 of 500 images are shown; 400 are left out."
    room = pictures.Room(bytes=20_000)
    ((gallery,), _) = pictures.galleries(ReportedSet("x", report(), many), room)
    used = sum(len(one.uri) for card in gallery.cards for one in card.pictures)
    assert 0 < used <= 20_000
    assert room.bytes == 20_000 - used
    assert gallery.left_out.startswith(f"{len(gallery.cards)} of 500")
    names = tuple(f"class {c}" for c in range(100))
    wide = made(fashion, torch.randn(300, 1, 28, 28), classes=names, labels=torch.arange(300) % 100)
    ((gallery,), remarks) = pictures.galleries(ReportedSet("x", report(), wide), pictures.Room())
    assert {card.name for card in gallery.cards} == set(names[: pictures.CLASSES])
    assert len(gallery.cards) == 120
    assert "of the first 40 of 100 classes" in gallery.left_out
    assert remarks[0].startswith("real images are left out: the set does not match the data in 'classes'")


def test_without_the_data_the_page_says_so(fashion):
    there = made(fashion, torch.randn(10, 1, 28, 28), source="folder:/nowhere")
    ((gallery,), remarks) = pictures.galleries(ReportedSet("x", report(), there), pictures.Room())
    assert [one.what for one in gallery.cards[0].pictures] == ["distilled", "stretched"]
    assert remarks[0].startswith("real images are left out: ")
    index = replace(there, images=torch.arange(10), image_kind="indices")
    found, remarks = pictures.galleries(ReportedSet("x", report(), index), pictures.Room())
    assert (found, len(remarks)) == ([], 1)


# --- curves -----------------------------------------------------------------------------------------------------------


def logged(**columns):
    count = len(next(iter(columns.values())))
    rows = [{"it": str(it), **{name: str(values[it]) for name, values in columns.items()}} for it in range(count)]
    return ReportedSet("x", report(accuracy=Score((70.0,)), start=None), columns=["it", *columns], log=rows)


def coordinates(chart):
    return [tuple(map(float, point.split(","))) for point in chart.line.split()]


def test_a_curve_goes_through_its_values():
    values = [3.0, 1.0, 2.0, 5.0]
    ((chart,), left) = charts.curves(logged(loss=values))
    drawn = coordinates(chart)
    assert (chart.title, left, len(drawn)) == ("loss", "", 4)
    across, up = np.polyfit(range(4), [x for x, _ in drawn], 1), np.polyfit(values, [y for _, y in drawn], 1)
    assert np.allclose(np.polyval(across, range(4)), [x for x, _ in drawn], atol=0.1)
    assert np.allclose(np.polyval(up, values), [y for _, y in drawn], atol=0.1)
    assert up[0] < 0  # larger values are higher up
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in drawn)
    for y, label in chart.up:
        assert y == pytest.approx(np.polyval(up, float(label)), abs=0.2)


def test_every_term_has_a_curve_and_odd_values_have_none():
    found, _ = charts.curves(logged(loss=["nan", "1", "2"], term=["x", "1e300", "1"], words=["a", "b", "c"]))
    assert [one.title for one in found] == ["loss", "term"]
    assert len(coordinates(found[0])) == 2
    many = {f"term {n}": [1.0, 2.0] for n in range(30)}
    found, left = charts.curves(logged(**many))
    assert (len(found), left) == (24, "6 further columns are in log.csv")
    for level in ([5.0, 5.0], [5.0]):
        ((chart,), _) = charts.curves(logged(loss=level))
        assert [label for _, label in chart.up] == ["5"]


def test_a_long_curve_keeps_its_extremes():
    values = np.random.default_rng(0).normal(size=5000)
    values[1234], values[4321] = 50, -50
    ((chart,), _) = charts.curves(logged(loss=list(values)))
    drawn = coordinates(chart)
    assert len(drawn) <= 402
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    highest, lowest = min(drawn, key=lambda p: p[1]), max(drawn, key=lambda p: p[1])
    first, last = drawn[0][0], drawn[-1][0]
    assert highest[0] == pytest.approx(first + (last - first) * 1234 / 4999, abs=0.3)
    assert lowest[0] == pytest.approx(first + (last - first) * 4321 / 4999, abs=0.3)


def test_a_wide_range_has_a_logarithmic_axis_and_skips_are_marked():
    ((chart,), _) = charts.curves(logged(loss=[1.0, 10.0, 100.0, 1000.0], skipped=[0, 0, 1, 0]))
    heights = [y for _, y in coordinates(chart)]
    assert np.allclose(np.diff(heights), heights[1] - heights[0], atol=0.2)
    assert chart.note == "logarithmic axis; 1 iterations were skipped (marks)"
    assert chart.marks == (coordinates(chart)[2][0],)
    assert [label for _, label in chart.up] == ["1", "10", "100", "1000"]


def test_held_out_accuracy_has_its_spread_at_both_ends():
    rows = [{"it": "10", "probe": "55.0"}, {"it": "20", "probe": "63.0"}]
    ((chart,), _) = charts.curves(ReportedSet("x", report(), columns=["it", "probe"], log=rows))
    first, last = chart.whiskers
    assert (first.low, first.high) == (first.y, first.y)  # one student
    level = {40.0: first.y, 62.0: last.y, 55.0: chart.dots[0][1], 63.0: chart.dots[1][1]}
    slope = (level[62.0] - level[40.0]) / 22
    for value, y in level.items():
        assert y == pytest.approx(level[40.0] + slope * (value - 40), abs=0.2)
    assert last.low - last.y == pytest.approx(-slope * math.sqrt(8), abs=0.2)  # std of 60 and 64
    assert first.x < chart.dots[0][0] < chart.dots[1][0] == last.x


def test_a_learning_curve_is_the_mean_of_the_students_with_their_spread():
    each = [Curve((10, 20), (100, 200), (1.0, 2.0), test) for test in ((40.0, 60.0), (44.0, 62.0))]
    one = report(accuracy=Score((60.0, 62.0), curves=tuple(each)), regimes=(regime(),))
    (chart,) = charts.learning(one)  # neither the control nor the regime has curves
    (x1, y1), (x2, y2) = coordinates(chart)
    assert x1 < x2
    slope = (y2 - y1) / (61 - 42)
    for place, std in zip(chart.whiskers, (math.sqrt(8), math.sqrt(2)), strict=True):
        assert place.low - place.y == pytest.approx(-slope * std, abs=0.2)
    assert chart.title == "the distilled set: test accuracy %"
    assert "by step" in chart.words
    assert charts.learning(report()) == []


def test_classes_are_the_worst_first():
    shares = tuple(float(c * 7 % 60) for c in range(60))
    accuracy = Score((50.0,), classes=shares)
    control = Score((40.0,), classes=(None, *shares[:-1]))
    found, left = charts.class_rows(report(accuracy=accuracy, control=control, classes=tuple(map(str, range(60)))))
    assert (len(found), left) == (charts.CLASSES, 60 - charts.CLASSES)
    assert [one.mean for one, _, _ in found] == sorted(shares)[: charts.CLASSES]
    assert found[0][1:] == ("-", "")


# --- several ----------------------------------------------------------------------------------------------------------


def test_numbers_of_other_conditions_are_not_ranked():
    other = replace(QUICK, steps=7)
    one, two = report("dm"), report("mtt", protocol=other.to_dict(), fingerprint="other")
    text, _ = page([ReportedSet("a", one), ReportedSet("b", two)])
    assert "Not comparable: different conditions" in text
    assert "eval.steps" in text
    text, _ = page([ReportedSet("a", one), ReportedSet("b", report("mtt"))])
    assert "Not comparable" not in text


def test_several_architectures_have_bars():
    deep = asdict(NetworkSpec(depth=4, width=32))
    found = charts.architectures([ReportedSet("a", report()), ReportedSet("b", report(values=(80.0,), student=deep))])
    assert [(one.label, one.mean) for one in found] == [
        ("dm: convnet (depth 3 width 32 norm instance)", 71.0),
        ("dm: convnet (depth 4 width 32 norm instance)", 80.0),
    ]
    assert charts.architectures([ReportedSet("a", report()), ReportedSet("b", report())]) == []
