"""`dd import`, and `dd eval` of what it saved."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import dd
from dd.cli.completion import completed
from dd.cli.main import run_command_line
from dd.data import DataSettings, open_data
from dd.errors import UsageError
from dd.evaluation.protocols import PROTOCOLS
from dd.evaluation.report import Report
from dd.evaluation.table import html, rows
from dd.exchange import Asked, spaces
from dd.exchange.contents import Tiles
from dd.exchange.export import Form
from dd.exchange.readers import readers
from dd.exchange.spaces import KINDS, look
from dd.exchange.targets import WORDS
from dd.sets import is_finite

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "howto" / "released.md"
QUICK = ("student.width=4", "eval.students=2", "eval.epochs=1", "eval.batch=20", "eval.full=false", "compile=false")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def released(place):
    """Two experiments of real images of the embedded data set, in DM's file."""
    data = open_data("fashion-mini", DataSettings(), "cpu")
    pairs = []
    for first in (0, 2):
        index = torch.cat([data.train.of_class(c)[first : first + 2] for c in range(10)])
        pairs.append([data.train.images(index), data.train.labels[index]])
    path = place / "res_DM_FashionMNIST_ConvNet_2ipc.pt"
    torch.save({"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(x) for x in (0.5, 0.52, 0.6, 0.62)]}}, path)
    return path


def said(capsys, *args, code=0):
    assert run_command_line(args) == code
    told = capsys.readouterr()
    if code:
        assert len(told.err.splitlines()) == 1
    return told.err if code else told.out


def test_a_released_file_is_imported_and_scored_beside_what_it_states(released, capsys):
    out = said(capsys, "import", released.name, "dataset=fashion-mini", "entry=1")
    file = "fashion-mini-dc-ipc2.safetensors"
    assert out.startswith(f"{file}: 20 pixels, hard labels, set 1 of its file\n")
    assert "  format    dc: a dict with data of 2 pairs" in out
    assert "  stated    61.00 ± 1.41 (ConvNet, their own protocol)" in out
    assert f"  next      dd eval {file}" in out
    out = said(capsys, "eval", file, *QUICK)
    lines = [line for line in out.splitlines() if line.startswith(("the distilled set", "stated by its authors"))]
    assert len(lines) == 2
    assert re.fullmatch(r"stated by its authors +61.00 ± 1.41 +2 +ConvNet, their own protocol", lines[1])
    assert "protocol   mtt" in out


def test_the_stated_score_is_in_the_report_and_its_table(released):
    (made, _) = dd.import_sets(released, dataset="fashion-mini")
    quick = {"students": 1, "epochs": 1, "full": False}
    report = dd.evaluate(made, student={"width": 4}, eval=quick, compile=False)
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    for one in (report, again):
        assert [row[:3] for row in rows(one)[1:2]] == [["stated by its authors", "51.00 ± 1.41", "2"]]
        assert "stated by its authors" in html(one)


def test_several_sets_are_several_files_and_nothing_is_overwritten(released, capsys, place):
    made = json.loads(said(capsys, "import", released.name, "dataset=fashion-mini", "out=sets/", "--json"))
    assert [one["path"] for one in made["sets"]] == [
        "sets/fashion-mini-dc-ipc2-0.safetensors",
        "sets/fashion-mini-dc-ipc2-1.safetensors",
    ]
    assert [one["stated"][0]["values"] for one in made["sets"]] == [[50.0, 52.0], [60.0, 62.0]]
    for path in (place / "sets").iterdir():
        assert dd.load(path).provenance["imported"]["format"] == "dc"
    said(capsys, "import", released.name, "dataset=fashion-mini", "out=sets/")  # the same again
    same = ("import", released.name, "dataset=fashion-mini", "entry=0", "out=sets/fashion-mini-dc-ipc2-1.safetensors")
    assert "is there already, with another content: say force=true" in said(capsys, *same, code=2)
    assert said(capsys, *same, "force=true").startswith("sets/fashion-mini-dc-ipc2-1.safetensors")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["nowhere.pt", "dataset=fashion-mini"], "nowhere.pt: no such file"),
        (["dataset=fashion-mini"], "name the files first: dd import PATH dataset=fashion-mini"),
        (["x.pt"], "say which real images"),
        (["x.pt", "dataset=fashion-mini"], "neither torch's .pt, nor .npz, .npy, msgpack, parquet or images"),
        (["x.pt", "dataset=fashion-mini", "value_spice=pixels"], "did you mean 'value_space'"),
        (["x.pt", "dataset=fashion-mini", "lr=-1"], "lr: Input should be greater than 0"),
        (["x.pt", "dataset=fashion-mini", "protocol=mt"], "did you mean 'mtt'"),
        (["x.pt", "dataset=fashion-mini", "force=2"], "force=2: say true or false"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(place, capsys, words, answer):
    (place / "x.pt").write_bytes(b"hello")
    assert answer in said(capsys, "import", *words, code=2)
    assert {path.name for path in place.iterdir()} <= {"x.pt", "home"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["out=file/sets/"], "cannot write to file/sets (Not a directory); choose another place with out=PATH"),
        (["out=https://host/x.safetensors"], "is an address on the web"),
        (["ipc=1"], "ipc=1 does not apply to the format dc"),
        (["rows=2"], "rows=2 does not apply to the format dc"),
        (["label=fine"], "label=fine does not apply to the format dc"),
        (["beside.safetensors"], "dd's own sets, which need no import: dd eval"),
    ],
)
def test_what_cannot_be_meant_is_refused(released, place, capsys, words, answer):
    (place / "file").touch()
    (place / "beside.safetensors").touch()
    assert answer in said(capsys, "import", released.name, "dataset=fashion-mini", *words, code=2)
    assert {path.name for path in place.iterdir()} == {"beside.safetensors", "file", "home", released.name} - (
        set() if (place / "home").exists() else {"home"}
    )


