"""A store at an address: what one machine makes is there for others, and is made once."""

import json
import threading
import time
import uuid

import pytest
import torch

from dd.errors import RunError, UsageError
from dd.io import ObjectStore, Taken, creates_once, home, home_address
from dd.io import object_store as leases
from dd.runs import Store, sharing

SPEC = {"data": "toy", "member": 3}


class Maker:
    """Makes an artefact, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"w": torch.arange(6.0)}, {"n": 1}


@pytest.fixture
def place():
    """An address, in the memory of this process."""
    return ObjectStore(f"memory://{uuid.uuid4().hex}/dd", "DD_HOME=memory://")


@pytest.fixture
def machines(tmp_path, place):
    """The stores of two machines, which share nothing but the address."""
    return Store(tmp_path / "a", remote=place), Store(tmp_path / "b", remote=place)


@pytest.fixture
def quick(monkeypatch):
    """Leases that are renewed, and become stale, within a test."""
    for name, seconds in {"BEAT": 0.05, "STALE": 0.5, "_LOOK": 0.02}.items():
        monkeypatch.setattr(leases, name, seconds)


def test_what_one_machine_made_another_fetches(machines, tmp_path):
    one, two = machines
    made = one.tensors("experts", SPEC, Maker())
    one.value("scores", SPEC, lambda: [1, 2])
    assert two.has("experts", SPEC)
    assert [facts["spec"] for facts in two.manifests("experts")] == [SPEC]
    never = Maker()
    found = two.tensors("experts", SPEC, never)
    assert (never.calls, found.made) == (0, False)
    assert torch.equal(found.tensors["w"], made.tensors["w"])
    assert (found.info, found.seconds) == (made.info, made.seconds)
    assert two.value("scores", SPEC, never).value == [1, 2]
    assert two.damage("experts", SPEC) is None
    assert not list(tmp_path.glob("*/*/*.unsent"))


def test_what_belongs_to_a_machine_is_not_sent(machines):
    one, two = machines
    one.tensors("images", SPEC, Maker())
    one.note("own", SPEC, {})
    assert not two.has("images", SPEC)
    assert two.manifest("own", SPEC) is None


def test_a_copy_that_is_damaged_is_fetched_again(machines):
    one, two = machines
    one.tensors("experts", SPEC, Maker())
    copy = two.tensors("experts", SPEC, Maker()).path
    content = copy.read_bytes()
    copy.write_bytes(content[:-1] + b"?")
    again, never = Store(two.root, remote=two.remote), Maker()
    assert again.tensors("experts", SPEC, never).info == {"n": 1}
    assert never.calls == 0
    assert copy.read_bytes() == content


def test_what_is_damaged_at_the_address_is_made_again(machines, place):
    one, two = machines
    path = one.tensors("experts", SPEC, Maker()).path
    place.write(f"experts/{path.name}", path.read_bytes()[:-1] + b"?")
    make = Maker()
    two.tensors("experts", SPEC, make)
    assert make.calls == 1
    assert place.read(f"experts/{path.name}") == path.read_bytes()  # and sent
    place.write(f"experts/{path.stem}.json", b"[]")
    assert not Store(path.parent / "c", remote=place).has("experts", SPEC)


def test_what_could_not_be_sent_is_kept_and_sent_later(machines, monkeypatch):
    one, two = machines

    def fail(*_):
        raise RunError("cannot use")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "send", fail)
        with pytest.raises(RunError, match="cannot use"):
            one.tensors("experts", SPEC, Maker())
    assert not two.has("experts", SPEC)
    never = Maker()
    again = Store(one.root, remote=one.remote)  # the same command
    assert again.tensors("experts", SPEC, never).info == {"n": 1}
    assert never.calls == 0
    assert two.has("experts", SPEC)


def test_what_is_removed_is_gone_from_the_address(machines, place):
    one, two = machines
    one.tensors("experts", SPEC, Maker())
    assert one.remove("experts", SPEC) > 0
    assert not two.has("experts", SPEC)
    assert [name for name in place.names("experts") if "lease" not in name] == []


def test_two_machines_make_nothing_twice(machines, quick):
    one, two = machines
    began = threading.Event()

    class Slow(Maker):
        def __call__(self):
            began.set()
            time.sleep(1.0)  # twice the time after which a lease is stale, if it were not renewed
            return super().__call__()

    make, never = Slow(), Maker()
    first = threading.Thread(target=lambda: one.tensors("experts", SPEC, make))
    first.start()
    began.wait()
    with sharing.waiting(False), pytest.raises(Taken):
        two.tensors("experts", SPEC, never)
    assert two.tensors("experts", SPEC, never).info == {"n": 1}  # waits
    first.join()
    assert (make.calls, never.calls) == (1, 0)


def test_what_a_dead_machine_was_making_is_taken_over(machines, place, quick):
    _, two = machines
    name = two.path("experts", SPEC).stem
    place.write(f"experts/{name}.lease.4", json.dumps({"host": "dead", "pid": 1, "beat": 7}).encode())
    with sharing.waiting(False), pytest.raises(Taken):
        two.tensors("experts", SPEC, Maker())
    make, began = Maker(), time.monotonic()
    two.tensors("experts", SPEC, make)
    assert make.calls == 1
    assert time.monotonic() - began > 0.4
    assert place.names("experts", f"{name}.lease") == []


def test_machines_divide_several_artefacts(machines, quick):
    specs = [{"member": number} for number in range(6)]
    makers = [Maker(), Maker()]

    def work(number):
        from dd.runs.store import Wanted

        store, make = machines[number], makers[number]
        wanted = [Wanted("experts", spec, f"expert {spec['member']}") for spec in specs]

        def slowly():
            time.sleep(0.1)
            return make()

        found = store.each(wanted, lambda at: store.tensors("experts", specs[at], slowly).info)
        assert found == [{"n": 1}] * 6

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(make.calls for make in makers) == 6
    assert min(make.calls for make in makers) > 0


def test_the_home_is_an_address_or_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DD_HOME", "memory://bucket/dd/")
    assert home().parent == tmp_path / "dd" / "copies"
    there = home_address()
    assert there is not None
    assert there.address == "memory://bucket/dd"
    assert creates_once(there)
    assert there.names("") == []
    assert Store().remote is there
    assert Store(tmp_path).remote is None
    monkeypatch.setenv("DD_HOME", "memory://bucket/dd")  # the same place, and so the same copies
    assert home().name == Store().root.name
    monkeypatch.setenv("DD_HOME", str(tmp_path))
    assert (home(), home_address()) == (tmp_path, None)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ftpp://bucket", "DD_HOME=ftpp://bucket: Protocol not known: ftpp"),
        ("file:///proc/nothing", r"cannot use DD_HOME=file:///proc/nothing \(.*; give another address, or a folder"),
    ],
)
def test_an_address_that_cannot_be_used_is_said_in_one_line(address, why, monkeypatch):
    monkeypatch.setenv("DD_HOME", address)
    there = home_address()
    assert there is not None
    with pytest.raises(UsageError, match=why):
        there.write("experts/key.json", b"{}")
