"""`dd run`: distil and evaluate, from recipe to report."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dd.cli.common import (
    LENIENT,
    console,
    emit,
    examples,
    json_option,
    log_to_stderr,
    remark,
    settings,
    several,
)
from dd.cli.jobs import resolved, role_options
from dd.errors import Interrupted, RunError, UsageError

if TYPE_CHECKING:
    from dd.pipeline import Outcome
    from dd.recipes import Recipe, RunOptions


@click.command(
    "run",
    context_settings=LENIENT,
    epilog=examples(
        "dd run method=datm ipc=10",
        "dd run method=mtt dataset=cifar10 ipc=1 preset=smoke iterations=20 --dry-run",
        "dd run method=dm ipc=1 seed=0,1,2",
    ),
    short_help="Distil a dataset and score the result.",
)
@settings
@click.option("--dry-run", is_flag=True, help="Show the plan and what already exists; run nothing.")
@role_options
@json_option
def command(settings: tuple[str, ...], dry_run: bool, role: str | None, as_json: bool) -> None:
    """Distil a dataset, train fresh students on the result, and report.

    Keys of every run: method dataset ipc fraction seed device precision deterministic compile preset like init out
    force track on jobs recipe; the fields of the method; and grouped keys such as student.arch=resnet18,
    eval.protocol=mtt, experts.count=20, data.preprocess=zca.  `dd show method=NAME` lists them with their values.

    The same command resumes an interrupted run; a finished one is only reported again (force=true repeats it).  With
    seed=0,1,2 every seed is a run of its own, and the spread between sets stands beside that between students.

    jobs=N shares the run among N processes; on=slurm or on=ray executes it as N jobs of such a cluster, with options
    as slurm.partition, slurm.time, slurm.gpus or ray.address, ray.gpus.  The result is the same.
    """
    from dd.engine import parallel
    from dd.recipes import parse_overrides
    from dd.runs.store import made_log

    overrides = parse_overrides(settings)
    seeds = several("seed", overrides.get("seed"))
    asked: list[tuple[Sequence[str], Mapping[str, Any]]] = [(settings, overrides)]
    if seeds is not None:
        asked = [(_with_seed(settings, seed), {**overrides, "seed": seed}) for seed in seeds]
    # every seed is checked before the first of them runs
    runs = [resolved(words, own, elsewhere=not dry_run) for words, own in asked]
    first = parallel.is_first() and role != "helper"  # only the first torchrun process prints
    log_to_stderr(logging.INFO if first else logging.WARNING)
    if not first:
        made_log.setLevel(logging.INFO)  # a helper reports what it made, and nothing else
    if dry_run:
        _plan([(recipe, options) for _, recipe, options in runs], first, as_json, together=seeds is not None)
        return
    outcomes: list[Outcome] = []
    for words, recipe, options in runs:
        _tell(recipe, first and role is None)  # a job's driver has said it
        try:
            outcome = _outcome(words, recipe, options, role)
        except (UsageError, RunError, Interrupted, KeyboardInterrupt):
            if seeds is not None and first:
                again = "the same command without force=true" if options.force else "the same command"
                done = f"{len(outcomes)} of {len(seeds)} seeds are finished"
                remark(f"seed={recipe.seed} ended; {done}, and {again} keeps them")
            raise
        if outcome is not None:
            outcomes.append(outcome)
    if seeds is not None and outcomes:
        _show_several(outcomes, as_json)
    elif outcomes:
        _show(outcomes[0], as_json)


def _with_seed(words: Sequence[str], seed: Any) -> list[str]:
    """Return the words of a command with one seed instead of several."""
    return [*(word for word in words if not word.lstrip("+-").startswith("seed=")), f"seed={seed}"]


def _tell(recipe: "Recipe", first: bool) -> None:
    from dd.cli import show_recipe

    for line in (*recipe.notices, *show_recipe.summary(recipe)) if first else ():
        remark(line)


def _plan(runs: "Sequence[tuple[Recipe, RunOptions]]", first: bool, as_json: bool, *, together: bool) -> None:
    """Show the plan of every run; `together` they are one JSON object."""
    from dd.cli import show_recipe
    from dd.pipeline import plan

    planned: list[dict[str, Any]] = []
    for recipe, options in runs:
        _tell(recipe, first)
        planned.append(plan(recipe, out=options.out, force=options.force))
        if not as_json:
            show_recipe.show_plan(planned[-1], console())
    if as_json:
        emit({"runs": planned} if together else planned[0])


def _outcome(words: Sequence[str], recipe: "Recipe", options: "RunOptions", role: str | None) -> "Outcome | None":
    """Run one recipe; returns None in all processes of torchrun but the first, and in a helper."""
    from dd.pipeline import help_run, run_recipe

    command = shlex.join(["dd", "run", *words])
    if role == "helper":
        help_run(recipe, out=options.out, force=options.force, command=command)
        return None
    if options.is_shared:
        from dd.cluster import drive

        outcome = drive(recipe, options, words, command)
    else:
        given: dict[str, Any] = {"out": options.out, "force": options.force, "track": options.track}
        outcome = run_recipe(recipe, **given, command=command, lead=role == "lead")
    if outcome is not None and not outcome.fresh:
        remark("already finished: reported, not repeated; force=true repeats it")
    return outcome


def _show(outcome: "Outcome", as_json: bool) -> None:
    from dd.cli import show_report

    if as_json:
        emit(_as_json(outcome))
    else:
        show_report.show_report(outcome.report, console(), show_report.files_of(outcome.folder.path))


def _as_json(outcome: "Outcome") -> dict[str, Any]:
    from dd.cli import show_report

    path = outcome.folder.path
    own = {"fresh": outcome.fresh, "folder": str(path), "files": show_report.files_of(path)}
    return outcome.report.to_dict() | own


def _show_several(outcomes: "Sequence[Outcome]", as_json: bool) -> None:
    """Print the runs of several seeds as one row, and where each of them is."""
    from dd.cli.compare import show_comparison
    from dd.evaluation.compare import compare
    from dd.evaluation.table import score_in_words

    found = compare({str(outcome.folder.path): outcome.report for outcome in outcomes})
    if as_json:
        emit({"runs": [_as_json(outcome) for outcome in outcomes], "comparison": asdict(found)})
        return
    show_comparison(found, console())
    for outcome in outcomes:
        console().print(f"{score_in_words(outcome.report.accuracy)}  {outcome.folder.path}", soft_wrap=True)
