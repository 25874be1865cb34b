"""The `dd` command, also available as `python -m dd`."""

import os
import signal
import sys
from types import FrameType

_AGAIN = 0.5  # seconds


def main() -> int:
    """Run the command line; return 0 (success), 1 (failure), 2 (usage error), 130 (Ctrl-C) or 75 (saved; run again)."""
    for name in ("SIGINT", "SIGALRM"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _insist)
    try:
        # hand off before any slow import: scripts may call the system's own `dd` many times
        from dd.cli.handoff import hand_off

        hand_off(sys.argv)
        _open_streams()
        from dd.cli.main import run_command_line

        return run_command_line(sys.argv[1:])
    except KeyboardInterrupt:  # during the imports above
        sys.stderr.write("dd: interrupted\n")
        return 130
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _insist(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt now and again shortly after: importing torch sometimes swallows the first one."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    raise KeyboardInterrupt


def _open_streams() -> None:
    """Reopen closed standard streams (`>&-`, `2>&-`), so that the next file opened does not receive their output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # opens at the lowest free descriptor, which is this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
