"""The variables that a synthesis begins from."""

from dataclasses import replace
from typing import Any

from dd.engine.method import Synthetic, Task
from dd.errors import UsageError
from dd.io import user_path
from dd.recipes import Recipe
from dd.sets import DistilledSet, load


def begin(recipe: Recipe, whole: Task, prepared: Any, task: Task) -> Synthetic:
    """The variables of `task` at iteration 0: the method's, or those of `init=SET`.

    Args:
        recipe: of the run.
        whole: the task of the whole set.
        prepared: what `Method.prepare` returned.
        task: the same, or that of a part.

    Raises:
        UsageError: the set to begin from does not fit.
    """
    syn = recipe.method.start(task, prepared)
    if recipe.init is not None:
        given, n = load(user_path(recipe.init, "init")), len(whole.targets)
        if task.part is not None and given.n == n:
            slots = task.part.slots
            given = replace(given, images=given.images[slots], labels=given.labels[slots])
        _take(given, syn, task, n)
    return syn


def _take(given: DistilledSet, syn: Synthetic, task: Task, whole: int) -> None:
    """Start from an existing set: its images, and its labels and lr where the method has such variables."""
    given.require_match(task.data)
    if given.image_kind != "pixels" or given.images.shape != syn.images.shape:
        raise UsageError(
            f"init: the set has {given.image_kind} of shape {tuple(given.images.shape)}, the run needs pixels of shape "
            f"{(whole, *syn.images.shape[1:])}; use the ipc it was made with"
        )
    soft = given.label_kind not in ("hard", "views")
    agree = (given.own_classes() == syn.targets.cpu()).double().mean()
    # a learned label may prefer another class than the one its image began as
    if agree < (0.5 if soft else 1):
        raise UsageError("init: the set's labels are not class-major in this data's order; re-save it sorted by class")
    logits = None
    if soft:
        logits = given.labels if given.label_kind == "logits" else given.targets().clamp_min(1e-8).log()
    syn.take(given.pixels(task.data.preprocess), logits, given.lr)
