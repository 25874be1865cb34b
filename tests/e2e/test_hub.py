"""Publishing on the Hub and back, through its real client and a server on this machine."""

import functools
import hashlib
import http.server
import importlib.util
import io
import json
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

import dd as library
from dd.cli.main import run_command_line

_SPEC = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub.py"))
server = importlib.util.module_from_spec(_SPEC)
sys.modules["hub_server"] = server  # its dataclasses look themselves up
_SPEC.loader.exec_module(server)

# the client's own transport warns, of itself
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
QUICK = ("eval.students=1", "eval.steps=3", "eval.pilots=1", "eval.full=false", "device=cpu")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A running server, which the client takes for the Hub."""
    with server.running() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", found.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its own protocol, of its own cloud
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found


@pytest.fixture
def dd(hub, place):
    """`dd` of somebody who is logged in."""

    def call(*words, token=server.TOKEN, **environment):
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(place.path / "hf"), "HF_TOKEN": token, "HF_HUB_CACHE": ""}
        return place.dd(*words, **(own | environment))

    return call


def files(hub, name="me/it"):
    return hub.repos[name].commits[-1][1]


def set_of(finished):
    return finished.folder() / "set.safetensors"


def test_what_is_pushed_is_pulled_to_the_bit(hub, dd, finished, place):
    pushed = dd("push", str(finished.folder()), "hf:me/it", "licence=mit", "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.report["commit"] == hub.repos["me/it"].commits[-1][0]
    assert set(files(hub)) == {
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00001.parquet",
        "preview.png",
        "set.safetensors",
    }
    pulled = dd("pull", "hf:me/it", "out=got")
    assert pulled.code == 0, pulled.err
    assert (place.path / "got" / "set.safetensors").read_bytes() == set_of(finished).read_bytes()
    assert server.TOKEN not in pushed.out + pushed.err + pulled.out + pulled.err
    tensors = safetensors.torch.load(files(hub)["set.safetensors"])
    assert tensors["images"].shape == (10, 1, 28, 28)


def test_the_card_says_all_that_one_must_know(hub, dd, finished):
    dd("push", str(finished.folder()), "hf:me/it", "licence=mit")
    text = files(hub)["README.md"].decode()
    card = huggingface_hub.DatasetCard(text)
    assert card.data.license == "mit"
    assert card.data.task_categories == ["image-classification"]
    assert {"dataset-distillation", "dd", "ipc-1", "random"} <= set(card.data.tags)
    assert card.data.configs[0]["data_files"][0]["path"] in files(hub)
    report = json.loads((finished.folder() / "report.json").read_text())
    for words in (
        f"| this set | {report['accuracy']['mean']:.2f} ± {report['accuracy']['std']:.2f} | 2 |",
        f"| random real images, as many | {report['control']['mean']:.2f} ± ",
        report["fingerprint"],
        "seeds derived from 0",
        "dd run method=random ipc=1",
        "![some of its images](preview.png)",
        "## What it may leak",
        "Of this set: mit.  Of the real data: MIT.",
        "dd eval hf:me/it",
    ):
        assert words in text


def test_the_parquet_file_is_what_the_viewer_reads(hub, dd, finished, tmp_path):
    import pyarrow.parquet as pq

    dd("push", str(finished.folder()), "hf:me/it")
    (tmp_path / "x.parquet").write_bytes(files(hub)["data/train-00000-of-00001.parquet"])
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names[:2] == ["image", "label"]
    assert table["label"].to_pylist() == list(range(10))


def test_a_set_on_the_hub_is_scored_and_remembered(hub, dd, finished):
    """Later also without the Hub, which is said; a commit that is here is not asked for."""
    assert dd("push", str(finished.folder()), "hf:me/it").code == 0
    scored = dd("eval", "hf:me/it", *QUICK, "--json")
    assert scored.code == 0, scored.err
    commit = hub.repos["me/it"].commits[-1][0]
    pinned = f"hf:me/it@{commit}"
    assert dd("pull", pinned).code == 0
    hub.asked.clear()
    assert dd("pull", pinned).code == 0
    assert [line for line in hub.asked if "/datasets/" in line] == []
    for switch in ("DD_OFFLINE", "HF_HUB_OFFLINE"):
        again = dd("eval", "hf:me/it", *QUICK, "--json", **{switch: "1"})
        assert again.code == 0, again.err
        assert f"{switch} is set; what was pulled before is used" in again.err
        assert again.report["accuracy"] == scored.report["accuracy"]
    missing = dd("pull", "hf:me/other", DD_OFFLINE="1")
    assert (missing.code, missing.out) == (1, "")
    assert "DD_OFFLINE is set" in missing.err


def test_python_loads_what_is_on_the_hub(hub, place, finished, monkeypatch):
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(place.path / "hf"), "HF_TOKEN": server.TOKEN}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DD_HOME", str(place.home))
    published = library.push(set_of(finished), "hf:me/it", licence="mit")
    assert published.where == f"{hub.url}/datasets/me/it"
    here, there = library.load("hf:me/it"), library.load(set_of(finished))
    assert torch.equal(here.images, there.images)
    assert here.digest() == there.digest()


@pytest.fixture
def rethinkdc(few):
    """Parquet files as rethinkdc has them: PNG images and `class_id`, in two shards, classes in no order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folders = sorted((Path(few.partition(":")[2]) / "train").iterdir())
    rows = [(c, folder / f"{i}.png") for i in (3, 5) for c, folder in enumerate(folders)]
    found = {}
    for number, part in enumerate((rows[:3], rows[3:])):
        images = [{"bytes": path.read_bytes(), "path": path.name} for _, path in part]
        table = pa.table({"image": images, "class_id": pa.array([c for c, _ in part], pa.int32())})
        out = io.BytesIO()
        pq.write_table(table, out)
        found[f"data/train-{number:05d}-of-00002.parquet"] = out.getvalue()
    return found


