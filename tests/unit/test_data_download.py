"""Downloads, from a server on this machine."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from dd.data.sources import find, load_raw
from dd.data.sources.catalogue import CATALOGUE
from dd.data.sources.entry import Remote
from dd.errors import UsageError
from dd.io import download as module
from dd.io.download import download, unpack


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def checksum(data, algorithm="md5"):
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_file_arrives_and_is_not_fetched_again(served, tmp_path, algorithm, caplog):
    caplog.set_level("INFO")
    folder, url = served
    data = bytes(range(256)) * 4000
    (folder / "x.bin").write_bytes(data)
    target = tmp_path / "got" / "x.bin"
    assert download([f"{url}/x.bin"], target, checksum=checksum(data, algorithm), what="mnist") == target
    assert target.read_bytes() == data
    assert "downloading mnist: x.bin (1.0 MB)" in caplog.text
    (folder / "x.bin").unlink()
    download([f"{url}/x.bin"], target, checksum=checksum(data, algorithm), what="mnist")
    assert leftovers(tmp_path / "got") == ["x.bin"]


def test_the_next_address_is_tried(served, tmp_path):
    folder, url = served
    (folder / "wrong").write_bytes(b"wrong")
    (folder / "right").write_bytes(b"right")
    urls = ["http://127.0.0.1:9/x", f"{url}/missing", f"{url}/wrong", f"{url}/right"]
    assert download(urls, tmp_path / "x", checksum=checksum(b"right"), what="it").read_bytes() == b"right"


def test_a_wrong_checksum_leaves_nothing(served, tmp_path):
    folder, url = served
    (folder / "x").write_bytes(b"tampered")
    with pytest.raises(ConnectionError, match="md5 of the file is"):
        download([f"{url}/x"], tmp_path / "got" / "x", checksum=checksum(b"published"), what="it")
    assert leftovers(tmp_path / "got") == []


def test_a_missing_file_is_said(served, tmp_path):
    _, url = served
    with pytest.raises(ConnectionError, match="File not found"):
        download([f"{url}/x"], tmp_path / "x", checksum=checksum(b""), what="it")


def test_progress_goes_on_in_lines(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "SILENCE", -1.0)
    advance = module._lines("downloading it", 2_000_000)
    advance(500_000)
    advance(500_000)
    assert [record.message for record in caplog.records] == [
        "downloading it (2.0 MB)",
        "downloading it: 0.5 of 2.0 MB",
        "downloading it: 1.0 of 2.0 MB",
    ]


def test_progress_on_a_terminal(served, tmp_path, monkeypatch, capsys):
    folder, url = served
    (folder / "x").write_bytes(b"1" * 1000)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    download([f"{url}/x"], tmp_path / "x", checksum=checksum(b"1" * 1000), what="mnist")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "downloading mnist" in captured.err


def pack(path, member, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(f"{member}/{name}", data)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{member}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_archives_are_unpacked_whole(tmp_path, name):
    archive = pack(tmp_path / name, "top", {"x.txt": b"1", "deep/y.txt": b"2"})
    assert unpack(archive, tmp_path, "top") == tmp_path / "top"
    assert (tmp_path / "top" / "deep" / "y.txt").read_bytes() == b"2"
    assert sorted(leftovers(tmp_path)) == ["x.txt", "y.txt"]


def test_an_archive_cannot_leave_its_folder(tmp_path):
    archive = pack(tmp_path / "a.tar.gz", "..", {"evil": b"1"})
    with pytest.raises((tarfile.FilterError, OSError)):
        unpack(archive, tmp_path / "in", "top")
    assert not (tmp_path / "evil").exists()


def test_a_named_set_is_downloaded_checked_and_read(served, tmp_path, monkeypatch):
    folder, url = served
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(find, "roots", lambda: [find.downloads()])
    remotes = []
    for name, array in (
        ("train-images-idx3", np.zeros((20, 28, 28))),
        ("train-labels-idx1", np.arange(20) % 10),
        ("t10k-images-idx3", np.ones((10, 28, 28))),
        ("t10k-labels-idx1", np.arange(10)),
    ):
        shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
        data = bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes()
        (folder / name).write_bytes(data)
        md5 = checksum(data).partition(":")[2]
        remotes.append(Remote((f"{url}/{name}",), f"MNIST/raw/{name}-ubyte", md5, 0.1))
    monkeypatch.setitem(CATALOGUE, "mnist", replace(CATALOGUE["mnist"], remotes=tuple(remotes)))
    last = folder / "t10k-labels-idx1"
    last.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="could not be downloaded"):
        load_raw("mnist")
    (tmp_path / "elsewhere").rename(last)
    raw = load_raw("mnist")
    assert (len(raw.train_labels), len(raw.test_labels)) == (20, 10)
    assert raw.where == str(tmp_path / "home" / "data" / "MNIST" / "raw")
    for file in folder.iterdir():
        file.unlink()
    assert len(load_raw("mnist", download=False).train_labels) == 20


def test_a_tampered_set_is_refused(served, tmp_path, monkeypatch):
    folder, url = served
    monkeypatch.setenv("DD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(find, "roots", lambda: [find.downloads()])
    (folder / "x").write_bytes(b"tampered")
    remote = replace(CATALOGUE["cifar10"].remotes[0], urls=(f"{url}/x",))
    monkeypatch.setitem(CATALOGUE, "cifar10", replace(CATALOGUE["cifar10"], remotes=(remote,)))
    with pytest.raises(UsageError, match="not the published c58f30108f718f92721af3b95e74349a"):
        load_raw("cifar10")
    assert leftovers(tmp_path / "home") == []


def test_an_unwritable_home_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DD_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set DD_HOME"):
        find.fetch(CATALOGUE["mnist"])
