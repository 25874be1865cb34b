"""`python -m dd.testing [--method NAME]... [pytest options]`."""

import sys
from importlib.metadata import entry_points

import pytest


def main() -> int:
    """Run the conformance suite; returns pytest's exit code."""
    plugins = []
    if not any(point.value == "dd.testing.plugin" for point in entry_points(group="pytest11")):
        from dd.testing import plugin  # not installed, or installed before the plugin existed

        plugins = [plugin]
    return pytest.main(["--pyargs", "dd.testing", *sys.argv[1:]], plugins=plugins)


if __name__ == "__main__":
    sys.exit(main())
