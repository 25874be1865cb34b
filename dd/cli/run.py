"""`dd run`: distil and evaluate, from recipe to report."""

import logging
import shlex

import click

from dd.cli.common import LENIENT, console, emit, examples, json_option, log_to_stderr, remark, settings


@click.command(
    "run",
    context_settings=LENIENT,
    epilog=examples(
        "dd run method=datm ipc=10", "dd run method=mtt dataset=cifar10 ipc=1 preset=smoke iterations=20 --dry-run"
    ),
    short_help="Distil a dataset and score the result.",
)
@settings
@click.option("--dry-run", is_flag=True, help="Show the plan and what already exists; run nothing.")
@json_option
def command(settings: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Distil a dataset, train fresh students on the result, and report.

    Keys of every run: method dataset ipc fraction seed device precision deterministic compile preset like init out
    force track recipe; the fields of the method; and grouped keys such as student.arch=resnet18, eval.protocol=mtt,
    experts.count=20, data.preprocess=zca.  `dd show method=NAME` lists them with their values.

    The same command resumes an interrupted run; a finished one is only reported again (force=true repeats it).
    """
    from dd.cli import show_recipe, show_report
    from dd.recipes import parse_overrides, resolve, run_options

    overrides = parse_overrides(settings)
    recipe, options = resolve(overrides), run_options(overrides)
    from dd.engine import parallel

    first = parallel.is_first()  # only the first torchrun process prints
    for line in (*recipe.notices, *show_recipe.summary(recipe)) if first else ():
        remark(line)
    from dd.pipeline import plan, run_recipe

    log_to_stderr(logging.INFO if first else logging.WARNING)
    if dry_run:
        planned = plan(recipe, out=options.out)
        emit(planned) if as_json else show_recipe.show_plan(planned, console())
        return
    words = shlex.join(["dd", "run", *settings])
    outcome = run_recipe(recipe, out=options.out, force=options.force, track=options.track, command=words)
    if outcome is None:
        return
    if not outcome.fresh:
        remark("already finished: reported, not repeated; force=true repeats it")
    files = show_report.files_of(outcome.folder.path)
    if as_json:
        fresh = {"fresh": outcome.fresh, "folder": str(outcome.folder.path), "files": files}
        emit(outcome.report.to_dict() | fresh)
    else:
        show_report.show_report(outcome.report, console(), files)