@pytest.mark.parametrize("classes", [[8], [1, 5, 8, 9]])
def test_a_set_of_few_classes_is_known_by_its_images(released, place, capsys, classes):
    images, labels = torch.load(released, weights_only=False)["data"][0]
    some = torch.isin(labels, torch.tensor(classes))
    torch.save({"data": [[images[some], labels[some]]], "accs_all_exps": {}}, "few.pt")
    out = said(capsys, "import", "few.pt", "dataset=fashion-mini", "uneven=true", "out=few.safetensors")
    assert f"{2 * len(classes)} pixels, hard labels" in out
    torch.save({"data": [[images[some], (labels[some] + 2) % 10]], "accs_all_exps": {}}, "other.pt")
    told = said(capsys, "import", "other.pt", "dataset=fashion-mini", "uneven=true", "out=other.safetensors", code=2)
    assert "class_order=data imports them all the same" in told


def test_bytes_have_no_other_value_space(place, capsys):
    np.save("bytes.npy", np.arange(7840, dtype=np.uint8).reshape(10, 1, 28, 28))
    told = said(capsys, "import", "bytes.npy", "dataset=fashion-mini", "value_space=zca", code=2)
    assert "its images are bytes of pixels, which value_space=zca cannot be" in told


def test_a_folder_of_another_class_is_named(place, capsys):
    for name in ("Bag", "Hat"):
        (place / "folder" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(place / "folder" / name / "0.png")
    told = said(capsys, "import", "folder", "dataset=fashion-mini", code=2)
    assert "unknown class of the files 'Hat'" in told


def test_what_nothing_knows_is_described(place, capsys):
    torch.save({"epoch": 3, "state": {"weight": torch.ones(2, 3)}, "names": ["a"]}, place / "x.pt")
    told = said(capsys, "import", "x.pt", "dataset=fashion-mini", code=2)
    assert "no known format of distilled sets: a dict of 3: epoch (a number), state (a dict of 1: weight" in told


def test_refused_sets_leave_nothing(released, capsys, place):
    held = torch.load(released, weights_only=False)
    held["data"][1][0] = held["data"][1][0] * torch.nan
    torch.save(held, released)
    assert "NaN" in said(capsys, "import", released.name, "dataset=fashion-mini", code=2)
    assert list(place.glob("*.safetensors")) == []


def test_what_dd_exports_it_imports(released, capsys):
    (made, _) = dd.import_sets(released, dataset="fashion-mini")
    made.save("a.safetensors")
    for form in ("pt", "npz"):
        dd.export("a.safetensors", form, f"a.{form}")
        (back,) = dd.import_sets(f"a.{form}", dataset="fashion-mini")
        assert torch.allclose(back.images, made.images, atol=1e-5)
        assert torch.equal(back.labels, made.labels)
    names = tuple(reversed(made.classes))
    held = dict(np.load("a.npz"))
    np.savez("b.npz", **{**held, "classes": np.array(names), "labels": 9 - held["labels"]})
    (back,) = dd.import_sets("b.npz", dataset="fashion-mini")  # labels are what the file calls them
    assert torch.equal(back.labels, made.labels)


def test_what_is_offered(released):
    assert released.name in completed("dd import ")
    assert "dataset=fashion-mini" in completed("dd import x.pt dataset=fash")
    assert "value_space=zca-normalised" in completed("dd import x.pt value_space=zca-")
    offered = {word.removesuffix("=") for word in completed("dd import x.pt ") if word.endswith("=")}
    assert offered == {field.name for field in fields(Asked)} | {"out", "force"}
    assert {"format=dc", "format=mtt", "format=datm"} <= set(completed("dd import x.pt format="))
    assert completed("dd export x.safetensors form=p") == ["form=parquet", "form=pt"]
    assert completed("dd export x.safetensors til") == ["tiles="]
    assert completed("dd import x.pt uneven=") == ["uneven=false", "uneven=true"]


def test_every_closed_set_of_values_is_offered():
    closed = {
        "format": {name for reader in readers() for name in reader.formats},
        "labels": set(WORDS),
        "value_space": set(KINDS),
        "protocol": set(PROTOCOLS),
        "preprocess": {"standard", "zca", "none"},
        "uneven": {"true", "false"},
    }
    for verb in ("import x.pt", "pull dm/fashion-mini-ipc1"):
        for key, values in closed.items():
            assert set(completed(f"dd {verb} {key}=")) == {f"{key}={one}" for one in values}
    forms = {f"form={form}" for form in get_args(Form)}
    assert set(completed("dd export x form=")) == forms
    assert set(completed("dd export x tiles=")) == {f"tiles={one}" for one in get_args(Tiles)}
    assert completed("dd push x y private=") == ["private=false", "private=true"]
    assert "student.arch=resnet18" in completed("dd eval x student.arch=res")
    assert completed("dd new sweep search=") == ["search=bayes", "search=grid", "search=random"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"stated": [{"values": [1000.0]}]}, "less than or equal to 100"),
        ({"stated": [{"values": []}]}, "at least 1 item"),
        ({"files": [{"name": "x", "bytes": 1, "sha256": "../x"}]}, "pattern"),
        ({"format": "dc", "run": "rm"}, "unknown key"),
        ({"assumed": ["x"] * 101}, "at most 100 items"),
    ],
)
def test_what_a_set_says_of_its_import_is_data(released, said, words):
    (made, _) = dd.import_sets(released, dataset="fashion-mini")
    replace(made, provenance={**made.provenance, "imported": {"format": "dc", **said}}).save("x.safetensors")
    with pytest.raises(UsageError, match=words):
        dd.load("x.safetensors")