STUDENTS = (
    "eval.students=2",
    "eval.epochs=2",
    "eval.pilots=1",
    "eval.full=false",
    "student.depth=1",
    "student.width=4",
)


@pytest.mark.parametrize("protocol", ["rethinkdc-hard", "rethinkdc-soft"])
def test_a_parquet_set_is_scored_under_its_protocol(hub, dd, few, rethinkdc, protocol):
    """Without a record; the soft protocol labels the views of set and control by a teacher."""
    hub.add("me/rethinkdc-random-ipc-2", {**rethinkdc, "README.md": b"# A set", "LICENSE": b"none"})
    teachers = ("teachers=convnet", "hours=1") if protocol == "rethinkdc-soft" else ()
    words = (few, f"eval.protocol={protocol}", *STUDENTS, *teachers, "device=cpu", "--json")
    ended = dd("eval", "hf:me/rethinkdc-random-ipc-2", *words)
    assert ended.code == 0, ended.err
    report = ended.report
    assert (report["protocol"]["protocol"], report["protocol"]["optimiser"]) == (protocol, "adamw")
    assert len(report["accuracy"]["values"]) == len(report["control"]["values"]) == 2
    assert (report["labels"] is not None) == (protocol == "rethinkdc-soft")
    assert report["dataset"]["name"] == few.partition("=")[2]


def test_a_folder_of_images_is_scored(hub, dd, few):
    """With files beside it that are no images."""
    root = Path(few.partition(":")[2]) / "train"
    images = {
        f"images/{folder.name}/{i}.png": (folder / f"{i}.png").read_bytes() for folder in root.iterdir() for i in (2, 4)
    }
    hub.add("me/pictures", {**images, "README.md": b"# A set", "other/x.txt": b"no image"})
    ended = dd("eval", "hf:me/pictures/images", few, *STUDENTS, "eval.protocol=rethinkdc-hard", "--json")
    assert ended.code == 0, ended.err
    assert ended.report["dataset"]["name"] == few.partition("=")[2]
    assert [line for line in hub.asked if "x.txt" in line or "README" in line] == []


def test_a_record_may_name_a_whole_repository(hub, dd, few, place):
    """As those of rethinkdc and D3HR do; what was measured is printed file by file."""
    root = Path(few.partition(":")[2]) / "train"
    pngs = {f"ipc2/{one.parent.name}/{one.name}": one.read_bytes() for one in root.glob("*/[24].png")}
    hub.add("they/them", {**pngs, "ipc2/train.txt": b"/home/they/x.png"})
    facts = f'method = "x"\ndataset = "{few.partition("=")[2]}"\nformat = "folder"\nwhere = ["hf:they/them/ipc2"]'
    (place.path / "index.toml").write_text(f'format = 1\n[[set]]\nname = "they/few-ipc2"\n{facts}\n')
    ended = dd("pull", "they/few-ipc2", "trust=true", "--json", DD_INDEX="index.toml")
    assert ended.code == 0, ended.err
    assert len(ended.report["measured"]) == 6
    assert len(library.load(ended.report["set"]).labels) == 6


