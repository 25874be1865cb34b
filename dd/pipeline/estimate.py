"""What a run would cost: its own stages, executed as a sample in a temporary folder, whose results are discarded."""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from dd.engine.method import Method
from dd.pipeline.parts import KIND as PARTS
from dd.pipeline.plan import SETS, locate, plan, set_key, settled
from dd.pipeline.run import Held, evaluate, label, prepare, show, synthesise
from dd.pipeline.task import Run, make_task, numerics
from dd.recipes import Recipe
from dd.runs import RunFolder, sampling
from dd.runs.cost import measured
from dd.runs.overlay import Overlay
from dd.runs.stop import Stop

P = TypeVar("P")

_NOTHING = {"seconds": 0.0, "peak_memory": 0, "disk": 0, "pieces": []}


def estimate(recipe: Recipe, out: str | None = None, *, force: bool = False, jobs: int = 1) -> dict[str, Any]:
    """Return the plan of a run (see `dd.pipeline.plan`) with what each stage costs on this machine.

    A few turns of every long loop are executed: steps of experts, teachers and students, iterations, epochs of labels.
    What exists costs nothing.  Each stage gets "seconds", "peak_memory" in bytes and "disk", the bytes that it adds,
    and the plan their "total"; all are missing if the data have never been decoded on this machine.

    A stage's "pieces" are its work that several jobs can divide: "kind", "count", and the "seconds" of one job for all
    of them.  With several jobs, all other seconds are those of that many, without the time that they wait for their
    turn; "alone" has the total of one job, and "least" that of any number of jobs.

    Args:
        recipe: the run's recipe.
        out: the folder that holds all runs.
        force: what is finished is repeated, see `plan`.
        jobs: how many jobs share the run, each of which is as fast as this process.

    Raises:
        UsageError: the run would raise it.
        RunError: published weights are not available.
    """
    planned = plan(recipe, out, force=force)
    if any(stage.get("unknown") for stage in planned["stages"]):
        return planned
    if planned["finished"]:
        costs = {stage["stage"]: dict(_NOTHING) for stage in planned["stages"]}
    else:
        with _quiet():
            costs = _sampled(recipe, locate(recipe, out), force)
    alone = [stage | costs.get(stage["stage"], _NOTHING) for stage in planned["stages"]]
    stages = [stage | {"seconds": _seconds(stage, jobs)} for stage in alone]
    total = {
        "seconds": sum(stage["seconds"] for stage in stages),
        "peak_memory": max(stage["peak_memory"] or 0 for stage in stages),
        "disk": sum(stage["disk"] for stage in stages),
    }
    if jobs > 1:
        total["alone"] = sum(stage["seconds"] for stage in alone)
        total["least"] = sum(_seconds(stage, None) for stage in alone)
    return planned | {"jobs": jobs, "stages": stages, "total": total}


def _seconds(stage: dict[str, Any], jobs: int | None) -> float:
    """Return the seconds of a stage that several jobs share; `jobs` is None for as many as there are pieces."""
    saved = 0.0
    for some in stage["pieces"]:
        rounds = math.ceil(some["count"] / (jobs or some["count"]))
        saved += some["seconds"] * (1 - rounds / some["count"])
    return stage["seconds"] - saved


def _sampled(recipe: Recipe, folder: RunFolder, force: bool) -> dict[str, dict[str, Any]]:
    """Execute the stages as a sample; returns the cost of each."""
    task = make_task(recipe)
    recipe = settled(recipe, task, {} if force else folder.settings())
    with TemporaryDirectory(prefix="dd-plan-") as place, numerics(recipe):
        own = RunFolder(Path(place) / "run")
        own.path.mkdir()
        if not force:
            _lend(folder, own)
        store = Overlay(Path(place) / "store", task.store)
        run = Run(recipe, replace(task, store=store), own, Stop("nothing was made"), "dd plan", force)
        with run.stop.watching(), sampling.sampling() as sample:
            return _stages(run, recipe.method, sample)


def _stages(run: Run, method: Method[P], sample: sampling.Sample) -> dict[str, dict[str, Any]]:
    """Execute the stages of `dd.pipeline.run` in order."""
    found: dict[str, dict[str, Any]] = {}

    def spent(stage: str, disk: int) -> None:
        cost = run.costs.get(stage, _NOTHING)
        found[stage] = {"seconds": cost["seconds"], "peak_memory": cost["peak_memory"], "disk": disk}
        found[stage]["pieces"] = _pieces(stage, sample.pieces, repeated=run.force)
        sample.pieces.clear()

    prepared = prepare(run, method)
    spent("prepare", sample.bytes)
    store, before = run.task.store, sample.bytes
    with store.making(SETS, set_key(run.recipe, run.task), f"set {run.recipe.name}", force=run.force) as making:
        pair = synthesise(run, Held("set", making, lambda: None), method, prepared)
        exists = making.found is not None
    spent("synthesise", sample.bytes - before)
    if exists:
        found["synthesise"] = dict(_NOTHING)
    labeller = method.labeller(run.task, prepared)
    pair, labels = label(run, pair, labeller)
    if labels is not None:
        spent("label", labels.spec.bytes() - sum(file.stat().st_size for file in _lent(run.folder.labels)))
    with measured(run.task.device) as drawn:
        show(run, pair)
    found["synthesise"]["disk"] += sum(file.stat().st_size for file in run.folder.path.glob("*") if file.is_file())
    before = sample.bytes
    evaluate(run, pair, labeller, labels)
    spent("evaluate", sample.bytes - before)
    found["evaluate"]["seconds"] += drawn.seconds
    return found


def _pieces(stage: str, noted: Iterable[sampling.Divided], *, repeated: bool) -> list[dict[str, Any]]:
    """Return the work of a stage that jobs divide, one entry per kind."""
    merged: dict[str, sampling.Divided] = {}
    for some in noted:
        # probes are the lead's, and so is what is made again
        if stage == "prepare" or (not repeated and (some.kind == PARTS or stage != "synthesise")):
            before = merged.get(some.kind, sampling.Divided(some.kind, 0, 0.0))
            merged[some.kind] = replace(some, count=before.count + some.count, seconds=before.seconds + some.seconds)
    return [asdict(some) for some in merged.values()]


def _lend(folder: RunFolder, own: RunFolder) -> None:
    """Link what an interrupted run goes on from: its checkpoint and its labels, but not the locks of these."""
    if folder.checkpoint.is_file():
        own.checkpoint.symlink_to(folder.checkpoint.resolve())
    if folder.labels.is_dir():
        own.labels.mkdir()
        for file in (one for one in folder.labels.iterdir() if one.suffix != ".lock"):
            (own.labels / file.name).symlink_to(file.resolve())


def _lent(folder: Path) -> Iterator[Path]:
    return (file for file in folder.glob("*.safetensors") if file.is_symlink())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the stages from logging what is not made."""
    log = logging.getLogger("dd")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
