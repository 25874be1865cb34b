"""Plug-ins: what installed packages declare is found, used, and never takes anything else down."""

import json
import sys

import pytest
import torch

from dd.cli.main import run_command_line
from dd.data import Arrays, CatalogueEntry
from dd.data.sources import load_raw
from dd.data.sources.catalogue import CATALOGUE
from dd.engine import registry
from dd.errors import RunError, UsageError
from dd.evaluation.protocols import PROTOCOLS, Protocol, list_protocols
from dd.networks import NetworkSpec, build_network
from dd.networks.names import NETWORKS
from dd.plugins import GROUPS, plug_ins
from dd.runs.trackers import TRACKERS, tracker_class

GOOD = """
import torch
from dd import Protocol
from dd.data import Arrays, CatalogueEntry

def read():
    images = torch.arange(6 * 1 * 8 * 8).reshape(6, 1, 8, 8).remainder(256).to(torch.uint8)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    return Arrays(images, labels, images, labels, ("a", "b"))

dots = CatalogueEntry("dots", "two classes", "MIT", 1, None, ((0.5,), (0.25,)), "none", side=8, read=read)
long = Protocol(steps=7, students=1)

class lines:
    def __init__(self, subject): pass
    def log(self, row): pass
    def results(self, results): pass
    def close(self, failed): pass

def thin(channels, size, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size * size, classes))
"""

