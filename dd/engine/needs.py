"""What a method needs before it begins: declared once, listed by a plan, fetched by a run, handed to `prepare`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from dd.runs.store import Artefact, Payload, Store, Wanted

T = TypeVar("T")


class Need(ABC, Generic[T]):
    """Something that a method needs, and the artefacts in which the store keeps it.

    A plan lists the artefacts, a run fetches them, and both ask the same object: they cannot disagree.

    Attributes:
        name: of the need, one of its kind in a method: "experts", "teachers".
    """

    name: str

    @abstractmethod
    def artefacts(self) -> Sequence[Wanted]:
        """What the store is asked for, without making any of it."""

    @abstractmethod
    def fetch(self, got: "Got") -> T:
        """Find what is in the store, make what is not.

        Args:
            got: the needs that the method lists before this one.
        """


@dataclass(frozen=True, eq=False)
class Made(Need[Artefact]):
    """A single artefact, and the function that makes it.

    Attributes:
        name: of the need, and the artefact's kind.
        store: where it is kept.
        spec: JSON-able; everything that determines it.
        make: given the needs that the method lists before this one, computes (tensors by name, JSON-able facts); called
            if the store does not have it.
        words: named in plans and in the log, for example "statistics of cifar10".
    """

    name: str
    store: Store
    spec: dict[str, Any]
    make: "Callable[[Got], Payload]"
    words: str

    def artefacts(self) -> Sequence[Wanted]:
        """The one."""
        return [Wanted(self.name, self.spec, self.words)]

    def fetch(self, got: "Got") -> Artefact:
        """See `Store.tensors`."""
        return self.store.tensors(self.name, self.spec, partial(self.make, got), self.words)


class Got:
    """What was fetched: `got[need]` is what the need of that name gave."""

    def __init__(self, needs: "Iterable[Need[Any]]" = ()) -> None:
        """Fetch needs one after another."""
        self._found: dict[str, Any] = {}
        for need in needs:
            self._found[need.name] = need.fetch(self)

    def __getitem__(self, need: Need[T]) -> T:
        if need.name not in self._found:
            raise KeyError(f"{need.name!r} is used in `prepare`, but `needs` does not list it")
        return self._found[need.name]
