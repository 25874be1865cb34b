"""One side of a comparison, in a process of its own: the allocator's setting and compiled code belong to a process.

It talks with `pairs.Side` in lines of JSON: says once that it is ready, then is told to go, works for one repeat, says
what that took and waits, so that the sides work in turns and never at the same time.
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
    """Where a side waits between repeats; time counts only while the way is open."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints must not stand between our lines
        self._began = 0.0

    def ready(self) -> None:
        """Everything is set up: wait for the first repeat."""
        import torch

        facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
        self._say(facts | {"resident": resident("VmRSS")})
        self._wait(None)

    def pause(self, finish: Callable[[], dict[str, Any]] | None = None, **facts: Any) -> None:
        """A repeat is over: report it with `facts`, and wait for the next; `finish` makes what is reported last."""
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
    """Resident memory of this process in bytes, now (VmRSS) or at most (VmHWM); None where /proc does not say."""
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
