"""The conformance suite as a pytest module: every requested method against every check."""

from pathlib import Path

import pytest

from dd.engine import registry
from dd.testing.conformance import CHECKS, Check
from dd.testing.lab import Lab


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Generate one test per method and check."""
    asked = metafunc.config.getoption("--method", default=[])
    metafunc.parametrize("name", asked or registry.names(), ids=lambda name: Path(name).stem, scope="module")
    metafunc.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One lab for all methods, so that they share artefacts."""
    return Lab(tmp_path_factory.mktemp("lab"))


def test_conforms(name: str, check: Check, lab: Lab) -> None:
    """The method passes the check."""
    check(registry.get(name), lab)
