"""Entry point of `python -m dd.testing [--method NAME]... [pytest options]`."""

import sys
from importlib.metadata import entry_points

import pytest


def main() -> int:
    """Run the conformance suite; return pytest's exit code."""
    plugins = []
    if not any(point.value == "dd.testing.plugin" for point in entry_points(group="pytest11")):
        from dd.testing import plugin  # dd is not installed, or its metadata predates the plugin

        plugins = [plugin]
    return pytest.main(["--pyargs", "dd.testing", *sys.argv[1:]], plugins=plugins)


if __name__ == "__main__":
    sys.exit(main())
