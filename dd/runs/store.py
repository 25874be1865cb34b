"""The artefact store: experts, teachers, patches, statistics, sets, students and label epochs, keyed by content.

The key of an artefact is the hash of a spec that contains everything that determines it.  Runs share one store; the
labels of a set's views are in a second one, beside the set.  Layout below the root:

    <kind>/<key>.safetensors   the payload: tensors (absent for plain values)
    <kind>/<key>.json          the manifest: spec, info or value, SHA-256 and size of the payload, seconds to make it
    <kind>/<key>.lock          held while the artefact is made, so that two processes never make it at once
    <kind>/<key>.unfinished.safetensors   the intermediate state of a long computation, to resume after a crash
    <kind>/<key>.unsent        there while the artefact is not yet at the store's address, if it has one

The manifest is written last: an artefact without a manifest does not exist.

A store at an address (`DD_HOME=s3://…`) has the same payloads and manifests there.  The folder then has the copies of
one machine: what is made is sent, what is missing is fetched, and a lock is held at the address, too.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from dd.io import (
    SEAL,
    Json,
    ObjectStore,
    Taken,
    digest,
    holds,
    home,
    home_address,
    load_tensors,
    locked,
    remove_state,
    save_tensors,
    sealed,
    sha256_file,
    writable,
    write_json,
)
from dd.runs import sampling, sharing

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")

log = logging.getLogger(__name__)
made_log = logging.getLogger(f"{__name__}.made")  # every process reports what it made, and nothing twice

_wanted: ContextVar[list[str] | None] = ContextVar("wanted", default=None)
_CHEAP = ("surveys",)  # plain values that a plan computes without storing them: they only read image headers
_WAY_OUT = "set DD_HOME to a writable folder"
_KEY = r"[0-9a-f]{16}"
_UNFINISHED = ".unfinished.safetensors"
_OF_A_MACHINE = ("images", "surveys", "inventories", "own")  # kinds that are worth nothing elsewhere, or belong here

Spec: TypeAlias = Mapping[str, Json]
"""Everything that determines an artefact."""
Payload: TypeAlias = tuple[Mapping[str, "Tensor"], Mapping[str, Json]]
"""The content of an artefact: tensors by name, and facts about them."""


@dataclass(frozen=True, eq=False)
class Artefact:
    """An artefact in the store.

    Attributes:
        key: hash of its spec.
        path: the file with its content (the payload, or the manifest of a plain value).
        seconds: time it took to make.
        made: True if this call made it, False if it already existed.
        tensors: its tensors, memory-mapped on the CPU; None for a plain value.
        info: JSON-serialisable facts stored with the tensors.
        value: the plain value; None for tensors.
    """

    key: str
    path: Path
    seconds: float
    made: bool
    tensors: "Mapping[str, Tensor] | None" = None
    info: Mapping[str, Any] = field(default_factory=dict)
    value: Any = None


class Wanted(NamedTuple):
    """A requested artefact: `kind` and `spec` locate it in the store, `words` describe it to people."""

    kind: str
    spec: Spec
    words: str


@dataclass(frozen=True)
class Making:
    """A locked artefact, see `Store.making`.

    Attributes:
        found: the stored artefact; None if it must be made.
        put: stores (tensors, facts), optionally with the seconds spent; default: the time since locking.
    """

    found: Artefact | None
    put: Callable[..., Artefact]


class NotMade(Exception):
    """Something is missing, and making or downloading it is forbidden; the message says what."""


@contextlib.contextmanager
def nothing_made() -> Iterator[list[str]]:
    """Forbid making and downloading in the block: an attempt raises `NotMade`.  Used by plans.

    Yields:
        A list that collects what was requested.
    """
    wanted: list[str] = []
    token = _wanted.set(wanted)
    try:
        yield wanted
    finally:
        _wanted.reset(token)


def require_making(what: str) -> None:
    """Raise `NotMade` inside `nothing_made`; `what` describes the thing to be made or fetched."""
    if (wanted := _wanted.get()) is not None:
        wanted.append(what)
        raise NotMade(what)


class _Damaged(Exception):
    """The files of an artefact are inconsistent; the message says how."""


class Store:
    """A cache of artefacts: returns existing ones, makes missing ones, and detects and remakes damaged ones."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        way_out: str = _WAY_OUT,
        level: int = logging.INFO,
        remote: ObjectStore | None = None,
    ) -> None:
        """Open the store below `root`, by default `$DD_HOME` or the user's cache folder.

        Args:
            root: the folder; it need not exist yet.
            way_out: what the user can do if it is not writable.
            level: level of log messages about artefacts.
            remote: the address of the store, for which `root` has the copies; without `root` that of `$DD_HOME`.

        Raises:
            UsageError: the address cannot be used.
            RunError: it cannot be reached any more.
        """
        self.root, self._way_out, self._level = Path(root) if root is not None else home(), way_out, level
        self.remote = home_address() if root is None else remote
        self._verified: dict[Path, str] = {}  # payload -> its hash, once verified
        for left in self.root.glob("*/*.unsent") if self.remote is not None else ():
            self._send(left.parent.name, left.stem)

    def tensors(
        self,
        kind: str,
        spec: Spec,
        make: Callable[[], Payload],
        what: str = "",
        *,
        force: bool = False,
        describe: Callable[[Artefact], str] = lambda _: "",
    ) -> Artefact:
        """Return the tensors that `spec` determines, making them if needed.

        Args:
            kind: kind of artefact, also its folder name, for example "experts".
            spec: JSON-serialisable; everything that determines the result.
            make: computes (tensors by name, JSON-serialisable facts); called only if the store lacks them.
            what: description for the log, for example "expert 3 of cifar10".
            force: make the artefact even if it exists.
            describe: returns additional words for the log.

        Raises:
            UsageError: the store is not writable.
            RunError: the disk is full.
        """
        return self._get_or_make(kind, spec, lambda: self._write(kind, spec, make()), what, force, describe)

    @contextlib.contextmanager
    def making(self, kind: str, spec: Spec, what: str, *, force: bool = False) -> Iterator[Making]:
        """Lock an artefact during the block; other processes that want to make it wait.

        For artefacts made in several steps; if a single function makes the artefact, use `tensors`.

        Args:
            kind: kind of artefact.
            spec: everything that determines it.
            what: description for the log.
            force: treat it as missing even if it exists.

        Raises:
            UsageError: the store is not writable.
        """
        require_making(what)
        with self._lock(kind, spec, what):
            found, began = None if force else self._load_or_discard(kind, spec, what), time.perf_counter()

            def put(
                tensors: "Mapping[str, Tensor]", info: Mapping[str, Json], seconds: float | None = None
            ) -> Artefact:
                write = partial(self._write, kind, spec, (tensors, info))
                made = self._make(kind, spec, write, time.perf_counter() - began if seconds is None else seconds)
                made_log.info("made %s in %.1f s", what, made.seconds)
                return made

            if found is not None:
                log.info("kept %s", what)
            yield Making(found, put)

    def tensors_of_many(
        self, wanted: Sequence[Wanted], make: Callable[[Sequence[int]], Sequence[Payload]]
    ) -> list[Artefact]:
        """Like `tensors`, for several artefacts; the missing ones are made together.

        Args:
            wanted: the requested artefacts, all different.
            make: computes the payloads for the given indices of `wanted`, in that order.
        """
        found = [self.peek(kind, spec) for kind, spec, _ in wanted]
        for (_, _, what), there in zip(wanted, found, strict=True):
            if there is None:
                require_making(what)
        with contextlib.ExitStack() as locks:
            # all processes lock in the same order, to avoid deadlocks
            lacking = (i for i in range(len(wanted)) if found[i] is None)
            for i in sorted(lacking, key=lambda i: digest(wanted[i].spec)):
                locks.enter_context(self._lock(*wanted[i]))
                found[i] = self._load_or_discard(*wanted[i])
            for (_, _, what), artefact in zip(wanted, found, strict=True):
                if artefact is not None:
                    log.info("kept %s", what)
            missing = [i for i in range(len(wanted)) if found[i] is None]
            start = time.perf_counter()
            payloads = make(missing) if missing else ()
            share = (time.perf_counter() - start) / max(len(missing), 1)
            for i, payload in zip(missing, payloads, strict=True):
                kind, spec, what = wanted[i]
                found[i] = made = self._make(kind, spec, partial(self._write, kind, spec, payload), share)
                made_log.info("made %s in %.1f s", what, made.seconds)
        return [artefact for artefact in found if artefact is not None]

    def each(
        self, wanted: Sequence[Wanted], fetch: Callable[[int], R], *, alike: bool = False, instead: R | None = None
    ) -> list[R]:
        """Return `fetch(0), fetch(1), ...`, executed in the order in which the artefacts are free.

        What another process is making comes last.  So processes that need the same artefacts divide them among
        themselves, wherever each of them runs, and an artefact whose maker died is taken over.

        Args:
            wanted: the artefacts.
            fetch: fetches or makes the artefact at a position, and returns what the caller needs of it.
            alike: whether they cost about the same, and what `fetch` returns is interchangeable: in a sample
                (`dd.runs.sampling`) the first that is not there then stands for all others.
            instead: what stands for artefacts that other processes are making; None to wait for these.

        Raises:
            Taken: other processes are making all that is left, and this one waits for nobody (`sharing.waiting`).
        """
        if (sample := sampling.active()) is not None:
            with sample.dividing(wanted[0].kind if wanted else "", self._count_missing(wanted)):
                places = range(len(wanted))
                if alike:
                    return sample.each(places, fetch, lambda at: self.has(wanted[at].kind, wanted[at].spec))
                return [fetch(at) for at in places]
        sharing.offer(lambda: self._count_missing(wanted))
        found: dict[int, R] = {}
        waiting = list(range(len(wanted)))
        while waiting:
            taken = []
            for at in waiting:
                try:
                    with sharing.waiting(False):
                        found[at] = fetch(at)
                except Taken:
                    taken.append(at)
            if len(taken) == len(waiting):  # nothing is free
                if instead is not None:
                    return [found.get(at, instead) for at in range(len(wanted))]
                at = taken.pop(0)
                found[at] = fetch(at)  # waits for its maker
            waiting = taken
        return [found[at] for at in range(len(wanted))]

    def _count_missing(self, wanted: Sequence[Wanted]) -> int:
        return sum(not self.has(kind, spec) for kind, spec, _ in wanted)

    def value(
        self,
        kind: str,
        spec: Spec,
        make: Callable[[], Json],
        what: str = "",
        *,
        force: bool = False,
        describe: Callable[[Any], str] = lambda _: "",
        enough: Callable[[Any], bool] = lambda _: True,
    ) -> Artefact:
        """Return the plain JSON value that `spec` determines; arguments and errors are those of `tensors`.

        `describe` gets the value and returns additional words for the log; `enough` gets a stored value and returns
        whether it will do, or is made again because it lacks something that is no part of the key.
        """

        def write() -> dict[str, Json]:
            value = make()
            return {"value": value, "sha256": digest(value, length=64)}

        words, fits = (lambda artefact: describe(artefact.value)), (lambda artefact: enough(artefact.value))
        return self._get_or_make(kind, spec, write, what, force, words, fits)

    def has(self, kind: str, spec: Spec) -> bool:
        """Return whether the artefact exists; cheap, because its content is not verified."""
        return self.manifest(kind, spec) is not None

    def manifest(self, kind: str, spec: Spec) -> dict[str, Any] | None:
        """Return the manifest if the artefact exists, else None; cheap, because the payload is not verified."""
        try:
            manifest, payload = _manifest(self.path(kind, spec)), self._payload(kind, digest(spec))
            whole = "bytes" not in manifest or payload.stat().st_size == manifest["bytes"]
            if whole and digest(manifest["spec"]) == digest(spec):
                return manifest
        except (OSError, ValueError, KeyError, TypeError, _Damaged):
            pass
        return self._there(kind, f"{digest(spec)}.json")

    def path(self, kind: str, spec: Spec) -> Path:
        """Return the path of the manifest, which may not exist."""
        return self.root / kind / f"{digest(spec)}.json"

    def unfinished(self, kind: str, spec: Spec) -> Path:
        """Return the path for intermediate state; whoever makes the artefact writes and deletes this file."""
        return self.root / kind / f"{digest(spec)}{_UNFINISHED}"

    def peek(self, kind: str, spec: Spec) -> Artefact | None:
        """Return the artefact if it exists and is intact, else None; makes and logs nothing."""
        try:
            return self._load(kind, spec)
        except _Damaged:
            return None

    def note(self, kind: str, spec: Spec, facts: Mapping[str, Json]) -> None:
        """Write plain facts about `spec` unless they are already stored; without log, the last writer wins."""
        path, noted = self.path(kind, spec), json.loads(json.dumps({"spec": spec, **facts}))
        try:
            if json.loads(path.read_text(encoding="utf-8")) == noted:
                return
        except (OSError, ValueError):
            pass
        with locked(self._lock_file(kind, digest(spec)), f"{kind} {digest(spec)}"):
            self._sweep(kind, digest(spec))
            write_json(path, noted)

    def manifests(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the manifests of all existing artefacts of one kind, in no particular order; skips unreadable ones."""
        for path in (self.root / kind).glob("*.json"):
            try:
                manifest = _manifest(path)
                payload = self._payload(kind, path.stem)
                whole = "bytes" not in manifest or payload.is_file()
                if whole and digest(manifest["spec"]) == path.stem:
                    yield manifest
            except (OSError, ValueError, KeyError, TypeError, _Damaged):
                continue
        remote = self._remote_of(kind)
        for name in () if remote is None else remote.names(kind):
            ours = re.fullmatch(rf"{_KEY}\.json", name) and not (self.root / kind / name).is_file()
            if ours and (manifest := self._there(kind, name)) is not None:
                yield manifest

    def damage(self, kind: str, spec: Spec) -> str | None:
        """Return what is wrong with an artefact that should exist; None if it is intact."""
        self._verified.pop(self._payload(kind, digest(spec)), None)
        try:
            return None if self._load(kind, spec) else "it is missing"
        except _Damaged as damage:
            return str(damage)

    def remove(self, kind: str, spec: Spec) -> int:
        """Delete all files of an artefact, waiting for any process making it; return the number of bytes freed here.

        Those at the address are deleted, too; the copies of other machines stay.
        """
        key, remote = digest(spec), self._remote_of(kind)
        if remote is not None:
            remote.delete(f"{kind}/{key}.json")  # first, so that it does not exist without the payload
            remote.delete(f"{kind}/{key}.safetensors")
        return self._remove(kind, key)

    def remove_others(self, kind: str, specs: Iterable[Spec]) -> None:
        """Delete all files of one kind, partial ones included, except those of the artefacts that `specs` determine.

        Nothing is deleted at the address.
        """
        kept = {digest(spec) for spec in specs}
        keys = {file.name.lstrip(".").partition(".")[0] for file in (self.root / kind).glob("*")}
        for key in sorted(keys - kept):
            if re.fullmatch(_KEY, key):  # any other file is not ours
                self._remove(kind, key)

    def _get_or_make(
        self,
        kind: str,
        spec: Spec,
        write: Callable[[], dict[str, Json]],
        what: str,
        force: bool,
        describe: Callable[[Artefact], str] = lambda _: "",
        enough: Callable[[Artefact], bool] = lambda _: True,
    ) -> Artefact:
        def kept(found: Artefact | None) -> Artefact | None:
            return found if found is not None and enough(found) else None

        what = what or f"{kind} {digest(spec)}"
        found = None if force else kept(self.peek(kind, spec))
        if found is None and kind in _CHEAP and _wanted.get() is not None:
            value = json.loads(json.dumps(write()["value"]))
            return Artefact(digest(spec), self.path(kind, spec), seconds=0.0, made=True, value=value)
        if found is None:
            require_making(what)
            with self._lock(kind, spec, what):
                # another process may have made it in the meantime
                found = None if force else kept(self._load_or_discard(kind, spec, what))
                if found is None:
                    made = self._make(kind, spec, write)
                    made_log.log(self._level, "made %s in %.1f s%s", what, made.seconds, describe(made))
                    return made
        log.log(self._level, "kept %s%s", what, describe(found))
        return found

    @contextlib.contextmanager
    def _lock(self, kind: str, spec: Spec, what: str) -> Iterator[None]:
        remote, waits = self._remote_of(kind), sharing.waits()
        with sharing.locked(self._lock_file(kind, digest(spec)), what), contextlib.ExitStack() as there:
            if remote is not None:
                there.enter_context(remote.locked(f"{kind}/{digest(spec)}", what, wait=waits))
            yield

    def _lock_file(self, kind: str, key: str) -> Path:
        return writable(self.root / kind, self._way_out) / f"{key}.lock"

    def _remove(self, kind: str, key: str) -> int:
        folder = self.root / kind
        if not any(file.suffix != ".lock" for pattern in (f"{key}.*", f".{key}.*") for file in folder.glob(pattern)):
            return 0
        with locked(self._lock_file(kind, key), f"{kind} {key}"):
            self._sweep(kind, key)
            (folder / f"{key}.unsent").unlink(missing_ok=True)
            # manifest last: as long as anything is left, it exists
            files = [folder / f"{key}{_UNFINISHED}", self._payload(kind, key), folder / f"{key}.json"]
            freed = remove_state(files[0]) + sum(file.stat().st_size for file in files[1:] if file.is_file())
            for file in files[1:]:
                file.unlink(missing_ok=True)
        return freed

    def _remote_of(self, kind: str) -> ObjectStore | None:
        """Return the address of artefacts of a kind; None if they are not sent."""
        return None if kind in _OF_A_MACHINE else self.remote

    def _there(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return the manifest with this file name at the address, if there is an intact one."""
        remote = self._remote_of(kind)
        content = None if remote is None else remote.read(f"{kind}/{name}")
        try:
            manifest = None if content is None else _parsed(content.decode())
            return manifest if manifest is not None and f"{digest(manifest['spec'])}.json" == name else None
        except (ValueError, KeyError, TypeError, _Damaged):
            return None

    def _send(self, kind: str, key: str) -> None:
        """Copy an artefact to the address; if that fails, the next one to open the store does it."""
        remote, left = self._remote_of(kind), self.root / kind / f"{key}.unsent"
        if remote is None:
            return
        left.touch()
        files = (self._payload(kind, key), self.root / kind / f"{key}.json")  # the manifest last
        for file in files:
            if file.is_file():
                remote.send(file, f"{kind}/{file.name}")
        left.unlink(missing_ok=True)

    def _fetch(self, kind: str, key: str) -> bool:
        """Copy an artefact from the address; return whether there is one."""
        remote = self._remote_of(kind)
        manifest = None if remote is None else self._there(kind, f"{key}.json")
        if remote is None or manifest is None:
            return False
        folder, payload = writable(self.root / kind, self._way_out), self._payload(kind, key)
        if "bytes" in manifest and not remote.fetch(f"{kind}/{payload.name}", payload):
            return False
        self._verified.pop(payload, None)
        write_json(folder / f"{key}.json", manifest)  # as it was written there
        return True

    def _sweep(self, kind: str, key: str) -> None:
        """Delete partial files of a killed process; the caller holds the lock, so nobody is writing now."""
        for stale in (self.root / kind).glob(f".{key}.*"):
            stale.unlink(missing_ok=True)

    def _write(self, kind: str, spec: Spec, made: Payload) -> dict[str, Json]:
        tensors, info = made
        payload = self._payload(kind, digest(spec))
        save_tensors(payload, tensors)
        sha256 = sha256_file(payload)
        self._verified[payload] = sha256
        return {"info": dict(info), "sha256": sha256, "bytes": payload.stat().st_size}

    def _load_or_discard(self, kind: str, spec: Spec, what: str) -> Artefact | None:
        try:
            return self._load(kind, spec)
        except _Damaged as damage:
            log.warning("%s is damaged (%s: %s); making it again", what, self.path(kind, spec), damage)
            return None

    def _make(self, kind: str, spec: Spec, write: Callable[[], dict[str, Json]], spent: float = 0.0) -> Artefact:
        manifest_path = self.path(kind, spec)
        manifest_path.unlink(missing_ok=True)
        self._sweep(kind, digest(spec))
        start = time.perf_counter()
        written = write()
        seconds = spent + time.perf_counter() - start
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {"spec": spec, **written, "seconds": round(seconds, 3), "created": created}
        try:
            write_json(manifest_path, sealed(facts))
        except BaseException:
            self._payload(kind, digest(spec)).unlink(
                missing_ok=True
            )  # without a manifest it would waste disk space unnoticed
            raise
        made = self._load(kind, spec, made=True)
        assert made is not None, "just written"
        self._send(kind, digest(spec))
        return made

    def _load(self, kind: str, spec: Spec, made: bool = False) -> Artefact | None:
        """Read and verify an artefact; return None if it does not exist, raise `_Damaged` if it is inconsistent.

        What is missing or damaged here is taken from the address, if it is there.
        """
        try:
            found = self._read(kind, spec, made)
        except _Damaged:
            if not self._fetch(kind, digest(spec)):
                raise
        else:
            if found is not None or not self._fetch(kind, digest(spec)):
                return found
        return self._read(kind, spec, made)

    def _read(self, kind: str, spec: Spec, made: bool) -> Artefact | None:
        """Read and verify an artefact of this machine."""
        from safetensors import SafetensorError

        manifest_path = self.path(kind, spec)
        try:
            manifest = _manifest(manifest_path)
            if digest(manifest["spec"]) != digest(spec):
                raise _Damaged("its spec differs")
            common = {"key": digest(spec), "seconds": float(manifest["seconds"]), "made": made}
            if "value" in manifest:
                if digest(manifest["value"], length=64) != manifest["sha256"]:
                    raise _Damaged("its hash is wrong")
                return Artefact(path=manifest_path, value=manifest["value"], **common)
            payload = self._payload(kind, digest(spec))
            self._verify(payload, manifest["sha256"])
            return Artefact(path=payload, tensors=load_tensors(payload), info=dict(manifest["info"]), **common)
        except FileNotFoundError as error:
            if manifest_path.is_file():
                raise _Damaged("its payload is missing") from error
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _Damaged(f"{type(error).__name__}: {error}") from error

    def _verify(self, payload: Path, sha256: str) -> None:
        # once per process: hashing gigabytes of experts at every use costs more than the rare disk error is worth
        if self._verified.get(payload) == sha256:
            return
        if payload.exists() and not payload.is_file():
            raise _Damaged("its payload is not a file")
        if sha256_file(payload) != sha256:
            raise _Damaged("the hash of its payload is wrong")
        self._verified[payload] = sha256

    def _payload(self, kind: str, key: str) -> Path:
        return self.root / kind / f"{key}.safetensors"


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and verify its seal, if it has one."""
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise _Damaged("it is not a file")
    return _parsed(path.read_text(encoding="utf-8"))


def _parsed(text: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
        if SEAL in manifest and not holds(manifest):
            raise _Damaged("the hash of its facts is wrong")
    except RecursionError as error:
        raise _Damaged("its facts are nested too deeply") from error
    return manifest
