"""What the pages take from the project itself: rows of results, protocols, recipes, methods, the command line.

A line `{{ name }}` or `{{ name: argument; argument }}` of a page is replaced by what the function of that name returns.
An unknown name, a pattern that no recorded row fits, and a recorded row that no page shows end the build.
"""

import csv
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
_CALL = re.compile(r"^\{\{ *(?P<name>\w+)(?:: *(?P<arguments>.*?))? *\}\}$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One recorded run: a line of a file of results."""

    file: str
    fields: dict[str, str]

    @property
    def command(self) -> str:
        """As it was typed."""
        return self.fields["command"]

    def score(self, mean: str, std: str) -> str:
        """`82.5 ± 0.4`, without ± for a single one, or nothing where it was not measured."""
        if not self.fields.get(mean):
            return ""
        if not self.fields[std]:
            return str(_tenths(self.fields[mean]))
        return f"{_tenths(self.fields[mean])}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{_tenths(self.fields[std])}"

    def gap(self, reference: str) -> str:
        """Points ahead of a reference, signed."""
        if not self.fields.get(reference):
            return ""
        points = _tenths(Decimal(self.fields["accuracy"]) - Decimal(self.fields[reference]))
        return f"{points:+}".replace("-", "\N{MINUS SIGN}")

    def interval(self) -> str:
        """`+3.1 [+2.3, +3.9]`: the points ahead of the better of random images and the coreset, if recorded."""
        if not self.fields.get("gap"):
            return ""
        mean, low, high = (f"{_tenths(self.fields[name]):+}" for name in ("gap", "gap_low", "gap_high"))
        return f"{mean} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")


def _tenths(value: str | Decimal) -> Decimal:
    return Decimal(value).quantize(Decimal("0.1"), ROUND_HALF_UP)


