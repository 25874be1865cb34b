"""Whatever a stranger sends, set, labels, recipe or teacher: it is used, or refused with exit code 2 and one line.

Cases are drawn from what the files hold: a value somewhere in them becomes one of another type, level, size or
spelling, or bytes of the file change.  Each ends within seconds and takes little memory.
"""

import copy
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dd.data import DataSettings, open_data
from dd.errors import printable
from dd.evaluation import PROTOCOLS
from dd.io import save_tensors
from dd.labels import LabelSettings, LabelStore
from dd.labels.spec import LabelSpec
from dd.networks import NetworkSpec, build_network
from dd.recipes import resolve
from dd.sets import DistilledSet, save
from dd.sets.formats import FORMAT
from dd.training.squeeze import SqueezeSettings
from dd.views import ViewPolicy

from .conftest import Ended, Place

SAMPLED = 40  # cases of each sort, every time
THOROUGH = 800  # and in `make test-slow`
SECONDS, BYTES, LONGEST = 5.0, 500 << 20, 2000  # of a call, above what was held before; characters of a line
NETWORK = NetworkSpec("convnet", depth=1, width=4, norm="batch")
EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\u2028\x7f"
BRIEF = ("device=cpu", "compile=false", "hours=0.001")


# --- what is changed --------------------------------------------------------------------------------------------------


def deep(levels: int, value: Any = 1) -> Any:
    for number in range(levels):
        value = {"a": value} if number % 2 else [value]
    return value


def strange(rng: random.Random, value: Any) -> Any:
    """In place of a value one that nobody meant."""
    number = rng.choice([-1, 0, 1, 2, 3, 7, 1e-300, -0.0, 0.5, 1e15, 10**15, 2**31, 2**63, 2**64, 10**300, 1e308])
    number = rng.choice([number, number, float("nan"), float("inf"), -float("inf")])
    text = rng.choice(
        ["", "x", EVIL, "../" * 9, "/etc/passwd", "folder:/proc", "a\0b", "9" * 5000, "é" * 300, "\ud800"]
    )
    other = rng.choice([None, True, False, [], {}, [[]], [value], {"a": value}, [value] * 1000, deep(40), deep(900)])
    near = value
    if isinstance(value, bool):
        near = not value
    elif isinstance(value, int | float):
        near = rng.choice([-value, value * 1000, value + 0.5, str(value), value * 10**18])
    elif isinstance(value, str):
        near = rng.choice([value.upper(), value + " ", value[:-1], value * 3, [value]])
    elif isinstance(value, list):
        near = rng.choice([value[:-1], value * 2, value[::-1], dict.fromkeys(map(str, value), 1)])
    return rng.choice([number, text, other, near])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value, with every key of it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


def changed(rng: random.Random, whole: Any) -> tuple[Any, str]:
    """A copy with one or two places changed, and what was."""
    found, said = copy.deepcopy(whole), []
    for _ in range(rng.choice([1, 1, 1, 2])):
        holder, key = rng.choice(list(places(found)))
        way = rng.choice(["value", "value", "value", "key", "more", "less", "level"])
        before = holder[key]
        if way == "key" and isinstance(holder, dict):
            name = rng.choice([key[:-1] + "x", key.upper(), EVIL, "", key * 50, "__class__"])
            holder[name] = holder.pop(key)
        elif way == "more" and isinstance(holder, dict):
            holder[rng.choice(["more", EVIL, "stpes", "x" * 10_000])] = strange(rng, before)
        elif way == "less":
            del holder[key]
        elif way == "level" and isinstance(before, dict) and isinstance(holder, dict):
            holder.pop(key)
            holder.update(before)
        else:
            holder[key] = strange(rng, before)
        said.append(f"{way} at {str(key)[:40]!r}, before {str(before)[:60]!r}")
        if not list(places(found)):
            break
    return found, "; ".join(said)


def as_text(value: Any) -> str:
    """JSON, with the numbers that are no JSON as Python and JavaScript write them."""
    return json.dumps(value)


