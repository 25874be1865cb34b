"""`dd new method`: a package with one method, its settings and its tests, ready to be installed."""

import keyword
import os
import re
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template

import click

import dd
from dd.cli.common import STRICT, emit, examples, json_option
from dd.errors import UsageError
from dd.io import user_path, writable

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 40  # characters of a name
_FILES = {
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    "{module}/{stem}.py": "method.py.in",
    "{module}/{stem}.toml": "method.toml.in",
    "tests/test_conformance.py": "test_conformance.py.in",
}


@click.command(
    "method",
    context_settings=STRICT,
    epilog=examples("dd new method my-idea", "dd new method my-idea out=~/code/my-idea"),
    short_help="Write a package with a new method.",
)
@click.argument("name")
@click.argument("settings", nargs=-1, metavar="[out=FOLDER]")
@json_option
def method(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Write a package for the method NAME: its file, its settings, and a test that runs the conformance suite.

    The method works as it is, so that you can change it step by step.  Installed with pip it appears in `dd methods`.
    """
    words = _words(name)
    folder = _folder(settings, words["distribution"])
    _write(folder, words)
    if as_json:
        emit({"folder": str(folder), "method": name, "module": words["module"]})
        return
    click.echo(f"{folder} holds the method in {words['module']}/{words['stem']}.py")
    click.echo(f"  pip install -e {folder}    then: dd run method={name} ipc=1, and pytest in {folder}")


def _words(name: str) -> dict[str, str]:
    """Return the variables of the templates."""
    from dd.engine.registry import names

    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise UsageError(
            f"{name!r} cannot name a method: use lower-case letters, digits and single dashes, as in my-idea, "
            f"at most {_LONGEST} characters"
        )
    stem = name.replace("-", "_")
    if keyword.iskeyword(stem):
        raise UsageError(f"{name!r} is a keyword of Python; use another name")
    if name in names():
        raise UsageError(f"there is a method {name!r} already (`dd methods {name}`); use another name")
    class_name = "".join(part.capitalize() for part in stem.split("_"))
    spelled = {"distribution": f"dd-{name.replace('_', '-')}", "module": f"dd_{stem}", "class_name": class_name}
    return spelled | {"name": name, "stem": stem, "version": dd.__version__}


def _folder(settings: tuple[str, ...], default: str) -> Path:
    given = default
    for word in settings:
        key, equals, given = word.partition("=")
        if key.lstrip("-") != "out" or not equals or not given:
            raise UsageError(f"dd new method takes out=FOLDER, not {word!r}")
    folder = user_path(given, "out").absolute()
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists already; give another folder, out=FOLDER")
    return folder


def _write(folder: Path, words: dict[str, str]) -> None:
    """Write the whole folder or nothing."""
    templates = files("dd.assets") / "method-template"
    parent = writable(folder.parent, "give another folder, out=FOLDER")
    temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}."))
    try:
        for name, template in _FILES.items():
            path = temporary / name.format(**words)
            path.parent.mkdir(exist_ok=True)
            text = Template((templates / template).read_text(encoding="utf-8")).substitute(words)
            path.write_text(text, encoding="utf-8")
        (temporary / words["module"] / "__init__.py").write_text(
            f'"""{words["class_name"]}, a method of dataset distillation."""\n', encoding="utf-8"
        )
        temporary.chmod(0o755)  # mkdtemp makes folders private
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
