"""Progress on stderr: a bar on a terminal, else a plain line every ten seconds.  Never writes to stdout."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, Protocol, SupportsFloat

from dd.runs import sampling

_REDRAW = 0.25  # seconds between redraws of the bar
_PLAIN = 10.0  # seconds between plain lines
_BARS = ((100, 24), (60, 10), (0, 0))  # minimum width of the terminal, and width of the bar, in columns
_WINDOW = 60.0  # seconds over which the speed is averaged

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


class Bar(Protocol):
    """The object that `bar` yields."""

    def update(self, it: int, **scalars: SupportsFloat) -> None:
        """Report that `it` of the total are done; scalars are only converted when shown, so tensors cost no sync."""
        ...


@contextlib.contextmanager
def bar(what: str, total: int, start: int = 0) -> Iterator[Bar]:
    """Show progress during the block, and a final line when it ends.

    Args:
        what: the activity, in one word: "synthesise".
        total: total number of iterations.
        start: iterations already done by an interrupted run.
    """
    if sampling.active() is not None or _hidden.get():
        yield _Nothing()
        return
    shown: _Plain | _Rich = _Rich(what, total, start) if _is_terminal() else _Plain(what, total, start)
    try:
        yield shown
    finally:
        shown.close()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Show no bar in the block."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


class _Nothing:
    """Shows nothing: a sample does not go to the end, and of several processes only one shows its progress."""

    def update(self, it: int, **scalars: SupportsFloat) -> None: ...


class _Pace:
    """Tracks the speed over the last minute and the remaining time."""

    def __init__(self, total: int, start: int) -> None:
        self.total, self.done, self.first = total, start, start
        self.began = time.monotonic()
        self._marks = deque([(self.began, start)])

    def step(self, it: int, now: float) -> None:
        self.done = it
        # one mark per second is enough
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, it))
        while len(self._marks) > 1 and now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()

    def speed(self, now: float) -> float:
        then, it = self._marks[0]
        return (self.done - it) / max(now - then, 1e-9)

    def text(self, scalars: dict[str, SupportsFloat], now: float, room: int = 1000) -> str:
        """Return e.g. "loss 0.731  4.1 it/s  0:44 left"; at the end, the total time and the average speed.

        If this exceeds `room` columns, parts are dropped from the front.
        """
        parts = self._parts(scalars, now)
        while len(parts) > 1 and len("  ".join(parts)) > room:
            parts.pop(0)
        return "  ".join(parts)

    def _parts(self, scalars: dict[str, SupportsFloat], now: float) -> list[str]:
        parts = [f"{name} {_short(value)}" for name, value in scalars.items()]
        took = now - self.began
        if self.done >= self.total:
            speed = (self.done - self.first) / max(took, 1e-9)
            return [*parts, _speed(speed), f"in {_clock(took)}"]
        speed = self.speed(now)
        if speed > 0:
            parts += [_speed(speed), f"{_clock((self.total - self.done) / speed)} left"]
        return parts


class _Plain:
    """Prints lines such as `synthesise 120/300  loss 0.731  4.1 it/s  0:44 left`."""

    def __init__(self, what: str, total: int, start: int) -> None:
        self._what = what
        self._pace = _Pace(total, start)
        self._scalars: dict[str, SupportsFloat] = {}
        self._last = time.monotonic()
        self._said = start

    def update(self, it: int, **scalars: SupportsFloat) -> None:
        now = time.monotonic()
        self._pace.step(it, now)
        self._scalars = scalars
        if now - self._last >= _PLAIN:
            self._say(now)

    def close(self) -> None:
        if self._said != self._pace.done:
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        pace = self._pace
        text = f"{self._what} {pace.done}/{pace.total}  {pace.text(self._scalars, now)}"
        sys.stderr.write(text.rstrip() + "\n")
        sys.stderr.flush()
        self._last, self._said = now, pace.done


class _Rich:
    """A live bar, redrawn by `update` so that no thread competes with the computation."""

    def __init__(self, what: str, total: int, start: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

        self._pace = _Pace(total, start)
        self._scalars: dict[str, SupportsFloat] = {}
        self._last = 0.0
        console = Console(stderr=True, color_system=colours())
        width = next(width for least, width in _BARS if console.width >= least)
        said = len(what) + 1 + 2 * len(str(total)) + 1
        self._room = console.width - said - (width + 1 if width else 0) - 2
        columns: tuple[ProgressColumn, ...] = (
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=width)] if width else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # stdout is for results: rich must neither write to it nor redirect it
        self._progress = Progress(*columns, console=console, auto_refresh=False, redirect_stdout=False)
        self._task = self._progress.add_task(what, total=total, completed=start, note="")
        self._progress.start()

    def update(self, it: int, **scalars: SupportsFloat) -> None:
        now = time.monotonic()
        self._pace.step(it, now)
        self._scalars = scalars
        if now - self._last >= _REDRAW:
            self._draw(now)

    def close(self) -> None:
        self._draw(time.monotonic())
        self._progress.stop()

    def _draw(self, now: float) -> None:
        note = self._pace.text(self._scalars, now, self._room)
        self._progress.update(self._task, completed=self._pace.done, note=note, refresh=True)
        self._last = now


def colours() -> Literal["auto"] | None:
    """Return rich's colour setting: no styles if NO_COLOR is set (https://no-color.org)."""
    return None if os.environ.get("NO_COLOR") else "auto"


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _short(value: SupportsFloat) -> str:
    if isinstance(value, int):
        return str(value)
    number = float(value)
    return f"{number:.0f}" if 1000 <= abs(number) < 1e6 else f"{number:.3g}"


def _speed(speed: float) -> str:
    return f"{speed:.1f} it/s" if speed >= 1 else f"{1 / max(speed, 1e-9):.1f} s/it"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