def bytes_changed(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A file with bits flipped, cut, doubled, or other bytes in it."""
    found, at = bytearray(content), rng.randrange(len(content))
    way = rng.choice(["flip", "flip", "cut", "insert", "remove", "raw", "head"])
    if way == "flip":
        found[at] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del found[at:]
    elif way == "insert":
        found[at:at] = rng.choice([b"\0", b"\xff\xfe", b"9" * 5000, EVIL.encode(), b"{" * 2000])
    elif way == "remove":
        del found[at : at + rng.randrange(1, 9)]
    elif way == "raw":
        found[at : at + 4] = b"\xff\xff\xff\xff"
    else:
        found[: min(8, len(found))] = rng.randbytes(8)
    return bytes(found), f"{way} at byte {at} of {len(content)}"


# --- what is sent -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """Files as a stranger sends them, the command that takes them, and what spoils them."""

    folder: Path
    command: tuple[str, ...]
    spoil: Callable[[random.Random, Path], str]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("strangers"))


@pytest.fixture(scope="module")
def real(few):
    return open_data(few.removeprefix("dataset="), DataSettings(), torch.device("cpu"))


def the_set(real, few: str) -> DistilledSet:
    """Three images with everything said that a set can say."""
    index = torch.tensor([int(real.train.of_class(c)[0]) for c in range(3)])
    protocol = replace(PROTOCOLS["smoke"], students=1, steps=3, full=False, pilots=1)
    return DistilledSet(
        images=real.train.images(index),
        labels=torch.arange(3),
        classes=real.classes,
        source=few.removeprefix("dataset="),
        source_fingerprint=real.fingerprint,
        space=real.preprocess.spec(),
        lr=0.01,
        protocol=asdict(protocol),
        student=asdict(NETWORK),
        provenance={
            "method": "random",
            "name": "random/few/ipc1",
            "recipe": "0" * 16,
            "seed": 0,
            "precision": "fp32",
            "compile": False,
            "iterations": 0,
            "data": asdict(DataSettings()),
            "version": "1",
            "command": "dd run",
        },
    )


def manifest_sent(folder: Path, real, few: str) -> Sent:
    good = the_set(real, few)
    save(good, folder / "set.safetensors")
    facts, tensors = good.facts(), {"images": good.images, "labels": good.labels}

    def spoil(rng: random.Random, there: Path) -> str:
        found, said = changed(rng, facts)
        texts = {"format": FORMAT, "version": "1", "manifest": as_text(found)}
        save_tensors(there / "set.safetensors", tensors, texts)
        return said

    return Sent(folder, ("eval", "set.safetensors", few, *BRIEF), spoil)


def bits_sent(folder: Path, real, few: str) -> Sent:
    good = the_set(real, few)
    save(replace(good, provenance={"seed": 0}), folder / "set.safetensors")
    return Sent(folder, ("eval", "set.safetensors", few, *BRIEF), bytes_spoiled("set.safetensors"))


def bytes_spoiled(name: str) -> Callable[[random.Random, Path], str]:
    def spoil(rng: random.Random, there: Path) -> str:
        content, said = bytes_changed(rng, (there / name).read_bytes())
        (there / name).write_bytes(content)
        return said

    return spoil


def soft_set(real, few: str, folder: Path) -> DistilledSet:
    """The set with labels of its views beside it."""
    good = the_set(real, few)
    policy = ViewPolicy(crop=0.5, flip=True, mix="cutmix")
    spec = LabelSpec(3, 3, 2, 3, real.shape, policy, LabelSettings(), teachers=({"trained": "0"},))
    spec = replace(spec, images=good.labelled_sha256())
    store = LabelStore(folder, spec, good.labels)
    for epoch in range(2):
        store.make(epoch, lambda index: good.images[index], lambda views, _view, _images: views.flatten(1)[:, :3])
    protocol = replace(
        PROTOCOLS["quick-soft"], students=1, epochs=2, batch=3, views=policy, full=False, pilots=1, temperature=1.0
    )
    origin = {"teachers": ["convnet:width=4"], "squeeze": asdict(SqueezeSettings()), "weights": None}
    origin |= {"labels": asdict(LabelSettings())}
    views = store.stated(json.loads(json.dumps(origin)))
    return replace(
        good, label_kind="views", views=views, protocol=asdict(protocol), provenance={}, path=folder / "set.safetensors"
    )


def views_sent(folder: Path, real, few: str) -> Sent:
    good = soft_set(real, few, folder)
    save(good, folder / "set.safetensors")
    facts, tensors = good.facts(), {"images": good.images, "labels": good.labels}

    def spoil(rng: random.Random, there: Path) -> str:
        found, said = changed(rng, facts["views"])
        texts = {"format": FORMAT, "version": "1", "manifest": as_text(facts | {"views": found})}
        save_tensors(there / "set.safetensors", tensors, texts)
        return said

    return Sent(folder, ("eval", "set.safetensors", few, *BRIEF), spoil)


def labels_sent(folder: Path, real, few: str) -> Sent:
    save(soft_set(real, few, folder), folder / "set.safetensors")

    def spoil(rng: random.Random, there: Path) -> str:
        file = rng.choice(sorted(path for path in (there / "labels").iterdir() if path.suffix != ".lock"))
        if file.suffix == ".json" and rng.random() < 0.7:
            found, said = changed(rng, json.loads(file.read_text()))
            file.write_text(as_text(found))
        elif rng.random() < 0.1:
            file.unlink()
            said = "gone"
        else:
            content, said = bytes_changed(rng, file.read_bytes())
            file.write_bytes(content)
        return f"{file.name}: {said}"

    return Sent(folder, ("eval", "set.safetensors", few, *BRIEF), spoil)


def recipe_sent(folder: Path, real, few: str) -> Sent:
    words = {"method": "cda", "dataset": few.removeprefix("dataset="), "ipc": 1, "device": "cpu", "compile": False}
    text = resolve(words).to_toml()
    (folder / "recipe.toml").write_text(text)
    values = ["1e15", "-1", "nan", "inf", '"x"', "[]", "{}", "true", "9" * 5000, "[" * 900, '"' + "x" * 9000 + '"', "="]
    values += [r'"\u001b]0;owned\u0007"', '"../../etc"', "1979-05-27", "0x7fffffffffffffffffff", "{a = {b = 1}}", ""]

    def spoil(rng: random.Random, there: Path) -> str:
        if rng.random() < 0.2:
            return bytes_spoiled("recipe.toml")(rng, there)
        lines = text.splitlines()
        at = rng.choice([number for number, line in enumerate(lines) if "=" in line])
        key, value = lines[at].split(" = ", 1)[0], rng.choice(values)
        way = rng.choice(["value", "value", "key", "twice", "table", "level"])
        lines[at] = {
            "value": f"{key} = {value}",
            "key": f"{key}x = 1",
            "twice": f"{lines[at]}\n{lines[at]}",
            "table": f"[{key}]\n{key} = {value}",
            "level": f"{key}.{key} = {value}",
        }[way]
        (there / "recipe.toml").write_text("\n".join(lines))
        return f"{way} at {key!r}: {value[:40]}"

    return Sent(folder, ("show", "recipe=recipe.toml"), spoil)


def teacher_sent(folder: Path, real, few: str) -> Sent:
    rng = torch.Generator().manual_seed(0)
    network = build_network(NETWORK, channels=real.channels, size=real.size, classes=3, generator=rng)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):  # until it knows the images
        for images, labels in real.train.batches(18, rng):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimiser.step()
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    facts = {"classes": list(real.classes), "accuracy": 90.0} | {
        key: real.preprocess.spec()[key] for key in ("mean", "std")
    }
    texts = {key: json.dumps(value) for key, value in facts.items()}
    save_tensors(folder / "teacher.safetensors", state, texts)

    def spoil(rng: random.Random, there: Path) -> str:
        file, way = there / "teacher.safetensors", rng.choice(["facts", "facts", "tensor", "bytes", "pickle"])
        if way == "bytes":
            return bytes_spoiled(file.name)(rng, there)
        found, said, own = facts, way, dict(state)
        if way == "facts":
            found, said = changed(rng, facts)
        else:
            name = rng.choice(sorted(own))
            own[name] = rng.choice(
                [
                    own[name].double(),
                    own[name].flatten()[:1].repeat(7),
                    torch.full_like(own[name], float("nan") if own[name].is_floating_point() else -1),
                    torch.zeros(0),
                    own[name].to(torch.int8),
                ]
            )
            said = f"tensor {name}: {own[name].dtype} {tuple(own[name].shape)}"
        if way == "pickle":
            torch.save({"state_dict": own, **found}, file.with_suffix(".pt"))
            file.unlink()
            shutil.copy(file.with_suffix(".pt"), file)
        else:
            save_tensors(file, own, {str(key): as_text(value) for key, value in found.items()})
        return said

    command = (
        *("run", "method=cda", "ipc=1", few, "teachers=teacher.safetensors", "out=runs", "device=cpu", "compile=false"),
        *("student.depth=1", "student.width=4", "student.norm=batch", "iterations=1", "crop=0.5"),
        *("eval.protocol=quick-soft", "eval.epochs=1", "eval.batch=3", "eval.students=1", "eval.full=false"),
        *("eval.probes=0", "labels.mode=live"),
    )
    return Sent(folder, command, spoil)


SORTS = {
    "manifest": manifest_sent,
    "bits": bits_sent,
    "views": views_sent,
    "labels": labels_sent,
    "recipe": recipe_sent,
    "teacher": teacher_sent,
}


@pytest.fixture(scope="module", params=SORTS)
def sent(request, tmp_path_factory, real, few) -> Sent:
    return SORTS[request.param](tmp_path_factory.mktemp("sent"), real, few)


# --- what comes of it -------------------------------------------------------------------------------------------------


def peak() -> int:
    """Bytes that this process had at most, since it was last asked to forget."""
    text = Path("/proc/self/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def forget() -> int:
    """Begin to watch memory anew; returns what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def put(sent: Sent, where: Place) -> None:
    for path in where.path.iterdir():
        if path.name not in ("home", "out", "err"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(sent.folder, where.path, dirs_exist_ok=True)


def fuzz(sent: Sent, where: Place, count: int, seed: int) -> None:
    put(sent, where)
    ended = where.dd(*sent.command)
    assert ended.code == 0, ended.err  # as it was sent
    used, found = 0, list[str]()
    for number in range(count):
        rng = random.Random(f"{sent.command[1]} {seed} {number}")
        put(sent, where)
        what = f"{number}: {sent.spoil(rng, where.path)}"
        held, began = forget() if watched() else 0, time.monotonic()
        ended = where.dd(*sent.command)
        taken = time.monotonic() - began
        grown = peak() - held if watched() else 0
        if wrong := faults(ended, taken, grown):
            found.append(f"{what}: {wrong}\n{ended.err[-1500:]}")
        used += not ended.code
    if found:
        pytest.fail(f"{len(found)} of {count}\n\n" + "\n\n".join(found[:20]), pytrace=False)
    assert used < count / 2  # most of it is refused


def faults(ended: Ended, taken: float, grown: int) -> str:
    """What no call may do, whatever it is given."""
    if ended.code not in (0, 2) or "Traceback" in ended.err:
        return f"it ended with {ended.code}"
    if taken > SECONDS or grown > BYTES:
        return f"it took {taken:.1f} s and {grown >> 20} MB"
    if printable(ended.err) != ended.err:
        return "it says what a terminal would act on"
    said = ended.err[ended.err.rindex("dd: ") :].splitlines() if ended.code else []
    problems = bool(said) and said[0].endswith(" problems")
    if ended.code and len(said) != 1 and not problems:
        return f"it says {len(said)} lines"
    return "a line is too long" if any(len(line) > LONGEST for line in said) else ""


def watched() -> bool:
    return os.access("/proc/self/clear_refs", os.W_OK)


def test_a_sample_of_what_strangers_send(sent, where):
    fuzz(sent, where, SAMPLED, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_what_strangers_send(sent, where):
    fuzz(sent, where, THOROUGH, seed=1)


def test_the_command_itself_says_the_same(sent, where):
    """In a process of its own."""
    put(sent, where)
    rng = random.Random(2)
    sent.spoil(rng, where.path)
    here, there = where.dd(*sent.command), where.process(*sent.command)
    assert there.code == here.code
    assert there.err.splitlines()[-1:] == here.err.splitlines()[-1:]
