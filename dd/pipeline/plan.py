"""What a run would do, and where it is kept."""

import json
import logging
from typing import Any

from dd.engine.method import Task
from dd.pipeline.label import store_spec
from dd.pipeline.task import make_task
from dd.recipes import Recipe
from dd.runs import RunFolder, runs_root
from dd.sets.label_writer import size_on_disk
from dd.training.relabel import LabelSettings

log = logging.getLogger(__name__)

SETS = "sets"


def locate(recipe: Recipe, out: str | None = None) -> RunFolder:
    """The folder of a run."""
    return RunFolder.locate(
        runs_root(out),
        method=recipe.method.name,
        dataset=recipe.dataset,
        budget=recipe.size,
        recipe_hash=recipe.hash,
        seed=recipe.seed,
    )


def plan(recipe: Recipe, out: str | None = None) -> dict[str, Any]:
    """What a run would do, without doing it: stages, and which artefacts exist."""
    folder, task = locate(recipe, out), make_task(recipe)
    recipe = settled(recipe, task, folder)
    needs = [*task.data.preprocess.needs(), *recipe.method.needs(task)]
    have = [task.store.has(kind, spec) for kind, spec, _ in needs]
    made = task.store.has(SETS, set_key(recipe, task))
    artefacts = [
        {"what": what, "exists": there, "path": str(task.store.path(kind, spec))}
        for (kind, spec, what), there in zip(needs, have, strict=True)
    ]
    students = recipe.eval.students
    labels = planned_labels(recipe, task)
    return {
        "name": recipe.name,
        "recipe": recipe.hash,
        "folder": str(folder.path),
        "finished": folder.is_finished(),
        "stages": [
            {"stage": "prepare", "artefacts": artefacts, "done": sum(have), "of": len(needs)},
            {"stage": "synthesise", "iterations": recipe.method.iterations, "exists": made},
            *([labels] if labels else []),
            {"stage": "evaluate", "protocol": recipe.eval.protocol, "students": students},
        ],
    }


def planned_labels(recipe: Recipe, task: Task) -> dict[str, Any] | None:
    """The label stage of a run that has one: epochs, and bytes on disk where they are stored.

    Raises:
        UsageError: the protocol has no use for labels of views.
    """
    labels = getattr(recipe.method, "labels", None)
    if not isinstance(labels, LabelSettings) or labels.mode == "off":
        return None
    if labels.form == "topk" and labels.top > task.classes:
        log.info("labels.top=%d: all %d classes are kept, there are no more", labels.top, task.classes)
    spec = store_spec(labels, recipe.eval, task)
    stored = size_on_disk(spec.n, spec.epochs, spec.form, spec.replay, spec.policy) if labels.mode == "store" else 0
    return {"stage": "label", "epochs": spec.epochs, "bytes": stored}


def settled(recipe: Recipe, task: Task, folder: RunFolder) -> Recipe:
    """The recipe with nothing left to decide; what an earlier start of the same run decided stands."""
    return recipe.settled(recipe.method.settle(task), folder.settings())


def set_key(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Everything that determines the distilled set: the key of its artefact."""
    key = recipe.stage_key("synthesise") | {"data": task.data.fingerprint, "compile": task.compile}
    return json.loads(json.dumps(key))
