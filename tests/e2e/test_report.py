"""`dd report`: one page about runs, whatever is in their files."""

import base64
import io
import json
import random
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dd.data import DataSettings, open_data
from dd.evaluation import PROTOCOLS, Report, Score
from dd.evaluation.curve import Curve
from dd.evaluation.report import RegimeReport
from dd.evaluation.table import rows
from dd.io import write_json
from dd.networks import NetworkSpec
from dd.sets import DistilledSet, load, save

from .conftest import Place
from .test_fuzz import EVIL, bytes_changed, changed, faults

MARKUP = ('<script>alert("1")</script>', "<img src=x onerror=alert(1)>", 'a" onmouseover="alert(1)', "</style>&amp;'")
TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "nav", "h1", "h2", "h3"),
    *("h4", "p", "ul", "li", "a", "div", "span", "b", "table", "thead", "tbody", "tr", "th", "td", "figure", "img"),
    *("figcaption", "svg", "rect", "circle", "line", "polyline", "g", "text", "dl", "dt", "dd", "details", "summary"),
    "pre",
}
ADDRESSES = {"href", "src", "action", "formaction", "data", "srcset", "poster", "xlink:href", "background", "ping"}
CASES = 60


class Seen(HTMLParser):
    """What a browser would see in a page: its elements, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts, self.images = set[str](), set[str](), list[str](), list[str]()
        self.addresses = list[str]()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.images += [value for name, value in attrs if name == "src"]
        self.addresses += [value for name, value in attrs if name in ADDRESSES]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def harmless(page: Path) -> Seen:
    """Nothing in a page but what it is made of: no script, no handler, no address, no control character."""
    text = page.read_text(encoding="utf-8")
    seen = Seen(text)
    assert seen.tags <= TAGS
    assert [name for name in seen.attributes if name.startswith("on") or name == "style"] == []
    assert all(one.startswith("data:image/png;base64,") for one in seen.images)
    assert all(one.startswith(("data:", "#run-")) for one in seen.addresses)
    assert "url(" not in text.partition("</style>")[0]
    assert not set(EVIL) & set(text) - set("]0;owned[2J")
    return seen


def markup_set(where: Path) -> Path:
    """A set of a stranger whose every word is markup, with its report beside it."""
    where.mkdir(exist_ok=True)
    student = asdict(NetworkSpec(depth=1, width=4))
    made = {"name": MARKUP[0], "note": EVIL + MARKUP[1], "seed": 0, "command": MARKUP[1]}
    images = torch.randn(4, 3, 8, 8)
    space = {"kind": "standard", "mean": [0.5] * 3, "std": [0.2] * 3}
    distilled = DistilledSet(images, torch.arange(4), MARKUP, "folder:/proc", space=space, provenance=made)
    save(distilled, where / "sent.safetensors")
    score = Score((50.0, 60.0), holdout=(40.0, 41.0), classes=(1.0, 2.0, 3.0, None))
    protocol = PROTOCOLS["quick"].to_dict() | {"protocol": MARKUP[3]}
    curve = Curve((1, 2), (8, 16), (0.1, 0.2), (40.0, 50.0))
    scored = Score((50.0, 60.0), curves=(curve, curve))
    size, spent = {"images": 1, "labels": 1, "teacher": 0, "total": 2}, {"steps": 2, "images": 16, "queries": 0}
    labels = {"form": "logits", "teacher_mode": "eval", "names": [MARKUP[0]], "accuracies": [80.0]}
    longer = {"4": {"accuracy": score, "control": score}}
    regimes = [
        RegimeReport(kind, {"accuracy": scored, "control": score, "full": score}, {}, protocol | {"target": 45.0},
                     MARKUP[1], labels=who, bytes=size, spent=spent, lengths=longer)
        for kind, who in (("hard", None), ("soft", labels))
    ]  # fmt: skip
    report = Report(score, score, score, None, {"full": MARKUP[1]}, protocol, MARKUP[0], student,
                    {"name": MARKUP[0], "notes": EVIL}, {"total": 3, MARKUP[2]: 2}, name=MARKUP[0], notes=MARKUP,
                    provenance=made, classes=MARKUP, versions={MARKUP[1]: MARKUP[2]}, command=MARKUP[3],
                    cost={MARKUP[0]: {"seconds": 1.0}}, regimes=tuple(regimes), labels=labels)  # fmt: skip
    write_json(where / "sent.json", report.to_dict())
    return where / "sent.safetensors"


def refused(place: Place, *args: str) -> str:
    ended = place.dd("report", *args)
    assert ended.code == 2, ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("dd: ")
    return line


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, to be spoilt."""
    folder = tmp_path / "run"
    folder.mkdir()
    for file in finished.folder().iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def reported(folder: Path) -> Report:
    return Report.from_dict(json.loads((folder / "report.json").read_text()))


