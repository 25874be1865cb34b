"""Is a teacher fit to teach?  Asked before anything is recovered or relabelled with it.

Soft labels hide a wrong class order: everything runs, and the students come out useless.  It is the most frequent
failure reported against the published code of the decoupled family.
"""

import torch
from torch import Tensor

from dd.engine.method import Task
from dd.errors import UsageError
from dd.rng import generator
from dd.training.loop import predict
from dd.training.teachers import Teacher

CHECKED = 5000  # images at most that a teacher is tried on
KEPT = 0.9  # share of the declared accuracy that it must reach
ERRORS = 3  # standard errors that it must be above chance
CONVINCING = 0.25  # of the way from luck to always right, that another order must reach: untrained networks have order
ORDERED = 2000  # classes at most among which another order is looked for
_SEED = 0  # of the sample; the same one in every run
_CHUNK = 256


def require_fit(teacher: Teacher, task: Task) -> None:
    """Refuse a teacher that does not know the images, or knows them by other labels.

    It is tried on the held-out images, on a fixed sample where there are more than 5,000, and on training images where
    nothing is held out.  Chance is the accuracy of its predictions dealt out at random, sum_c p(c) q(c) for the shares
    p of labels and q of predictions: 1 / classes where the classes are level.

    Raises:
        UsageError: its class names differ from the data's; its accuracy is not 3 standard errors above chance, or below
            90 % of the declared one, or, where neither accuracy nor classes are declared, of what another order of its
            classes gives.  The line has the facts, and says where another order would do.
    """
    _require_classes(teacher, task.data.classes)
    predicted, labels, which = _tried(teacher, task)
    n, right = len(labels), float((predicted == labels).double().mean())
    shares = [torch.bincount(found, minlength=task.classes).double() / n for found in (labels, predicted)]
    chance = float(shares[0] @ shares[1])
    error = _error(chance, n)
    words = ""
    declared = "none declared" if teacher.declared is None else f"{teacher.declared:.1f} % declared"
    if right <= chance + ERRORS * error:
        problem = "not told from chance"
    elif teacher.declared is not None and 100 * right < KEPT * teacher.declared:
        problem = f"below {100 * KEPT:.0f} % of what is declared"
    elif teacher.declared is None and teacher.classes is None:
        words, best = _other_order(predicted, labels, task.data.classes)
        if right >= KEPT * best:
            return
        problem = f"below {100 * KEPT:.0f} % of what another order of its classes gives"
    else:
        return
    facts = f"chance {100 * chance:.1f} with a standard error of {100 * error:.1f}, {declared}"
    raise UsageError(
        f"teacher {teacher.name} is right on {100 * right:.1f} % of {n} {which} ({facts}): {problem}; "
        + (words or _other_order(predicted, labels, task.data.classes)[0] or _other_reasons(task.classes))
    )


def _other_reasons(classes: int) -> str:
    look = "its normalisation (mean and std), its image size and its training"
    if classes > ORDERED:
        return f"look at the order of its classes, {look}"
    return f"no other order of its classes helps: look at {look}"


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How many images of each class (rows) were taken for each class (columns): (k, k) float64 on the CPU."""
    pairs = labels * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).double()


def best_order(counts: Tensor) -> tuple[Tensor, float]:
    """The order of outputs that would make a teacher right most often, from its confusion (k, k).

    Returns:
        (k,) the output that answers to each class, and the accuracy in [0, 1] that it gives.
    """
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(counts.numpy(), maximize=True)
    order = torch.from_numpy(order)
    return order, _right(counts[:, order])


def _other_order(predicted: Tensor, labels: Tensor, classes: tuple[str, ...]) -> tuple[str, float]:
    """Words on the order of classes that the predictions fit far better than their own, or none; the accuracy it gives.

    It is not looked for among more than 2,000 classes, for which the table and the search would take too much.
    """
    if len(classes) > ORDERED:
        return "", 0.0
    counts = confusion(labels, predicted, len(classes))
    n, right = len(labels), _right(counts)
    order, best = best_order(counts)
    # the best of all orders flatters any predictions: how much, the same ones dealt out at random tell
    dealt = predicted[torch.randperm(n, generator=generator(_SEED, "fitness", "dealt"))]
    _, by_luck = best_order(confusion(labels, dealt, len(classes)))
    convincing = by_luck + CONVINCING * (1 - by_luck)
    surely = max(right, by_luck) + ERRORS * _error(max(right, by_luck), n)
    if best <= max(surely, convincing):
        return "", right
    at = int((order != torch.arange(len(order))).nonzero()[0])
    words = (
        f"with its outputs in another order it would be right on {100 * best:.1f} %, so its class order differs from "
        f"the data's (first at label {at}, {classes[at]!r}, to which its output {int(order[at])} answers): "
        "reorder its last layer, or train it on these classes in this order"
    )
    return words, best


def _require_classes(teacher: Teacher, ours: tuple[str, ...]) -> None:
    theirs = teacher.classes
    if theirs is None or theirs == ours:
        return
    if len(theirs) != len(ours):
        raise UsageError(f"teacher {teacher.name} names {len(theirs)} classes, the data have {len(ours)}")
    at = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    order = "the same names in another order" if sorted(theirs) == sorted(ours) else "other names"
    raise UsageError(
        f"teacher {teacher.name} was made for other classes: its output {at} is {theirs[at]!r}, label {at} of the data "
        f"is {ours[at]!r} ({order}); its labels would be wrong: take a teacher of these classes in this order"
    )


def _tried(teacher: Teacher, task: Task) -> tuple[Tensor, Tensor, str]:
    """Its predictions (n,), the labels (n,), and words on which images these are."""
    data = task.data
    split, which = data.holdout, "held-out images"
    if not len(split):
        split, which = data.train, "training images (data.holdout=0 leaves no others)"
    index = torch.randperm(len(split), generator=generator(_SEED, "fitness", "images"))[:CHECKED]
    batches = ((split.images(part), split.labels[part.to(split.labels.device)]) for part in index.split(_CHUNK))
    logits, labels = predict(teacher.network, batches)
    return logits.argmax(1).cpu(), labels.cpu(), which


def _right(counts: Tensor) -> float:
    return float(counts.diagonal().sum() / counts.sum())


def _error(share: float, n: int) -> float:
    """Standard error of a share of n images."""
    return (share * (1 - share) / n) ** 0.5
