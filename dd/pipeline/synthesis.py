"""The synthesis stage: one outer loop or independent parts, in one process or several under torchrun."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, TypeVar

from dd.engine.checkpoint import Checkpoint
from dd.engine.method import Method, Synthetic
from dd.engine.synthesise import Watch, synthesise
from dd.evaluation.evaluate import Evaluator
from dd.io import digest, remove_state, write_text
from dd.pipeline.begin import begin
from dd.pipeline.meant import learner_for
from dd.pipeline.pair import Pair
from dd.pipeline.parts import SetParts, forget_parts
from dd.pipeline.plan import set_key
from dd.pipeline.task import Run
from dd.runs import Track, bar
from dd.runs.cost import measured
from dd.runs.store import Payload
from dd.sets import DistilledSet

P = TypeVar("P")


def synthesised(run: Run, method: Method[P], prepared: P) -> Payload:
    """Make the set and the set at iteration 0, in the first process; the facts are `cost` and `log`."""
    if parts := _parts(run, method, prepared):
        return _in_parts(run, parts)
    return _whole(run, method, prepared)


def accompany(run: Run, method: Method[P], prepared: P) -> None:
    """Do a secondary process's share of the synthesis: the same steps, or some of the parts."""
    if help_with_parts(run, method, prepared):
        return
    syn, checkpoint = _variables(run, method, prepared)
    synthesise(method, run.task, prepared, syn, checkpoint, Watch(stop=run.stop))


def help_with_parts(run: Run, method: Method[P], prepared: P) -> bool:
    """Make parts that nobody is making; return whether the set has parts."""
    if parts := _parts(run, method, prepared):
        parts.make(wait=False)
    return parts is not None


def forget(run: Run) -> None:
    """Delete everything that an interrupted synthesis resumes from."""
    remove_state(run.folder.checkpoint)
    shutil.rmtree(run.folder.parts, ignore_errors=True)
    if (count := len(run.recipe.method.parts(run.task))) > 1:
        forget_parts(run, count)


def _whole(run: Run, method: Method[P], prepared: P) -> Payload:
    recipe, task = run.recipe, run.task
    syn, checkpoint = _variables(run, method, prepared)
    start = _described(run, method.finish(syn, task, prepared), 0)
    first = checkpoint.iteration()
    learner = learner_for(start, task)
    evaluator = Evaluator(task, recipe.eval, labeller=method.labeller(task, prepared), learner=learner)
    track = Track(run.folder, resume_at=first, history=checkpoint.log(), trackers=run.trackers)
    with measured(task.device) as cost, track, bar("synthesise", method.iterations, first) as progress:

        def show(it: int, scalars: Mapping[str, Any]) -> None:
            track.log(it, **scalars)
            shown = {name: value for name, value in scalars.items() if name in ("loss", "probe")}
            progress.update(min(it + 1, method.iterations), **shown)

        def probe(now: Synthetic) -> tuple[float, ...]:
            return evaluator.probe(method.finish(now, task, prepared))

        watching = len(task.data.holdout) > 0 and recipe.eval.probes > 0 and method.iterations > 0
        at = _spread(method.iterations, recipe.eval.probes)
        watch = Watch(show, probe if watching else None, at, run.stop, track.text)
        synthesise(method, task, prepared, syn, checkpoint, watch)
    end = _described(run, method.finish(syn, task, prepared), method.iterations)
    text = run.folder.log_csv.read_text(encoding="utf-8")
    return Pair(end, start).payload({"cost": asdict(cost), "log": text})


def _in_parts(run: Run, parts: SetParts[P]) -> Payload:
    parts.tracked()
    pair, facts = parts.collected(parts.made())
    write_text(run.folder.log_csv, facts["log"])  # includes the rows of other processes
    end, start = _described(run, pair.set, parts.method.iterations), _described(run, pair.start, 0)
    return Pair(end, start).payload(facts)


def _parts(run: Run, method: Method[P], prepared: P) -> SetParts[P] | None:
    """Return the independent parts of the set; None if the method makes it as a whole."""
    tasks = run.task.in_parts(method.parts(run.task))
    return None if len(tasks) == 1 else SetParts(run, method, tasks, prepared)


def _variables(run: Run, method: Method[P], prepared: P) -> tuple[Synthetic, Checkpoint]:
    """Return the variables at iteration 0, and the checkpoint for their state."""
    checkpoint = Checkpoint(run.folder.checkpoint, digest(set_key(run.recipe, run.task)))
    return begin(run, method, prepared, run.task), checkpoint


def _described(run: Run, distilled: DistilledSet, iterations: int) -> DistilledSet:
    """Return the set with its origin and intended use recorded."""
    recipe = run.recipe
    provenance = {
        **distilled.provenance,
        "method": recipe.method.name,
        "name": recipe.name,
        "recipe": recipe.hash,
        "series": recipe.series,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "compile": recipe.compile,
        "iterations": iterations,
        "data": asdict(replace(recipe.data, workers=None)),  # does not affect the set
        "version": version("dd-workbench"),
        "command": run.command,
    }
    distilled = replace(distilled, student=asdict(run.task.student), provenance=provenance)
    distilled.check()
    return distilled


def _spread(iterations: int, probes: int) -> frozenset[int]:
    """Return `probes` evenly spaced iterations, including the last one."""
    return frozenset(round(iterations * (i + 1) / probes) for i in range(probes))