@cache
def rows() -> tuple[Row, ...]:
    """Every recorded run."""
    found = []
    for path in sorted(RESULTS.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            found += [Row(path.name, fields) for fields in csv.DictReader(lines)]
    return tuple(found)


_shown: set[tuple[str, str]] = set()


def results(file: str, *patterns: str) -> str:
    """A table of the rows of a file whose command fits one of the patterns, in the order of the patterns."""
    chosen = _fitting(file, patterns)
    decoded = any(row.fields.get("decoded_control") for row in chosen)
    head = ["`dd run` …", "accuracy", "control", "gap", *(["decoded", "gap"] if decoded else []), "start", "protocol"]
    return _table(head, [_cells(row, decoded) for row in chosen])


def seeds(file: str, *patterns: str) -> str:
    """A table of the rows of a file of `experiments/seeds.py`, the best first.

    Beside the sets' own labels it shows one soft label for each image, if rows have that regime.
    """
    own = {row.command: row for row in _fitting(file, patterns) if row.fields["labels"] == "own"}
    soft = {row.command: row for row in _fitting(file, patterns) if row.fields["labels"] == "soft"}
    chosen = sorted(own.values(), key=lambda row: -Decimal(row.fields["accuracy"]))
    timed = any(row.fields.get("target") for row in chosen)
    times = ["to target", "control to target"] if timed else []
    taught = ["a teacher's labels", "control", "gap"] if soft else []
    head = ["`dd run` …", "accuracy", "of students", "control", "gap", *times, *taught, "bytes", "seconds", "protocol"]
    body = []
    for row in chosen:
        students = _tenths(row.fields["std_students"]) if row.fields["std_students"] else ""
        cost = int(row.fields["prepare_s"]) + int(row.fields["synthesise_s"])
        cells = [f"`{_brief(row.command)}`", row.score("accuracy", "std_sets"), students]
        cells += [row.score("control", "control_std"), row.gap("control")]
        cells += [_steps(row, ""), _steps(row, "control_")] if timed else []
        other = soft.get(row.command)
        if other is not None:
            cells += [other.score("accuracy", "std_sets"), other.score("control", "control_std"), other.gap("control")]
        elif soft:
            cells += ["", "", ""]
        body.append([*cells, f"{int(row.fields['bytes']):,}", cost, row.fields["protocol"]])
    return _table(head, body)


_KINDS = {"hard": "hard labels", "soft": "one soft label each", "views": "a teacher on every view"}
_REFERENCES = {"control": "random real images", "coreset": "the coreset", "noise": "noise", "full": "all real images"}
_SCORED = re.compile(r" eval\.(students|suite|coreset|full_students|references)=\S*")


def benchmark(file: str, *patterns: str) -> str:
    """A table of the rows of a file of `experiments/benchmark.py`: a line for each command, columns by kind of labels.

    The references that do not depend on the set, those of `method=random`, are its last lines.
    """
    found = {(row.command, row.fields["labels"]): row for row in _fitting(file, patterns)}
    commands = dict.fromkeys(command for command, _ in found)
    order = sorted(commands, key=lambda command: -Decimal(found[command, "hard"].fields["accuracy"]))
    columns = [cell for words in _KINDS.values() for cell in (words, "gap")]
    head = ["`dd run` …", "own labels", *columns, "bytes", "real images of equal bytes", "seconds"]
    body = []
    for command in order:
        own, hard = found[command, "own"], found[command, "hard"]
        cells = [f"`{_SCORED.sub('', _brief(command))}`", own.score("accuracy", "std_sets")]
        for kind in _KINDS:
            cells += [found[command, kind].score("accuracy", "std_sets"), found[command, kind].interval()]
        cost = int(own.fields["prepare_s"]) + int(own.fields["synthesise_s"])
        equal = hard.score("equal_bytes", "equal_bytes_std")
        body.append([*cells, f"{int(own.fields['bytes']):,}", equal, str(cost)])
    (drawn,) = (command for command in order if command.startswith("dd run method=random "))
    for name, words in _REFERENCES.items():
        scores = [found[drawn, kind].score(name, f"{name}_std") for kind in _KINDS]
        body.append([words, "", *(cell for score in scores for cell in (score, "")), "", "", ""])
    return _table(head, body)


_BESIDE = re.compile(r" eval\.(full|probes|references|labels|curve|target)=\S*")  # what is scored beside, not how


def _brief(command: str) -> str:
    """A command without `dd run`, and without the settings that choose what stands beside the accuracy."""
    return _BESIDE.sub("", command.removeprefix("dd run "))


def _steps(row: Row, of: str) -> str:
    """Steps until students first reach the target, with how many do; empty for a row without a target."""
    fields = row.fields
    if not fields.get("target") or not fields.get(f"{of}reached"):
        return ""
    reached, steps = fields[f"{of}reached"], fields[f"{of}steps_to"]
    return f"{f'{int(steps):,} steps' if steps else 'never'} ({reached})"


def downstream(file: str, *patterns: str) -> str:
    """A table of the rows of a file of `experiments/downstream.py`: what its task measures, for each set."""
    chosen = _fitting(file, patterns, "dd eval")
    conditions = ("command", "protocol", "fingerprint", "device", "torch")
    heads = [name for name in chosen[0].fields if name not in conditions]
    return _table(heads, [[row.fields[name] for name in heads] for row in chosen])


def _fitting(file: str, patterns: Sequence[str], verb: str = "dd run") -> list[Row]:
    """The rows of a file whose command fits one of the patterns, in the order of the patterns."""
    chosen: list[Row] = []
    for pattern in patterns:
        fitting = [row for row in rows() if row.file == file and fnmatchcase(row.command, f"{verb} {pattern}")]
        if not fitting:
            raise PluginError(f"no row of {file} fits {pattern!r}")
        chosen += [row for row in fitting if row not in chosen]
    _shown.update((row.file, row.command) for row in chosen)
    return chosen


def _cells(row: Row, decoded: bool) -> list[str]:
    cells = [f"`{row.command.removeprefix('dd run ')}`", row.score("accuracy", "std")]
    cells += [row.score("control", "control_std"), row.gap("control")]
    if decoded:
        cells += [row.score("decoded_control", "decoded_std"), row.gap("decoded_control")]
    return [*cells, row.score("start", "start_std"), row.fields["protocol"]]


def _table(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(str(cell)) for cell in row] for row in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text that stands in a cell as it is: code spans alone are left, and need no care."""
    pieces = re.split(r"(`[^`]*`)", text.replace("\n", " "))
    escaped = [p if p.startswith("`") else html.escape(p, quote=False).replace("*", "\\*") for p in pieces]
    return "".join(escaped).replace("|", "\\|")


def protocols() -> str:
    """Every protocol and what its students do."""
    from dd.evaluation.describe import described
    from dd.evaluation.protocols import PROTOCOLS

    subjects = ("family", "of", "length", "optimiser", "images", "source", "differs", "best on test")
    body = []
    for name, protocol in PROTOCOLS.items():
        words = described(protocol)
        body.append((f"`{name}`", *(words[subject] for subject in subjects)))
    return _table(
        [
            "protocol",
            "family",
            "of",
            "length",
            "optimiser",
            "students see",
            "source",
            "the source differs",
            "chosen on test",
        ],
        body,
    )


def methods() -> str:
    """Every method of this package, its paper and its settings."""
    from dd.engine.registry import list_methods
    from dd.recipes import about

    parts = []
    for entry in list_methods():
        found = about(entry.name)
        paper = f"<{found.paper}>\n\n" if found.paper else ""
        parts.append(f"## `{found.name}`\n\n{paper}{found.text}\n")
        body = [(f"`{s.key}`", f"`{s.default}`", s.words) for s in found.settings]
        if body:
            parts.append(_table(["setting", "default", "what it is"], body) + "\n")
    return "\n".join(parts)


def task(name: str) -> str:
    """The settings of a downstream task."""
    from dd.evaluation.downstream import task_named
    from dd.recipes.schema import explained, leaves

    found = task_named(name)
    known, words = leaves(found, f"{name}."), explained(found, f"{name}.")
    body = [
        (f"`{key}`", f"`{'null' if leaf.default is None else leaf.default}`", words[key]) for key, leaf in known.items()
    ]
    return _table(["setting", "default", "what it is"], body)


def recipes() -> str:
    """Every cell of every recipe, what it should reach under which protocol and where that is from."""
    from dd.engine.registry import list_methods
    from dd.recipes import listed
    from dd.recipes.listing import band

    parts = []
    for entry in list_methods():
        body = []
        for row in listed(entry.name):
            nothing: tuple[Any, Mapping[str, Any]] = (row.parts.eval, {})
            for protocol, number in row.numbers or [nothing]:
                seen, words = "yes" if number.get("verified") else "no", protocol.in_words()
                facts = (row.side or "", band(number), words, seen)
                body.append((f"`{row.cell.name}`", *facts, number.get("source", ""), number.get("cost", "")))
        head = ["cell", "pixels", "expected %", "protocol", "verified", "source", "cost"]
        parts.append(f"## `{entry.name}`\n\n{_table(head, body)}\n")
    return "\n".join(parts)


def commands() -> str:
    """What every verb says of itself."""
    from dd.cli.main import VERBS, group

    parts = []
    for verb in VERBS:
        command = group.get_command(click.Context(group), verb)
        assert command is not None, "a verb has a command"
        context = click.Context(command, info_name=f"dd {verb}", parent=None)
        context.max_content_width, context.terminal_width = 100, 100
        parts.append(f"## `dd {verb}`\n\n```text\n{command.get_help(context)}\n```\n")
        for name, sub in getattr(command, "commands", {}).items():
            under = click.Context(sub, info_name=f"dd {verb} {name}", parent=None)
            under.max_content_width, under.terminal_width = 100, 100
            parts.append(f"### `dd {verb} {name}`\n\n```text\n{sub.get_help(under)}\n```\n")
    return "\n".join(parts)


_FUNCTIONS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (results, seeds, benchmark, downstream, protocols, methods, task, recipes, commands)
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pictures that the README shows too."""
    for path in sorted((ROOT / "assets" / "gallery").glob("*.png")):
        files.append(File.generated(config, f"gallery/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the calls of a page by what they return."""

    def filled(match: re.Match[str]) -> str:
        name, arguments = match["name"], match["arguments"]
        if name not in _FUNCTIONS:
            raise PluginError(f"{page.file.src_uri}: no function {name!r}; known: {', '.join(_FUNCTIONS)}")
        return _FUNCTIONS[name](*([part.strip() for part in arguments.split(";")] if arguments else []))

    return _CALL.sub(filled, markdown)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Refuse to leave a recorded row out."""
    left = [row.command for row in rows() if (row.file, row.command) not in _shown]
    if left:
        raise PluginError(f"{len(left)} recorded rows are on no page: {'; '.join(left[:5])}")
