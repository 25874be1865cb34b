"""Check that a teacher fits the data, before images are recovered or labelled with it.

Soft labels hide a wrong class order: everything runs, but the students are useless.  This is the failure reported most
often against the published code of decoupled methods.
"""

import logging

import torch
from torch import Tensor

from dd.data import Split
from dd.engine.method import Task
from dd.errors import UsageError
from dd.rng import generator
from dd.training.loop import predict, recall
from dd.training.teachers import Teacher

log = logging.getLogger(__name__)

CHECKED = 5000  # at most this many images are used for the check
KEPT = 0.9  # share of the declared accuracy that the teacher must reach
ERRORS = 3  # its accuracy must exceed chance by this many standard errors ...
LUCK = 0.00135  # ... or have a p-value of at most this, the tail beyond 3 standard errors, for small samples
DEALT = 4000  # permutations of the predictions for the p-value
CONVINCING = 0.25  # another class order must close this share of the gap from luck to 1; untrained networks have order
ORDERED = 2000  # no search for another class order among more classes than this
_SEED = 0  # of the sample; the same in every run
_CHUNK = 256
_ENTRIES = 1 << 22  # predictions permuted at a time


def require_fit(teacher: Teacher, task: Task) -> None:
    """Refuse a teacher that cannot classify the images, or uses other labels.

    The check uses the held-out images, or a fixed sample of 5,000 if there are more.  It falls back to training images
    if nothing is held out, or if the teacher fails on held-out images that are so few or so unbalanced that a good
    teacher might fail too.  If training images are inconclusive as well, it logs a warning and refuses only a teacher
    of other classes.

    Raises:
        UsageError: the class names differ from the data's; the accuracy is indistinguishable from chance (see `told`);
            it is below 90 % of the declared accuracy; or, if neither accuracy nor classes are declared, it is below
            90 % of the accuracy in another class order.  The message gives the numbers, and says whether another
            order would fit.
    """
    _require_classes(teacher, task.data.classes)
    which, line = "", ""
    for split, which in _asked(task):
        index = _sample(split)
        predicted, labels = _tried(teacher, split, index)
        line = _unfit(teacher, predicted, labels, which, task.data.classes)
        if line is None:
            return
        if tell(labels):
            raise UsageError(line)
    log.warning("teacher %s could not be checked, there are too few images: %s", teacher.name, line)


def announce(task: Task) -> None:
    """Warn, before a teacher is trained, if held-out images are too few to distinguish a good teacher from chance."""
    *held, (train, _) = _asked(task)
    if any(tell(split.labels[_sample(split).to(split.labels.device)]) for split, _ in held):
        return
    few = f"the {len(task.data.holdout)} held-out images are too few" if held else "nothing is held out"
    if not tell(train.labels[_sample(train).to(train.labels.device)]):
        log.warning("teachers cannot be checked: %s, and so are %d training images", few, len(train))
    elif held:
        log.warning("%s to tell a good teacher from chance: training images may have to", few)


def told(labels: Tensor, predicted: Tensor) -> bool:
    """Whether predictions (n,) of labels (n,) are significantly better than chance.

    Chance is the expected accuracy of randomly permuted predictions, sum_c p(c) q(c), with p and q the class shares of
    labels and predictions: 1 / classes for balanced classes.  The predictions pass if their accuracy exceeds chance by
    3 standard errors, or if a permutation test of the mean per-class recall gives an equally small p-value.  The
    second test is valid for few images, and gives rare classes the same weight as frequent ones.
    """
    right, chance = float((predicted == labels).double().mean()), _chance(labels, predicted)
    return right > chance + ERRORS * _error(chance, len(labels)) or luck(labels, predicted) <= LUCK


def tell(labels: Tensor) -> bool:
    """Whether these labels (n,) suffice to distinguish a teacher with 10 % errors from chance."""
    labels = labels.cpu().sort().values
    there = labels.unique()
    mistaken = there[(torch.searchsorted(there, labels[::10].contiguous()) + 1) % len(there)]
    predicted = labels.clone()
    predicted[::10] = mistaken
    return told(labels, predicted)


