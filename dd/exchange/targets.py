"""What the labels of a file are, by their type and shape.

Words, as `labels=` takes them and a `Draft` states them:

hard             class ids, of whatever number type
probabilities    rows of class probabilities
logits           rows that a softmax makes probabilities of, once
centred          rows that are one-hot less 1/k, and learned from there (FRePo, RCIG, KIP): regression targets
blocks           there are none: the images of class 0 come first, then those of class 1
cycle            there are none: images 0, 1, 2 are of classes 0, 1, 2, and so on around
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dd.errors import UsageError, unknown
from dd.exchange.draft import Draft
from dd.sets.distilled import LabelKind

WORDS = ("hard", "probabilities", "logits", "centred", "blocks", "cycle")
_SUM = 1e-3  # by which rows may miss one, or zero
_TARGET = 1.5  # that regression targets do not exceed


@dataclass(frozen=True, eq=False)
class Targets:
    """Labels as a `DistilledSet` has them.

    Attributes:
        kind: of labels.
        values: int64 (n,) or float32 (n, k).
        assumed: what was taken for granted, one line each.
    """

    kind: LabelKind
    values: Tensor
    assumed: tuple[str, ...] = ()


def targets(draft: Draft, classes: int, said: str | None) -> Targets:
    """Return the labels of a draft.

    Args:
        draft: its labels are of any number type.
        classes: of the data set.
        said: the word of the user; None for none.

    Raises:
        UsageError: they are no labels of so many classes, or not as many as images; or what is said does not fit.
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
        raise _refused(draft, f"its labels are of {labels.shape[1]} classes, and the data have {classes}")
    return _rows(labels.float(), word)


def kind_of_rows(labels: Tensor) -> str:
    """Return a word for labels (n,) or (n, k): ids; one-hot rows, probabilities, centred targets or logits."""
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
        raise _refused(
            draft, f"it holds no labels that labels={said} could be about; say labels=blocks or labels=cycle"
        )
    if n % classes:
        raise _refused(draft, f"it holds no labels, and {n:,} images are not as many of each of {classes} classes")
    ids = torch.arange(classes)
    if said == "cycle":
        return Targets("hard", ids.repeat(n // classes))
    why = () if said else ("the file holds no labels: images are taken for ordered by class (labels=cycle otherwise)",)
    return Targets("hard", ids.repeat_interleave(n // classes), why)


def _refused(draft: Draft, why: str) -> UsageError:
    return UsageError(f"{draft.files[0]}: {why}")
