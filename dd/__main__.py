"""The command `dd`, also as `python -m dd`."""

import sys


def main() -> int:
    """Run the command line; exit codes: 0, 1 failed, 2 wrong use, 130 interrupted, 75 saved and to be started again."""
    # before anything slow is imported: scripts may call the system's dd many times
    from dd.cli.handoff import hand_off

    hand_off(sys.argv)
    from dd.cli.main import run_command_line

    return run_command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
