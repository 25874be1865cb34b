"""Registry of methods: registered by a decorator, found by file name, by entry point or by path.

A built-in method is `methods/<family>/<name>.py`.  A method of an installed package is an entry point in the group
`dd.methods`.  A method under development is `path/to/file.py` or `path/to/file.py:name`.  Each is imported when first
used.
"""

import fnmatch
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dd.engine.code import instructions, is_edited
from dd.errors import RunError, UsageError, in_one_line, unknown
from dd.io import digest, sha256_file, user_path
from dd.plugins import PlugIn, plug_ins

if TYPE_CHECKING:
    from dd.engine.method import Method

M = TypeVar("M", bound="type[Method]")
_registered: dict[str, "type[Method]"] = {}
_LOADED_FROM = "_dd_loaded_from"  # attribute of a method file's module: the path and the bytes it was loaded from


@dataclass(frozen=True)
class MethodEntry:
    """Name, origin and summary of a method; `error` says why it cannot be used, else None."""

    name: str
    family: str
    package: str
    summary: str
    error: str | None = None


def register(name: str) -> Callable[[M], M]:
    """Class decorator that registers a `Method` under `name`.

    Raises:
        UsageError: another class has this name.
    """

    def decorate(cls: M) -> M:
        holder = _holder(name, cls)
        if holder is not None:
            here = _source_file(cls) or cls.__module__
            raise UsageError(f"method name {name!r} is taken by {holder}; choose another name in {here}")
        cls.name = name
        _registered[name] = cls
        return cls

    return decorate


def _holder(name: str, cls: type) -> str | None:
    """Return the module or file of another method that has a name; None if it is free for this class."""
    other = _registered.get(name)
    if other is None:
        module = _builtin().get(name, cls.__module__)
        return None if module == cls.__module__ else module
    if (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__):
        return None
    file = _source_file(other)  # a file that is imported both as a module and by its path holds one method
    if file is not None and file == _source_file(cls) and other.__qualname__ == cls.__qualname__:
        return None
    return other.__module__ if file is None or other.__module__.startswith("dd.") else str(file)


def names() -> list[str]:
    """Return all names that `get` accepts, sorted, without importing any method."""
    return sorted({*_builtin(), *plug_ins("method"), *_registered})


def get(name: str) -> "type[Method]":
    """Return the class registered under `name`, importing its file if needed.

    Args:
        name: a registered name, `path/to/file.py` or `path/to/file.py:name`.

    Raises:
        UsageError: the method does not exist, or the file registers none or several.
        RunError: a plug-in fails to import.
    """
    if is_code(name):
        return _from_file(name)
    if name in _registered:
        return _registered[name]
    if name in _builtin():
        importlib.import_module(_builtin()[name])
    elif plug_in := plug_ins("method").get(name):
        _load(plug_in)
    if name not in _registered:
        raise unknown("method", name, names())
    return _registered[name]


def is_code(name: str) -> bool:
    """Return whether a method's name is the path of a file to import."""
    return name.endswith(".py") or ".py:" in name


def is_loaded(name: str) -> bool:
    """Return whether the current content of the file in `name` is already imported in this process."""
    path = _path(name)
    loaded = sys.modules.get("dd_method_" + path.stem)
    return loaded is not None and os.path.isfile(path) and vars(loaded).get(_LOADED_FROM) == (path, path.read_bytes())


def _path(name: str) -> Path:
    path = name.partition(".py:")[0]
    return user_path(path if path.endswith(".py") else path + ".py", "method").resolve()


def reference(cls: "type[Method]") -> str:
    """Return the string that `get` accepts for a registered class: its name, or `path/to/file.py:name` if unpackaged.

    A class defined in a notebook has no file; its name is valid in this process only.

    Raises:
        UsageError: the class was never registered.
    """
    if "name" not in vars(cls):  # a subclass inherits the name of its parent, but is another method
        raise UsageError(f"{cls.__name__} is not registered: decorate it with dd.engine.registry.register(NAME)")
    file = _file(cls)
    return cls.name if file is None else f"{file}:{cls.name}"


def in_the_making(cls: "type[Method]") -> str:
    """Return the hash of the file of a method under development, part of its recipe; "" for a packaged method.

    An editable install is under development too.  For a class defined in a notebook, the hash covers the class's own
    functions, but not the functions they call.
    """
    if _established(cls) and not is_edited(cls.__module__):
        return ""
    if (file := _source_file(cls)) is not None:
        return sha256_file(file)
    functions = {name: value.__code__ for name, value in sorted(vars(cls).items()) if inspect.isfunction(value)}
    return digest({name: instructions(value) for name, value in functions.items()}, length=64)


