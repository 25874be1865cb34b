"""A run: its stages, what each produces, and how a run resumes after an interruption.

prepare      what the method needs: experts, teachers, patches        artefacts in the store
synthesise   the set, and the set at iteration 0                      a checkpoint, then an artefact in the store
label        labels of the views that students will be shown          one artefact per epoch, beside the set
show         both sets and their pictures                             files in the run folder
evaluate     students on the set and on the references                one artefact per student
"""

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from dd.engine import parallel
from dd.engine.method import Method
from dd.engine.method import prepare as prepared_by
from dd.evaluation.evaluate import Evaluator
from dd.evaluation.evaluate import evaluate as scored
from dd.evaluation.report import Report
from dd.io import write_text
from dd.labels import Labeller, LabelStore
from dd.pipeline import synthesis
from dd.pipeline.following import followed, require_holdout, tell, tell_again
from dd.pipeline.foreign import remember
from dd.pipeline.inventory import remember_files
from dd.pipeline.label import label as labelled
from dd.pipeline.label import require_room
from dd.pipeline.meant import learner_for
from dd.pipeline.outcome import Outcome, finished
from dd.pipeline.pair import Pair
from dd.pipeline.plan import SETS, is_made, locate, planned_labels, set_key, settled
from dd.pipeline.regimes import beside, with_regimes
from dd.pipeline.show import draw_pictures, judged, probes_note
from dd.pipeline.task import Run, lighter, make_task, numerics
from dd.recipes import Recipe
from dd.runs import RunFolder, progress, sampling, sharing
from dd.runs.memory import enough_memory
from dd.runs.stop import Stop
from dd.runs.store import Artefact, Making
from dd.runs.track import parse_log, replayed
from dd.runs.trackers import Trackers, in_agent
from dd.sets import DistilledSet, save

log = logging.getLogger(__name__)

_POLL = 0.5  # seconds between checks for a set that the first process is storing

P = TypeVar("P")
Left = Literal["nothing", "report", "set"]


def run_recipe(
    recipe: Recipe,
    *,
    out: str | None = None,
    force: bool = False,
    track: tuple[str, ...] = (),
    command: str = "",
    lead: bool = False,
) -> Outcome | None:
    """Execute all stages from real images to the report, skipping finished work and resuming interrupted work.

    Under torchrun the processes share the synthesis and, through the store, everything else that is made of several
    artefacts.  Only the first process writes to the run's folder and reports; the others return None.

    Args:
        recipe: the settings.
        out: the folder that holds all runs.
        force: repeat what is already finished.
        track: the trackers that follow the run, see `dd.runs.trackers.chosen`.
        command: the command that started it.
        lead: whether to write to the folder what others can help with, see `help_run`.
    """
    folder = locate(recipe, out)
    if in_agent():
        require_holdout(recipe)
    if not force and folder.is_finished():
        return _reported(recipe, folder, track)
    with begun(recipe, folder, force=force, command=command) as (run, held):
        if held.left == "nothing":
            return _reported(recipe, folder, track)
        offers = sharing.leading(folder.offer) if lead else contextlib.nullcontext()
        with followed(run, track) if parallel.is_first() else _unseen(run) as run, offers:
            return _stages(run, held, run.recipe.method)


def help_run(recipe: Recipe, *, out: str | None = None, force: bool = False, command: str = "") -> None:
    """Make what a run needs and no process is making, and return as soon as there is no such thing.

    The run is in progress elsewhere; of its folder only the parts and the labels are written to.

    Args:
        recipe: the settings of the run.
        out: the folder that holds all runs.
        force: whether the run repeats what is finished.
        command: the command that started it.
    """
    folder = locate(recipe, out)
    joined = opened(recipe, folder, folder.settings(), force=force, command=command)
    with joined as run, _unseen(run), sharing.helping():
        _help(run, run.recipe.method)


def _help(run: Run, method: Method[P]) -> None:
    prepared = prepare(run, method)
    if run.force or not is_made(run.recipe, run.task):
        synthesis.help_with_parts(run, method, prepared)
    if not run.force:  # what is made again must not be made by several processes
        _help_evaluate(run, method, prepared)


@contextlib.contextmanager
def _unseen(run: Run) -> Iterator[Run]:
    """Show no progress of a process that only helps."""
    with progress.hidden():
        yield run


@contextlib.contextmanager
def begun(
    recipe: Recipe, folder: RunFolder, *, force: bool = False, command: str = "", trackers: Trackers | None = None
) -> "Iterator[tuple[Run, Held]]":
    """Lock a run's folder, open its data, settle its recipe, and find the remaining work.

    Args:
        recipe: the settings.
        folder: the run's folder.
        force: repeat what is already finished.
        command: the command that started it.
        trackers: the trackers that follow it.
    """
    with opened(recipe, folder, {} if force else folder.settings(), force=force, command=command) as run:
        run = run if trackers is None else replace(run, trackers=trackers)
        with _held(run) as held:
            yield run, held


