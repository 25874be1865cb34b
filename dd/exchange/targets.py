"""The kind of a file's labels, inferred from type and shape.

Values of `labels=` and `Draft.label_kind`:

hard             class ids, of any number type
probabilities    rows of class probabilities
logits           rows to which softmax is applied once
centred          regression targets (FRePo, RCIG, KIP): initially one-hot minus 1/k, then learned
blocks           no labels: the images of class 0 come first, then those of class 1, and so on
cycle            no labels: images 0, 1, 2 are of classes 0, 1, 2, and so on, cyclically
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dd.errors import UsageError, unknown
from dd.exchange.draft import Draft
from dd.sets.distilled import LabelKind

WORDS = ("hard", "probabilities", "logits", "centred", "blocks", "cycle")
_SUM = 1e-3  # tolerance for row sums of one or zero
_TARGET = 1.5  # maximum absolute value of regression targets


@dataclass(frozen=True, eq=False)
class Targets:
    """Labels as a `DistilledSet` has them.

    Attributes:
        kind: kind of labels.
        values: int64 (n,) or float32 (n, k).
        assumed: assumptions made, one line each.
    """

    kind: LabelKind
    values: Tensor
    assumed: tuple[str, ...] = ()


def targets(draft: Draft, classes: int, said: str | None) -> Targets:
    """Return the labels of a draft.

    Args:
        draft: the draft, with labels of any number type.
        classes: number of classes of the data set.
        said: the user's option; None if not given.

    Raises:
        UsageError: the labels do not fit the number of classes or of images, or contradict the user's option.
    """
    if said is not None and said not in WORDS:
        raise unknown("kind of labels", said, WORDS)
    labels, n = draft.labels, len(draft.images)
    if labels is None or said in ("blocks", "cycle"):
        return _by_place(draft, n, classes, said)
    if not labels.dtype.is_floating_point:
        labels = labels.long()
    elif not labels.isfinite().all():
        raise _refused(draft, "some labels are NaN or infinite")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() not in (1, 2) or len(labels) != n * (draft.factor**2 if len(labels) != n else 1):
        raise _refused(draft, f"there are {n:,} images, but labels of shape {tuple(labels.shape)}")
    word = said or (draft.label_kind if labels.dim() == 2 else None) or kind_of_rows(labels)
    if labels.dim() == 1:
        return _ids(draft, labels, classes, word)
    if labels.shape[1] != classes:
        raise _refused(
            draft,
            f"its labels are of {labels.shape[1]} classes, and the data have {classes} (format=krrst if these are "
            "representations)",
        )
    return _rows(labels.float(), word)


def kind_of_rows(labels: Tensor) -> str:
    """Return the kind of labels (n,) or (n, k): ids; one-hot rows, probabilities, centred targets or logits."""
    if labels.dim() == 1:
        return "hard"
    rows = labels.double()
    if not labels.dtype.is_floating_point or bool((((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1)).all()):
        return "hard"
    sums = rows.sum(1)
    if bool((rows >= 0).all()) and bool((rows <= 1 + _SUM).all()) and bool(((sums - 1).abs() <= _SUM).all()):
        return "probabilities"
    if bool((sums.abs() <= _SUM).all()) and bool((rows.abs() <= _TARGET).all()):
        return "centred"
    return "logits"


def _ids(draft: Draft, labels: Tensor, classes: int, word: str) -> Targets:
    if word != "hard":
        raise _refused(draft, f"one number per image is a class id: labels=hard, not labels={word}")
    if labels.dtype.is_floating_point:
        if not bool((labels == labels.round()).all()):
            raise _refused(draft, f"one number per image is a class id, but {float(labels.max()):g} is among them")
        labels = labels.long()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise _refused(draft, f"labels go from {low} to {high}, and the data have {classes} classes")
    return Targets("hard", labels)


def _rows(rows: Tensor, word: str) -> Targets:
    if word == "hard":
        return Targets("hard", rows.argmax(1))
    if word == "centred":
        why = "labels are regression targets about zero; the largest of each is taken (labels= says otherwise)"
        return Targets("hard", rows.argmax(1), (why,))
    if word == "probabilities":
        return Targets("probabilities", rows)
    return Targets("logits", rows)


def _by_place(draft: Draft, n: int, classes: int, said: str | None) -> Targets:
    if said not in (None, "blocks", "cycle"):
        raise _refused(draft, f"it holds no labels, so labels={said} does not apply; say labels=blocks or labels=cycle")
    if n % classes:
        raise _refused(draft, f"it holds no labels, and {n:,} images are not as many of each of {classes} classes")
    ids = torch.arange(classes)
    if said == "cycle":
        return Targets("hard", ids.repeat(n // classes))
    why = () if said else ("the file holds no labels: images are taken for ordered by class (labels=cycle otherwise)",)
    return Targets("hard", ids.repeat_interleave(n // classes), why)


def _refused(draft: Draft, why: str) -> UsageError:
    return UsageError(f"{draft.files[0]}: {why}")
