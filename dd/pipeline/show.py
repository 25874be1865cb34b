"""Pictures of a finished run, and the verdict on its accuracy."""

from dataclasses import replace

from torch import Tensor

from dd.engine.method import Task, ranks_of
from dd.engine.selection import Selection
from dd.evaluation.notes import SHARE_SHOWN, share_outside
from dd.evaluation.report import Report
from dd.pipeline.task import context
from dd.recipes import Recipe
from dd.runs import RunFolder
from dd.runs.pictures import SHOWN, contact_sheet, curve, progress_plot
from dd.runs.track import read_log
from dd.sets import DistilledSet


def draw_pictures(distilled: DistilledSet, recipe: Recipe, task: Task, folder: RunFolder) -> None:
    """Draw synthetic images beside real ones, and plot the log as curves."""
    preprocess = task.data.preprocess
    if distilled.image_kind != "schedule":
        # of learned labels the initial classes, because a label may have moved on
        targets = distilled.own_classes() if distilled.label_kind == "hard" else task.targets.cpu()
        shown = _first_of_each(targets)
        index = task.real_indices("picture")[_first_of_each(task.targets.cpu())]
        real = task.data.train.raw(index).float() / 255
        synthetic = preprocess.invert(distilled.images_in(task.data, shown)).clamp(0, 1)
        rows = [
            ("selected" if isinstance(recipe.method, Selection) else "synthetic", synthetic, targets[shown]),
            ("real", real, task.data.train.labels[index.to(task.device)]),
        ]
        outside = distilled.outside(preprocess)
        clipped = f"{share_outside(outside)}; clipped here" if outside and outside >= SHARE_SHOWN else ""
        contact_sheet(folder.images_png, rows, task.data.classes, clipped)
    if recipe.method.iterations:
        progress_plot(folder.progress_png, folder.log_csv)


def _first_of_each(targets: Tensor) -> Tensor:
    """Return the positions (m,) of the images of (n,) classes that a picture has room for."""
    return ((targets < SHOWN) & (ranks_of(targets) < SHOWN)).nonzero().flatten()


def probes_note(recipe: Recipe, task: Task, folder: RunFolder) -> str:
    """Return a note if there are too few probes for a curve, with the reason; else an empty string."""
    count = len(curve(read_log(folder.log_csv)[1], "probe"))
    if not recipe.method.iterations or count >= 2:
        return ""
    if not len(task.data.holdout):
        why = "nothing is held out"
    elif len(recipe.method.parts(task)) > 1:
        why = "the set is made in independent parts"
    else:
        why = f"eval.probes={recipe.eval.probes}, {recipe.method.iterations} iterations"
    words = "one probe" if count else "no probes"
    return f"{words} of held-out accuracy during synthesis ({why}): too few to tell if more or fewer iterations help"


def judged(report: Report, recipe: Recipe, command: str, remark: str = "", *, compiled: bool = False) -> Report:
    """Return the report with name, context and a verdict against the recipe's expectation.

    Args:
        report: the scores.
        recipe: the settled recipe of the run.
        command: what started the run.
        remark: becomes a note.
        compiled: whether training loops may have been compiled.
    """
    expect = recipe.expect
    verdict, note = "unverified", "no recorded number for these settings"
    if expect and "accuracy" in expect:
        low, high = expect["accuracy"]
        whose = "published" if expect.get("source") else "recipe's"
        inside = low <= report.accuracy.mean <= high
        under = f" under {recipe.eval.in_words()}" if len(recipe.numbers) > 1 else ""
        verdict, note = ("inside" if inside else "outside"), f"expected {low} to {high} %{under}"
        if not expect.get("verified", False):
            verdict, note = (
                "unverified",
                f"{verdict} of the {whose} band {low} to {high} %{under}, which we have not reproduced",
            )
    elif recipe.changed:
        note = f"settings differ from the recipe's: {', '.join(recipe.changed[:5])}"
    return replace(
        report,
        name=recipe.name,
        expected=dict(expect) if expect else None,
        verdict=verdict,
        verdict_note=note,
        recipe_hash=recipe.hash,
        recipe={
            "settings": recipe.asked(),
            "decided": recipe.decided(),
            "digests": dict(recipe.digests),
            "method_version": recipe.method.version,
            "compiled": compiled,
        },
        command=command,
        notes=(*report.notes, remark) if remark else report.notes,
        **context(recipe.device),
    )