def luck(labels: Tensor, predicted: Tensor) -> float:
    """The p-value of a permutation test: how often permuted predictions reach the mean recall of these.

    Args:
        labels: (n,) int64.
        predicted: (n,) int64.
    """
    counts = torch.bincount(labels)
    weight = 1 / (counts[labels].double() * (counts > 0).sum())
    reached = (weight * (predicted == labels)).sum() * (1 - 1e-9)
    rng, n, hits = generator(_SEED, "fitness", "luck"), len(labels), 0
    for rows in torch.arange(DEALT).split(max(1, _ENTRIES // n)):
        dealt = predicted[torch.rand(len(rows), n, generator=rng).argsort(1)]
        hits += int(((dealt == labels).double() @ weight >= reached).sum())
    return (hits + 1) / (DEALT + 1)


def _unfit(teacher: Teacher, predicted: Tensor, labels: Tensor, which: str, classes: tuple[str, ...]) -> str | None:
    """The fault of a teacher, judged by its predictions (n,), in one line; None if it is fit."""
    n, right, words = len(labels), float((predicted == labels).double().mean()), ""
    if not told(labels, predicted):
        problem = "indistinguishable from chance"
    elif teacher.declared is not None and 100 * right < KEPT * teacher.declared:
        problem = f"below {100 * KEPT:.0f} % of the declared accuracy"
    elif teacher.declared is None and teacher.classes is None:
        words, best = _other_order(predicted, labels, classes)
        if right >= KEPT * best:
            return None
        problem = f"below {100 * KEPT:.0f} % of its accuracy in another class order"
    else:
        return None
    chance = _chance(labels, predicted)
    facts = f"chance {100 * chance:.1f} with a standard error of {100 * _error(chance, n):.1f}, mean recall of the "
    facts += f"classes {recall(predicted, labels, len(classes))[1]:.1f}, "
    facts += "none declared" if teacher.declared is None else f"{teacher.declared:.1f} % declared"
    return f"teacher {teacher.name} is correct on {100 * right:.1f} % of {n} {which} ({facts}): {problem}; " + (
        words or _other_order(predicted, labels, classes)[0] or _other_reasons(len(classes))
    )


def _chance(labels: Tensor, predicted: Tensor) -> float:
    size = int(max(labels.max(), predicted.max())) + 1
    shares = [torch.bincount(found, minlength=size).double() / len(labels) for found in (labels, predicted)]
    return float(shares[0] @ shares[1])


def _other_reasons(classes: int) -> str:
    look = "its normalisation (mean and std), its image size and its training"
    if classes > ORDERED:
        return f"check the order of its classes, {look}"
    return f"no other class order helps: check {look}"


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Confusion matrix, float64 (k, k) on the CPU: number of images by true class (rows) and predicted class."""
    pairs = labels * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).double()


def best_order(counts: Tensor) -> tuple[Tensor, float]:
    """The order of outputs that maximises accuracy, from a confusion matrix (k, k).

    Returns:
        The output for each class, (k,), and the resulting accuracy in [0, 1].
    """
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(counts.numpy(), maximize=True)
    order = torch.from_numpy(order)
    return order, _right(counts[:, order])


def _other_order(predicted: Tensor, labels: Tensor, classes: tuple[str, ...]) -> tuple[str, float]:
    """A message about a class order that fits the predictions far better, or "", and the best accuracy.

    The search is skipped for more than 2,000 classes, because matrix and search would be too expensive.
    """
    if len(classes) > ORDERED:
        return "", 0.0
    counts = confusion(labels, predicted, len(classes))
    n, right = len(labels), _right(counts)
    order, best = best_order(counts)
    # the best of all orders looks good even by luck; permuted predictions show how good
    dealt = predicted[torch.randperm(n, generator=generator(_SEED, "fitness", "dealt"))]
    _, by_luck = best_order(confusion(labels, dealt, len(classes)))
    convincing = by_luck + CONVINCING * (1 - by_luck)
    surely = max(right, by_luck) + ERRORS * _error(max(right, by_luck), n)
    if best <= max(surely, convincing):
        return "", right
    at = int((order != torch.arange(len(order))).nonzero()[0])
    words = (
        f"with its outputs in another order it would be correct on {100 * best:.1f} %, so its class order differs from "
        f"the data's (first at label {at}, {classes[at]!r}, which is its output {int(order[at])}): "
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
        f"is {ours[at]!r} ({order}); its labels would be wrong: use a teacher of these classes in this order"
    )


def _asked(task: Task) -> list[tuple[Split, str]]:
    """The splits to check teachers on, in order, each with a description of its images."""
    data, held = task.data, len(task.data.holdout)
    why = f"the {held} held-out ones cannot tell" if held else "data.holdout=0 holds none out"
    first: list[tuple[Split, str]] = [(data.holdout, "held-out images")] if held else []
    return [*first, (data.train, f"training images ({why})")]


def _sample(split: Split) -> Tensor:
    return torch.randperm(len(split), generator=generator(_SEED, "fitness", "images"))[:CHECKED]


def _tried(teacher: Teacher, split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's predictions (n,) and the labels (n,) of some images."""
    batches = ((split.images(part), split.labels[part.to(split.labels.device)]) for part in index.split(_CHUNK))
    logits, labels = predict(teacher.network, batches)
    return logits.argmax(1).cpu(), labels.cpu()


def _right(counts: Tensor) -> float:
    return float(counts.diagonal().sum() / counts.sum())


def _error(share: float, n: int) -> float:
    """Standard error of a proportion estimated from n images."""
    return (share * (1 - share) / n) ** 0.5
