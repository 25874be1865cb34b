"""`dd eval`: score a set that exists."""

import os
import shlex

import click

from dd.cli.common import LENIENT, console, emit, examples, json_option, log_to_stderr, settings


@click.command(
    "eval",
    context_settings=LENIENT,
    epilog=examples(
        "dd eval runs/datm/fashion-mini/ipc10/1a2b3c4d-seed0",
        "dd eval set.safetensors eval.students=20 student.arch=resnet18",
    ),
    short_help="Score a distilled set.",
)
@click.argument("file", type=click.UNPROCESSED)
@settings
@json_option
def command(file: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Train fresh students on the set in FILE, under the protocol it is meant for, and report.

    FILE is a set (.safetensors) or the folder of a run.  The set says itself what data, network and protocol it needs;
    keys say otherwise: eval.protocol=NAME (`dd recipes --protocols` lists them), eval.students=N, student.arch=NAME,
    which comes in its published size, with the set's norm.
    """
    from dd.cli import show_report
    from dd.errors import UsageError
    from dd.recipes import parse_overrides
    from dd.sets.formats import set_file

    if "=" in file and not os.path.exists(file):
        raise UsageError(f"say which set first: dd eval FILE {file}")
    more = [word for word in settings if "=" not in word and not word.startswith(("-", "+", "{"))]
    before = [settings[at - 1] if at else "" for at in map(settings.index, more)]
    if more and not before[0].startswith("--"):  # not the value of an option
        calls = "; ".join(shlex.join(["dd", "eval", one]) for one in (file, *more))
        raise UsageError(f"one set a call, and there are {1 + len(more)}: {calls}")
    path = set_file(file)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no set at {path}; `dd run` writes one into its folder below ./runs") from error
    overrides = parse_overrides(settings)
    from dd.pipeline import evaluate_distilled, load
    from dd.sets import hashed_once

    log_to_stderr()
    with hashed_once():
        report = evaluate_distilled(load(path), overrides)
    if as_json:
        emit(report.to_dict())
    else:
        show_report.show_report(report, console(), {"set": str(path)})
