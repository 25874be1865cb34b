import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dd.errors import RunError, UsageError
from dd.io import (
    atomic_path,
    digest,
    existing,
    holds,
    home,
    load_state,
    load_tensors,
    locked,
    previous,
    remove_state,
    save_state,
    save_tensors,
    sealed,
    sha256_file,
    sha256_tensors,
    user_path,
    writable,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match=r"no space left while writing .*a\.txt"), atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_written_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "a.json", {"ä": 1})
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ä": 1\n}\n'


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_digest_does_not_depend_on_key_order(value):
    assert digest(value) == digest(dict(reversed(value.items())))


@given(JSON, JSON)
def test_digest_tells_values_apart(a, b):
    import json

    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (digest(a) == digest(b)) == same


def test_tensor_hash_sees_names_shapes_types_and_bits():
    base = torch.arange(6.0)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(2, 3)},
        {"a": base.double()},
        {"a": base.view(torch.int32)},
        {"a": base.bfloat16()},
        {"a": -base},
        {"a": base[:0]},
        {"a": torch.tensor(0.0)},
        {"a": torch.tensor(-0.0)},
        {"a": base, "b": base},
        {},
    ]
    hashes = [sha256_tensors(v) for v in variants]
    assert len(set(hashes)) == len(variants)
    assert sha256_tensors({"a": base.reshape(2, 3).T.contiguous().T}) == hashes[2]


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path):
    tensors = {"images": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "labels": torch.arange(3)}
    metadata = {f"key {i}": 'naïve "text"\n\t\x01 漢' for i in range(8)}
    hashes = set()
    for _ in range(6):
        save_tensors(tmp_path / "a.safetensors", tensors, dict(reversed(metadata.items())))
        hashes.add(sha256_file(tmp_path / "a.safetensors"))
        save_tensors(tmp_path / "a.safetensors", tensors, metadata)
        hashes.add(sha256_file(tmp_path / "a.safetensors"))
    assert len(hashes) == 1
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == metadata
    assert sha256_tensors(load_tensors(tmp_path / "a.safetensors")) == sha256_tensors(tensors)


def test_views_of_one_tensor_can_be_saved_together(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    parts = {"all": whole, "row": whole[1], "column": whole[:, 1], "same": whole.view(-1), "one": torch.tensor(3)}
    save_tensors(tmp_path / "a.safetensors", parts)
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert parts.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], parts[name]) for name in parts)


def test_home_is_named_by_dd_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DD_HOME", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / "here"
    monkeypatch.delenv("DD_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home().name == "dd"


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in [tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")]:
        with pytest.raises(UsageError, match=r"^cannot write to .* \(.+\); go elsewhere$"):
            writable(folder, "go elsewhere")
    assert writable(tmp_path / "a" / "b", "") == tmp_path / "a" / "b"
    assert os.listdir(tmp_path / "a" / "b") == []


HOLDER = """
import sys, time
from pathlib import Path
from dd.io import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_lock_keeps_another_process_out_and_says_so(tmp_path, caplog):
    lock = tmp_path / "deep" / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock, "0.5"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        start = time.monotonic()
        with locked(lock, "the thing"):
            waited = time.monotonic() - start
    assert waited > 0.2
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process that is making the thing (lock: {lock})"
    ]


def test_a_lock_dies_with_its_process(tmp_path):
    lock = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, lock, "60"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    with locked(lock, "it"):
        pass


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("x", "here/x"),
        ("./x/../y", "here/x/../y"),
        ("~/x", "me/x"),
        ("~", "me"),
        ("a [1] *?", "here/a [1] *?"),
        ("link/x", "here/link/x"),
        (".", "here"),
        ("x" * 300, "here/" + "x" * 300),
    ],
)
def test_every_path_takes_one_road(tmp_path, monkeypatch, text, path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert user_path(text, "out") == tmp_path / path
    assert user_path(Path(text)).is_absolute()
    monkeypatch.setenv("DD_HOME", text)
    assert home() == tmp_path / path


@pytest.mark.parametrize("text", ["~nobody-here/x", "a\0b", "mai\udce9", "https://host/x", "s3://bucket", ""])
def test_what_is_no_path_is_one_line(text):
    words = r"is not a path|is an address on the web, not a path|cannot be empty"
    with pytest.raises(UsageError, match=words) as caught:
        user_path(text, "init")
    assert "init=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_files_and_folders_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead").symlink_to("nowhere")
    assert existing(tmp_path, "x") == tmp_path
    for name, words in (
        ("pipe", "not a regular file"),
        ("loop", "links"),
        ("dead", "no such file"),
        ("no/x", "no such file"),
    ):
        with pytest.raises(UsageError, match=words):
            existing(tmp_path / name, f"recipe={name}")


def test_a_state_is_read_whole_or_not_at_all(tmp_path, caplog):
    """Any single byte of the file changed: the state before it, or the same content where only blanks were meant."""
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(3)}, {"key": "k", "it": "1"})
    save_state(path, {"a": torch.arange(3.0)}, {"key": "k", "it": "2"})
    content, changed = path.read_bytes(), 0
    for at in range(len(content)):
        for bit in (1, 32):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            state = load_state(path, {"key": "k"}, quiet=True)
            assert state is not None
            same = state.meta == {"key": "k", "it": "2"} and torch.equal(state.tensors["a"], torch.arange(3.0))
            assert same or (state.meta["it"] == "1" and not state.tensors["a"].any())
            changed += not same
    assert changed > 2 * (len(content.strip()) - 20)  # all but what is blank
    assert caplog.text == ""
    path.write_bytes(b"x")
    load_state(path, {"key": "k"})
    (line,) = caplog.messages
    assert line.startswith(f"{path} is damaged (")
    assert line.endswith("; resuming from the state before it")
    assert load_state(path, {"key": "another"}) is None
    remove_state(path)
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_no_state(tmp_path):
    path = tmp_path / "state.safetensors"
    os.mkfifo(path)
    assert load_state(path, {}) is None
    save_state(path, {"a": torch.zeros(1)}, {})
    assert load_state(path, {}) is not None
    assert not previous(path).exists()


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_what_is_sealed_holds_and_nothing_else(facts):
    facts.pop("seal", None)
    value = json.loads(json.dumps(sealed(facts)))
    assert holds(value)
    assert not holds({**value, "another": 1})
    assert not holds(facts)
    assert not holds({**value, "seal": value["seal"][::-1] + "0"})
