import contextlib
import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time

import pytest
import torch

from dd.errors import RunError, UsageError
from dd.io import Taken, locked, sealed, sha256_file
from dd.runs import Store, sharing
from dd.runs.sharing import Offer
from dd.runs.store import Wanted

SPEC = {"dataset": "toy", "lr": 0.1, "shape": (2, 3), "seed": 0}


class Maker:
    """Makes tensors, and counts how often it was asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"w": torch.arange(6.0).reshape(2, 3), "i": torch.tensor(7)}, {"accuracy": 0.5}


def test_what_is_made_is_kept_and_found(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="dd.runs")
    make = Maker()
    first = Store(tmp_path).tensors("experts", SPEC, make, "expert 3 of toy")
    again = Store(tmp_path).tensors("experts", dict(reversed(SPEC.items())), make, "expert 3 of toy")
    assert make.calls == 1
    assert (first.made, again.made) == (True, False)
    assert again.tensors is not None
    assert torch.equal(again.tensors["w"], torch.arange(6.0).reshape(2, 3))
    assert again.tensors["i"].shape == ()
    assert (again.info, again.seconds, again.key) == ({"accuracy": 0.5}, first.seconds, first.key)
    assert [r.getMessage().split(" in ")[0] for r in caplog.records] == ["made expert 3 of toy", "kept expert 3 of toy"]


def test_the_manifest_says_what_it_is(tmp_path):
    artefact = Store(tmp_path).tensors("experts", SPEC, Maker())
    manifest = json.loads(Store(tmp_path).path("experts", SPEC).read_text())
    assert manifest["spec"] == {**SPEC, "shape": [2, 3]}
    assert manifest["sha256"] == sha256_file(artefact.path)
    assert manifest["bytes"] == artefact.path.stat().st_size
    assert artefact.path == tmp_path / "experts" / f"{artefact.key}.safetensors"


def test_a_manifest_from_before_there_were_seals_is_kept(tmp_path):
    path = tmp_path / Store(tmp_path).tensors("experts", SPEC, Maker()).path
    manifest = path.with_suffix(".json")
    facts = json.loads(manifest.read_text())
    del facts["seal"]
    manifest.write_text(json.dumps(facts))
    assert not Store(tmp_path).tensors("experts", SPEC, Maker()).made


@pytest.mark.parametrize("value", [None, 0, 1 / 3, "text", [1, [2.5, None]], {"b": 1, "a": {"x": True}}])
def test_plain_values(tmp_path, value):
    made = Store(tmp_path).value("full", SPEC, lambda: value)
    kept = Store(tmp_path).value("full", SPEC, lambda: pytest.fail("made again"))
    assert made.value == kept.value == value
    assert (made.made, kept.made, kept.tensors) == (True, False, None)
    assert Store(tmp_path).has("full", SPEC)


def test_another_spec_or_kind_is_another_artefact(tmp_path):
    store, make = Store(tmp_path), Maker()
    keys = {store.tensors("experts", {**SPEC, "seed": seed}, make).key for seed in range(3)}
    assert len(keys) == 3
    store.tensors("teachers", {**SPEC, "seed": 0}, make)
    assert make.calls == 4


def test_has_and_peek_make_nothing(tmp_path):
    store = Store(tmp_path / "not" / "there")
    assert not store.has("experts", SPEC)
    assert store.peek("experts", SPEC) is None
    assert os.listdir(tmp_path) == []
    store.tensors("experts", SPEC, Maker())
    assert store.has("experts", SPEC)
    found = store.peek("experts", SPEC)
    assert found is not None
    assert not found.made


def test_force_makes_it_anew_while_the_old_one_is_in_use(tmp_path):
    store = Store(tmp_path)
    old = store.tensors("experts", SPEC, Maker())
    new = store.tensors("experts", SPEC, lambda: ({"w": torch.zeros(1000)}, {}), force=True)
    assert new.made
    assert old.tensors is not None
    assert old.tensors["w"].sum() == 15
    assert store.tensors("experts", SPEC, Maker()).tensors["w"].shape == (1000,)  # pyright: ignore


def flip_a_byte(payload, manifest):
    raw = bytearray(payload.read_bytes())
    raw[-2] ^= 1
    payload.write_bytes(raw)


def truncate(payload, manifest):
    payload.write_bytes(payload.read_bytes()[:-5])


def delete(payload, manifest):
    payload.unlink()


def empty_manifest(payload, manifest):
    manifest.write_text("")


def odd_manifest(payload, manifest):
    manifest.write_text("[]")


def other_spec(payload, manifest):
    manifest.write_text(manifest.read_text().replace("toy", "cifar10"))


def another_fact(payload, manifest):
    text = manifest.read_text()
    assert '"accuracy": 0.5' in text
    manifest.write_text(text.replace('"accuracy": 0.5', '"accuracy": 0.7'))


def deep_manifest(payload, manifest):
    manifest.write_text("[" * 100_000)


def odd_facts(payload, manifest):
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(sealed({name: 3 for name in facts if name != "seal"} | {"spec": facts["spec"]})))


def a_pipe_for_a_payload(payload, manifest):
    payload.unlink()
    os.mkfifo(payload)


def a_pipe_for_a_manifest(payload, manifest):
    manifest.unlink()
    os.mkfifo(manifest)


DAMAGE = [another_fact, flip_a_byte, truncate, delete, empty_manifest, odd_manifest, other_spec, deep_manifest]
DAMAGE += [odd_facts, a_pipe_for_a_payload, a_pipe_for_a_manifest]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artefact_is_noticed_named_and_made_anew(tmp_path, caplog, damage):
    path = Store(tmp_path).tensors("experts", SPEC, Maker()).path
    manifest = Store(tmp_path).path("experts", SPEC)
    damage(path, manifest)
    assert Store(tmp_path).peek("experts", SPEC) is None
    make = Maker()
    again = Store(tmp_path).tensors("experts", SPEC, make, "expert 3 of toy")
    assert make.calls == 1
    assert again.tensors is not None
    assert torch.equal(again.tensors["w"], torch.arange(6.0).reshape(2, 3))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "expert 3 of toy" in warning
    assert str(manifest) in warning
    assert Store(tmp_path).peek("experts", SPEC) is not None


def test_a_damaged_value_is_made_anew(tmp_path):
    Store(tmp_path).value("full", SPEC, lambda: 1)
    manifest = Store(tmp_path).path("full", SPEC)
    manifest.write_text(manifest.read_text().replace('"value": 1', '"value": 2'))
    assert Store(tmp_path).value("full", SPEC, lambda: 1).value == 1


def test_a_maker_that_fails_leaves_nothing_behind(tmp_path):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Store(tmp_path).tensors("experts", SPEC, fail)
    assert not Store(tmp_path).has("experts", SPEC)
    assert Store(tmp_path).tensors("experts", SPEC, Maker()).made


def test_a_store_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write to .*DD_HOME"):
        Store(tmp_path / "file").tensors("experts", SPEC, Maker())


def test_the_root_is_dd_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    assert Store().root == tmp_path / "home"


WORKER = """
import os, sys, time
from pathlib import Path
import torch
from dd.io import atomic_path
from dd.runs import Store
from dd.runs.store import Wanted

