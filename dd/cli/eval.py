"""`dd eval`: evaluate existing sets."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import LENIENT, console, emit, examples, json_option, log_to_stderr, remark, settings
from dd.errors import RunError, UsageError

if TYPE_CHECKING:
    from dd.evaluation import Report


@click.command(
    "eval",
    context_settings=LENIENT,
    epilog=examples(
        "dd eval runs/datm/fashion-mini/ipc10/1a2b3c4d-seed0",
        "dd eval set.safetensors eval.students=20 student.arch=resnet18",
        "dd eval runs/*/fashion-mini/ipc10/*",
    ),
    short_help="Score a distilled set.",
)
@click.argument("file", type=click.UNPROCESSED)
@settings
@json_option
def command(file: str, settings: tuple[str, ...], as_json: bool) -> int:
    """Train fresh students on the set in FILE, under the set's own protocol, and report; several sets one by one.

    FILE is a set (.safetensors) or the folder of a run.  Data, network and protocol are recorded in the set; keys
    override
    them: eval.protocol=NAME (`dd recipes --protocols` lists them), eval.students=N, student.arch=NAME, which has its
    published size and the set's norm.  A set made elsewhere may also need dataset=PATH, teachers=PATH or hours=N.
    """
    from dd.recipes import parse_overrides

    if "=" in file and not os.path.exists(file):
        raise UsageError(f"name the set first: dd eval FILE {file}")
    files, words = _sorted(file, settings)
    overrides = parse_overrides(words)
    log_to_stderr()
    if len(files) == 1:
        report = _scored(file, overrides)
        _show(report, file, as_json)
        return 0
    worst, found = 0, []
    for one in files:
        try:
            report = _scored(one, overrides)
        except (UsageError, RunError) as error:
            worst = max(worst, 2 if isinstance(error, UsageError) else 1)
            found.append({"set": one, "error": str(error)})
            remark(f"dd: {one}: {error}")
            continue
        found.append({"set": one, "report": report.to_dict()})
        if not as_json:
            _show(report, one, as_json=False)
    if as_json:
        emit({"sets": found})
    return worst


def _sorted(file: str, settings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Separate the files from the settings: `key=value`, `--key value`, `--key=value`, JSON."""
    files, words = [file], list[str]()
    for before, word in zip(("", *settings), settings, strict=False):
        is_value = before.startswith("--") and "=" not in before
        setting = is_value or "=" in word or word.startswith(("-", "+", "{"))
        (words if setting else files).append(word)
    return files, words


def _scored(file: str, overrides: Mapping[str, Any]) -> "Report":
    from dd.pipeline import evaluate_distilled, load
    from dd.sets import hashed_once
    from dd.sets.formats import set_file

    path = set_file(file)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no set at {path}; `dd run` writes one into its folder under ./runs") from error
    with hashed_once():
        return evaluate_distilled(load(path), overrides)


def _show(report: "Report", file: str, as_json: bool) -> None:
    from dd.cli import show_report
    from dd.sets.formats import set_file

    if as_json:
        emit(report.to_dict())
    else:
        show_report.show_report(report, console(), {"set": str(set_file(file))})
