"""The label stage: teachers label every view that a protocol will show its students."""

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from dd.engine.method import Task
from dd.errors import UsageError
from dd.evaluation.protocols import Protocol
from dd.io import sha256_tensors
from dd.labels import Labeller, LabelSettings, LabelStore
from dd.labels.spec import LabelSpec
from dd.labels.store import KIND
from dd.runs import RunFolder, bar, sampling
from dd.runs.store import made_log
from dd.sets import DistilledSet
from dd.sizes import readable_size
from dd.views import View

log = logging.getLogger(__name__)


def label_spec(settings: LabelSettings, protocol: Protocol, task: Task) -> LabelSpec:
    """Return everything that determines the labels for a protocol, except the teachers and the images.

    Raises:
        UsageError: the protocol changes images after labelling, or its batches cannot be labelled.
    """
    if protocol.augment:
        raise UsageError(
            f"eval.protocol={protocol.protocol} augments images after teachers labelled their views; choose a "
            "protocol of views (quick-soft, sre2l, cda, cvdd, rded), or labels.mode=off"
        )
    if settings.high and protocol.views.mix != "none":
        raise UsageError("labels.high calibrates labels of single images: it needs eval.views.mix=none")
    n = len(task.targets)
    batch = min(protocol.batch, n)
    if settings.teacher_mode == "train" and min(batch, n % batch or batch) < 4:
        raise UsageError(
            f"labels.teacher_mode=train halves every batch, and {n} images in batches of {batch} leave a half batch of "
            "one image, which has no batch statistics; choose another eval.batch"
        )
    return LabelSpec(
        n=n,
        classes=task.classes,
        epochs=protocol.passes(n),
        batch=batch,
        shape=task.data.shape,
        policy=protocol.views,
        settings=settings,
        seed=task.seed,
        micro=min(protocol.micro or batch, batch) if settings.teacher_mode != "eval" else None,
        strategy=task.data.augment,
        black=task.data.black if protocol.views.pad else None,
    )


def label(
    distilled: DistilledSet, labeller: Labeller, protocol: Protocol, task: Task, folder: RunFolder
) -> tuple[DistilledSet, LabelStore]:
    """Label all views of a protocol; return the set with these labels, and the label store.

    Raises:
        UsageError: the labels do not fit on the disk.
        RunError: the disk is full, or a teacher returns non-finite logits; finished epochs are kept.
    """
    load, own = partial(distilled.pixels, task.data.preprocess), distilled.own_classes().cpu()
    spec = label_spec(labeller.settings, protocol, task)
    facts, images = labeller.facts, distilled.labelled_sha256()
    weights = None if facts["weights"] is None else tuple(facts["weights"])
    spec = replace(spec, images=images, teachers=tuple(facts["teachers"]), weights=weights)
    store = LabelStore(folder.path, spec, own, task.store.remote)
    store.remove_others()
    missing = store.missing()
    done = spec.epochs - len(missing)
    if missing:
        log.info("%s; %d of %d epochs exist", require_room(store.path, spec.bytes()), done, spec.epochs)

    def logits(views: Tensor, view: View, images: Tensor) -> Tensor:
        return labeller.logits(views, own[images], protocol.micro, _seed(view, images))

    count = 0
    with bar("label", spec.epochs, done) as progress:

        def make(epoch: int) -> bool:
            nonlocal count, done
            made = store.make(epoch, load, logits)
            count, done = count + made, done + 1
            progress.update(done)
            return made

        try:
            if (sample := sampling.active()) is None:
                store.each(missing, make)
            else:  # the pace of the first few epochs counts for all
                with sample.dividing(KIND, len(missing)):
                    for turn in sampling.turns(0, len(missing)):
                        make(missing[turn])
        finally:  # a process that only helps may not come to the end
            if count:
                made_log.info("made the labels of %d of %d epochs", count, spec.epochs)
    views = store.stated(labeller.origin)
    return replace(distilled, label_kind="views", labels=own, views=views, path=folder.set), store


def require_room(folder: Path, needed: int) -> str:
    """Check that labels fit on the disk; return a line for the log.

    Args:
        folder: the target folder; it need not exist yet.
        needed: total size of the labels in bytes, including those already there.

    Raises:
        UsageError: they do not fit.
    """
    left = max(needed - sum(file.stat().st_size for file in folder.glob("*") if file.is_file()), 0)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    line = f"labels take {readable_size(left)} in {folder}, but only {readable_size(free)} are free"
    if left > free:
        raise UsageError(
            f"{line}; store less per label (labels.form=topk or distances), or let "
            "teachers label while students train (labels.mode=live)"
        )
    return line


def _seed(view: View, images: Tensor) -> int:
    """Return the dropout seed for teachers on one batch, derived from the batch so that resuming does not change it."""
    drawn = {"images": images} if view.boxes is None else {"images": images, "boxes": view.boxes}
    return int(sha256_tensors(drawn)[:15], 16)


def stored_labels(distilled: DistilledSet, protocol: Protocol) -> LabelStore | None:
    """Return the stored labels of a set's views for a protocol; None for a set with its own labels.

    Args:
        distilled: the set.
        protocol: how students are trained.

    Raises:
        UsageError: the labels are unavailable (see `DistilledSet.label_store`), or belong to other batches.
    """
    if distilled.label_kind != "views":
        return None
    batch, store = min(protocol.batch, distilled.n), distilled.label_store()
    store.require(batch, min(protocol.micro or batch, batch), distilled.labelled_sha256())
    return store
