"""A trial of a sweep: make a set and score it on held-out images, so that test images do not influence the choice."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dd.engine.method import Method
from dd.evaluation.evaluate import Evaluator, own_arm
from dd.io import remove_state
from dd.pipeline.following import require_holdout
from dd.pipeline.meant import learner_for
from dd.pipeline.outcome import finished
from dd.pipeline.plan import locate
from dd.pipeline.run import Held, begun, label, prepare, show, synthesise
from dd.pipeline.task import Run
from dd.recipes import Recipe
from dd.runs import RunFolder, read_log
from dd.runs.pictures import curve
from dd.runs.trackers import LogRow, Trackers

log = logging.getLogger(__name__)

P = TypeVar("P")


@dataclass(frozen=True)
class Trial:
    """The result of a trial.

    Attributes:
        folder: folder of its run, which `run_recipe` completes without making the set again.
        holdout: held-out accuracies of its students in percent; empty if none were requested.
        probe: the last held-out accuracy during synthesis, or None.
    """

    folder: RunFolder
    holdout: tuple[float, ...]
    probe: float | None


def run_trial(
    recipe: Recipe,
    *,
    out: str | None = None,
    students: bool = True,
    watch: Callable[[LogRow], None] | None = None,
    command: str = "",
) -> Trial:
    """Make the set of a recipe and score it on held-out images only; finished work is reused.

    Args:
        recipe: the settings.
        out: the folder that holds all runs.
        students: whether to train students; without them only probes are reported.
        watch: called with every row of the log; its exceptions end the trial.
        command: the command that started it.

    Raises:
        UsageError: nothing is held out.
    """
    folder = locate(recipe, out)
    require_holdout(recipe)
    if folder.is_finished():
        return _trial(folder, finished(folder).report.accuracy.holdout)
    with begun(recipe, folder, command=command, trackers=Trackers(watch=watch)) as (run, held):
        if held.left == "nothing":
            return _trial(folder, finished(folder).report.accuracy.holdout)
        return _made(run, held, run.recipe.method, students)


def give_up(recipe: Recipe, out: str | None = None) -> None:
    """Delete the checkpoint of a trial that was stopped early."""
    remove_state(locate(recipe, out).checkpoint)


def _made(run: Run, held: Held, method: Method[P], students: bool) -> Trial:
    Evaluator(run.task, run.recipe.eval).require_holdout()  # may raise, so check before hours of work
    prepared = prepare(run, method)
    pair = synthesise(run, held, method, prepared)
    labeller = method.labeller(run.task, prepared)
    pair, store = label(run, pair, labeller)
    show(run, pair)
    found: tuple[float, ...] = ()
    if students:
        with run.stage("evaluate", "training students"):
            learner = learner_for(pair.set, run.task)
            evaluator = Evaluator(run.task, run.recipe.eval, labeller=labeller, learner=learner)
            arm, lr = own_arm(pair.set, evaluator, store), evaluator.lr_of(pair.set)
            found = evaluator.held_out(arm, lr, run.recipe.eval.students)
    return _trial(run.folder, found)


def _trial(folder: RunFolder, holdout: tuple[float, ...]) -> Trial:
    probes = curve(read_log(folder.log_csv)[1], "probe")
    return Trial(folder, holdout, probes[-1][1] if probes else None)
