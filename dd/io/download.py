"""Downloads that show progress, check what came, and leave nothing half-done behind."""

import contextlib
import hashlib
import http.client
import logging
import os
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dd.io.atomic import atomic_path
from dd.io.lock import locked

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds without an answer, when connecting and when reading
BLOCK = 1 << 18  # bytes read at a time
SILENCE = 10.0  # seconds between two lines of progress where there is no terminal


def download(urls: Sequence[str], path: Path, *, checksum: str, what: str) -> Path:
    """Fetch a file from the first address that gives it; a file that is already there is kept.

    Args:
        urls: addresses of the same file, tried in order.
        path: where it goes; written atomically, and only when the checksum is right.
        checksum: "md5:HEX" or "sha256:HEX".
        what: named in the progress line, for example "cifar10".

    Returns:
        `path`.

    Raises:
        ConnectionError: no address gave the file; the message names the last address and its reason.
        RunError: the disk is full.
    """
    with locked(path.with_name(f".{path.name}.lock"), f"the download of {what}"):
        if path.exists():
            return path
        problem = "no address is known"
        for url in urls:
            try:
                _fetch(url, path, checksum, what)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{url}: {getattr(error, 'reason', None) or error}"
            else:
                return path
    raise ConnectionError(problem)


def unpack(archive: Path, folder: Path, member: str) -> Path:
    """Unpack one top folder of a .tar.gz or .zip archive; the folder appears whole or not at all.

    Args:
        archive: the archive; it is removed afterwards.
        folder: where `member` is put.
        member: name of the archive's top folder.

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


def _fetch(url: str, path: Path, checksum: str, what: str) -> None:
    algorithm, _, expected = checksum.partition(":")
    total = hashlib.new(algorithm, usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "dd-workbench"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, atomic_path(path) as temporary:
        size = int(response.headers.get("Content-Length") or 0)
        with temporary.open("wb") as file, _progress(f"downloading {what}: {path.name}", size) as advance:
            while block := response.read(BLOCK):
                file.write(block)
                total.update(block)
                advance(len(block))
        if total.hexdigest() != expected:
            raise ConnectionError(f"the {algorithm} of the file is {total.hexdigest()}, not the published {expected}")


@contextlib.contextmanager
def _progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _lines(what, size)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=size or None)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, size: int) -> Callable[[int], None]:
    log.info("%s%s", what, f" ({size / 1e6:.1f} MB)" if size else "")
    done, said = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said > SILENCE:
            said = time.monotonic()
            log.info("%s: %.1f%s MB", what, done / 1e6, f" of {size / 1e6:.1f}" if size else "")

    return advance
