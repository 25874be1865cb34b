"""Prerequisites of a method: declared once, listed by a plan, fetched by a run, passed to `Method.prepare`."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from dd.engine import parallel
from dd.engine.code import code_in_the_making
from dd.errors import UsageError
from dd.runs.store import Artefact, Payload, Store, Wanted

T = TypeVar("T")


class Need(ABC, Generic[T]):
    """A prerequisite of a method, stored as one or more artefacts.

    A plan lists the artefacts and a run fetches them through the same object, so the two always agree.

    Attributes:
        name: unique within a method: "experts", "teachers".
    """

    name: str

    @abstractmethod
    def artefacts(self) -> Sequence[Wanted]:
        """Return the artefacts to request from the store, without creating any."""

    @abstractmethod
    def fetch(self, got: "Got") -> T:
        """Return the result, reusing what the store has and creating the rest.

        Args:
            got: results of the needs that the method lists before this one.
        """


@dataclass(frozen=True, eq=False)
class Made(Need[Artefact]):
    """A prerequisite that is a single artefact, with the function that creates it.

    Attributes:
        name: name of the need, and kind of the artefact.
        store: where the artefact is kept.
        spec: JSON-serialisable values that determine the artefact completely.  While its method is under development,
            the code of `make` counts too.
        make: computes (tensors by name, JSON-serialisable facts) from the results of the earlier needs; called only if
            the store does not have the artefact.
        words: description in plans and in the log, for example "statistics of cifar10".
    """

    name: str
    store: Store
    spec: dict[str, Any]
    make: "Callable[[Got], Payload]"
    words: str

    def artefacts(self) -> Sequence[Wanted]:
        """Return the single artefact."""
        return [Wanted(self.name, self._key(), self.words)]

    def fetch(self, got: "Got") -> Artefact:
        """Return the artefact, creating it if needed; see `Store.tensors`."""
        return self.store.tensors(self.name, self._key(), partial(self._made, got), self.words)

    def _key(self) -> dict[str, Any]:
        code = code_in_the_making(self.make)
        key = self.spec | {"code": code} if code else self.spec
        try:
            json.dumps(key)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the spec of Made({self.name!r}) must be JSON-serialisable: {error}") from error
        return key

    def _made(self, got: "Got") -> Payload:
        payload = self.make(got)
        if not (isinstance(payload, tuple) and len(payload) == 2 and all(isinstance(one, Mapping) for one in payload)):
            raise UsageError(
                f"`make` of Made({self.name!r}) returns {type(payload).__name__}; it must return a pair of mappings: "
                "tensors by name, and JSON-serialisable facts"
            )
        if odd := [name for name, value in payload[0].items() if not isinstance(value, Tensor)]:
            kind = type(payload[0][odd[0]]).__name__
            raise UsageError(f"`make` of Made({self.name!r}) gives {odd[0]!r} as {kind}, not as a torch.Tensor")
        return payload


class Got:
    """Results of fetched needs: `got[need]` is the result of the need with that name."""

    def __init__(self, needs: "Iterable[Need[Any]]" = ()) -> None:
        """Fetch the needs in order; several processes divide their artefacts through the store alone."""
        self._found: dict[str, Any] = {}
        with parallel.alone():
            for need in needs:
                self._found[need.name] = need.fetch(self)

    def __getitem__(self, need: Need[T]) -> T:
        if need.name not in self._found:
            raise UsageError(f"{need.name!r} is used in `prepare`, but `needs` does not list it")
        return self._found[need.name]
