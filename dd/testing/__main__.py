"""`python -m dd.testing [--method NAME]... [pytest options]`."""

import sys

import pytest


def main(args: list[str] | None = None) -> int:
    """Run the conformance suite; returns pytest's exit code."""
    from dd.testing import plugin

    own = [] if plugin.is_loaded() else ["-p", plugin.__name__]
    return pytest.main([*own, "--pyargs", "dd.testing", *(sys.argv[1:] if args is None else args)])


if __name__ == "__main__":
    sys.exit(main())
