"""Files from elsewhere: what is in them is read, and nothing in them is run, believed or left behind."""

import contextlib
import io
import pickle
import random
import resource
import struct
import zipfile
from collections import OrderedDict

import msgpack
import numpy as np
import pytest
import torch

from dd.errors import UsageError
from dd.exchange.source import ForeignFiles, container

MUCH = 300 << 10  # kB that the process may grow by at most while it refuses a file


def content(path):
    return ForeignFiles([path]).content(path)


def flax(value):
    """As flax.serialization writes arrays."""
    packed = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
    return msgpack.ExtType(1, packed)


class Runs:
    """Of a pickle that would run code: it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Calls:
    """Of a pickle that calls something harmless by itself with an argument that is not."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Pairs(pickle.Pickler):
    """Writes tensors as torch does, whatever size they are said to be."""

    def persistent_id(self, value):
        return value.args if isinstance(value, Said) else None


class Said:
    """A storage of a size that is only said."""

    def __init__(self, count, key="0"):
        self.args = ("storage", torch.FloatStorage, key, "cpu", count)


class Tensor:
    """A tensor of a said storage."""

    def __init__(self, count, shape, stride):
        self.reduced = torch._utils._rebuild_tensor_v2, (Said(count), 0, shape, stride, False, OrderedDict())

    def __reduce__(self):
        return self.reduced


def said_zip(path, count, shape, stride, numbers=b"\0" * 64):
    stream = io.BytesIO()
    Pairs(stream, 2).dump(Tensor(count, shape, stride))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", stream.getvalue())
        file.writestr("a/data/0", numbers)
        file.writestr("a/version", "3\n")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_without_its_history(tmp_path, zipped):
    held = {
        "data": [[torch.ones(2, 1, 3, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1])]],
        "accs_all_exps": {"ConvNet": [np.float64(0.5), np.float32(0.25)]},
        "array": np.arange(3),
        "order": OrderedDict(a=torch.nn.Parameter(torch.zeros(1))),
    }
    torch.save(held, tmp_path / "any.name", _use_new_zipfile_serialization=zipped)
    found = content(tmp_path / "any.name")
    assert found["accs_all_exps"] == {"ConvNet": [0.5, 0.25]}
    assert type(found["accs_all_exps"]["ConvNet"][0]) is float
    assert not found["data"][0][0].requires_grad
    assert torch.equal(found["array"], torch.arange(3))
    assert type(found["order"]["a"]) is torch.Tensor


def test_arrays_and_checkpoints_of_jax_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a", image=np.ones((2, 3), "f4", "F"), label=np.zeros(2, ">i4"))
    np.save(tmp_path / "b", np.arange(3))
    images = np.arange(6, dtype="float32").reshape(1, 2, 3)
    (tmp_path / "checkpoint_7").write_bytes(msgpack.packb({"params": {"x_proto": flax(images), "step": 3}}))
    found = content(tmp_path / "a.npz")
    assert torch.equal(found["image"], torch.ones(2, 3))
    assert torch.equal(found["label"], torch.zeros(2, dtype=torch.int32))
    assert torch.equal(content(tmp_path / "b.npy"), torch.arange(3))
    found = content(tmp_path / "checkpoint_7")
    assert torch.equal(found["params"]["x_proto"], torch.from_numpy(images))


def test_a_file_is_what_its_first_bytes_say(tmp_path):
    torch.save(torch.ones(1), tmp_path / "x.npz")
    np.savez(tmp_path / "y", a=np.ones(1))
    (tmp_path / "y.npz").rename(tmp_path / "y.pt")
    (tmp_path / "z.pt").write_bytes(b"PAR1" + bytes(8))
    (tmp_path / "w.pt").write_bytes(b"hello")
    kinds = [container(tmp_path / name) for name in ("x.npz", "y.pt", "z.pt", "w.pt", ".")]
    assert kinds == ["torch", "npz", "parquet", "other", "folder"]


