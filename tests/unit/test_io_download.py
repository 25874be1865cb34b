"""Downloads from a server that knows ranges and misbehaves, on this machine."""

import hashlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPMessage

import pytest

from dd.errors import RunError
from dd.io import download as module
from dd.io.download import download, fetch_text, without_secrets

DATA = os.urandom(3_000_000)
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves `server.data`, with ranges; `server.faults` is eaten up from the front, one an answer."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        fault = server.faults.pop(0) if server.faults else server.always
        if fault in ("503", "503 at once", "404"):
            self.send_response(int(fault[:3]))
            if fault == "503 at once":
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "loop":
            self.redirect(self.path)
        elif fault == "chain":
            self.redirect(f"{self.path}x")
        elif fault.startswith("to "):
            self.redirect(fault[3:])
        else:
            self.send(fault)

    def redirect(self, where):
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, fault):
        data, begin = self.server.data, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and fault != "no ranges" and self.headers.get("If-Range") in (None, self.server.tag):
            begin = int(wanted[1])
            if begin >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            shown = begin + 1 if fault == "other range" else begin
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if self.server.tag:
            self.send_header("ETag", self.server.tag)
        body = data[begin:]
        if fault == "wrong bytes":
            body = bytes(len(body))
        if fault == "shorter":
            body = body[:-10]
        if fault == "endless":
            self.end_headers()
            while True:
                self.wfile.write(bytes(1 << 20))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
        if fault == "stalls":
            self.wfile.write(body[:100_000])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.free.wait(20)
            return None
        self.wfile.write(body)
        return None


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args):
        pass  # clients go away


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    found = Server(("127.0.0.1", 0), Faulty)
    found.data, found.tag, found.faults, found.always, found.asked = DATA, '"v1"', [], "", []
    found.stalled, found.free = threading.Event(), threading.Event()
    found.url = f"http://127.0.0.1:{found.server_port}/set"
    thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.free.set()
    found.shutdown()
    found.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def get(server, path, checksum=SHA, **more):
    return download([server.url], path, checksum=checksum, what="it", **more)


def test_what_was_cut_at_half_goes_on_there(server, tmp_path):
    server.faults = ["cut", "cut"]
    assert get(server, tmp_path / "x").read_bytes() == DATA
    half = len(DATA) // 2
    ranges = [(begin, tag) for _, begin, tag in server.asked]
    assert ranges == [(None, None), (f"bytes={half}-", '"v1"'), (f"bytes={half + half // 2}-", '"v1"')]
    assert names(tmp_path) == ["x"]


def test_a_file_that_changed_in_between_is_fetched_whole(server, tmp_path):
    server.always = "cut"
    with pytest.raises(ConnectionError, match="cut off after"):
        get(server, tmp_path / "x")
    assert names(tmp_path) == [".x.part", ".x.part.json"]
    server.always, server.data, server.tag = "", DATA[::-1], '"v2"'
    get(server, tmp_path / "x", "")
    assert (tmp_path / "x").read_bytes() == DATA[::-1]


def test_without_a_validator_the_checksum_tells(server, tmp_path):
    """Then a part of another version is found out, and everything comes once more."""
    server.tag, server.always = "", "cut"
    with pytest.raises(ConnectionError):
        get(server, tmp_path / "x")
    server.always = ""
    part = tmp_path / ".x.part"
    part.write_bytes(bytes(part.stat().st_size))
    assert get(server, tmp_path / "x").read_bytes() == DATA


def test_without_validator_and_checksum_nothing_is_joined(server, tmp_path):
    server.tag, server.faults = "", ["cut"]
    assert get(server, tmp_path / "x", "").read_bytes() == DATA
    assert [begin for _, begin, _ in server.asked] == [None, None]


def test_a_part_that_is_whole_needs_no_byte_more(server, tmp_path):
    server.always = "cut"
    with pytest.raises(ConnectionError):
        get(server, tmp_path / "x")
    (tmp_path / ".x.part").write_bytes(DATA)
    server.always, server.asked = "", []
    assert get(server, tmp_path / "x").read_bytes() == DATA
    assert len(server.asked) == 1


