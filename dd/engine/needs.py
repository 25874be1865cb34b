"""Prerequisites of a method: declared once, listed by a plan, fetched by a run, passed to `Method.prepare`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

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
        spec: JSON-serialisable values that determine the artefact completely.
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
        return [Wanted(self.name, self.spec, self.words)]

    def fetch(self, got: "Got") -> Artefact:
        """Return the artefact, creating it if needed; see `Store.tensors`."""
        return self.store.tensors(self.name, self.spec, partial(self.make, got), self.words)


class Got:
    """Results of fetched needs: `got[need]` is the result of the need with that name."""

    def __init__(self, needs: "Iterable[Need[Any]]" = ()) -> None:
        """Fetch the needs in order."""
        self._found: dict[str, Any] = {}
        for need in needs:
            self._found[need.name] = need.fetch(self)

    def __getitem__(self, need: Need[T]) -> T:
        if need.name not in self._found:
            raise KeyError(f"{need.name!r} is used in `prepare`, but `needs` does not list it")
        return self._found[need.name]