@contextlib.contextmanager
def opened(recipe: Recipe, folder: RunFolder, kept: Mapping[str, Any], *, force: bool, command: str) -> "Iterator[Run]":
    """Open the data of a run and settle its recipe; `kept` are the decisions of an earlier start, see `settled`."""
    command = command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    stop = Stop(f"everything finished is kept; {_way_on(command, force)}")
    with stop.watching(), parallel.processes(recipe.device) as device:
        recipe = replace(recipe, device=device)
        with enough_memory("reading the images", lighter(recipe, "data")):
            task = make_task(recipe)  # may raise, so check before writing or clearing anything
        remember_files(task.store, task.data)
        recipe = settled(recipe, task, kept)
        with numerics(recipe):
            yield Run(recipe, task, folder, stop, command, force)


def _reported(recipe: Recipe, folder: RunFolder, track: tuple[str, ...]) -> Outcome | None:
    """Report a run that was finished before; return None in secondary processes."""
    if not parallel.is_first():
        return None
    outcome = finished(folder)
    tell_again(recipe, outcome, track)
    return outcome


def _stages(run: Run, held: "Held", method: Method[P]) -> Outcome | None:
    """Execute the stages in order."""
    _require_room_for_labels(run)  # may raise, so check before hours of work
    prepared = prepare(run, method)
    if not parallel.is_first():
        if held.left == "set":
            synthesis.accompany(run, method, prepared)
        if not run.force:  # what is made again must not be made by several processes
            while not is_made(run.recipe, run.task):
                time.sleep(_POLL)
            _help_evaluate(run, method, prepared)
        return None
    pair = synthesise(run, held, method, prepared)
    with parallel.alone():
        return _finish(run, method, prepared, pair)


def _finish(run: Run, method: Method[P], prepared: P, pair: Pair) -> Outcome:
    """Execute the stages after the synthesis."""
    labeller = method.labeller(run.task, prepared)
    pair, store = label(run, pair, labeller)
    show(run, pair)
    report = evaluate(run, pair, labeller, store)
    run.folder.finish(report.to_dict())  # last: a finished run is not cleaned up any more
    tell(run, method, report)
    return Outcome(report, run.folder, fresh=True)


def prepare(run: Run, method: Method[P]) -> P:
    """Fetch or create what the method needs, and return the result of `Method.prepare`."""
    with run.stage("prepare", "preparing"):
        prepared = prepared_by(method, run.task)
    found = [run.task.store.peek(kind, spec) for need in method.needs(run.task) for kind, spec, _ in need.artefacts()]
    # creation cost of the artefacts, even if another run created them
    run.costs["prepare"]["artefact_seconds"] = sum(made.seconds for made in found if made is not None)
    log.info("prepared in %.0f s", run.costs["prepare"]["seconds"])
    return prepared


def synthesise(run: Run, held: "Held", method: Method[P], prepared: P) -> Pair:
    """Return the set and the set at iteration 0, stored under the key `set_key`."""
    assert held.set is not None
    made = held.set.found
    found = made is not None
    if made is None:
        with enough_memory("synthesising", lighter(run.recipe, "synthesise")):
            made = held.set.put(*synthesis.synthesised(run, method, prepared))
    held.release()
    synthesis.forget(run)  # the set now contains it all
    write_text(run.folder.log_csv, made.info["log"])
    if found and run.trackers.listening:  # they have not seen its log
        for row in replayed(parse_log(made.info["log"])[1]):
            run.trackers.log(row)
    run.costs["synthesise"] = made.info["cost"]
    return _pair(run, made)


def label(run: Run, pair: Pair, labeller: Labeller | None) -> tuple[Pair, LabelStore | None]:
    """Return the sets with their labels: stored labels and their store, or the teachers that label during training."""
    if labeller is None:
        return pair, None
    if labeller.settings.mode != "store":
        return Pair(*(_taught(made, labeller) for made in pair)), None
    with run.stage("label", "labelling"):
        distilled, store = labelled(pair.set, labeller, run.recipe.eval, run.task, run.folder)
    return pair._replace(set=distilled), store


def show(run: Run, pair: Pair) -> None:
    """Write the set, the set at iteration 0 and pictures of both to the run folder."""
    save(pair.set, run.folder.set)
    save(pair.start, run.folder.start)
    if sampling.active() is None:
        for file in (run.folder.set, run.folder.start):
            remember(file)
    draw_pictures(pair.set, run.recipe, run.task, run.folder)