def test_a_run_is_one_page(finished, place):
    folder = finished.folder()
    ended = place.dd("report", str(folder), "--out", "page.html", "--json")
    assert ended.code == 0, ended.err
    page = place.path / "page.html"
    assert ended.report == {"page": str(page), "bytes": page.stat().st_size, "remarks": []}
    assert page.stat().st_size < 200_000
    seen, report = harmless(page), reported(folder)
    for row in rows(report):
        for cell in row:
            assert cell in seen.text
    for words in (report.fingerprint, report.recipe_hash, report.command, report.device, report.dataset["fingerprint"]):
        assert words in seen.text
    assert " ".join((folder / "recipe.toml").read_text().split()) in seen.text
    distilled = load(folder / "set.safetensors")
    data = open_data("fashion-mini", DataSettings(), "cpu")
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(seen.images[0].partition(",")[2]))))
    in_range = data.preprocess.invert(distilled.pixels(data.preprocess)[:1])[0, 0].clamp(0, 1) * 255
    assert np.abs(first - in_range.numpy()).max() <= 0.51
    assert place.half_written() == []


def test_curves_and_start_of_a_run(place, small):
    assert place.dd("run", *small).code == 0
    folder = place.folder()
    ended = place.dd("report", str(folder.relative_to(place.path)))
    assert ended.code == 0, ended.err
    seen = harmless(folder / "report.html")
    columns = (folder / "log.csv").read_text().splitlines()[0].split(",")
    assert {"held-out accuracy %", *columns} - {"it", "probe", "skipped"} <= {text.strip() for text in seen.texts}
    assert len(seen.images) == 5 * 4  # five classes: start, distilled, stretched, real
    again = place.dd("report", str(folder.relative_to(place.path)))
    assert again.code == 0, again.err  # it replaces its own page
    assert place.dd("run", *small, "--json").report["accuracy"] == reported(folder).to_dict()["accuracy"]


def test_several_runs_side_by_side(run, finished, place):
    write_json(place.path / "other.json", replace(reported(run), student={"arch": "alexnet"}).to_dict())
    ended = place.dd("report", str(finished.folder()), "other.json")
    assert ended.code == 0, ended.err
    seen = harmless(place.path / "report.html")
    assert "By architecture of the students" in seen.text
    assert "Not comparable: different conditions" in seen.text
    assert "student.arch" in seen.text
    assert "only the report was named" in ended.err


def test_one_set_on_several_networks(finished, place):
    networks = (
        "device=cpu",
        "eval.steps=1",
        "eval.students=2",
        "eval.full=false",
        "student.arch=convnet,mlp",
        "--json",
    )
    ended = place.dd("eval", str(finished.folder()), *networks)
    assert ended.code == 0, ended.err
    (place.path / "networks.json").write_text(ended.out)
    ended = place.dd("report", "networks.json")
    assert ended.code == 0, ended.err
    seen = harmless(place.path / "report.html")
    assert "By architecture of the students" in seen.text
    assert "convnet" in seen.text
    assert "mlp" in seen.text