def list_methods(pattern: str = "*") -> list[MethodEntry]:
    """Import and list all methods, including plug-ins; a broken method is listed with its error.

    Args:
        pattern: filter on the name, with `*` and `?`, for example "sre2l*".
    """
    found, others = [], plug_ins("method")
    for name in fnmatch.filter(names(), pattern):
        plug_in = None if name in _builtin() else others.get(name)
        try:
            cls = get(name)
        except Exception as error:
            found.append(MethodEntry(name, "?", plug_in.package if plug_in else "dd", "", in_one_line(error)))
            continue
        module = cls.__module__.split(".")
        ours = module[:2] == ["dd", "methods"]
        package = "dd" if ours else plug_in.package if plug_in else module[0]
        summary = (cls.__doc__ or "").strip().split("\n")[0]
        found.append(MethodEntry(name, module[2] if ours else "plug-in", package, summary))
    for name in fnmatch.filter(sorted(_builtin().keys() & others), pattern):
        why = f"{name!r} is a name of dd's own"
        found.append(MethodEntry(name, "?", others[name].package, "", why))
    return found


def files() -> list[Path] | None:
    """Return the files of registered methods that are not built in, and of their recipes; None if one has no file."""
    found: list[Path] = []
    for name, cls in _registered.items():
        if not cls.__module__.startswith("dd.methods."):
            if (file := _source_file(cls)) is None:
                return None
            found += [file, file.with_suffix(".toml"), file.with_name(f"{name}.toml")]
    return found


def _builtin() -> dict[str, str]:
    package = importlib.import_module("dd.methods")
    found = {}
    for family in pkgutil.iter_modules(package.__path__):
        if family.ispkg:
            folder = [str(Path(path) / family.name) for path in package.__path__]
            for module in pkgutil.iter_modules(folder):
                if not module.name.startswith("_"):
                    found[module.name] = f"dd.methods.{family.name}.{module.name}"
    return found


def _established(cls: "type[Method]") -> bool:
    """Return whether a class is ours or an installed package's, and so has a name and a version."""
    if cls.__module__.startswith("dd.methods."):
        return True
    plug_in = plug_ins("method").get(cls.name)
    try:
        return plug_in is not None and plug_in.load() is cls
    except (UsageError, RunError):  # another one of that name, which is broken
        return False


def _file(cls: "type[Method]") -> Path | None:
    """Return the file of a method under development; None for a packaged method or one without a file."""
    return None if _established(cls) else _source_file(cls)


def _source_file(cls: "type[Method]") -> Path | None:
    try:
        path = Path(inspect.getfile(cls)).resolve()
    except (OSError, TypeError):  # defined in a notebook
        return None
    return path if path.is_file() and path.suffix == ".py" else None


def _load(plug_in: PlugIn) -> None:
    cls = plug_in.load()
    if plug_in.name in _registered:  # by the decorator of its class
        return
    from dd.engine.method import Method

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise plug_in.broken("is not a class of a method")
    register(plug_in.name)(cls)


def _from_file(text: str) -> "type[Method]":
    path, wanted = _path(text), text.partition(".py:")[2]
    if not os.path.isfile(path):
        raise UsageError(f"no method file {str(path)!r}; give the path of a Python file that registers one")
    module_name, content = "dd_method_" + path.stem, path.read_bytes()
    loaded = sys.modules.get(module_name)
    # a long session may edit the file or load another file of the same name
    if loaded is None or vars(loaded).get(_LOADED_FROM) != (path, content):
        for name in [name for name, cls in _registered.items() if cls.__module__ == module_name]:
            del _registered[name]
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        loaded = importlib.util.module_from_spec(spec)
        setattr(loaded, _LOADED_FROM, (path, content))
        sys.modules[module_name] = loaded
        try:
            # bypass the import cache, which mistakes a file of the same second and length for the old one
            exec(compile(content, path, "exec"), vars(loaded))
        except Exception as error:
            del sys.modules[module_name]
            if isinstance(error, UsageError):
                raise
            raise RunError(f"{path} fails to import: {type(error).__name__}: {error}") from error
    here = {name: cls for name, cls in _registered.items() if cls.__module__ == module_name}
    if wanted:
        if wanted not in here:
            raise unknown(f"method in {path.name}", wanted, here)
        return here[wanted]
    if len(here) != 1:
        raise UsageError(
            f"{path} registers {len(here)} methods ({', '.join(here) or 'none'}); name one as {path.name}:NAME"
        )
    return next(iter(here.values()))
