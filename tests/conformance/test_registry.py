"""Every registered method, put through the conformance suite that plug-ins are put through."""

from dd.testing.test_conformance import lab, pytest_generate_tests, test_conforms

__all__ = ["lab", "pytest_generate_tests", "test_conforms"]