def test_a_server_without_ranges_sends_all_of_it(server, tmp_path):
    server.faults, server.always = ["cut"], "no ranges"
    assert get(server, tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("fault", ["503", "503 at once"])
def test_a_server_that_is_busy_is_asked_again(server, tmp_path, fault, caplog):
    caplog.set_level("INFO")
    server.faults = [fault, fault]
    assert get(server, tmp_path / "x").read_bytes() == DATA
    assert "Service Unavailable; again in" in caplog.text


def test_a_server_that_stays_busy_is_named(server, tmp_path):
    server.always = "503"
    with pytest.raises(ConnectionError, match=f"{server.url}: Service Unavailable"):
        get(server, tmp_path / "x")
    assert len(server.asked) == module.TRIES


def test_what_is_not_there_is_asked_for_once(server, tmp_path):
    server.always = "404"
    with pytest.raises(ConnectionError, match="Not Found"):
        get(server, tmp_path / "x")
    assert (len(server.asked), names(tmp_path)) == (1, [])


def test_wrong_bytes_are_refused(server, tmp_path):
    server.always = "wrong bytes"
    with pytest.raises(ConnectionError, match=r"the sha256 of the file is .*, not the published"):
        get(server, tmp_path / "x")
    assert (len(server.asked), names(tmp_path)) == (1, [])


def test_a_wrong_length_is_refused_before_anything_comes(server, tmp_path):
    server.always = "shorter"
    with pytest.raises(ConnectionError, match=r"the file has 2,999,990 bytes, not the published 3,000,000"):
        get(server, tmp_path / "x", size=len(DATA))
    assert names(tmp_path) == []


def test_an_endless_answer_is_cut(server, tmp_path):
    server.always = "endless"
    with pytest.raises(ConnectionError, match="more than the published 3,000,000 bytes"):
        get(server, tmp_path / "x", size=len(DATA))
    assert names(tmp_path) == []


def test_another_range_than_asked_for_is_refused(server, tmp_path):
    server.faults, server.always = ["cut"], "other range"
    with pytest.raises(ConnectionError, match="it sent the range"):
        get(server, tmp_path / "x")


def test_a_server_that_falls_silent_is_left_and_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    server.faults = ["stalls"]
    assert get(server, tmp_path / "x").read_bytes() == DATA
    assert server.asked[1][1] == "bytes=100000-"


@pytest.mark.parametrize("fault", ["loop", "chain"])
def test_a_circle_of_redirects_ends(server, tmp_path, fault):
    server.always = fault
    with pytest.raises(ConnectionError, match="redirects in a circle, or more than 5 times"):
        get(server, tmp_path / "x")
    assert len(server.asked) <= module.REDIRECTS + 1


def test_a_redirect_is_followed_to_the_web_alone(server, tmp_path):
    server.faults = [f"to {server.url}/there"]
    assert get(server, tmp_path / "x").read_bytes() == DATA
    server.always = f"to file://{tmp_path}/x"
    with pytest.raises(ConnectionError, match="Redirection to url 'file:"):
        get(server, tmp_path / "y")


def test_a_redirect_never_leaves_encryption():
    asked = urllib.request.Request("https://host/x")
    with pytest.raises(urllib.error.HTTPError, match="redirects to http://host/y"):
        module._Redirects().redirect_request(asked, io.BytesIO(), 302, "Found", HTTPMessage(), "http://host/y")
    there = module._Redirects().redirect_request(asked, io.BytesIO(), 302, "", HTTPMessage(), "https://host/y")
    assert there is not None
    assert there.full_url == "https://host/y"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "x"])
def test_only_the_web_is_asked(tmp_path, url):
    with pytest.raises(ConnectionError, match="only http and https"):
        download([url], tmp_path / "x", checksum="", what="it")


def test_no_room_is_told_before_anything_comes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: os.stat_result(range(10)) and type("U", (), {"free": 9}))
    with pytest.raises(RunError, match=r"needs 3\.0 MB more"):
        get(server, tmp_path / "x")
    assert names(tmp_path) == []


def test_offline_asks_nobody(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DD_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="DD_OFFLINE is set"):
        get(server, tmp_path / "x")
    with pytest.raises(ConnectionError, match="DD_OFFLINE is set"):
        fetch_text(server.url, 100)
    assert server.asked == []
    monkeypatch.setenv("DD_OFFLINE", "0")
    get(server, tmp_path / "x")
    monkeypatch.setenv("DD_OFFLINE", "1")
    assert get(server, tmp_path / "x").read_bytes() == DATA, "it is here"


def test_a_proxy_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/set"))
    monkeypatch.setenv("no_proxy", "")
    url = "http://nowhere.invalid/set"
    assert download([url], tmp_path / "x", checksum=SHA, what="it").read_bytes() == DATA
    assert server.asked[0][0] == url


def test_a_killed_download_goes_on(server, tmp_path):
    server.faults = ["stalls"]
    lines = (
        "import sys; from pathlib import Path; from dd.io.download import download",
        "download([sys.argv[1]], Path(sys.argv[2]), checksum=sys.argv[3], what='it')",
    )
    command = [sys.executable, "-c", "\n".join(lines), server.url, str(tmp_path / "x"), SHA]
    process = subprocess.Popen(command)
    part = tmp_path / ".x.part"
    try:
        assert server.stalled.wait(60)
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    come = part.stat().st_size
    assert not (tmp_path / "x").exists()
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.asked[1] == ("/set", f"bytes={come}-" if come else None, '"v1"' if come else None)
    assert names(tmp_path) == ["x"]


def test_a_text_is_bounded(server):
    server.data = "schön".encode()
    assert fetch_text(server.url, 100) == "schön"
    with pytest.raises(ConnectionError, match="more than 3 bytes"):
        fetch_text(server.url, 3)
    server.data = b"\xff"
    with pytest.raises(ConnectionError, match="not UTF-8"):
        fetch_text(server.url, 100)


def test_keys_in_an_address_are_not_shown(server, tmp_path):
    assert without_secrets("https://me:secret@host/a?token=secret#secret") == "https://host/a"
    server.always = "404"
    with pytest.raises(ConnectionError) as error:
        download([server.url.replace("//", "//me:secret@") + "?token=secret"], tmp_path / "x", checksum="", what="it")
    assert "secret" not in str(error.value)
