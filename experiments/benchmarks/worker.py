"""Process of one side of a comparison; separate, because allocator settings and compiled code are per process.

It communicates with `pairs.Side` in lines of JSON: it reports once that it is ready, then for every "go" runs one
repeat, reports it and waits, so that the sides take turns and never run at the same time.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn


class Gate:
    """Synchronises a side with its parent: it waits between repeats, and the time of waiting is not counted."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # output of libraries must not mix with our lines
        self._began = 0.0

    def ready(self) -> None:
        """Report that setup is done, and wait for the first repeat."""
        import torch

        facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
        self._say(facts | {"resident": resident("VmRSS")})
        self._wait(None)

    def pause(self, finish: Callable[[], dict[str, Any]] | None = None, **facts: Any) -> None:
        """Report the end of a repeat with `facts`, and wait for the next; `finish` makes the final report."""
        self._say({"seconds": time.perf_counter() - self._began, **facts})
        self._wait(finish)

    def _wait(self, finish: Callable[[], dict[str, Any]] | None) -> None:
        word = sys.stdin.readline().strip()
        if word != "go":
            self._say(finish() if word == "finish" and finish else {})
            sys.exit(0)
        self._began = time.perf_counter()

    def _say(self, facts: dict[str, Any]) -> None:
        print(json.dumps(facts), file=self._out, flush=True)


def resident(which: str) -> int | None:
    """Resident memory of this process in bytes, current (VmRSS) or peak (VmHWM); None without /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(which)), None)


def main() -> NoReturn:
    from scale import Scale

    name, request = sys.argv[1], json.loads(sys.argv[2])
    module, _, function = name.rpartition(".")
    gate = Gate()
    getattr(import_module(module or "sides"), function)(gate, Scale(**request["scale"]), **request["options"])
    raise SystemExit(f"{name} has no more work: ask for fewer repeats")


if __name__ == "__main__":
    main()