def test_labels_of_views_in_a_folder_come_along(hub, dd, place):
    """As a run leaves them, two files an epoch; packed ones are tested with the sets that ship."""
    assert dd("pull", "cda/fashion-mini-ipc10", "out=mine").code == 0
    mine = place.path / "mine"
    paths = [path for path in mine.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors")]
    hub.add("me/soft", {f"a/{path.relative_to(mine)}": path.read_bytes() for path in paths})
    pulled = dd("pull", "hf:me/soft/a", "out=again")
    assert pulled.code == 0, pulled.err
    library.load(place.path / "again" / "set.safetensors").label_store()
    hub.add("me/bare", {"set.safetensors": (mine / "set.safetensors").read_bytes()})
    bare = dd("pull", "hf:me/bare")
    assert bare.code == 2
    assert "without the labels of its views" in bare.err


def test_a_record_of_others_leads_to_a_set(dd, place):
    """An index and a file of dataset condensation's format on the web: fetched, recognised, kept."""
    (place.path / "web").mkdir()
    dd("pull", "dm/fashion-mini-ipc1", "out=mine")
    assert dd("export", "mine", "form=pt", "out=web/res_DM.pt").code == 0
    handler = functools.partial(Quiet, directory=str(place.path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}"
        facts = 'method = "dm"\ndataset = "fashion-mini"\nformat = "dc"\nfiles = [{ path = "res_DM.pt" }]'
        index = f'format = 1\n[[set]]\nname = "they/fashion-mini-ipc1"\nwhere = ["{url}"]\n{facts}\n'
        (place.path / "web" / "index.toml").write_text(index)
        known = {"DD_INDEX": f"{url}/index.toml"}
        refused = dd("pull", "they/fashion-mini-ipc1", **known)
        assert refused.code == 2
        assert "nobody states a checksum of they/fashion-mini-ipc1" in refused.err
        pulled = dd("pull", "they/fashion-mini-ipc1", "trust=true", **known)
        assert pulled.code == 0, pulled.err
        sha256 = hashlib.sha256((place.path / "web" / "res_DM.pt").read_bytes()).hexdigest()
        assert f"sha256 {sha256}" in pulled.err
        web.shutdown()
    again = dd("pull", "they/fashion-mini-ipc1", "out=theirs", **known)
    assert again.code == 0, again.err
    assert torch.allclose(library.load(pulled.out.strip()).images, library.load(place.path / "mine").images, atol=1e-5)


def test_a_set_is_checked_for_what_its_name_says(hub, dd, rethinkdc):
    """And a name that says nothing asks for a word."""
    hub.add("me/fashion-mini-ipc2", rethinkdc)
    ended = dd("eval", "hf:me/fashion-mini-ipc2", *STUDENTS)
    assert (ended.code, ended.out) == (2, "")
    assert "8" in ended.err.splitlines()[-1], "pixels, where there should be 28"
    hub.add("me/something", rethinkdc)
    nameless = dd("eval", "hf:me/something", *STUDENTS)
    assert nameless.code == 2
    assert "dataset=" in nameless.err


def test_another_set_is_replaced_only_on_demand(hub, dd, finished, place):
    assert dd("push", str(finished.folder()), "hf:me/it").code == 0
    again = dd("push", str(finished.folder()), "hf:me/it", "--json")
    assert (again.code, again.report["commit"]) == (0, ""), "nothing new, no commit"
    other = dd("push", "dm/fashion-mini-ipc1", "hf:me/it")
    assert other.code == 2
    assert "hf:me/it holds another set; replace it with force=true" in other.err
    assert dd("push", "dm/fashion-mini-ipc1", "hf:me/it", "force=true").code == 0
    assert len(hub.repos["me/it"].commits) == 3


def test_downloads_that_are_cut_or_refused_go_on(hub, dd, finished, monkeypatch):
    monkeypatch.setattr("dd.released.hub.PAUSE", 0.01)
    dd("push", str(finished.folder()), "hf:me/it")
    hub.faults = ["503", "cut"]
    pulled = dd("pull", "hf:me/it")
    assert pulled.code == 0, pulled.err
    assert hub.faults == []


def test_a_file_that_is_not_what_the_hub_states_is_refused(hub, dd, finished):
    hub.add("me/it", {"set.safetensors": set_of(finished).read_bytes()})
    hub.wrong = {"set.safetensors": bytes(len(set_of(finished).read_bytes()))}
    pulled = dd("pull", "hf:me/it")
    assert pulled.code == 1
    assert "is not the file whose hash the Hub states" in pulled.err


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("pull", "hf:me/nothing"), 2, "the Hub has no such repository, or it is private and needs a token: HF_TOKEN"),
        (("pull", "hf:me/closed"), 2, "the Hub has no such repository, or it is private"),
        (("pull", "hf:me/it@v2"), 2, "the Hub has no revision 'v2' of it"),
        (("pull", "hf:me/it/nowhere"), 2, "hf:me/it/nowhere holds no files"),
        (("push", "dm/fashion-mini-ipc1", "hf:me/new"), 2, "tell its client who you are: HF_TOKEN"),
        (("push", "dm/fashion-mini-ipc1", "hf:me/new", "token=hf_secret"), 2, "a token cannot be a setting"),
        (("push", "dm/fashion-mini-ipc1", "hf:me/new@v1"), 2, "leave out @v1"),
    ],
)
def test_what_cannot_be_is_one_line(hub, dd, finished, words, code, line):
    hub.add("me/it", {"set.safetensors": set_of(finished).read_bytes()})
    hub.add("me/closed", {"set.safetensors": b"x"})
    hub.repos["me/closed"].private = True
    ended = dd(*words, token="")
    assert (ended.code, ended.out) == (code, "")
    assert line in ended.err
    assert "Traceback" not in ended.err
    assert "hf_secret" not in ended.err
    assert "me/new" not in hub.repos