def labelled(folder, labels):
    """Label files of an epoch as FKD writes them: whole images, not mirrored, each mixed with itself."""
    (folder / "epoch_0").mkdir(parents=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(42))
    for number, index in enumerate(order.split(16)):
        whole, n = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(index), 1), len(index)
        logits = 9 * torch.nn.functional.one_hot(labels[index], 10).half()
        kept = [whole, torch.zeros(n, dtype=torch.bool), torch.arange(n), 1.0, [0, 0, 4, 4], logits]
        torch.save(kept, folder / "epoch_0" / f"batch_{number}.tar")


def test_the_commands_of_the_page(released, capsys):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("dd import")]
    assert lines
    held = torch.load(released, weights_only=False)
    images, labels = held["data"][0]
    torch.save(images, "images_best.pt")
    torch.save(labels, "labels_best.pt")
    torch.save([images, labels], "data_10000.pt")
    dd.export(dd.import_sets(released, dataset="fashion-mini")[0], "folder", "images")
    labelled(Path("FKD_cutmix_fp16"), labels.sort().values)
    for line in lines:
        assert (
            run_command_line(line.replace("CIFAR10", "FashionMNIST").replace("cifar10", "fashion-mini").split()[1:])
            == 0
        )


def test_a_look_at_large_images_takes_little_memory(monkeypatch):
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = look(images)
    monkeypatch.setattr(spaces, "_WHOLE", images.numel() // 8)
    few, some_bytes = look(images), look((images * 40 + 128).clamp(0, 255).byte())
    assert (few.kind, few.low, few.high, few.mean) == (whole.kind, whole.low, whole.high, whole.mean)
    assert few.std == pytest.approx(whole.std, rel=0.1)
    assert (some_bytes.kind, some_bytes.low, some_bytes.high) == ("bytes", 0, 255)
    for bad in (torch.nan, torch.inf, -torch.inf):
        for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert is_finite(images.to(kind))
            assert not is_finite(torch.where(images == images.max(), bad, images).to(kind))
    assert is_finite(torch.empty(0))
