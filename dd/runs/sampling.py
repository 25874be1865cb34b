"""Estimates of a long computation from a sample of it: the first turns of its loops are executed, the rest is credited.

Inside `sampling`, loops that ask for `laps` end early, and things of which several alike are made are made once
(`Sample.each`).  What is skipped is credited to the clock `now`, at the pace of what was executed, and to the bytes
written.  Everything else is executed as it is, so memory is that of the real computation.  Outside, nothing changes.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_FEWEST = 3  # turns of a loop: the first warms up
_ENOUGH = 0.5  # seconds of turns after the first, after which a loop ends
_LONG = 4.0  # seconds after which it ends with two turns


@dataclass(frozen=True)
class Divided:
    """Work that several processes can divide.

    Attributes:
        kind: what the pieces are: "experts", "students".
        count: number of pieces.
        seconds: of one process, for all of them.
    """

    kind: str
    count: int
    seconds: float


@dataclass
class Sample:
    """What a block in `sampling` was credited.

    Attributes:
        credit: seconds.
        once: seconds by which the first turns of loops took longer than the others, for example to compile; a
            repetition does not have them.
        bytes: written to the store, with those of what was not made.
        pieces: the work that several processes can divide, in order; the rest is that of one process.
    """

    credit: float = 0.0
    once: float = 0.0
    bytes: int = 0
    pieces: list[Divided] = field(default_factory=list)
    _paces: dict[Hashable, float] = field(default_factory=dict)
    _divides: bool = False

    @contextlib.contextmanager
    def dividing(self, kind: str, count: int) -> Iterator[None]:
        """Note the block as work that consists of `count` pieces; what is divided within a piece is not noted."""
        if self._divides or count == 0:
            yield
            return
        self._divides, began = True, now()
        try:
            yield
        finally:
            self._divides = False
        self.pieces.append(Divided(kind, count, now() - began))

    def each(self, items: Iterable[T], make: Callable[[T], R], is_there: Callable[[T], bool]) -> list[R]:
        """Return the result of `make` for every item; of several that are not there, the first stands for the others.

        Args:
            items: they cost about the same.
            make: makes or fetches one of them.
            is_there: whether an item exists, and costs next to nothing.
        """
        found: list[R] = []
        made: tuple[R, float, int] | None = None
        for item in items:
            if is_there(item):
                found.append(make(item))
            elif made is None:
                began, once, held = now(), self.once, self.bytes
                result = make(item)
                made = result, now() - began - (self.once - once), self.bytes - held
                found.append(result)
            else:
                result, seconds, size = made
                self.credit += max(seconds, 0.0)
                self.bytes += size
                found.append(result)
        return found


class Laps:
    """The turns of one loop; `Sample` says what is credited.

    Args:
        sample: the sample in progress.
        key: loops of the same key have the same pace; None if no other has.
    """

    def __init__(self, sample: Sample, key: Hashable = None) -> None:
        self._sample, self._key = sample, key
        self._began = self._last = now()
        self._wall = time.perf_counter()
        self._laps: list[float] = []

    @property
    def known(self) -> bool:
        """Whether the pace is known from an earlier loop, so that no turn need be executed."""
        return self._key is not None and self._key in self._sample._paces

    def enough(self) -> bool:
        """Note the end of a turn; return whether the loop may end."""
        _wait_for_device()
        here = now()
        self._laps.append(here - self._last)
        self._last = here
        spent = time.perf_counter() - self._wall
        return (len(self._laps) >= _FEWEST and sum(self._laps[1:]) >= _ENOUGH) or (
            len(self._laps) >= 2 and spent >= _LONG
        )

    def skip(self, turns: int) -> None:
        """Credit the turns that are not executed."""
        if self.known:
            self._sample.credit += turns * self._sample._paces[self._key]
            return
        pace = statistics.median(self._laps[1:])  # a hiccup in a short sample would be multiplied
        self._sample.once += max(self._laps[0] - pace, 0.0)
        self._sample.credit += turns * pace
        if self._key is not None:
            self._sample._paces[self._key] = pace


_active: ContextVar[Sample | None] = ContextVar("sample", default=None)


@contextlib.contextmanager
def sampling() -> Iterator[Sample]:
    """Execute the block as a sample."""
    sample = Sample()
    token = _active.set(sample)
    try:
        yield sample
    finally:
        _active.reset(token)


def active() -> Sample | None:
    """Return the sample in progress, if any."""
    return _active.get()


def laps(key: Hashable = None) -> Laps | None:
    """Return the laps of a loop that may end early; None outside `sampling`, where no loop may."""
    sample = _active.get()
    return None if sample is None else Laps(sample, key)


def ended(laps: Laps | None, left: int) -> bool:
    """Note the end of a turn; return whether the loop ends here, with the `left` other turns credited."""
    if laps is None or not laps.enough():
        return False
    laps.skip(left)
    return True


def turns(start: int, stop: int, key: Hashable = None) -> Iterator[int]:
    """Yield `range(start, stop)`, or in a sample the first of them.

    Args:
        start: the first number.
        stop: the end.
        key: loops of the same key have the same pace; if it is known, no turn is executed.
    """
    loop = laps(key)
    if loop is not None and loop.known:
        loop.skip(stop - start)
        return
    for turn in range(start, stop):
        yield turn
        if ended(loop, stop - turn - 1):
            return


def now() -> float:
    """Return the seconds of a clock, with what a sample was credited; only differences have a meaning."""
    sample = _active.get()
    return time.perf_counter() + (0.0 if sample is None else sample.credit)


def _wait_for_device() -> None:
    import torch  # the progress bar, and so every verb's help, imports this module

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(block: Callable[[], object]) -> float:
    """Return the seconds that a call takes on the clock `now`."""
    began = now()
    block()
    return now() - began


def credit(seconds: float) -> None:
    """Credit seconds of what is not executed; does nothing outside `sampling`."""
    if (sample := _active.get()) is not None:
        sample.credit += seconds