def test_markup_is_shown_and_not_obeyed(place):
    sent = markup_set(place.path / "stranger")
    ended = place.dd("report", str(sent))
    assert ended.code == 0, ended.err
    seen = harmless(sent.parent / "report.html")
    for words in MARKUP:
        assert words in seen.text
    assert "real images are left out: this set was not made here and asks for images at a path" in ended.err
    assert faults(ended, 0, 0) == ""


def test_what_is_no_finished_run_is_refused_in_one_line(run, place):
    there = str(run)
    assert "no set at" in refused(place, "nowhere")
    assert "is named twice" in refused(place, there, f"{there}/set.safetensors")
    assert "name the runs" in refused(place)
    assert "unknown key 'outt'" in refused(place, there, "outt=x.html")
    assert "has no report" in refused(place, "dm/fashion-mini-ipc1")
    spoilt = {
        "report.json": (b'{"accuracy": {"mean": NaN, "values": [NaN]}}', b'{"accuracy"', b"\x80\x02pickle", b"[]"),
        "set.safetensors": (b"PK\x03\x04", b"\x80\x02}q\0.", b""),
        "log.csv": (b"it,loss\n0,<script>\n",),
    }
    for name, contents in spoilt.items():
        before = (run / name).read_bytes()
        for content in contents:
            (run / name).write_bytes(content)
            refused(place, there)
        (run / name).write_bytes(before)
    (run / "report.json").unlink()
    assert "is not finished" in refused(place, there)
    assert not list(run.glob("*.html"))


def test_a_report_of_another_set_is_refused(run, place, tmp_path):
    value = json.loads((run / "report.json").read_text())
    save(load(run / "set.safetensors"), tmp_path / "moved.safetensors")
    assert "has no report (moved.json) beside it" in refused(place, str(tmp_path / "moved.safetensors"))
    write_json(tmp_path / "moved.json", value)
    assert place.dd("report", str(tmp_path / "moved.safetensors"), "out=moved.html").code == 0
    write_json(tmp_path / "moved.json", value | {"classes": [f"c{c}" for c in range(10)]})
    assert "its classes differ" in refused(place, str(tmp_path / "moved.safetensors"))
    write_json(tmp_path / "moved.json", value | {"provenance": value["provenance"] | {"seed": 5}})
    assert "its seed is 5, the set's 0" in refused(place, str(tmp_path / "moved.safetensors"))


def test_nothing_but_a_page_is_overwritten(run, place):
    notes = place.path / "notes.html"
    notes.write_text("mine")
    assert "is not a page of dd report" in refused(place, str(run), "out=notes.html")
    assert notes.read_text() == "mine"
    assert "is not the name of a page" in refused(place, str(run), "out=notes.txt")
    assert "is not the name of a page" in refused(place, str(run), "out=.")
    assert place.dd("report", str(run), "out=deep/er/page.html").code == 0
    harmless(place.path / "deep" / "er" / "page.html")


def test_whatever_a_stranger_changes_is_refused_or_shown_harmlessly(place):
    """Values of the report of another type, level or size; bytes of the report or the set."""
    sent = markup_set(place.path / "stranger")
    file, page = sent.with_suffix(".json"), place.path / "page.html"
    texts = {path: path.read_bytes() for path in (file, sent)}
    whole, found = json.loads(texts[file]), []
    write_json(place.path / "other.json", whole)
    for number in range(CASES):
        rng = random.Random(number)
        page.unlink(missing_ok=True)
        if number % 4:
            value, what = changed(rng, whole)
            contents = {file: json.dumps(value).encode()}
        else:
            path = rng.choice([file, sent])
            content, what = bytes_changed(rng, texts[path])
            contents = {path: content}
        for path, content in (texts | contents).items():
            path.write_bytes(content)
        ended = place.dd("report", str(sent), "other.json", "out=page.html")
        wrong = faults(ended, 0, 0)
        if not wrong and not ended.code:
            try:
                harmless(page)
            except AssertionError as error:
                wrong = str(error)
        if wrong or (ended.code and page.exists()):
            found.append(f"{number}: {what}: {wrong} {ended.err[-1500:]}")
    assert found == []
