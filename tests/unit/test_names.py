"""One name for one thing: no class and no type alias of the package is called like another."""

import ast
from collections import defaultdict
from pathlib import Path

import dd.methods

import dd

ROOTS = [Path(place) for package in (dd, dd.methods) for place in package.__path__]


def defined(tree):
    """Names of a module's classes, and of its aliases of types, which are written like classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            name = target.id if isinstance(target, ast.Name) else ""
            if name.lstrip("_")[:1].isupper() and not name.isupper():
                yield name


def homes(roots):
    found = defaultdict(set)
    for root in roots:
        for path in root.rglob("*.py"):
            for name in defined(ast.parse(path.read_text(encoding="utf-8"))):
                found[name].add(path)
    return found


def test_every_class_and_alias_has_one_home():
    found = homes(ROOTS)
    assert {"Method", "MTT", "RealData", "Json"} <= found.keys()
    assert {name: sorted(map(str, paths)) for name, paths in found.items() if len(paths) > 1} == {}


def test_a_second_home_is_noticed(tmp_path):
    (tmp_path / "one.py").write_text("class Part: ...\nKind = int\nLIMIT = 3\n")
    (tmp_path / "two.py").write_text("Part: type = int\nclass _Kind: ...\nLIMIT = 4\n")
    assert {name: len(paths) for name, paths in homes([tmp_path]).items()} == {"Part": 2, "Kind": 1, "_Kind": 1}
