"""Code that has no version yet: the hashes by which a method under development, and what it makes, are identified."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from dd.io import digest, sha256_file
from dd.plugins import PlugIn, plug_ins


def is_edited(module: str) -> bool:
    """Return whether a module belongs to an editable install, whose code changes while its version does not."""
    return any(plug_in.editable for plug_in in _of_the_package(module))


def code_in_the_making(function: Callable[..., Any]) -> str:
    """Return the hash of the file of a function under development; "" if the function is ours or packaged.

    For a function defined in a notebook, the hash covers its own code, but not the functions it calls.
    """
    while isinstance(function, partial):
        function = function.func
    module, code = function.__module__, getattr(function, "__code__", None)
    packaged = module.startswith("dd.") or (_of_the_package(module) and not is_edited(module))
    if packaged or code is None:
        return ""
    if module != "__main__" and os.path.isfile(code.co_filename):
        return sha256_file(Path(code.co_filename))
    return digest(instructions(code), length=64)


def instructions(code: CodeType) -> list[Any]:
    """Return what a function does, without line numbers or file names."""
    constants = [instructions(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _of_the_package(module: str) -> list[PlugIn]:
    """Return the methods that the package of a module declares."""
    top = module.partition(".")[0]
    points = ((plug_in, point) for plug_in in plug_ins("method").values() for point in plug_in.points)
    return [plug_in for plug_in, point in points if point.module.partition(".")[0] == top]