ENTRY = "from dd.data import CatalogueEntry\ndots = CatalogueEntry('', '', '', 1, None, ((0.5,), (1,)), ''{rest})"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path, as pip leaves it: a module, and metadata with entry points."""
    modules = []

    def put(name, points, code=GOOD):
        folder = tmp_path / name
        info = folder / f"{name}-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        groups: dict[str, list[str]] = {}
        for what, point in points:
            groups.setdefault(GROUPS[what], []).append(point.format(module=name))
        text = "\n".join(f"[{group}]\n" + "\n".join(lines) for group, lines in groups.items())
        (info / "entry_points.txt").write_text(text)
        (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        modules.append(name)

    yield put
    for name in modules:
        sys.modules.pop(name, None)
    for named in (CATALOGUE, PROTOCOLS, NETWORKS, TRACKERS):
        named._loaded.clear()
    for name in [name for name, cls in registry._registered.items() if cls.__module__ in modules]:
        del registry._registered[name]


def test_a_package_gives_data_a_network_and_a_protocol(install, capsys):
    points = [("dataset", "dots = {module}:dots"), ("network", "thin = {module}:thin")]
    install("dd_good", [*points, ("protocol", "long = {module}:long"), ("tracker", "lines = {module}:lines")])
    assert "lines" in TRACKERS
    assert "dd_good" not in sys.modules  # nothing is imported before it is asked for
    assert all(name in named for name, named in (("dots", CATALOGUE), ("long", PROTOCOLS), ("thin", NETWORKS)))
    assert "dd_good" not in sys.modules

    raw = load_raw("dots")
    assert (raw.train_images.shape, raw.classes, raw.licence) == ((6, 1, 8, 8), ("a", "b"), "MIT")
    assert raw.where == "the package dd_good"
    assert PROTOCOLS["long"] == Protocol(protocol="long", steps=7, students=1)  # it goes by the name declared
    assert list_protocols("long") == [PROTOCOLS["long"]]
    assert tracker_class("lines").__name__ == "lines"
    shape = {"channels": 1, "size": 8, "classes": 2}
    one, two = (build_network(NetworkSpec("thin"), **shape, generator=torch.Generator()) for _ in range(2))
    assert one(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    assert torch.equal(one[1].weight, two[1].weight)  # drawn from the generator alone
    with pytest.raises(UsageError, match=r"student\.width=3 means nothing to student\.arch=thin"):
        build_network(NetworkSpec("thin", width=3), **shape, generator=torch.Generator())

    for words in (("data",), ("protocols",), ("doctor",)):
        assert run_command_line(words) == 0
        assert "dd_good" in capsys.readouterr().out


def test_a_run_uses_all_three(install, tmp_path, capsys, monkeypatch):
    points = [("dataset", "dots = {module}:dots"), ("network", "thin = {module}:thin")]
    install("dd_good", [*points, ("protocol", "long = {module}:long")])
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    words = ("method=random", "dataset=dots", "ipc=1", "data.holdout=0", "student.arch=thin", "eval.protocol=long")
    assert run_command_line(("run", *words, "device=cpu", f"out={tmp_path}/runs", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["dataset"]["name"], report["protocol"]["protocol"], report["student"]["arch"]) == (
        "dots",
        "long",
        "thin",
    )
    # elsewhere, without the package, the set's protocol is still the one that its fields say
    PROTOCOLS._loaded.clear()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "dd_good" not in entry])
    assert "long" not in PROTOCOLS
    assert Protocol(protocol="long", steps=7).in_words() == "long"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('first\\nsecond')", "fails to import: ValueError: first"),
        ("import sys; sys.exit(3)", "fails to import: SystemExit: 3"),
        ("import no_such_module_here", "fails to import: ModuleNotFoundError"),
        ("(", "fails to import: SyntaxError"),
        ("", "fails to import: AttributeError"),
        ("dots = long = 3", "cannot be used: it is of type int"),
        (
            "from dd.data import CatalogueEntry\ndots=CatalogueEntry('', '', '', 1, None, ((0,), (1,)), '', '')",
            "`read`",
        ),
    ],
)
def test_a_broken_one_is_named_and_skipped(install, code, why, capsys):
    install("dd_bad", [("dataset", "dots = {module}:dots"), ("protocol", "long = {module}:long")], code)
    with pytest.raises(RunError, match=why) as caught:
        CATALOGUE["dots"]
    assert "the dataset 'dots' of the package dd_bad" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert why in CATALOGUE.broken()["dots"]
    assert "dots" not in list(CATALOGUE)
    assert list(PROTOCOLS) == list(PROTOCOLS.data)
    assert run_command_line(("run", "method=random", "dataset=dots", "--dry-run")) == 1
    assert "dots" in capsys.readouterr().err


def test_the_listings_say_what_is_broken(install, capsys):
    install("dd_bad", [(what, "dots = {module}:dots") for what in ("method", "dataset", "protocol")], "1 / 0")
    for words in (("data",), ("protocols",), ("doctor",), ("methods",)):
        assert run_command_line(words) == 0
        assert "broken: the" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["method", "dataset", "network", "protocol", "tracker"])
def test_a_name_taken_twice_says_by_whom(install, what):
    install("dd_one", [(what, "both = {module}:long")])
    install("dd_two", [(what, "both = {module}:long")])
    lookup = {"method": registry.get, "dataset": CATALOGUE.__getitem__, "network": NETWORKS.__getitem__}
    lookup["tracker"] = tracker_class
    with pytest.raises(UsageError, match=f"the {what} name 'both' is taken by dd_one and dd_two"):
        lookup.get(what, PROTOCOLS.__getitem__)("both")


@pytest.mark.parametrize(
    ("what", "name"),
    [("dataset", "cifar10"), ("protocol", "mtt"), ("method", "dm"), ("network", "ConvNetD3"), ("tracker", "wandb")],
)
def test_ours_cannot_be_replaced(install, what, name):
    install("dd_thief", [(what, f"{name} = {{module}}:nothing")])
    assert name in plug_ins(what)
    if what == "method":
        assert registry.get("dm").__module__ == "dd.methods.distribution.dm"
        (row,) = (entry for entry in registry.list_methods("dm") if entry.error)
        assert (row.package, row.error) == ("dd_thief", "'dm' is a name of dd's own")
    elif what == "network":
        assert (
            "convnet"
            in type(
                build_network(NetworkSpec(name, width=4), channels=1, size=8, classes=2, generator=torch.Generator())
            ).__name__.lower()
        )
        assert "a name of dd's own" in NETWORKS.broken()[name]
    elif what == "tracker":
        assert tracker_class(name).__module__ == "dd.runs._wandb"
        assert "a name of dd's own" in TRACKERS.broken()[name]
    else:
        named = CATALOGUE if what == "dataset" else PROTOCOLS
        assert named[name] is named.data[name]
        assert "dd_thief declares" in named.broken()[name]


def test_a_method_cannot_register_one_of_our_names(install, monkeypatch):
    code = "from dd.engine.method import Method\nfrom dd.engine.registry import register\n"
    code += "@register('mtt')\nclass Mine(Method): 'Mine.'\n"
    install("dd_thief", [("method", "mine = {module}:Mine")], code)
    for known in (False, True):  # whether ours was imported before or not
        if known:
            registry.get("mtt")
        else:
            monkeypatch.delitem(registry._registered, "mtt", raising=False)
            monkeypatch.delitem(sys.modules, "dd.methods.trajectory.mtt", raising=False)
        with pytest.raises(RunError, match=r"'mtt' is taken by dd\.methods\.trajectory\.mtt"):
            registry.get("mine")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"train_images": torch.zeros(2, 1, 8, 8)}, "train_images is torch.float32"),
        ({"train_labels": torch.tensor([0.0, 1.0])}, "train_labels is torch.float32"),
        ({"train_labels": torch.tensor([0, 2])}, "train_labels are not all in 0 to 1"),
        ({"test_labels": torch.tensor([-1, 0])}, "test_labels are not all in 0 to 1"),
        ({"train_labels": torch.tensor([0])}, "2 train_images with 1 train_labels"),
        ({"test_images": torch.zeros(2, 1, 9, 9, dtype=torch.uint8)}, "one size for all"),
        ({"test_images": [1]}, "test_images is list"),
    ],
)
def test_what_a_plug_in_reads_is_checked(change, why):
    images, labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    whole = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    Arrays(**whole, classes=("a", "b")).check(1)
    with pytest.raises(ValueError, match=why):
        Arrays(**whole | change, classes=("a", "b")).check(1)
    with pytest.raises(ValueError, match="3 channels"):
        Arrays(**whole, classes=("a", "b")).check(3)


@pytest.mark.parametrize(("given", "why"), [(3, "int, not Arrays"), (1 / 3, "float, not Arrays")])
def test_a_reader_that_fails_is_named(install, given, why):
    code = ENTRY.format(rest=f", read=lambda: {given}")
    install("dd_odd", [("dataset", "dots = {module}:dots")], code)
    with pytest.raises(RunError, match=f"the dataset 'dots' of the package dd_odd cannot be read: ValueError: .*{why}"):
        load_raw("dots")


def test_the_entry_keeps_to_its_fields():
    assert CATALOGUE.data["cifar10"].read is None
    assert isinstance(CATALOGUE["cifar10"], CatalogueEntry)
