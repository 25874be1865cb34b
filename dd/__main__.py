"""The command `dd`, also as `python -m dd`."""

import os
import signal
import sys
from types import FrameType

_AGAIN = 0.5  # seconds


def main() -> int:
    """Run the command line; exit codes: 0, 1 failed, 2 wrong use, 130 interrupted, 75 saved and to be started again."""
    for name in ("SIGINT", "SIGALRM"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _insist)
    try:
        # before anything slow is imported: scripts may call the system's dd many times
        from dd.cli.handoff import hand_off

        hand_off(sys.argv)
        _open_streams()
        from dd.cli.main import run_command_line

        return run_command_line(sys.argv[1:])
    except KeyboardInterrupt:  # while that was imported
        sys.stderr.write("dd: interrupted\n")
        return 130
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _insist(number: int, frame: FrameType | None) -> None:
    """Interrupt, and again a little later: an import of torch now and then takes it for an error of its own."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    raise KeyboardInterrupt


def _open_streams() -> None:
    """Give what was closed (`>&-`, `2>&-`) somewhere to go, or the next file that is opened would get what is said."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
