"""A store that has what another one has, and puts what is made elsewhere: for samples, whose results are discarded."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dd.io import Json, digest
from dd.runs import sampling
from dd.runs.store import Artefact, Payload, Spec, Store


class Overlay(Store):
    """A store above another one, which is never written to.

    Args:
        root: folder of what is made.
        base: the store below.
    """

    def __init__(self, root: Path, base: Store) -> None:
        super().__init__(root, level=logging.DEBUG)
        self._base = base

    def manifest(self, kind: str, spec: Spec) -> dict[str, Any] | None:
        """See `Store`."""
        own = super().manifest(kind, spec)
        return self._base.manifest(kind, spec) if own is None else own

    def manifests(self, kind: str) -> Iterator[dict[str, Any]]:
        """See `Store`."""
        yield from super().manifests(kind)
        yield from self._base.manifests(kind)

    def unfinished(self, kind: str, spec: Spec) -> Path:
        """See `Store`; an intermediate state of the store below is where a loop goes on from."""
        own, below = super().unfinished(kind, spec), self._base.unfinished(kind, spec)
        if below.is_file() and not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                own.symlink_to(below)
        return own

    def _load(self, kind: str, spec: Spec, made: bool = False) -> Artefact | None:
        if self.path(kind, spec).is_file():
            return super()._load(kind, spec, made)
        return self._base._load(kind, spec, made)

    def _write(self, kind: str, spec: Spec, made: Payload) -> dict[str, Json]:
        written = super()._write(kind, spec, made)
        if (sample := sampling.active()) is not None:
            sample.bytes += self._payload(kind, digest(spec)).stat().st_size
        return written
