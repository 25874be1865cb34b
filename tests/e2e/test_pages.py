"""Every line of Python that README and pages show runs as it stands, and page by page like a reader's session."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(page: Path) -> str:
    """The Python of a page, each line where it stands in it."""
    text, lines = page.read_text(encoding="utf-8"), []
    for block in BLOCK.finditer(text):
        lines += [""] * (text.count("\n", 0, block.start(1)) - len(lines))
        lines += block[1].splitlines()
    return "\n".join(lines) + "\n"


def pages() -> list[Path]:
    every = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in every if "```python" in page.read_text(encoding="utf-8")]


def test_the_blocks_are_found():
    """All of them: whatever a page calls Python is in its script."""
    found = {page.relative_to(ROOT).as_posix() for page in pages()}
    assert {"README.md", "docs/pages/howto/method.md", "docs/pages/howto/python.md"} <= found
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert len(BLOCK.findall(text)) == len(re.findall(r"```\s*py", text))
        for number, line in enumerate(script(page).splitlines()):
            assert line in ("", text.splitlines()[number])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The cache of somebody who tries one page after another."""
    return str(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_runs_as_it_stands(page, place, home):
    """Nothing is replaced: a reader's session in an empty folder."""
    file, environment = place.path / f"{page.stem}.py", place.environment | {"DD_HOME": home}
    file.write_text(script(page), encoding="utf-8")
    command = [sys.executable, file.name]
    done = subprocess.run(command, cwd=place.path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
