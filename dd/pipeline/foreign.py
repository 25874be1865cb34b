"""Limits for sets made elsewhere: they may not make this machine read paths or do work that the user did not allow.

A set counts as made here if a run under this `$DD_HOME` wrote exactly these bytes.  Any other set is untrusted: paths
that it names are read only if the user names them too.
"""

import contextlib
import shlex
from pathlib import Path

from dd.data import is_local
from dd.engine.method import Task
from dd.errors import UsageError
from dd.pipeline.meant import LabelOrigin
from dd.recipes import Evaluation
from dd.runs import Store
from dd.sets import DistilledSet
from dd.sets.formats import seal
from dd.training.encoders import Encoders, EncoderSettings
from dd.training.teacher_names import is_file
from dd.training.teachers import Teachers

_KIND = "own"
_LARGE = 1024  # pixels; a set of indices contains no images to compare the size with


def remember(file: Path) -> None:
    """Record that the set in `file` was made here."""
    with contextlib.suppress(UsageError):  # without the record, evaluation only asks for more confirmation
        Store().note(_KIND, {"set": seal(file)}, {})


def is_foreign(distilled: DistilledSet) -> bool:
    """Return whether a set was loaded from a file that no run of this user wrote."""
    if distilled.path is None:
        return False
    said = seal(distilled.path)
    return not said or not Store().path(_KIND, {"set": said}).is_file()


def require_no_path(distilled: DistilledSet) -> None:
    """Raise `UsageError` if a set asks for images at a path, which the user did not name."""
    if is_local(distilled.source):
        raise _not_said("images at a path", f"dataset={distilled.source}")


def require_modest(distilled: DistilledSet, settings: Evaluation) -> None:
    """Raise `UsageError` if a set asks for images at a path or of a size that the user did not name."""
    if "dataset" not in settings.named:
        require_no_path(distilled)
    size = settings.data.size or 0
    if "data.size" not in settings.named and distilled.image_kind in ("indices", "schedule") and size > _LARGE:
        raise _not_said(f"images of {size} pixels", f"data.size={size}")
    if distilled.image_kind in ("pixels", "tiles") and size not in (0, distilled.images.shape[-1]):
        raise UsageError(f"data.size={size}, but the set's images have {distilled.images.shape[-1]} pixels")


def require_teachers(origin: LabelOrigin, task: Task, settings: Evaluation) -> None:
    """Raise `UsageError` if a set needs teachers from a path, or trained here, that the user did not name."""
    named = ",".join(origin.teachers)
    if not settings.allowed.teachers and any(map(is_file, origin.teachers)):
        raise _not_said("teachers at a path", f"teachers={named}")
    wanted = Teachers(task, origin.teachers, origin.squeeze).artefacts()
    missing = [one.words for one in wanted if not task.store.has(one.kind, one.spec)]
    if missing and "hours" not in settings.named:
        epochs, images = origin.squeeze.epochs, len(task.data.train)
        work = f"{len(missing)} teachers to be trained here, {epochs:,} epochs of {images:,} images each"
        raise _not_said(work, f"hours={settings.allowed.hours:g}")


def require_encoder(encoder: EncoderSettings, task: Task, settings: Evaluation) -> None:
    """Raise `UsageError` if a set needs an encoder from a path, or trained here, that the user did not name."""
    if not settings.allowed.teachers and is_file(encoder.name):
        raise _not_said("an encoder at a path", f"teachers={encoder.name}")
    missing = [one for one in Encoders(task, encoder).artefacts() if not task.store.has(one.kind, one.spec)]
    if missing and "hours" not in settings.named:
        raise _not_said(f"an {missing[0].words}, to be trained here", f"hours={settings.allowed.hours:g}")


def _not_said(what: str, word: str) -> UsageError:
    return UsageError(f"this set was not made here and asks for {what}; to allow that, add {shlex.quote(word)}")
