"""Graceful stops: SIGINT and SIGTERM end a run at once, or after the current iteration."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from dd.errors import Interrupted

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class Stop:
    """Handles signals during a run.

    Outside `deferred`, a signal raises `Interrupted` immediately: artefacts are either complete or absent, so this
    loses only unfinished work.  Inside, the first signal only sets `requested`, so that the loop can save; a second one
    raises.

    Attributes:
        requested: the signal received, or None.
    """

    def __init__(self, way_on: str) -> None:
        """Create the handler; `way_on` is shown to the user, for example "the same command resumes"."""
        self.requested: int | None = None
        self._way_on = way_on
        self._deferred = False

    @contextlib.contextmanager
    def watching(self) -> Iterator["Stop"]:
        """Install the handlers for the block, then restore the old ones; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer the first signal during the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def error(self) -> Interrupted:
        """Return the exception that ends the run."""
        assert self.requested is not None
        name = signal.Signals(self.requested).name
        return Interrupted(f"stopped by {name}; {self._way_on}", EXIT_CODES[signal.Signals(self.requested)])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested is not None, number
        if again or not self._deferred:
            raise self.error()
