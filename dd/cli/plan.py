"""`dd plan`: what a run would cost here."""

import logging

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
from dd.errors import UsageError

_LIMITS = ("memory", "hours")  # keys of this verb


@click.command(
    "plan",
    context_settings=LENIENT,
    epilog=examples(
        "dd plan method=datm ipc=10",
        "dd plan method=mtt dataset=cifar10 ipc=10 memory=8GB hours=2",
        "dd plan method=datm dataset=cifar10 ipc=10 on=slurm jobs=8",
    ),
    short_help="Estimate time, memory and disk of a run.",
)
@settings
@json_option
def command(settings: tuple[str, ...], as_json: bool) -> int:
    """Show the stages of a run with the time, peak memory and disk space that each takes on this machine.

    The settings are those of `dd run`, with a single seed.  The stages are executed as a sample: a few turns of every
    long loop, in a temporary folder; what exists costs nothing.  With memory=8GB or hours=2, or both, it says whether
    the run fits and, if not, which settings make it fit, planned again with them; the exit code is then 1.
    With jobs=N it says how long N jobs take that are as fast as this process, and how long any number of them.
    `dd run --dry-run` shows the same plan without measuring.
    """
    from dd.cli import show_recipe
    from dd.recipes import parse_overrides, resolve, run_options

    overrides = dict(parse_overrides(settings))
    if several("seed", overrides.get("seed")) is not None:
        raise UsageError(f"seed={overrides['seed']}: a plan is about one run, and other seeds cost the same: seed=0")
    given = {key: overrides.pop(key) for key in _LIMITS if key in overrides}
    from dd.pipeline.estimate import estimate
    from dd.pipeline.fitting import Limits, fit

    limits, recipe, options = Limits.of(given), resolve(overrides), run_options(overrides)
    for line in (*recipe.notices, *show_recipe.summary(recipe)):
        remark(line)
    log_to_stderr(logging.WARNING)
    planned = estimate(recipe, options.out, force=options.force, jobs=options.jobs)
    found = None
    if limits.any and "total" in planned:
        found = fit(overrides, limits, planned, options.out, force=options.force, jobs=options.jobs)
    if as_json:
        fits = {} if found is None else {"fits": found.fits, "changes": dict(found.changes), "changed_plan": found.plan}
        emit(planned | fits | ({} if found is None else {"in_words": found.in_words()}))
    else:
        show_recipe.show_plan(planned, console())
        for line in () if found is None else found.in_words():
            console().print(line, soft_wrap=True)
    return int(found is not None and not found.fits)
