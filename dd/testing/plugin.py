"""The pytest option `--method`, which selects methods for the conformance suite.

Every pytest run in an environment with dd loads this module, so it imports nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: "pytest.Parser") -> None:
    """Add `--method`, which may be repeated."""
    parser.getgroup("dd", "dataset distillation").addoption(
        "--method",
        action="append",
        default=[],
        metavar="NAME",
        help="method for the conformance suite: a registered name or path/to/file.py; may be repeated; "
        "without it, all registered methods",
    )
