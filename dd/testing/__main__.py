"""Entry point of `python -m dd.testing [--method NAME]... [pytest options]`."""

import sys
from importlib.metadata import entry_points

import pytest

_HELP = """python -m dd.testing [--method NAME]... [pytest options]

Run the conformance suite: everything that the engine requires of a method.

  --method NAME   a method by name or path/to/file.py; may be repeated; default: all methods
  -k CHECK        only the checks whose name contains CHECK
  -x              stop at the first failure
  -q, -v          say less, say more

All other options are pytest's.
"""


def main() -> int:
    """Run the conformance suite; return pytest's exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(_HELP)
        return 0
    plugins = []
    if not any(point.value == "dd.testing.plugin" for point in entry_points(group="pytest11")):
        from dd.testing import plugin  # dd is not installed, or its metadata predates the plugin

        plugins = [plugin]
    # dd is imported already, and a project whose warnings are errors would stop at pytest's warning about that
    quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    return pytest.main(["--pyargs", "dd.testing", *quiet, "--tb=short", *sys.argv[1:]], plugins=plugins)


if __name__ == "__main__":
    sys.exit(main())
