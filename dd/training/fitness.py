"""Is a teacher fit to teach?  Asked before anything is recovered or relabelled with it.

Soft labels hide a wrong class order: everything runs, and the students come out useless.  It is the most frequent
failure reported against the published code of the decoupled family.
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

CHECKED = 5000  # images at most that a teacher is tried on
KEPT = 0.9  # share of the declared accuracy that it must reach
ERRORS = 3  # standard errors that it must be above chance
LUCK = 0.00135  # or this rarely reached by luck: the tail beyond 3 standard errors, where images are too few for them
DEALT = 4000  # times that predictions are dealt out at random, to find out how rarely
CONVINCING = 0.25  # of the way from luck to always right, that another order must reach: untrained networks have order
ORDERED = 2000  # classes at most among which another order is looked for
_SEED = 0  # of the sample; the same one in every run
_CHUNK = 256
_ENTRIES = 1 << 22  # predictions dealt out at a time


def require_fit(teacher: Teacher, task: Task) -> None:
    """Refuse a teacher that does not know the images, or knows them by other labels.

    It is tried on the held-out images, on a fixed sample where there are more than 5,000.  Where it does not pass on
    these, and they are so few or so uneven that a good one might not either, and where nothing is held out, it is tried
    on training images.  Where those could not tell either, a warning says so and nothing is refused but other classes.

    Raises:
        UsageError: its class names differ from the data's; it is indistinguishable from chance, see `told`; its
            accuracy is below 90 % of the declared one, or, if neither accuracy nor classes are declared, of that in
            another class order.  The message has the facts, and says if another order would do.
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
    """Say, before a teacher is trained, that held-out images might not tell a fit one from chance, or none might."""
    *held, (train, _) = _asked(task)
    if any(tell(split.labels[_sample(split).to(split.labels.device)]) for split, _ in held):
        return
    few = f"the {len(task.data.holdout)} held-out images are too few" if held else "nothing is held out"
    if not tell(train.labels[_sample(train).to(train.labels.device)]):
        log.warning("teachers cannot be checked: %s, and so are %d training images", few, len(train))
    elif held:
        log.warning("%s to tell a good teacher from chance: training images may have to", few)


def told(labels: Tensor, predicted: Tensor) -> bool:
    """Whether predictions are told from chance, on (n,) images each.

    Chance is the accuracy of the predictions dealt out at random, sum_c p(c) q(c) for the shares p of labels and q of
    predictions: 1 / classes where the classes are level.  Above it is an accuracy that is so by 3 standard errors, or a
    mean recall of the classes that as rarely comes of dealing: that does not suppose that images are many, and the few
    of a rare class count as much as all of a frequent one.
    """
    right, chance = float((predicted == labels).double().mean()), _chance(labels, predicted)
    return right > chance + ERRORS * _error(chance, len(labels)) or luck(labels, predicted) <= LUCK


def tell(labels: Tensor) -> bool:
    """Whether a teacher that takes one in ten of (n,) images for the next class would be told from chance by them."""
    labels = labels.cpu().sort().values
    there = labels.unique()
    mistaken = there[(torch.searchsorted(there, labels[::10].contiguous()) + 1) % len(there)]
    predicted = labels.clone()
    predicted[::10] = mistaken
    return told(labels, predicted)


def luck(labels: Tensor, predicted: Tensor) -> float:
    """How often predictions dealt out at random reach the mean recall of these: a permutation test's p-value.

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
    """What is wrong with a teacher by its predictions (n,), in one line; None where nothing is."""
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
    """The splits that teachers are tried on, one after another, with words for their images."""
    data, held = task.data, len(task.data.holdout)
    why = f"the {held} held-out ones cannot tell" if held else "data.holdout=0 holds none out"
    first: list[tuple[Split, str]] = [(data.holdout, "held-out images")] if held else []
    return [*first, (data.train, f"training images ({why})")]


def _sample(split: Split) -> Tensor:
    return torch.randperm(len(split), generator=generator(_SEED, "fitness", "images"))[:CHECKED]


def _tried(teacher: Teacher, split: Split, index: Tensor) -> tuple[Tensor, Tensor]:
    """Its predictions (n,) and the labels (n,) of some images."""
    batches = ((split.images(part), split.labels[part.to(split.labels.device)]) for part in index.split(_CHUNK))
    logits, labels = predict(teacher.network, batches)
    return logits.argmax(1).cpu(), labels.cpu()


def _right(counts: Tensor) -> float:
    return float(counts.diagonal().sum() / counts.sum())


def _error(share: float, n: int) -> float:
    """Standard error of a share of n images."""
    return (share * (1 - share) / n) ** 0.5
