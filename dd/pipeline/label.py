"""The label stage: teachers label the views that students of a protocol will be shown."""

import logging
from dataclasses import replace
from functools import partial

from torch import Tensor

from dd.engine.method import Task
from dd.errors import UsageError
from dd.evaluation.protocols import Protocol
from dd.io import sha256_tensors
from dd.labels import Labeller, LabelSettings
from dd.labels.spec import StoreSpec
from dd.labels.store import LabelStore, open_store
from dd.labels.writer import require_room, size_on_disk, writing
from dd.runs import RunFolder, bar
from dd.sets import DistilledSet
from dd.views import View

log = logging.getLogger(__name__)


def store_spec(settings: LabelSettings, protocol: Protocol, task: Task) -> StoreSpec:
    """What a store of labels for a protocol holds, but whose labels and of which images.

    Raises:
        UsageError: the protocol changes images after they were labelled, or its batches cannot be labelled.
    """
    if protocol.augment:
        raise UsageError(
            f"eval.protocol={protocol.protocol} augments images after teachers labelled their views; choose one of "
            "views (quick-soft, sre2l, cda, cvdd, rded), or labels.mode=off"
        )
    if settings.high and protocol.views.mix != "none":
        raise UsageError("labels.high calibrates labels of single images: it needs eval.views.mix=none")
    n = len(task.targets)
    batch = min(protocol.batch, n)
    if settings.teacher_mode == "train" and min(batch, n % batch or batch) < 4:
        raise UsageError(
            f"labels.teacher_mode=train halves every batch, and {n} images in batches of {batch} leave a half of one, "
            "of which batch statistics say nothing; choose another eval.batch"
        )
    return StoreSpec(
        n=n,
        classes=task.data.classes,
        epochs=protocol.passes(n),
        batch=batch,
        form=settings.stored_as(task.classes),
        policy=protocol.views,
        shape=task.data.shape,
        seed=task.seed,
        micro=min(protocol.micro or batch, batch) if settings.teacher_mode != "eval" else None,
        strategy=task.data.augment,
        black=task.data.black if protocol.views.pad else None,
        replay=settings.replay,
    )


def label(
    distilled: DistilledSet, labeller: Labeller, protocol: Protocol, task: Task, folder: RunFolder
) -> tuple[DistilledSet, LabelStore]:
    """The set with a store of labels for all views of a protocol, and the store; finished epochs are kept.

    Raises:
        UsageError: they do not fit on the disk, or the folder holds other labels.
        RunError: the disk is full, or a teacher gives no finite logits; finished epochs stay.
    """
    spec = replace(
        store_spec(labeller.settings, protocol, task),
        images=sha256_tensors({"images": distilled.images}),
        teacher=labeller.facts,
    )
    load, own = partial(distilled.pixels, task.data.preprocess), distilled.own_classes().cpu()
    with writing(folder.labels, spec, own) as writer:
        missing = writer.missing_epochs()
        done = spec.epochs - len(missing)
        if missing:
            needed = size_on_disk(spec.n, spec.epochs, spec.form, spec.replay, spec.policy)
            left = needed * len(missing) // spec.epochs
            log.info("%s; %d of %d epochs are there", require_room(folder.labels, left), done, spec.epochs)

        def logits(views: Tensor, view: View, images: Tensor) -> Tensor:
            return labeller.logits(views, own[images], protocol.micro, _seed(view, images))

        with bar("label", spec.epochs, done) as progress:
            for number, epoch in enumerate(missing, done + 1):
                writer.write_epoch(epoch, load, logits)
                progress.update(number)
        store = writer.store
    views = store.reference(folder.set) | {"labeller": labeller.origin}
    made = replace(distilled, label_kind="views", labels=distilled.own_classes(), views=views, path=folder.set)
    return made, store


def _seed(view: View, images: Tensor) -> int:
    """Of what dropout drops while teachers look at a batch: it follows from the batch, so resuming changes none."""
    drawn = {"images": images} if view.boxes is None else {"images": images, "boxes": view.boxes}
    return int(sha256_tensors(drawn)[:15], 16)


def stored_labels(distilled: DistilledSet, protocol: Protocol) -> LabelStore | None:
    """The label store that a set names, for students of a protocol; None for a set with labels of its own.

    Args:
        distilled: the set.
        protocol: how students are trained.

    Raises:
        UsageError: the store is not to be had (see `DistilledSet.label_store`), or is for other batches.
    """
    if distilled.label_kind != "views":
        return None
    batch = min(protocol.batch, distilled.n)
    micro = min(protocol.micro or batch, batch)
    images = sha256_tensors({"images": distilled.images})
    return open_store(distilled.label_store().path, batch=batch, micro=micro, images=images)
