"""The suite as pytest runs it: every method asked for, by every check."""

from pathlib import Path

import pytest

from dd.engine import registry
from dd.testing.conformance import CHECKS, Check
from dd.testing.lab import Lab


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per method and check."""
    asked = metafunc.config.getoption("--method", default=[])
    metafunc.parametrize("name", asked or registry.names(), ids=lambda name: Path(name).stem, scope="module")
    metafunc.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One lab for all methods: what one of them prepared, the next finds."""
    return Lab(tmp_path_factory.mktemp("lab"))


def test_conforms(name: str, check: Check, lab: Lab) -> None:
    """The method does what the check asks."""
    check(registry.get(name), lab)
