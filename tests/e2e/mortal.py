"""A process that calls `dd` in forks of itself, which may die at any change that they make to the disk.

Forked once everything is imported and before anything is computed, a call costs what it computes.  Python tells an
audit hook of every file that is opened, renamed, linked or removed, whoever does it, so no write can be forgotten; what
a killed process leaves in a file that it was writing is made by cutting the file just before the process is killed.

Run as a program it reads one JSON object a line, `Wish`, and answers each with a line: the exit code.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PRELOADED = (
    *("dd.cli.main", "dd.cli.run", "dd.cli.show_recipe", "dd.cli.show_report", "dd.pipeline", "dd.runs.pictures"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.ImageOps", "torch._dynamo", "safetensors.torch"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# what a process says of itself to the kernel, and what Python keeps of its own modules
ELSEWHERE = ("/dev/", "/proc/self/")


class Change(NamedTuple):
    """What a process is about to do to the disk, and the files that it does it to: "open", "rename", "append", ..."""

    kind: str
    path: str
    to: str = ""


class Wish(NamedTuple):
    """A call of `dd`.

    Attributes:
        words: its arguments.
        folder: where it is called; what it says goes to the files `out` and `err` there.
        environment: all of it.
        seen: the file that gets the changes of a call that goes through, one JSON list a line.
        at: number of the change, from 0, at which it is killed; -1 for none.
        half: whether the file that is being written is left half-written; else the call is killed before the change.
    """

    words: list[str]
    folder: str
    environment: dict[str, str]
    seen: str
    at: int = -1
    half: bool = False


class _Mortal:
    """Counts the changes of this process, and ends it at one of them."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self.changes: list[Change] = []

    def watch(self) -> None:
        """From now on."""
        sys.addaudithook(self._heard)
        really = Path.open

        def opened(path: Path, mode: str = "r", *args, **kwargs):
            file = really(path, mode, *args, **kwargs)
            return _Appended(file, str(path), self.at) if mode == "a" else file

        Path.open = opened

    def at(self, change: Change, halve: Callable[[], object]) -> None:
        """Note a change that is about to happen; die where it is the one."""
        if len(self.changes) == self._wish.at:
            if self._wish.half:
                halve()
            os.kill(os.getpid(), signal.SIGKILL)
        self.changes.append(change)

    def _heard(self, event: str, args: tuple) -> None:
        if (change := _change(event, args)) is None:
            return
        self.at(change, lambda: os.truncate(change.path, os.path.getsize(change.path) // 2))


class _Appended:
    """A text file whose lines are changes, too."""

    def __init__(self, file, path: str, at: Callable[[Change, Callable[[], object]], None]) -> None:
        self._file, self._path, self._at = file, path, at

    def write(self, text: str) -> None:
        self._at(Change("append", self._path), lambda: (self._file.write(text[: len(text) // 2]), self._file.flush()))
        self._file.write(text)

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def _change(event: str, args: tuple) -> Change | None:
    """What an event of Python does to the disk; None where that is nothing."""
    match event, args:
        case "open", (str() | bytes() | os.PathLike() as path, _, int() as flags):
            path = os.fsdecode(path)
            if not flags & WRITING or flags & os.O_TMPFILE == os.O_TMPFILE or _is_elsewhere(path):
                return None  # what has no name vanishes with its process
            emptied = flags & os.O_TRUNC and os.path.isfile(path) and os.path.getsize(path)
            return Change("open", path) if emptied or not os.path.exists(path) else None
        case "os.rename" | "os.link", (source, target, *_):
            return Change(event.removeprefix("os."), os.fsdecode(source), os.fsdecode(target))
        case "os.remove" | "os.rmdir", (path, folder):
            path = _at_folder(path, folder)
            return Change(event.removeprefix("os."), path) if os.path.lexists(path) else None
        case "os.mkdir", (path, _, folder):
            path = _at_folder(path, folder)
            return Change("mkdir", path) if not os.path.lexists(path) and os.path.isdir(os.path.dirname(path)) else None
    return None


def _is_elsewhere(path: str) -> bool:
    return path.startswith(ELSEWHERE) or "/__pycache__/" in path


def _at_folder(path: str | bytes | os.PathLike, folder: int) -> str:
    return os.path.join("" if folder < 0 else os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))


def _call(wish: Wish) -> int:
    """The call, in a process that is there for nothing else."""
    os.environ.clear()
    os.environ.update(wish.environment)
    os.chdir(wish.folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from dd.cli.main import run_command_line

    mortal = _Mortal(wish)
    mortal.watch()
    code = run_command_line(wish.words)
    sys.stdout.flush()
    sys.stderr.flush()
    changes = list(mortal.changes)
    with open(wish.seen, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(change) + "\n" for change in changes)
    return code


def serve() -> None:
    """Answer wishes until there are no more."""
    for module in PRELOADED:
        __import__(module)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 70
            try:
                code = _call(Wish(**json.loads(line)))
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
