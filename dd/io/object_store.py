"""A folder at an address such as s3://bucket/prefix, which machines without a common file system use together.

It needs of an object store only that whole files are read, written, listed and deleted, and that a file can be created
on the condition that there is none.  With these a lock is a file, a lease, that its holder writes again and again.  A
lease that stays the same for `STALE` seconds is that of a holder that died; whoever finds that out creates the next
one.  No clocks are compared, and should two processes hold a lock after all, they make the same artefact twice.
"""

import contextlib
import functools
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dd.errors import RunError, UsageError, in_one_line
from dd.io.atomic import atomic_path
from dd.io.lock import Taken

log = logging.getLogger(__name__)

BEAT = 15.0
"""Seconds after which the holder of a lock writes its lease again."""
STALE = 90.0
"""Seconds after which a lease that was not written again is that of a dead holder."""
_LOOK = 2.0  # seconds between two looks at a lock that another machine holds


class ObjectStore:
    """The files below an address; see `remote`.

    Args:
        address: in the form of `fsspec`.
        named: what the user wrote, for messages: "DD_HOME=s3://…".
    """

    def __init__(self, address: str, named: str) -> None:
        self.address, self.named = address.rstrip("/"), named
        self._worked = False
        self._seen: dict[str, tuple[bytes, float]] = {}  # lease -> its content, and since when it is so

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        from fsspec.core import url_to_fs

        try:
            # others write, too: what a listing said before is worth nothing
            system, path = url_to_fs(self.address, use_listings_cache=False)
        except ImportError as error:
            extra = "; pip install 'dd-workbench[s3]'" if self.address.startswith("s3:") else ""
            raise UsageError(f"{self.named}: {in_one_line(error)}{extra}") from error
        except ValueError as error:
            raise UsageError(f"{self.named}: {in_one_line(error)}") from error
        return system, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_place"}  # it has open connections

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        system, root = self._place
        with contextlib.suppress(FileNotFoundError), self._reached():
            return bytes(system.cat_file(f"{root}/{name}"))
        return None

    def fetch(self, name: str, path: Path) -> bool:
        """Copy a file to `path`; return whether there is one."""
        system, root = self._place
        try:
            with atomic_path(path) as temporary, self._reached():
                system.get_file(f"{root}/{name}", str(temporary))
        except FileNotFoundError:
            return False
        return True

    def send(self, path: Path, name: str) -> None:
        """Copy the file at `path` to the address."""
        system, root = self._place
        with self._reached(missing=True):
            system.put_file(str(path), f"{root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        system, root = self._place
        with self._reached(missing=True):
            system.pipe_file(f"{root}/{name}", content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none; return whether it was written."""
        system, root = self._place
        try:
            with self._reached(missing=True):
                system.pipe_file(f"{root}/{name}", content, mode="create")
        except FileExistsError:
            return False
        return True

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """Return the names of the files in a folder that begin with `prefix`."""
        system, root = self._place
        with contextlib.suppress(FileNotFoundError), self._reached():
            names = [path.rpartition("/")[2] for path in system.ls(f"{root}/{folder}", detail=False)]
            return sorted(name for name in names if name.startswith(prefix))
        return []

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        system, root = self._place
        with contextlib.suppress(FileNotFoundError), self._reached():
            system.rm_file(f"{root}/{name}")

    @contextlib.contextmanager
    def locked(self, name: str, what: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a lock, see `dd.io.locked`.

        Args:
            name: of the lock: "folder/key".
            what: the thing being built, for the message.
            wait: whether to wait for another process that holds it.

        Raises:
            Taken: another process holds it, and `wait` is False.
        """
        own = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        lease = f"{name}.lease.{self._acquired(name, what, own, wait)}"
        done = threading.Event()

        def renew() -> None:
            beat = 0
            while not done.wait(BEAT):
                beat += 1
                with contextlib.suppress(RunError):  # the next beat may succeed
                    self.write(lease, _content(own, beat))

        beating = threading.Thread(target=renew, name=f"lease of {what}", daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()
            with contextlib.suppress(RunError):  # it becomes stale
                self.delete(lease)

    def _acquired(self, name: str, what: str, own: dict[str, Any], wait: bool) -> int:
        """Return the number of the lease that was created, after any other holder has ended."""
        told = False
        while True:
            leases = self._leases(name)
            if all(self._is_stale(lease, content) for lease, content in leases.values()):
                number = max(leases, default=-1) + 1
                if self.create(f"{name}.lease.{number}", _content(own, 0)):
                    for lease, _ in leases.values():
                        self.delete(lease)
                    return number  # otherwise another process was faster
            if not wait:
                raise Taken(what)
            if leases and not told:
                log.warning("waiting for %s, which is making %s", _holder(leases[max(leases)][1]), what)
                told = True
            time.sleep(_LOOK)

    def _leases(self, name: str) -> dict[int, tuple[str, bytes]]:
        """Return the leases of a lock, with their content, by number."""
        folder, _, key = name.rpartition("/")
        found = {}
        for lease in self.names(folder, f"{key}.lease."):
            content = self.read(f"{folder}/{lease}")
            if content is not None:
                found[int(lease.rpartition(".")[2])] = f"{folder}/{lease}", content
        return dict(sorted(found.items()))

    def _is_stale(self, lease: str, content: bytes) -> bool:
        now = time.monotonic()
        before, since = self._seen.get(lease, (b"", now))
        self._seen[lease] = content, since if before == content else now
        return before == content and now - since > STALE

    @contextlib.contextmanager
    def _reached(self, *, missing: bool = False) -> Iterator[None]:
        """Turn what the library raises into errors of ours, but for files that exist or do not.

        Args:
            missing: whether a file that does not exist is an error, too: then it is the bucket.
        """
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:  # every protocol has its own
            if isinstance(error, FileNotFoundError) and not missing:
                raise
            words = f"cannot use {self.named} ({in_one_line(error)})"
            if self._worked:
                raise RunError(f"{words}; what is finished is kept, and the same command goes on") from error
            raise UsageError(f"{words}; give another address, or a folder") from error
        self._worked = True


@functools.lru_cache
def remote(address: str, named: str) -> ObjectStore:
    """Return the files below an address.

    Args:
        address: in the form of `fsspec`: "s3://bucket/prefix".
        named: what the user wrote, for messages.
    """
    return ObjectStore(address, named)


def creates_once(place: ObjectStore) -> bool:
    """Return whether of two attempts to create a file the second is refused, without which there are no locks.

    Raises:
        UsageError: the address cannot be used.
    """
    name = f"locks-{uuid.uuid4().hex}"
    try:
        return place.create(name, b"1") and not place.create(name, b"2") and place.read(name) == b"1"
    finally:
        place.delete(name)


def _holder(content: bytes) -> str:
    """Name the holder of a lease."""
    try:
        own = json.loads(content)
        return f"process {own['pid']} of {own['host']}"
    except (ValueError, KeyError, TypeError):  # half-written, on a file system that is not an object store
        return "another machine"


def _content(own: dict[str, Any], beat: int) -> bytes:
    return json.dumps({**own, "beat": beat}).encode()
