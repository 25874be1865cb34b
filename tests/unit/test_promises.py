"""What SECURITY.md and the pages promise names the tests that keep it, and no source breaks it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import dd.methods
import pytest

import dd

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
TEXTS = [ROOT / "SECURITY.md", ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
NAMED = re.compile(r"`(test_\w+)`")
NO_PROMISES = ("What is trusted", "Reporting")
SOURCES = [path for package in (dd, dd.methods) for place in package.__path__ for path in Path(place).rglob("*.py")]


def promises() -> list[str]:
    """The paragraphs of SECURITY.md, each under a bold title."""
    return [part for part in SECURITY.split("\n\n") if part.startswith("**") and not part[2:].startswith(NO_PROMISES)]


def names_there() -> set[str]:
    found = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^ *def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE))
    return found


def test_every_test_that_is_named_is_there():
    named = {name: text.name for text in TEXTS for name in NAMED.findall(text.read_text(encoding="utf-8"))}
    assert len(named) > 25
    assert {name: text for name, text in named.items() if name not in names_there()} == {}


def test_every_promise_names_a_test():
    assert len(promises()) >= 6
    assert [part[:60] for part in promises() if not NAMED.search(part)] == []


# --- sources ----------------------------------------------------------------------------------------------------------

# what runs code, or is read by what does, and the files that may: a method's file is code that its user named
RUNS_CODE = {"eval": (), "exec": ("registry.py",), "compile": ("registry.py",), "__import__": ()}
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
RUNS_CODE |= {"torch.save": ("export.py",)}  # a .pt file, where one is asked for
UNSAFE = {"pickle", "marshal", "shelve", "yaml", "dill", "joblib"}
# a dry run, in which every global is a note of its name; YAML's safe loader, without aliases
LOOKS_THROUGH = {"pickle": "pickles.py", "yaml": "yaml_file.py"}
# what writes: through `dd.io.atomic`, but for the rows of a log, a recipe of the tests that we ship, and the kernel
WRITES = {"write_text", "write_bytes", "savefig", "savez", "to_csv", "tofile", "mkstemp"}
WRITERS = {
    "atomic.py": "it is the one place",
    "tensors.py": "into the temporary file of `atomic_path`",
    "pictures.py": "likewise",
    "download.py": "likewise",
    "export.py": "likewise",
    "fetch.py": "likewise",
    "new_method.py": "into a temporary folder that is renamed",
    "push.py": "into a folder that is uploaded, and then gone",
    "track.py": "appends whole lines",
    "study.py": "cuts a half-written line off a journal to which whole lines are appended",
    "conformance.py": "in a temporary folder",
    "processes.py": "a file for what a process says",
    "cost.py": "to the kernel: /proc/self/clear_refs",
}


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a source, as ("torch.load", node); what is called on something unnamed is ".name"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            func = node.func
            owner = getattr(getattr(func, "value", None), "id", "")
            name = func.id if isinstance(func, ast.Name) else f"{owner}.{getattr(func, 'attr', '')}"
            yield name, node


def keyword(node: ast.Call, name: str) -> object:
    return next((getattr(word.value, "value", ...) for word in node.keywords if word.arg == name), None)


def runs_what_it_reads(source: str, file: str) -> list[str]:
    """Calls and imports by which what is read could become code."""
    found = []
    for name, node in calls(source):
        safely = name in SAFE and keyword(node, SAFE[name][0]) is SAFE[name][1]
        if (name in RUNS_CODE and file not in RUNS_CODE[name]) or (name in SAFE and not safely):
            found.append(name)
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            # which `torch.load` raises
            package = name.partition(".")[0]
            if package in UNSAFE and not name.endswith("UnpicklingError") and file != LOOKS_THROUGH.get(package):
                found.append(name)
    return found


def writes_elsewhere(source: str) -> list[str]:
    """Calls that open a file for writing, or write a whole one."""
    found = []
    for name, node in calls(source):
        last = name.rpartition(".")[2]
        if last in WRITES and name != "write_text":  # bare it is that of `dd.io`
            found.append(name)
        if last == "open":
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            modes += [mode] if isinstance(mode := keyword(node, "mode"), str) else []
            found += [name for mode in modes if re.fullmatch(r"[rwaxbt]*[wax+][rwaxbt+]*", mode)]
        if last == "save_file":
            found.append(name)
    return found


def test_no_source_runs_what_it_reads():
    found = {path.name: runs_what_it_reads(path.read_text(encoding="utf-8"), path.name) for path in SOURCES}
    assert len(SOURCES) > 150
    assert {file: bad for file, bad in found.items() if bad} == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(code)",
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "torch.save(x, file)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
    ],
)
def test_what_runs_code_is_noticed(source):
    assert runs_what_it_reads(source, "some.py")


def test_every_write_goes_through_one_place():
    found = {path.name for path in SOURCES if writes_elsewhere(path.read_text(encoding="utf-8"))}
    assert found == set(WRITERS)


@pytest.mark.parametrize(
    "source",
    ["path.write_text('')", "open(path, 'w')", "path.open('ab')", "path.open(mode='r+')", "save_file(tensors, path)"],
)
def test_a_write_elsewhere_is_noticed(source):
    assert writes_elsewhere(source)