def test_a_new_repository_may_be_private(hub, dd, finished):
    """Then others do not see it, and its owner does."""
    assert dd("push", str(finished.folder()), "hf:me/mine", "private=true").code == 0
    assert hub.repos["me/mine"].private
    assert dd("pull", "hf:me/mine").code == 0
    assert dd("pull", "hf:me/mine", token="", DD_HOME="elsewhere").code == 2


def test_a_wrong_token_is_not_shown(hub, dd, finished):
    ended = dd("push", str(finished.folder()), "hf:me/it", token="hf_wrong")
    assert ended.code in (1, 2)
    assert "hf_wrong" not in ended.err
    assert "Traceback" not in ended.err


def test_a_folder_appears_whole_or_not_at_all(dd, finished, place):
    target = place.path / "published"
    pushed = dd("push", str(finished.folder()), "published")
    assert pushed.code == 0, pushed.err
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "data", "preview.png", "set.safetensors"]
    assert "is there already; replace it with force=true" in dd("push", str(finished.folder()), "published").err
    assert dd("push", str(finished.folder()), "published", "force=true").code == 0
    (place.path / "mine").mkdir()
    (place.path / "mine" / "thesis.txt").write_text("years of work")
    refused = dd("push", str(finished.folder()), "mine", "force=true")
    assert refused.code == 2
    assert "choose another folder" in refused.err
    assert place.half_written() == []


def test_the_verbs_need_no_hub_for_what_ships(place):
    with place.entered(DD_OFFLINE="1"):
        assert run_command_line(["pull", "random/fashion-mini-ipc1"]) == 0


def test_a_set_of_others_says_so_in_its_card(place):
    """And its publisher is reminded of its licence; a folder's own path is nobody's business."""
    for words in (("pull", "dm/fashion-mini-ipc1", "out=mine"), ("export", "mine", "form=pt", "out=res_DM.pt")):
        assert place.dd(*words).code == 0
    made = place.dd("import", "res_DM.pt", "dataset=fashion-mini", "out=theirs.safetensors")
    assert made.code == 0, made.err
    pushed = place.dd("push", "theirs.safetensors", "published")
    assert pushed.code == 0, pushed.err
    assert "others made this set: check that its licence allows publishing it" in pushed.err
    text = (place.path / "published" / "README.md").read_text()
    assert "imported from res_DM.pt (format dc)" in text
    assert "It was not scored when this was written." in text
    assert "license: unknown" in text
    assert str(place.path) not in text
