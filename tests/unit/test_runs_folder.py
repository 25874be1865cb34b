import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from dd.errors import UsageError
from dd.io import atomic_path
from dd.runs import RunFolder, Store, runs_root


def locate(root: Path, **changes) -> RunFolder:
    fields = {"method": "datm", "dataset": "cifar10", "budget": "ipc10", "recipe_hash": "0123456789abcdef", "seed": 3}
    return RunFolder.locate(root, **{**fields, **changes})


def test_where_runs_are(monkeypatch, tmp_path):
    monkeypatch.delenv("DD_RUNS", raising=False)
    assert runs_root() == Path("runs")
    monkeypatch.setenv("DD_RUNS", str(tmp_path))
    assert runs_root() == tmp_path
    assert runs_root("elsewhere") == Path("elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runs_root("~/mine") == tmp_path / "mine"


def test_the_grammar_of_a_folder():
    assert locate(Path("r")).path == Path("r/datm/cifar10/ipc10/01234567-seed3")
    assert locate(Path("r"), dataset="folder:/home/me/pics").path == Path(
        "r/datm/folder--home-me-pics/ipc10/01234567-seed3"
    )


def test_the_folder_of_a_long_path_can_be_made(tmp_path):
    one, other = (locate(tmp_path, dataset=f"folder:/{'ä/' * 200}{name}").path for name in ("a", "b"))
    one.mkdir(parents=True)
    assert one != other


def test_finished_means_a_report_that_can_be_read(tmp_path):
    folder = locate(tmp_path)
    assert not folder.is_finished()
    assert os.listdir(tmp_path) == []
    folder.write_recipe("seed = 3\n")
    assert folder.recipe_toml.read_text() == "seed = 3\n"
    assert not folder.is_finished()
    for text, finished in [("", False), ('{"accuracy": ', False), ("[]", False), ('{"accuracy": {}}', True)]:
        folder.report.write_text(text)
        assert folder.is_finished() == finished


def test_clear_deletes_what_a_run_makes_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    for file in (folder.report, folder.set, folder.start, folder.checkpoint, folder.log_csv, folder.images_png):
        file.write_text("x")
    (tmp_path / "notes.txt").write_text("mine")
    folder.clear()
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/nothing"])
def test_a_root_that_cannot_be_written_to_is_one_line(tmp_path, root):
    (tmp_path / "file").touch()
    folder = locate(tmp_path / root)
    with pytest.raises(UsageError, match=r"cannot write to .*out=FOLDER"):
        folder.write_recipe("")
    with pytest.raises(UsageError, match=r"cannot write to .*out=FOLDER"), folder.lock():
        pass


HOLDER = """
import sys
import threading
from pathlib import Path
from dd.io import atomic_path
from dd.runs import RunFolder
folder = RunFolder(Path(sys.argv[1]))
with folder.lock(), atomic_path(folder.set) as half:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_no_two_processes_run_in_one_folder(tmp_path, caplog):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        timer = threading.Timer(0.3, holder.stdin.close)
        timer.start()
        with RunFolder(tmp_path).lock():
            assert timer.finished.is_set()
        timer.join()
    assert f"the run in {tmp_path}" in caplog.text


def test_a_killed_run_leaves_no_lock_and_its_litter_is_swept(tmp_path):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert len(os.listdir(tmp_path)) == 2
        holder.kill()
    with RunFolder(tmp_path).lock():
        assert os.listdir(tmp_path) == [".lock"]


def test_files_of_a_run_are_written_beside_one_another(tmp_path):
    folder = RunFolder(tmp_path)
    with atomic_path(folder.report) as temporary:
        assert temporary.parent == folder.path


@pytest.mark.parametrize("many", [False, True])
def test_labels_are_judged_by_their_manifests(tmp_path, monkeypatch, many):
    """Of many bytes the sizes alone are looked at: whoever trains on them reads them."""
    if many:
        monkeypatch.setattr("dd.runs.folder._LOOKED_THROUGH", 0)
    folder = RunFolder(tmp_path)
    for epoch in range(2):
        Store(tmp_path).tensors("labels", {"epoch": epoch}, lambda: ({"logits": torch.arange(9.0)}, {}))
    folder.finish({})
    assert folder.damage() == {}
    manifest = Store(tmp_path).path("labels", {"epoch": 1})
    payload = manifest.with_suffix(".safetensors")
    whole = payload.read_bytes()

    payload.write_bytes(whole[:-1] + b"x")
    assert folder.damage() == ({} if many else {f"labels/{payload.name}": "the hash of its payload is wrong"})
    payload.write_bytes(whole[:-1])
    assert list(folder.damage()) == [f"labels/{payload.name}"]
    payload.unlink()
    assert list(folder.damage()) == [f"labels/{payload.name}"]
    payload.write_bytes(whole)
    assert folder.damage() == {}
    manifest.unlink()
    assert folder.damage() == {f"labels/{manifest.name}": "it is missing"}
