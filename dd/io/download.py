"""Downloads with progress that resume after interruptions, and are verified before they become visible.

A partial download is kept next to the file as `.NAME.part`, and its origin in `.NAME.part.json`, so that the same call
resumes it, even after the process was killed.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit, urlunsplit

from dd.errors import RunError, in_one_line
from dd.io.atomic import no_room, write_json
from dd.io.lock import locked

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds without an answer, when connecting and when reading
BLOCK = 1 << 18  # bytes read at a time
SILENCE = 10.0  # seconds between lines of progress without a terminal
TRIES = 4  # consecutive attempts without new data
PAUSE = 1.0  # seconds before the second try, doubled before each further one
LONGEST_PAUSE = 30.0  # seconds, even if a server asks for more
REDIRECTS = 5  # maximum number of redirects
LARGEST = 1 << 40  # maximum bytes of a file of unknown size
OFFLINE = "DD_OFFLINE"

LATER = (  # answers after which a retry may succeed
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_NO = ("", "0", "false", "no", "off")


def offline() -> bool:
    """Return whether `$DD_OFFLINE` forbids downloads."""
    return os.environ.get(OFFLINE, "").lower() not in _NO


def download(urls: Sequence[str], path: Path, *, checksum: str, what: str, size: int | None = None) -> Path:
    """Fetch a file from the first address that has it; an existing file is kept.

    Interrupted transfers and temporary errors are retried, and resume if the server supports range requests (RFC 9110,
    section 14). Proxies are those of the environment.

    Args:
        urls: http or https addresses of the same file, tried in order.
        path: the file to write; it appears only when it is complete and verified.
        checksum: "md5:HEX" or "sha256:HEX"; "" to skip verification.
        what: name for the progress line, for example "cifar10".
        size: required size in bytes; None if not known.

    Returns:
        `path`.

    Raises:
        ConnectionError: no address has the file, or `$DD_OFFLINE` is set; the message names the last address and the
            reason. Partial data is kept if it may belong to the right file.
        RunError: the disk is full.
    """
    with locked(path.with_name(f".{path.name}.lock"), f"the download of {what}"):
        if path.exists():
            return path
        if offline():
            raise ConnectionError(f"{OFFLINE} is set")
        problem = "no address is known"
        for url in urls:
            try:
                _fetch(_Part(path, url, checksum, size), f"downloading {what}: {path.name}")
            except (OSError, http.client.HTTPException) as error:
                if words := no_room(error):
                    raise RunError(
                        f"{words} while writing {path}; what came is kept: make room, then run the same command"
                    ) from error
                problem = f"{without_secrets(url)}: {_reason(error)}"
            else:
                return path
    raise ConnectionError(problem)


def fetch_text(url: str, most: int) -> str:
    """Fetch UTF-8 text from an http or https address.

    Args:
        url: the address.
        most: maximum number of bytes.

    Raises:
        ConnectionError: the text cannot be fetched, is too long, or is not UTF-8; the message names address and reason.
    """
    try:
        if offline():
            raise ConnectionError(f"{OFFLINE} is set")
        with _answer(url, {}) as response:
            data = response.read(most + 1)
        if len(data) > most:
            raise ConnectionError(f"it has more than {most:,} bytes")
        return data.decode()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConnectionError(f"{without_secrets(url)}: {_reason(error)}") from error


def without_secrets(url: str) -> str:
    """Return an address for display, without user, password, query and fragment, which may contain keys."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def unpack(archive: Path, folder: Path, member: str) -> Path:
    """Unpack a top-level folder of a .tar.gz or .zip archive; the folder is complete or does not appear.

    Args:
        archive: the archive; it is removed afterwards.
        folder: parent of the unpacked folder.
        member: name of the archive's top-level folder.

    Returns:
        `folder / member`.
    """
    target = folder / member
    with locked(folder / f".{member}.lock", f"the unpacking of {archive.name}"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{member}.") as temporary:
                _extract(archive, Path(temporary))
                (Path(temporary) / member).rename(target)
        archive.unlink(missing_ok=True)
    return target


def _extract(archive: Path, folder: Path) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")


class _WrongFile(ConnectionError):
    """The server sent a wrong file; a retry would not help."""


@dataclass(frozen=True)
class _Part:
    """A partial download: the data so far, and its origin."""

    path: Path
    url: str
    checksum: str
    size: int | None

    @property
    def file(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def notes(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part.json")

    def come(self) -> int:
        """Return the number of bytes received so far."""
        try:
            return self.file.stat().st_size
        except OSError:
            return 0

    def validator(self) -> str | None:
        """Return the server's validator of the partial file; None if the part cannot be resumed."""
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            known = notes["url"] == self.url and notes["checksum"] == self.checksum
            validator = str(notes["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # without either, parts of two versions of the file could be joined unnoticed
        return validator if known and (validator or self.checksum) else None

    def begin(self, validator: str) -> None:
        """Discard the data, and record the origin of a new download."""
        self.drop()
        write_json(self.notes, {"url": self.url, "checksum": self.checksum, "validator": validator})

    def drop(self) -> None:
        """Discard the data."""
        self.file.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def finish(self) -> None:
        """Verify the file, and move it to its path.

        Raises:
            ConnectionError: it is the wrong file, which is deleted.
        """
        found, algorithm = self.come(), self.checksum.partition(":")[0]
        if self.size not in (None, found):
            self.drop()
            raise _WrongFile(f"the file has {found:,} bytes, not the published {self.size:,}")
        with self.file.open("rb") as file:
            total = hashlib.file_digest(file, lambda: hashlib.new(algorithm or "sha256", usedforsecurity=False))
            if self.checksum and f"{algorithm}:{total.hexdigest()}" != self.checksum:
                self.drop()
                published = self.checksum.partition(":")[2]
                raise _WrongFile(f"the {algorithm} of the file is {total.hexdigest()}, not the published {published}")
            os.fsync(file.fileno())
        self.file.replace(self.path)
        self.notes.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, but never from https to an unencrypted address."""

    max_redirections, max_repeats = REDIRECTS, 2

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        schemes = ("https",) if req.type == "https" else ("http", "https")
        if urlsplit(newurl).scheme not in schemes:
            raise urllib.error.HTTPError(req.full_url, code, f"it redirects to {without_secrets(newurl)}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(part: _Part, words: str) -> None:
    """Download until the file is complete, or no more data arrives."""
    resumed = part.come() > 0
    try:
        _receive_all(part, words)
        part.finish()
    except _WrongFile:
        if not resumed:
            raise
        _receive_all(part, words)  # the earlier part may have been wrong
        part.finish()


def _receive_all(part: _Part, words: str) -> None:
    failed, had = 0, part.come()
    while True:
        before = part.come()
        try:
            return _receive(part, words)
        except (OSError, http.client.HTTPException) as error:
            failed = 1 if part.come() > before else failed + 1
            if failed >= TRIES or no_room(error) or not _passes(error, part.come() > had):
                raise
            pause = _pause(error, failed)
            log.info("%s: %s; again in %.0f s", words, _reason(error), pause)
            time.sleep(pause)


def _receive(part: _Part, words: str) -> None:
    """Send one request, and append the answer: the rest of the file, or all of it."""
    come, validator = part.come(), part.validator()
    headers = {}
    if come and validator is not None:
        headers = {"Range": f"bytes={come}-"} | ({"If-Range": validator} if validator else {})
    try:
        response = _answer(part.url, headers)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not headers:
            raise
        if error.headers.get("Content-Range", "") == f"bytes */{come}":
            return  # the part was already complete
        part.drop()
        raise ConnectionError("what came before is no part of the file") from error
    with response:
        begin, total = _span(response, come if headers else 0)
        _require_size(part, total)
        if begin == 0:
            part.begin(_validator(response))
        most = part.size or total or LARGEST
        with part.file.open("ab") as file, _progress(words, total or 0, begin) as advance:
            while block := response.read1(BLOCK):  # read1 returns small blocks early, so that they are kept
                if begin + len(block) > most:
                    part.drop()
                    raise _WrongFile(f"the file has more than the published {most:,} bytes")
                file.write(block)
                begin += len(block)
                advance(len(block))
    if total is not None and begin < total:
        raise ConnectionError(f"it was cut off after {begin:,} of {total:,} bytes")


def _answer(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    if urlsplit(url).scheme not in ("http", "https"):
        raise _WrongFile("only http and https addresses are fetched")
    request = urllib.request.Request(url, headers={"User-Agent": "dd-workbench", **headers})
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _span(response: http.client.HTTPResponse, come: int) -> tuple[int, int | None]:
    """Return the offset of the body in the file, and the size of the file; None if the server does not state it."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    said = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", said)
    if not found or int(found[1]) != come:
        raise _WrongFile(f"it sent the range {said!r} where bytes {come}- were asked for")
    return come, None if found[2] == "*" else int(found[2])


def _require_size(part: _Part, total: int | None) -> None:
    """Refuse a file of the wrong size, or without enough disk space, before receiving data."""
    if None not in (part.size, total) and part.size != total:
        part.drop()
        raise _WrongFile(f"the file has {total:,} bytes, not the published {part.size:,}")
    needed, free = (total or 0) - part.come(), shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise RunError(
            f"{part.path} needs {needed / 1e6:,.1f} MB more, but only {free / 1e6:,.1f} MB are free; make room, then "
            "run the same command"
        )


def _validator(response: http.client.HTTPResponse) -> str:
    """Return the validator that identifies this version of the file; "" if the server sends none that is usable."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _passes(error: Exception, lately: bool) -> bool:
    """Return whether an error may be temporary; before any data arrived, a missing host is not."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in LATER
    if isinstance(error, urllib.error.URLError):
        return lately
    passing = ConnectionError | TimeoutError | ssl.SSLError | http.client.HTTPException
    return isinstance(error, passing) and not isinstance(error, _WrongFile)


def _pause(error: Exception, failed: int) -> float:
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    wanted = float(asked) if asked.isdecimal() else 0.0
    return min(max(wanted, PAUSE * 2 ** (failed - 1)), LONGEST_PAUSE)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError) and "infinite loop" in str(error.reason):
        return f"it redirects in a circle, or more than {REDIRECTS} times"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} s"
    return in_one_line(getattr(error, "reason", None) or error)


@contextlib.contextmanager
def _progress(what: str, size: int, done: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _lines(what, size, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=size or None, completed=done)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, size: int, done: int = 0) -> Callable[[int], None]:
    begun = f", of which {done / 1e6:.1f} MB are here" if done else ""
    log.info("%s%s", what, f" ({size / 1e6:.1f} MB{begun})" if size else "")
    said = time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said > SILENCE:
            said = time.monotonic()
            log.info("%s: %.1f%s MB", what, done / 1e6, f" of {size / 1e6:.1f}" if size else "")

    return advance