def hostile():
    """Name of a case, and what makes its file."""

    def saved(value, **how):
        return lambda path: torch.save(value(path) if callable(value) else value, path, **how)

    def bomb(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/data.pkl", pickle.dumps([], 2))
            file.writestr("a/data/0", bytes(100 << 20))

    def npz(shape, size=64, dtype="<f4", kind=zipfile.ZIP_STORED):
        def make(path):
            with zipfile.ZipFile(path, "w", kind) as file:
                file.writestr("image.npy", npy(shape, dtype) + bytes(size))

        return make

    def npy(shape, dtype="<f4"):
        text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text

    def raw(*parts):
        return lambda path: path.write_bytes(b"".join(parts))

    def shrunk(path):  # the directory says that little comes out
        bomb(path)
        held = path.read_bytes()
        path.write_bytes(held.replace(struct.pack("<L", 100 << 20), struct.pack("<L", 64)))

    where = b"\x81\xa6params"
    inner = msgpack.packb(([10**9, 10], "float32", bytes(8)), use_bin_type=True)
    return {
        "code": saved(lambda path: [torch.ones(1), Runs(path.with_name("made"))]),
        "code of old": saved(lambda path: Runs(path.with_name("made")), _use_new_zipfile_serialization=False),
        "code in a pickle": lambda path: path.write_bytes(pickle.dumps(Runs(path.with_name("made")))),
        "a model": saved(lambda path: torch.nn.Linear(2, 2)),
        "a large buffer": saved([Calls(bytearray, 10**11)]),
        "a large array": saved([Calls(np.empty(0).__reduce__()[0], np.ndarray, (10**11,), b"b")]),
        "a large storage that is called": saved([Calls(torch.FloatStorage, 10**11)]),
        "objects": saved(np.array([{}, []], dtype=object)),
        "a tensor that is spread": saved(torch.ones(1).expand(10**10)),
        "lists of lists": saved(nested()),
        "10 GB declared": lambda path: said_zip(path, 2_500_000_000, (2_500_000_000,), (1,)),
        "a view beyond its end": lambda path: said_zip(path, 16, (2, 16), (16, 1)),
        "less than nothing": lambda path: said_zip(path, -5, (1,), (1,)),
        "no numbers": lambda path: said_zip(path, 16, (16,), (1,), b""),
        "a zip bomb": bomb,
        "a zip bomb that lies": shrunk,
        "no pickle in a zip": npz("(1,)", 4, "<M8[D]"),
        "npz of 10 GB": npz("(1000000000, 10)"),
        "npz of less than nothing": npz("(-1000000000, -10)"),
        "npz that unpacks": npz("(26214400,)", 100 << 20, kind=zipfile.ZIP_DEFLATED),
        "npz of objects": npz("(1,)", 8, "|O"),
        "npy of 10 GB": raw(npy("(1000000000, 10)"), bytes(64)),
        "npy with a long header": raw(b"\x93NUMPY\x02\x00", struct.pack("<L", 10**9), bytes(64)),
        "msgpack of 4 GB": raw(where, b"\xc6\xff\xff\xff\xff", bytes(8)),
        "msgpack of 4 billion": raw(where, b"\xdd\xff\xff\xff\xff", bytes(8)),
        "msgpack in msgpack": raw(where, b"\x91" * 100_000),
        "an array that declares 40 GB": raw(where, msgpack.packb(msgpack.ExtType(1, inner))),
        "an extension of nobody": raw(where, msgpack.packb(msgpack.ExtType(77, b"x"))),
        "nothing known": raw(b"hello"),
        "nothing": raw(b""),
    }


def nested():
    value = [1]
    for _ in range(7):
        value = [value] * 100
    return value


@pytest.mark.parametrize("case", hostile())
def test_hostile_files_are_refused_in_a_line(tmp_path, case):
    path = tmp_path / "file.pt"
    hostile()[case](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError) as caught:
        content(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MUCH
    assert [one.name for one in tmp_path.iterdir()] == ["file.pt"]  # nothing was run, nothing is left


def test_the_global_that_a_pickle_needs_is_named(tmp_path):
    torch.save([Calls(eval, "1")], tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"it needs \S*builtin\S*\.eval, .* could run code; nothing in it was run"):
        content(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bytes_end_in_a_line(tmp_path, zipped):
    """Cut anywhere, or with a few bytes changed: either it is read or refused."""
    good, path, chance = tmp_path / "good.pt", tmp_path / "bad.pt", random.Random(0)
    torch.save(
        {"data": [[torch.ones(4, 1, 2, 2), torch.arange(4)]], "a": np.float64(1)},
        good,
        _use_new_zipfile_serialization=zipped,
    )
    held = good.read_bytes()
    for number in range(150):
        bad = bytearray(held)
        if number % 3 == 0:
            del bad[chance.randrange(len(bad)) :]
        for _ in range(number % 3 * 4):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        path.write_bytes(bad)
        with contextlib.suppress(UsageError):
            content(path)
