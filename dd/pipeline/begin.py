"""Initial variables of a synthesis."""

from dataclasses import replace
from typing import TypeVar

from dd.engine.method import Method, Synthetic, Task
from dd.engine.selection import Selection
from dd.errors import UsageError
from dd.pipeline.task import Run
from dd.released.pull import file_of
from dd.sets import DistilledSet, load

P = TypeVar("P")


def begin(run: Run, method: Method[P], prepared: P, task: Task) -> Synthetic:
    """Return the variables of `task` at iteration 0: the method's own, or those of `init=SET`.

    Args:
        run: the run.
        method: the run's method.
        prepared: the result of `Method.prepare`.
        task: the run's task, or the task of a part.

    Raises:
        UsageError: the initial set does not fit the run.
    """
    if run.recipe.init is not None and isinstance(method, Selection):
        raise UsageError(f"method {method.name} selects real images and changes none, so it cannot start from init=")
    syn = method.start(task, prepared)
    if run.recipe.init is not None:
        given, n = load(file_of(run.recipe.init, "init")), len(run.task.targets)
        if task.part is not None and given.n == n:
            slots = task.part.slots
            given = replace(given, images=given.images[slots], labels=given.labels[slots])
        _take(given, syn, task, n)
    return syn


def _take(given: DistilledSet, syn: Synthetic, task: Task, whole: int) -> None:
    """Copy an existing set into `syn`: its images, and its labels and lr if `syn` has such variables."""
    given.require_match(task.data)
    if given.image_kind == "schedule":
        raise UsageError("init: a schedule shows other images in every pass; start from a set of one choice of images")
    if given.image_kind not in ("pixels", "indices") or (given.n, *task.data.shape) != tuple(syn.images.shape):
        raise UsageError(
            f"init: the set has {given.image_kind} of shape {tuple(given.images.shape)}, the run needs pixels of shape "
            f"{(whole, *syn.images.shape[1:])}; use the set's ipc"
        )
    if given.label_kind == "representations":
        syn.take(given.pixels(task.data.preprocess), given.labels, given.lr)
        return
    soft = given.label_kind not in ("hard", "views")
    agree = (given.own_classes() == syn.targets.cpu()).double().mean()
    # a learned label may favour a class other than the one its image was initialised from
    if agree < (0.5 if soft else 1):
        raise UsageError(
            "init: the set's labels are not sorted by class in this data's order; save it again sorted by class"
        )
    logits = None
    if soft:
        logits = given.labels if given.label_kind == "logits" else given.targets().clamp_min(1e-8).log()
    syn.take(given.images_in(task.data), logits, given.lr)
