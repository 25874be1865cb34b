"""Methods see the engine and what is below it, never what stands above."""

import ast
from pathlib import Path

import dd.methods
import pytest

ABOVE = ("dd.cli", "dd.pipeline", "dd.recipes", "dd.evaluation", "dd.testing", "dd.engine.synthesise")
FILES = sorted(path for root in dd.methods.__path__ for path in Path(root).rglob("*.py"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_method_imports_nothing_from_above(path):
    names = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert not {name for name in names if name.startswith(ABOVE)}


def test_there_are_methods():
    assert {"mtt", "datm", "random"} <= {path.stem for path in FILES}
