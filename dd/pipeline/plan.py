"""What a run would do, and which folder it uses."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dd.engine.method import Task
from dd.pipeline.label import label_spec
from dd.pipeline.task import make_task
from dd.recipes import Recipe
from dd.runs import RunFolder, runs_root
from dd.runs.store import NotMade, nothing_made

log = logging.getLogger(__name__)

SETS = "sets"


def locate(recipe: Recipe, out: str | None = None) -> RunFolder:
    """Return the folder of a run."""
    return RunFolder.locate(
        runs_root(out),
        method=recipe.method.name,
        dataset=recipe.dataset,
        budget=recipe.size,
        recipe_hash=recipe.hash,
        seed=recipe.seed,
    )


def plan(recipe: Recipe, out: str | None = None, *, force: bool = False) -> dict[str, Any]:
    """Describe the stages of a run, and which artefacts already exist, without running it.

    Nothing is created, decoded or downloaded.  If the images were never decoded, only headers and labels are read, and
    no artefact derived from the images can exist yet.  If there are no files to read, entries that depend on them are
    omitted.

    Args:
        recipe: the run's recipe.
        out: the folder that holds all runs.
        force: what is finished is repeated; artefacts are kept.
    """
    folder = locate(recipe, out)
    with nothing_made() as wanted:
        try:
            task = make_task(recipe)
            recipe = settled(recipe, task, {} if force else folder.settings())
            needed = [wanted for need in recipe.method.needs(task) for wanted in need.artefacts()]
            needs = [*task.data.preprocess.needs(), *needed]
            labels = planned_labels(recipe, task)
            made = not force and is_made(recipe, task)
        except NotMade:
            task, needs, labels, made = None, [], None, False
    prepare = _prepare(task, wanted, needs)
    students = recipe.eval.students
    return {
        "name": recipe.name,
        "recipe": recipe.hash,
        "folder": str(folder.path),
        "finished": not force and folder.is_finished(),
        "stages": [
            prepare,
            {"stage": "synthesise", "iterations": recipe.method.iterations, "exists": made},
            *([labels] if labels else []),
            {"stage": "evaluate", "protocol": recipe.eval.protocol, "students": students},
        ],
    }


def _prepare(
    task: Task | None, wanted: Sequence[str], needs: Sequence[tuple[str, Mapping[str, Any], str]]
) -> dict[str, Any]:
    """Return the first stage: opening the data, and the method's needs, which are unknown without a task."""
    artefacts: list[dict[str, Any]] = [{"what": what, "exists": False, "path": None} for what in wanted]
    for kind, spec, what in needs:
        assert task is not None
        artefacts.append({"what": what, "exists": task.store.has(kind, spec), "path": str(task.store.path(kind, spec))})
    done = sum(artefact["exists"] for artefact in artefacts)
    stage = {"stage": "prepare", "artefacts": artefacts, "done": done, "of": len(artefacts)}
    return stage if task else stage | {"unknown": True}


def planned_labels(recipe: Recipe, task: Task) -> dict[str, Any] | None:
    """Describe the label stage: epochs, and bytes on disk if labels are stored; None if the run has no such stage.

    Raises:
        UsageError: the protocol cannot use labels of views.
    """
    labels = recipe.method.labelling
    if labels is None:
        return None
    if labels.form == "topk" and labels.top > task.classes:
        log.info("labels.top=%d is above the number of classes: all %d are kept", labels.top, task.classes)
    spec = label_spec(labels, recipe.eval, task)
    return {"stage": "label", "epochs": spec.epochs, "bytes": spec.bytes() if labels.mode == "store" else 0}


def settled(recipe: Recipe, task: Task, kept: Mapping[str, Any]) -> Recipe:
    """Return the recipe with every "auto" resolved; `kept` decisions of an earlier start take precedence."""
    return recipe.settled(recipe.method.settle(task), kept)


def set_key(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Return everything that determines the distilled set: the key of its artefact."""
    key = recipe.images_identity() | {"data": task.data.fingerprint, "compile": task.compile}
    return json.loads(json.dumps(key))


def is_made(recipe: Recipe, task: Task) -> bool:
    """Return whether the distilled set is in the store; cheap."""
    return task.store.has(SETS, set_key(recipe, task))
