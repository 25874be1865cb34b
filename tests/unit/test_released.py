"""Records of released sets: what an index may say, where files come from, what is refused."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dd
from dd.cli.main import run_command_line
from dd.errors import RunError, UsageError
from dd.released import index as module
from dd.released.fetch import fetch, take
from dd.released.hub import HubPlace, hub_place
from dd.released.index import known_set, known_sets, package_folder, search
from dd.released.presets import preset
from dd.released.pull import copied, is_released, pull
from dd.released.record import Released, ReleasedFile
from dd.sets import DistilledSet, load, save


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def a_set(tmp_path):
    """The file of a small set, and its hash."""
    path = tmp_path / "there" / "set.safetensors"
    path.parent.mkdir()
    images = torch.arange(16.0).reshape(4, 1, 2, 2)
    space = {"kind": "standard", "mean": [0.5], "std": [0.25]}
    save(DistilledSet(images, torch.tensor([0, 0, 1, 1]), ("a", "b"), "somewhere", space=space), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def written(tmp_path, *sets, name="index.toml"):
    """An index with these records."""
    path = tmp_path / name
    path.write_text("format = 1\n" + "".join(f"[[set]]\n{text}\n" for text in sets), encoding="utf-8")
    return path


def record(a_set, **changes):
    path, sha256 = a_set
    file = ReleasedFile("set.safetensors", path.stat().st_size, sha256)
    return replace(Released("x/y-ipc2", "x", "somewhere", 2, where=(str(path.parent),), files=(file,)), **changes)


def test_every_record_of_the_package_is_whole():
    """Each is well typed, none is left out; what ships is there to the bit, and small."""
    own = [place for place in module.PACKAGE if Path(place).is_file()]
    assert len(own) == 2
    indexes = [module._read(place) for place in own]
    assert [one.problems for one in indexes] == [(), ()]
    records = [known for one in indexes for known in one.records]
    assert len({one.name for one in records}) == len(records)
    for one in records:
        assert one.where or one.page or one.status == "gone", one.name
    shipped = indexes[0].records
    assert len(shipped) >= 8
    assert sum(one.size for one in shipped) < 8_000_000
    for one in shipped:
        assert one.is_sealed
        assert one.scores[0].control is not None
        below = package_folder() / one.where[0].removeprefix("package:")
        for file in one.files:
            assert hashlib.sha256((below / file.path).read_bytes()).hexdigest() == file.sha256
        assert "out=" not in str(load(below / "set.safetensors").provenance["command"])


def test_a_search_looks_at_everything(a_set):
    known = {one.name: one for one in (record(a_set), record(a_set, name="x/z-ipc9", ipc=9, licence="MIT"))}
    assert [one.name for one in search(["IPC9", "mit"], known)] == ["x/z-ipc9"]
    assert len(search([], known)) == 2
    assert search(["nothing"], known) == []


def test_an_index_of_ones_own(a_set, tmp_path, monkeypatch, caplog):
    sha256 = a_set[1]
    good = (
        'name = "x/y-ipc2"\nmethod = "x"\ndataset = "somewhere"\nwhere = ["there"]\n'
        f'files = [{{ path = "set.safetensors", sha256 = "{sha256}" }}]'
    )
    index = written(tmp_path, good)
    monkeypatch.setenv("DD_INDEX", str(index))
    assert known_set("x/y-ipc2").where == (str(tmp_path / "there"),), "below the index"
    path = pull("x/y-ipc2").path
    assert path.read_bytes() == a_set[0].read_bytes()
    assert path.is_relative_to(tmp_path / "home" / "released")
    (tmp_path / "there" / "set.safetensors").unlink()
    assert pull("x/y-ipc2").path == path, "it is here"
    assert is_released("x/y-ipc2")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y-ipc2").mkdir()
    assert not is_released("x/y-ipc2"), "a path comes first"


def test_what_is_broken_takes_nothing_else_down(a_set, tmp_path, monkeypatch, caplog):
    good = 'name = "x/y-ipc2"\nmethod = "x"\ndataset = "d"'
    bad = (
        'name = "x/a-ipc1"\nmethod = "x"\ndataset = "d"\nsiez = 3',
        'name = "no slash"\nmethod = "x"\ndataset = "d"',
        'name = "x/b-ipc1"\nmethod = "x"\ndataset = "d"\nfiles = [{ path = "../up" }]',
        'name = "x/c-ipc1"\nmethod = "x"\ndataset = "d"\nfiles = [{ path = "a", sha256 = "12" }]',
        'name = "x/d-ipc1"\nmethod = "x"\ndataset = "d"\nwhere = ["package:dm-fashion-mini-ipc1"]',
    )
    one, two = written(tmp_path, *bad, good), written(tmp_path, good, name="two.toml")
    (tmp_path / "three.toml").write_text("[[set", encoding="utf-8")
    (tmp_path / "four.toml").write_text("format = 2", encoding="utf-8")
    places = (one, two, tmp_path / "three.toml", tmp_path / "four.toml", tmp_path / "none.toml")
    monkeypatch.setenv("DD_INDEX", " , ".join(map(str, places)))
    known = known_sets()
    assert [name for name in known if name.startswith("x/")] == ["x/y-ipc2"]
    for words in (
        "unknown key 'set 1 (x/a-ipc1).siez'",
        "'no slash' is not METHOD/DATASET-ipcN",
        "path '../up' is not one below a folder",
        "set 4 (x/c-ipc1)",
        "package:dm-fashion-mini-ipc1 is for the package's own records",
        f"x/y-ipc2 is left out: {one} has the name",
        "three.toml: it is not TOML",
        "its format is 2; this dd reads format 1",
        "none.toml: no such file",
    ):
        assert words in caplog.text


def test_a_name_that_nobody_has():
    near = "released set 'dm/fashion-mini-ipc2'; did you mean 'dm/fashion-mini-ipc1' or 'd"
    with pytest.raises(UsageError, match=f"unknown {near}"):
        pull("dm/fashion-mini-ipc2")
    with pytest.raises(UsageError, match=rf"no set at .*/dm/fashion-mini-ipc2, and no {near}"):
        dd.load("dm/fashion-mini-ipc2")
    with pytest.raises(UsageError, match=r"no set at .*/other.safetensors; `dd run` writes one"):
        dd.load("other.safetensors")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sets dm/fashion-mini-ipc2", "unknown released set 'dm/fashion-mini-ipc2'; did you mean 'dm/fashion-"),
        ("sets cifra10 ipc10", "unknown word 'cifra10'; did you mean 'cifar10'"),
        ("sets qqq", "unknown released set 'qqq'; `dd sets` lists all"),
        ("sets cifar10 tiny-imagenet", "no released set has 'cifar10' and 'tiny-imagenet'"),
        ("pull dm/fashion-mini-ipc2", "unknown released set"),
        ("eval dm/fashion-mini-ipc2", "did you mean 'dm/fashion-mini-ipc1'"),
        ("import hf:user/name", "hf:user/name is not a file on this machine; to fetch it: dd pull hf:user/name"),
        ("import https://huggingface.co/datasets/user/name", "to fetch it: dd pull hf:user/name"),
        ("import https://example.org/x.pt", "dd pull NAME for a set of `dd sets`"),
    ],
)
def test_what_is_nowhere_is_answered_with_what_is_near(capsys, line, words):
    assert run_command_line(line.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["eval", ""], "''"),
        (["import", "", "dataset=fashion-mini"], "''"),
        (["export", "", "form=pt"], "''"),
        (["push", "dm/fashion-mini-ipc1", ""], "''"),
        (["pull", "dm/fashion-mini-ipc1", "out="], "out="),
        (["export", "dm/fashion-mini-ipc1", "form=pt", "out="], "out="),
        (["run", "method=random", "out="], "out="),
        (["sweep", ""], "sweep="),
        (["show", "recipe="], "recipe="),
        (["new", "sweep", "method=dm", "to="], "to="),
    ],
)
def test_an_empty_path_is_not_the_current_folder(capsys, tmp_path, monkeypatch, words, what):
    monkeypatch.chdir(tmp_path)
    assert run_command_line(words) == 2
    assert f"{what}: a path cannot be empty" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}


def test_what_is_gone_and_what_comes_by_hand(a_set):
    with pytest.raises(UsageError, match="x/y-ipc2 is gone: taken away"):
        fetch(record(a_set, status="gone", note="taken away"), Path("files"), trust=True)
    with pytest.raises(UsageError, match="get it from https://host, then type dd pull x/y-ipc2 from=FILE"):
        fetch(record(a_set, where=(), page="https://host"), Path("files"), trust=True)


def test_files_that_were_fetched_by_hand(a_set, tmp_path):
    path, sha256 = a_set
    (came,) = take(record(a_set, where=()), [path], tmp_path / "files")
    assert (came.path, came.sha256) == (tmp_path / "files" / "set.safetensors", sha256)
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with pytest.raises(UsageError, match=r"is not what x/y-ipc2 is: .* has 5 bytes, not the published"):
        take(record(a_set, where=()), [other], tmp_path / "more")
    with pytest.raises(UsageError, match="x/y-ipc2 has 1 files"):
        take(record(a_set), [path, path], tmp_path / "more")
    assert not list(tmp_path.glob("more/*"))


def test_other_files_by_hand_take_the_place_of_the_first(a_set, tmp_path):
    by_hand = record(a_set, where=(), files=())
    one, two = tmp_path / "one" / "x.pt", tmp_path / "two" / "x.pt"
    for path in (one, two):
        path.parent.mkdir()
        path.write_bytes(path.parent.name.encode())
    for path in (one, two):
        (came,) = take(by_hand, [path], tmp_path / "files")
        assert came.path.read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="two files have the same name"):
        take(by_hand, [one, two], tmp_path / "files")
    with pytest.raises(UsageError, match="is not one below a folder"):
        take(by_hand, [tmp_path / ".hidden"], tmp_path / "files")


def test_what_was_damaged_since_is_fetched_again(a_set, tmp_path):
    (came,) = fetch(record(a_set), tmp_path / "files", trust=False)
    came.path.write_bytes(b"damaged")
    (again,) = fetch(record(a_set), tmp_path / "files", trust=False)
    assert again.path.read_bytes() == a_set[0].read_bytes()


def test_without_a_checksum_it_takes_a_word(a_set, tmp_path):
    unknown = record(a_set, files=(ReleasedFile("set.safetensors"),))
    with pytest.raises(
        UsageError, match=r"nobody states a checksum of x/y-ipc2, .*\(licence: not stated\).*trust=true"
    ):
        fetch(unknown, tmp_path / "files", trust=False)
    (came,) = fetch(unknown, tmp_path / "files", trust=True)
    assert came.sha256 == a_set[1]


def test_a_mirror_is_asked_next(a_set, tmp_path):
    places = (str(tmp_path / "nowhere"), a_set[0].parent.as_uri().replace("file://", "local://"))
    (came,) = fetch(record(a_set, where=places), tmp_path / "files", trust=False)
    assert came.path.read_bytes() == a_set[0].read_bytes()


def test_a_changed_file_is_refused(a_set, tmp_path):
    a_set[0].write_bytes(a_set[0].read_bytes()[:-1] + b"?")
    for where in (str(a_set[0].parent), f"local://{a_set[0].parent}"):
        with pytest.raises(ConnectionError, match=r"the sha256 of .* not the published"):
            fetch(record(a_set, where=(where,)), tmp_path / "files", trust=False)
    assert not [path for path in tmp_path.glob("files/*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nosuchprotocol://host", "nosuchprotocol"),
        ("zip://x::local:///tmp/y", "one file inside of another"),
        ("memory://nothing", "nothing"),
    ],
)
def test_places_that_fsspec_cannot_open(a_set, tmp_path, where, words):
    with pytest.raises((UsageError, ConnectionError), match=words):
        fetch(record(a_set, where=(where,)), tmp_path / "files", trust=False)


def test_fsspec_opens_other_places(a_set, tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe("/sets/set.safetensors", a_set[0].read_bytes())
    (came,) = fetch(record(a_set, where=("memory://sets",)), tmp_path / "files", trust=False)
    assert came.path.read_bytes() == a_set[0].read_bytes()
    fsspec.filesystem("memory").pipe("/sets/set.safetensors", bytes(10**6))
    with pytest.raises(ConnectionError, match="more than the published"):
        fetch(record(a_set, where=("memory://sets",)), tmp_path / "more", trust=False)


def test_another_set_is_not_overwritten(a_set, tmp_path):
    pulled = pull("dm/fashion-mini-ipc1")
    out = tmp_path / "out"
    target = copied(pulled, out)
    assert copied(pulled, out) == target, "the same one may come again"
    target.write_bytes(a_set[0].read_bytes())
    with pytest.raises(UsageError, match="is another set; choose another folder with out=FOLDER, or"):
        copied(pulled, out)
    copied(pulled, out, force=True)
    assert target.read_bytes() == pulled.path.read_bytes()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({"datase": "x"}, "unknown key 'datase'; did you mean 'dataset'"),
        (
            {"dataset": "cifar10"},
            "dm/fashion-mini-ipc1 is in dd's own format, which needs no options: leave out dataset=",
        ),
    ],
)
def test_a_set_of_ours_says_all_of_itself(tmp_path, said, answer):
    with pytest.raises(UsageError, match=answer):
        pull("dm/fashion-mini-ipc1", said)
    assert not (tmp_path / "home").exists()


def test_a_set_goes_into_a_folder(tmp_path):
    with pytest.raises(UsageError, match=r"mine.safetensors names a file; a set and its labels go into a folder"):
        copied(pull("dm/fashion-mini-ipc1"), tmp_path / "mine.safetensors")
    assert not (tmp_path / "mine.safetensors").exists()


def test_a_folder_that_cannot_be_made_is_one_line(a_set, tmp_path):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for place, answer in {"file/sets/mine": "cannot write to", "https://host/x": "is an address on the web"}.items():
        with pytest.raises(UsageError, match=answer):
            dd.push(a_set[0], place)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_no_set_is_fetched_again(a_set, tmp_path, monkeypatch):
    path, _ = a_set
    whole = path.read_bytes()
    text = 'name = "x/y-ipc2"\nmethod = "x"\ndataset = "somewhere"\nfiles = [{ path = "set.safetensors" }]\n'
    monkeypatch.setenv("DD_INDEX", str(written(tmp_path, f'{text}where = ["{path.parent.as_posix()}"]')))
    path.write_bytes(b"<html>come back later</html>")
    with pytest.raises(UsageError, match=r"set\.safetensors"):
        pull("x/y-ipc2", trust=True)
    path.write_bytes(whole)
    assert pull("x/y-ipc2", trust=True).path.read_bytes() == whole


def test_files_come_once_whatever_is_said_of_them(tmp_path, monkeypatch):
    shipped = dd.load("dm/fashion-mini-ipc1")
    there = tmp_path / "there" / "images.pt"
    there.parent.mkdir()
    torch.save(shipped.images, there)
    text = 'name = "x/y-ipc1"\nmethod = "x"\ndataset = "fashion-mini"\nformat = "tensors"\n'
    place = f'files = [{{ path = "images.pt" }}]\nwhere = ["{there.parent.as_posix()}"]'
    monkeypatch.setenv("DD_INDEX", str(written(tmp_path, text + place)))
    first = pull("x/y-ipc1", trust=True)
    there.unlink()
    second = pull("x/y-ipc1", {"lr": 0.5}, trust=True)
    assert (load(second.path).lr, load(first.path).lr) == (0.5, None)
    assert torch.equal(load(first.path).images, load(second.path).images)


def test_files_given_by_hand_are_taken_though_the_set_is_here(tmp_path):
    pull("dm/fashion-mini-ipc1")
    with pytest.raises(UsageError, match=r"nowhere: no such file"):
        pull("dm/fashion-mini-ipc1", by_hand=[tmp_path / "nowhere"])


def test_a_place_that_cannot_be_had_is_a_run_that_failed(tmp_path, monkeypatch):
    text = 'name = "x/y-ipc2"\nmethod = "x"\ndataset = "d"\nwhere = ["http://127.0.0.1:9"]\n'
    sha256 = "0" * 64
    monkeypatch.setenv("DD_INDEX", str(written(tmp_path, f'{text}files = [{{ path = "a", sha256 = "{sha256}" }}]')))
    with pytest.raises(RunError, match=r"x/y-ipc2 could not be fetched \(http://127.0.0.1:9/a: .*\); the same command"):
        pull("x/y-ipc2")


def test_an_index_from_the_web_names_no_file_of_this_machine():
    text = 'format = 1\n[[set]]\nname = "x/y-ipc2"\nmethod = "x"\ndataset = "d"\nwhere = ["/etc"]\n'
    found = module._parsed("https://host/index.toml", text, None)
    assert found.records == ()
    assert "which is on this machine" in found.problems[0]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf:me/it", HubPlace("me/it")),
        ("hf:me/it.v2-x@main", HubPlace("me/it.v2-x", "main")),
        ("hf:me/it@refs%2Fpr%2F1/a/b", HubPlace("me/it", "refs/pr/1", "a/b")),
        ("hf:me/it/a/", HubPlace("me/it", "", "a")),
    ],
)
def test_places_on_the_hub(text, place):
    assert hub_place(text) == place
    assert hub_place(str(place).replace("refs/pr/1", "refs%2Fpr%2F1")) == place


@pytest.mark.parametrize(
    "text", ["hf:me", "hf:", "hf:me/it/../up", "hf:me/it/.git", "hf:a b/c", "hf:me/it@", "hf:/x/y"]
)
def test_what_names_nothing_on_the_hub(text):
    with pytest.raises(UsageError, match="names nothing on the Hub"):
        hub_place(text)


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("he-yang/2025-rethinkdc-imagenet-rded-ipc-10", {"dataset": "imagenet-1k", "protocol": "rethinkdc-soft"}),
        ("me/my-cifar100-set", {"dataset": "cifar100"}),
        ("me/CIFAR_10", {"dataset": "cifar10"}),
        ("me/tiny-imagenet-ipc50", {"dataset": "tiny-imagenet"}),
        ("cifar10/other", {}),
        ("me/notcifar10x", {}),
    ],
)
def test_what_a_name_says(repo, said):
    found = preset(repo)
    assert {key: found.get(key) for key in said} == said
    assert bool(found) == bool(said)


def test_the_home_may_be_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match="set DD_HOME"):
        pull("dm/fashion-mini-ipc1")
    assert os.listdir(tmp_path) == ["file"]


def test_names_and_keys_are_completed():
    from dd.cli.completion import completed

    assert "dm/fashion-mini-ipc1" in completed("dd pull dm/fashion-mini-ipc")
    assert "dm/fashion-mini-ipc1" in completed("dd eval dm/fashion-mini-ipc")
    assert completed("dd pull dm/fashion-mini-ipc1 tr") == ["trust="]
    assert completed("dd push a b lic") == ["licence="]
    assert completed("dd pus") == ["push"]