def evaluate(run: Run, pair: Pair, labeller: Labeller | None, store: LabelStore | None) -> Report:
    """Evaluate the set and the references, and compare the accuracy with the recipe's expectation."""
    recipe, task = run.recipe, run.task
    report = _evaluated(run, pair, labeller, store)
    remark = probes_note(recipe, task, run.folder)
    return judged(replace(report, cost=run.costs), recipe, run.command, remark, compiled=task.compile)


def _evaluated(
    run: Run, pair: Pair, labeller: Labeller | None, store: LabelStore | None, *, helping: bool = False
) -> Report:
    recipe, task = run.recipe, run.task
    rows = 2 + ("start" in recipe.eval.references)  # of the report: the set, random images, the set at iteration 0
    with run.stage("evaluate", "training students", recipe.eval.students * rows):
        learner = learner_for(pair.set, task)
        given = {"force": run.force, "labeller": labeller, "learner": learner, "helping": helping}
        evaluator = Evaluator(task, recipe.eval, **given)
        others = beside(pair.set, evaluator, recipe.dataset)
        report = scored(pair.set, pair.start, evaluator, store=store)
        return with_regimes(report, pair.set, pair.start, evaluator, others)


def _help_evaluate(run: Run, method: Method[P], prepared: P) -> None:
    """Make labels and students of a set that no process is making, for the process that reports them."""
    made = run.task.store.peek(SETS, set_key(run.recipe, run.task))
    if made is None:  # not there yet, or damaged, which that process notices
        return
    with parallel.alone():
        labeller = method.labeller(run.task, prepared)
        pair, labels = label(run, _pair(run, made), labeller)
        _evaluated(run, pair, labeller, labels, helping=True)


def _require_room_for_labels(run: Run) -> None:
    planned = planned_labels(run.recipe, run.task)
    if planned and planned["bytes"]:
        require_room(run.folder.labels, planned["bytes"])


@dataclass(frozen=True)
class Held:
    """The remaining work of a run, and the lock on the set's artefact.

    Attributes:
        left: "nothing"; "report" if the set is already in the store; or "set" for both set and report.
        set: the pending artefact of the set; None in secondary processes.
        release: releases the artefact's lock, once the set is stored.
    """

    left: Left
    set: Making | None
    release: Callable[[], None]


@contextlib.contextmanager
def _held(run: Run) -> Iterator[Held]:
    """Lock a run against concurrent starts for the duration of the block.

    Under torchrun the first process determines the remaining work and tells the others.
    """
    task, making = run.task, None
    left: Left = "nothing"
    with contextlib.ExitStack() as folder, contextlib.ExitStack() as place:
        if parallel.is_first():
            folder.enter_context(run.folder.lock())
            if run.force or not _is_whole(run):
                if run.force:
                    run.folder.clear()
                    synthesis.forget(run)
                run.folder.write_recipe(run.recipe.to_toml())
                words, key = f"set {run.recipe.name}", set_key(run.recipe, task)
                making = place.enter_context(task.store.making(SETS, key, words, force=run.force))
                left = "set" if making.found is None else "report"
        yield Held(parallel.agreed(left), making, place.close)


def _is_whole(run: Run) -> bool:
    """Return whether the run is finished, after restoring lost or damaged files from the store if possible."""
    damage = run.folder.damage()
    if not damage:
        return damage is not None
    for name, why in damage.items():
        log.warning("%s is damaged (%s); it is made again from what is kept", run.folder.path / name, why)
    return _restored(run, run.folder, damage)


def _restored(run: Run, folder: RunFolder, damage: Iterable[str]) -> bool:
    """Rewrite lost files from the stored set; return whether this completed the run."""
    kept = run.task.store.peek(SETS, set_key(run.recipe, run.task))
    if kept is None or kept.tensors is None:
        return False
    pair = _pair(run, kept)
    for name in damage:
        if name == folder.set.name:
            save(pair.set, folder.set)
        elif name == folder.start.name:
            save(pair.start, folder.start)
        elif name == folder.log_csv.name:
            write_text(folder.log_csv, kept.info["log"])
        elif name == folder.recipe_toml.name:
            folder.write_recipe(run.recipe.to_toml())
    return folder.is_finished()


def _pair(run: Run, made: Artefact) -> Pair:
    """Return the sets of an artefact with this run's protocol; the artefact may come from a run with another one."""
    assert made.tensors is not None, "sets are made of tensors"
    return Pair(*(replace(one, protocol=asdict(run.recipe.eval)) for one in Pair.of(made.tensors, made.info)))


def _taught(distilled: DistilledSet, labeller: Labeller) -> DistilledSet:
    """Return the set with the teachers recorded that label it during training."""
    return replace(distilled, provenance={**distilled.provenance, "labeller": dict(labeller.origin)})


def _way_on(command: str, force: bool) -> str:
    # with force=true the same command would start over
    return "the same command without force=true resumes" if force else f"the same command resumes: {command}"