root, mode = Path(sys.argv[1]), sys.argv[2]

def make():
    with open(root / "calls", "a") as calls:
        calls.write("x")
    if mode == "hang":
        with atomic_path(root / "experts" / (Path(store.path("experts", {"seed": 1})).stem + ".safetensors")) as half:
            half.write_bytes(b"half")
            print("making", flush=True)
            time.sleep(60)
    time.sleep(0.3)
    return {"w": torch.arange(3.0)}, {}

store = Store(root)
found = store.tensors("experts", {"seed": 1}, make)
print(found.made, found.tensors["w"].tolist(), flush=True)
"""


def start(root, mode):
    return subprocess.Popen([sys.executable, "-c", WORKER, root, mode], stdout=subprocess.PIPE, text=True)


def test_processes_that_need_the_same_artefact_make_it_once(tmp_path):
    workers = [start(tmp_path, "make") for _ in range(3)]
    said = sorted(worker.communicate(timeout=120)[0] for worker in workers)
    assert said == ["False [0.0, 1.0, 2.0]\n"] * 2 + ["True [0.0, 1.0, 2.0]\n"]
    assert (tmp_path / "calls").read_text() == "x"


def test_a_maker_that_is_killed_leaves_neither_half_an_artefact_nor_a_lock(tmp_path):
    with start(tmp_path, "hang") as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        worker.kill()
    store = Store(tmp_path)
    assert not store.has("experts", {"seed": 1})
    assert store.peek("experts", {"seed": 1}) is None
    began = time.monotonic()
    assert store.tensors("experts", {"seed": 1}, Maker()).made
    assert time.monotonic() - began < 10
    key = store.path("experts", {"seed": 1}).stem
    assert sorted(os.listdir(tmp_path / "experts")) == [f"{key}.json", f"{key}.lock", f"{key}.safetensors"]


def test_an_unfinished_making_has_a_file_that_goes_with_it(tmp_path):
    store = Store(tmp_path)
    path = store.unfinished("experts", SPEC)
    path.parent.mkdir()
    path.write_bytes(b"half")
    assert not store.has("experts", SPEC)
    assert not list(store.manifests("experts"))
    store.tensors("experts", SPEC, Maker())
    assert path.read_bytes() == b"half"  # it is its maker's to delete
    store.remove("experts", SPEC)
    assert not path.exists()


@pytest.mark.parametrize("kept", [".json", ".safetensors", ".unfinished.safetensors", ".unfinished.previous"])
def test_whatever_a_killed_removal_left_is_removed_by_the_next(tmp_path, kept):
    store = Store(tmp_path)
    path = store.tensors("experts", SPEC, Maker()).path
    unfinished = store.unfinished("experts", SPEC)
    unfinished.write_bytes(b"half")
    unfinished.with_suffix(".previous").write_bytes(b"half")
    for file in tmp_path.glob("experts/*"):
        if file.name not in (f"{path.stem}{kept}", f"{path.stem}.lock"):
            file.unlink()
    assert store.remove("experts", SPEC) > 0
    assert [file.name for file in tmp_path.glob("experts/*")] == [f"{path.stem}.lock"]


def test_nothing_is_touched_to_remove_what_is_not_there(tmp_path):
    assert Store(tmp_path).remove("experts", SPEC) == 0
    assert not list(tmp_path.iterdir())


def test_others_are_removed_with_all_that_was_left_of_them(tmp_path):
    store = Store(tmp_path)
    for seed in range(4):
        store.tensors("labels", SPEC | {"seed": seed}, Maker())
    orphan, listed, kept = (store.path("labels", SPEC | {"seed": seed}) for seed in range(3))
    orphan.unlink()
    listed.with_suffix(".safetensors").unlink()
    half, note = tmp_path / "labels" / f".{'f' * 16}.json.half", tmp_path / "labels" / "README.md"
    half.touch()
    note.touch()
    store.remove_others("labels", [SPEC | {"seed": 2}])
    left = sorted(file.name for file in tmp_path.glob("labels/*") if file.suffix != ".lock")
    assert left == sorted([kept.name, kept.with_suffix(".safetensors").name, note.name])


def test_a_note_leaves_nothing_half_written(tmp_path):
    store = Store(tmp_path)
    store.note("pools", SPEC, {"shards": 1})
    path = store.path("pools", SPEC)
    stale = path.with_name(f".{path.name}.killed.json")
    stale.touch()
    store.note("pools", SPEC, {"shards": 2})
    assert json.loads(path.read_text())["shards"] == 2
    assert not stale.exists()


def test_what_cannot_be_listed_takes_no_room(tmp_path):
    """The manifest does not fit on the disk any more: its payload goes, too."""
    store, before = Store(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    payload = store.tensors("experts", SPEC, Maker()).path.stat().st_size
    other = {**SPEC, "note": "x" * (payload + 1000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (payload + 500, before[1]))
    try:
        with pytest.raises(RunError, match=r"file too large while writing .*\.json"):
            store.tensors("experts", other, Maker())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list(tmp_path.glob("experts/*.safetensors"))) == 1
    assert store.tensors("experts", other, Maker()).made


def wanted(count):
    return [Wanted("experts", {**SPEC, "member": member}, f"expert {member}") for member in range(count)]


def lock_of(store, one):
    return store.path(one.kind, one.spec).with_suffix(".lock")


def test_each_returns_in_order_and_makes_first_what_nobody_is_making(tmp_path):
    store, many, order = Store(tmp_path), wanted(4), []

    def fetch(at):
        order.append(at)
        if at == 3:  # its maker is done
            elsewhere.close()
        return store.value(*many[at][:2], lambda: 10 * at).value

    with contextlib.ExitStack() as elsewhere:
        for at in (0, 2):
            elsewhere.enter_context(locked(lock_of(store, many[at]), "another process"))
        assert store.each(many, fetch) == [0, 10, 20, 30]
    assert order == [0, 1, 2, 3, 0, 2]  # asks for all, and again for what was taken


def test_what_exists_is_fetched_even_if_it_is_locked(tmp_path):
    store, (one,) = Store(tmp_path), wanted(1)
    store.value(*one[:2], lambda: 1)
    with locked(lock_of(store, one), "another process"), sharing.waiting(False):
        assert store.each([one], lambda _: store.value(*one[:2], lambda: 2).value) == [1]


def test_a_process_that_waits_for_nobody_makes_what_is_free_and_ends(tmp_path):
    store, many, made = Store(tmp_path), wanted(3), []

    def fetch(at):
        return store.value(*many[at][:2], lambda: made.append(at) or at, many[at].words).value

    with locked(lock_of(store, many[1]), "another process"):
        with sharing.waiting(False), pytest.raises(Taken, match="expert 1"):
            store.each(many, fetch)
        assert made == [0, 2]
        assert store.each(many, fetch, instead=-1) == [0, -1, 2]
    assert store.each(many, fetch) == [0, 1, 2]


def test_what_a_unit_needs_while_it_is_made_is_waited_for(tmp_path, caplog):
    store, (unit, needed) = Store(tmp_path), wanted(2)
    held = threading.Event()

    def elsewhere():
        with locked(lock_of(store, needed), "another process"):
            held.set()
            time.sleep(0.3)

    threading.Thread(target=elsewhere).start()
    held.wait()

    def make():
        return store.value(*needed[:2], lambda: 1).value

    with sharing.waiting(False):
        assert store.value(*unit[:2], make).value == 1
    assert "waiting for another process" in caplog.text


def test_a_leading_process_says_what_is_missing_as_long_as_it_is(tmp_path):
    store, many, file, seen = Store(tmp_path), wanted(3), tmp_path / "jobs" / "offer.json", []
    store.value(*many[0][:2], lambda: 0)

    def fetch(at):
        seen.append(Offer.read(file))
        return store.value(*many[at][:2], lambda: at).value

    with sharing.leading(file):
        store.each(many, fetch)  # in no stage that can be shared
        with sharing.stage("prepare"):
            store.each(many, fetch)  # everything is there
        for one in many[1:]:
            store.remove(*one[:2])
        with sharing.stage("prepare", ahead=9):
            store.each(many, fetch)
            store.remove(*many[2][:2])
            store.each(many, fetch)
        assert not file.exists()
    offers = [None if one is None else (one.stage, one.units) for one in seen]
    assert offers == [None] * 6 + [("prepare", 9)] * 3 + [("prepare", 1)] * 3
    with sharing.stage("prepare"):
        store.remove(*many[2][:2])
        store.each(many, fetch)
    assert seen[-1] is None


PROCESS = """
import sys, time
from pathlib import Path
from dd.runs.store import Store, Wanted
store = Store(Path(sys.argv[1]))
many = [Wanted("experts", {"member": member}, f"expert {member}") for member in range(8)]
made = store.each(many, lambda at: store.value(*many[at][:2], lambda: time.sleep(0.3), many[at].words).made)
print(sum(made))
"""


def test_processes_divide_the_work_and_take_over_what_a_killed_one_leaves(tmp_path):
    def start():
        return subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)

    killed, others = start(), [start(), start()]
    while not list(tmp_path.glob("experts/*.lock")):
        time.sleep(0.01)
    killed.kill()
    assert killed.communicate(timeout=60)[0] == ""
    counts = [int(other.communicate(timeout=60)[0]) for other in others]
    done = list(Store(tmp_path).manifests("experts"))
    assert len(done) == 8
    assert sum(counts) <= 8  # the killed one may have finished some
    assert min(counts) > 0


def test_a_value_that_lacks_something_is_made_again_once(tmp_path):
    store, calls = Store(tmp_path), []

    def make():
        calls.append(1)
        return {"curve": len(calls)}

    def value(least):
        return store.value("students", SPEC, make, enough=lambda row: row["curve"] >= least).value

    assert [value(1), value(1), value(2), value(2), value(1)] == [{"curve": 1}] * 2 + [{"curve": 2}] * 3
    assert len(calls) == 2
