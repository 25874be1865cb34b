"""Determine the class of each label, and check it on real images: a wrong order makes every score meaningless.

Values of `class_order=` and `Draft.class_order`:

data             the order of the data set
sorted           the alphabetical order of the data set's class names (subsets of ImageNet in `ImageFolder`)
A,B,...          the class of each label, by name or by its number in the data set
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dd.data import RealData
from dd.errors import UsageError, printable, unknown
from dd.exchange.draft import Draft
from dd.rng import generator

_SIDE = 8  # pixels to which images are shrunk: this removes initial noise and preserves the look of the classes
_REAL = 5000  # maximum number of real images
_RIDGE = 0.1  # of the mean variance, added to the covariance within classes
_CLEAR, _FEW = 3.0, 2.0  # deviations above a random order from which an order fits; for at most two images per class
_BETTER = 1.5  # deviations by which another order must be better to be named
_RATHER = 0.15, 0.3  # share of images by which more must be nearest to their class under it; for few images
_LEAST = 0.3, 0.5  # share of images that must be nearest to their class
_TRIED = 50, 10  # number of shuffled tables; for many classes
_SOME, _MANY = 30, 200
_SMALLEST = 5  # minimum number of classes for distinguishing orders by their scores
_DRAWS, _BELOW = 200, 3.5  # draws of real images; deviations below their mean, as distilled images vary more
_LONGEST = 120  # maximum number of classes for which an order is written out


@dataclass(frozen=True)
class OrderFit:
    """How well labels fit the real images.

    Attributes:
        score: deviations above a random order of the classes.
        right: fraction of images that are nearest to the class of their label.
        margin: by how much images are nearer to the class of their label than to the nearest other one, on average.
        images: number of images.
        best: the order of classes that fits best, as a value of `class_order=`; () if it cannot be determined.
        best_score: the score of the order that fits best, even if the order cannot be determined.
        present: number of classes that have images.
        least: the lowest statistic (see `statistic`) to expect of as many correctly labelled real images, a few
            deviations below the mean of random draws; infinite if unknown.
    """

    score: float
    right: float
    margin: float
    images: int
    classes: int
    best: tuple[int, ...]
    best_score: float
    present: int
    least: float = math.inf

    @property
    def statistic(self) -> float:
        """The number that is compared between sets: the score, or for few classes the margin."""
        return self.score if self.present >= _SMALLEST else self.margin

    @property
    def refuted(self) -> bool:
        """Whether labels and images do not match, and correctly labelled real images would fit better."""
        return not self.fits and self.statistic < self.least

    @property
    def decides(self) -> bool:
        """Whether there are enough images for correctly labelled real ones to fit clearly."""
        return self.least >= _FEW

    @property
    def fits(self) -> bool:
        """Whether labels and images clearly match."""
        if self.present < _SMALLEST:  # too few to distinguish orders
            chance = 1 / self.classes
            above = (self.right - chance) / math.sqrt(chance * (1 - chance) / self.images)
            return above >= _CLEAR - 1e-9 or self.right == 1
        clear = self.score >= (_FEW if self.images <= 2 * self.classes else _CLEAR)
        # with many classes, some order always fits much better by chance, but a wrong one never fits clearly
        return clear and (self.classes > _SOME or self.best_score - self.score <= _BETTER)


def order_of(draft: Draft, data: RealData, said: str | Sequence[str | int] | None) -> tuple[Tensor, str]:
    """Return the class of each label, int64 (k,) indices of the data set's classes, and the assumption made.

    Args:
        draft: the draft, with the order that its format defines.
        data: the real images.
        said: the user's option; None if not given.

    Raises:
        UsageError: names or numbers of unknown classes, or classes that do not occur exactly once.
    """
    if said is None and draft.classes:
        return _named(draft.classes, data)
    word = said if said is not None else draft.class_order
    if word is None:
        return torch.arange(len(data.classes)), ""
    if isinstance(word, str) and word in ("data", "sorted"):
        ids = torch.arange(len(data.classes))
        if word == "data":
            return ids, ""
        order = sorted(range(len(data.classes)), key=lambda c: data.classes[c])
        why = "labels are the sorted class names, as the format has them (class_order=data otherwise)"
        return torch.tensor(order), "" if said is not None or order == ids.tolist() else why
    listed = word.split(",") if isinstance(word, str) else word
    return _listed(listed, data), ""


def _named(names: Sequence[str], data: RealData) -> tuple[Tensor, str]:
    """Return the classes for the names of a format, ignoring differences in spelling; by rank if no name is known.

    Raises:
        UsageError: only some of the names are known.
    """
    if all(name in data.classes for name in names):
        return _listed(names, data), ""
    ours = {_letters(name): c for c, name in enumerate(data.classes)}
    found = [ours.get(_letters(name)) for name in names]
    if len(ours) == len(data.classes) and None not in found:
        return _listed([data.classes[c] for c in found if c is not None], data), ""
    if len(names) == len(data.classes) and not any(name in data.classes for name in names):
        shown = ", ".join(printable(name, keep="") for name in names[:3])
        why = f"the names of the classes ({shown}, …) are not those of {data.name}: they are taken in its order"
        return torch.arange(len(names)), f"{why} (class_order= says otherwise)"
    return _listed(names, data, "class of the files"), ""


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _listed(listed: Sequence[str | int], data: RealData, what: str = "class in class_order") -> Tensor:
    names = {name: c for c, name in enumerate(data.classes)}
    numbers = {str(c): c for c in range(len(data.classes))}
    words = [str(one).strip() for one in listed]
    known = names if all(word in names for word in words) else numbers | names
    for word in words:
        if word not in known:
            raise unknown(what, word, names)
    found = [known[word] for word in words]
    if sorted(found) != list(range(len(data.classes))):
        raise UsageError(
            f"class_order names {len(set(found))} of the {len(data.classes)} classes of {data.name}; it must name each "
            "once"
        )
    return torch.tensor(found)


def require_order(draft: Draft, fit: OrderFit, data: RealData, said: object) -> str:
    """Return one line on how well labels fit the real images; an order given by the user is never refused.

    Few images of some data sets fit weakly even if their labels are correct; the line says so, and nothing is refused.

    Raises:
        UsageError: they fit worse than correctly labelled real images do; the message names an order that fits much
            better, if there is one.
    """
    share = f"{100 * fit.right:.0f} % of the images are nearest to the real images of their class"
    line = f"{share} (chance {100 / len(data.classes):.0f} %)"
    if said is not None:
        return line
    if fit.fits:
        return line
    if not fit.refuted:
        return f"{line}; these are too few images to confirm the order of the classes (class_order= sets it)"
    if fit.best and fit.decides:
        listed = ",".join(map(str, fit.best))
        way = f"class_order={listed}" if len(fit.best) <= _LONGEST else "class_order=NAMES"
        raise UsageError(
            f"{draft.files[0]}: only {line}; another order of the classes fits much better: {way} "
            "(class_order=data keeps the data set's)"
        )
    raise UsageError(
        f"{draft.files[0]}: only {line}: these may be images of something else than {data.name}, or labels in an "
        "unknown order; class_order=data imports them all the same"
    )


class OrderCheck:
    """Checks labels on real images at 8 x 8 pixels.

    Linear discriminant analysis of a few thousand real images measures how near each image is to each class. The mean
    over the images of each label is compared with all other orders of the classes.

    Args:
        data: the real images.
    """

    def __init__(self, data: RealData) -> None:
        self._data, self._classes = data, len(data.classes)
        self._fitted, self._others = _picked(data)
        self._means, self._inverse = _discriminant(data, self._fitted)

    def __call__(self, parts: Iterable[tuple[Tensor, Tensor]]) -> OrderFit:
        """Measure how well labels fit; if they do not, also how well correctly labelled real images do.

        Args:
            parts: images (m, c, h, w) from 0 (black) to 1 (white), and their classes in the data set, int64 (m,).
        """
        shrunk = [(_small(images), labels) for images, labels in parts]
        small, labels = (torch.cat(tensors) for tensors in zip(*shrunk, strict=True))
        fit = _fit(self._nearness(small), labels)
        return fit if fit.fits else replace(fit, least=self._least(labels))

    def _nearness(self, small: Tensor) -> Tensor:
        """Return how near shrunk images (n, d) are to each class, (n, k)."""
        nearer = self._inverse @ self._means.T
        return small @ nearer - 0.5 * (self._means.T * nearer).sum(0)

    def _least(self, labels: Tensor) -> float:
        """Return the lowest statistic to expect of random real images with these labels."""
        near, starts, counts = self._real
        rng = generator(0, "exchange", "draws")
        found = []
        for _ in range(_DRAWS):
            places = starts[labels] + (torch.rand(len(labels), generator=rng) * counts[labels]).long()
            found.append(_fit(near[places], labels, best=False).statistic)
        drawn = torch.tensor(found, dtype=torch.float64)
        return min(float(drawn.min()), float(drawn.mean() - _BELOW * drawn.std()))

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nearness of other real images, grouped by class, with the start and the size of each group."""
        index = torch.cat(self._others)
        near = torch.cat([self._nearness(_small(_pixels(self._data, part))) for part in index.split(500)])
        counts = torch.tensor([len(members) for members in self._others])
        return near, counts.cumsum(0) - counts, counts


def _fit(near: Tensor, labels: Tensor, best: bool = True) -> OrderFit:
    """Return the fit of labels (n,) to images of this nearness (n, k); without `best`, no other order is looked for."""
    k = near.shape[1]
    right = float((near.argmax(1) == labels).double().mean())
    own = near.gather(1, labels[:, None])[:, 0]
    margin = float((own - near.scatter(1, labels[:, None], -math.inf).amax(1)).mean())
    present, given = len(labels.unique()), torch.arange(k)
    one_hot = F.one_hot(labels, k).double()
    table = one_hot.T @ near / one_hot.sum(0).clamp_min(1)[:, None]  # [label, class]
    table = table - table.mean(0)  # what all images have in common is uninformative
    table = table / table.std(1, keepdim=True).clamp_min(1e-12)
    score = _deviations(table, given)
    if not best:
        return OrderFit(score, right, margin, len(labels), k, (), score, present)
    order = _best(table)
    best_score = _deviations(table, order)
    rather = float((near.argmax(1) == order[labels]).double().mean())
    told = present >= _SMALLEST and best_score - score > _BETTER
    few = len(labels) <= 2 * k
    told = told and (rather >= max(right + _RATHER[few], _LEAST[few]) or best_score > _by_chance(table))
    return OrderFit(score, right, margin, len(labels), k, tuple(order.tolist()) if told else (), best_score, present)


def _by_chance(table: Tensor) -> float:
    """Return the score that the best order reaches on tables with shuffled rows."""
    rng = generator(0, "exchange", "chance")
    found = []
    for _ in range(_TRIED[len(table) > _MANY]):
        places = torch.rand(table.shape, generator=rng).argsort(1)
        shuffled = table.gather(1, places)
        found.append(_deviations(shuffled, _best(shuffled)))
    return max(found)


def _deviations(table: Tensor, order: Tensor) -> float:
    """Return by how many deviations sum table[i, order[i]] exceeds that of a random order (exact mean and variance)."""
    k = len(table)
    centred = table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
    deviation = math.sqrt(float((centred**2).sum()) / max(k - 1, 1))
    return float(centred[torch.arange(k), order].sum()) / max(deviation, 1e-12)


def _best(table: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1].copy())


def _picked(data: RealData) -> tuple[list[Tensor], list[Tensor]]:
    """Return indices of some real images of each class, and of as many others; the same if there are no others."""
    each = max(2, _REAL // len(data.classes))
    rng = generator(0, "exchange", "order")
    fitted, others = list[Tensor](), list[Tensor]()
    for c in range(len(data.classes)):
        members = data.train.of_class(c)
        members = members[torch.randperm(len(members), generator=rng)]
        fitted.append(members[:each])
        others.append(members[each : 2 * each] if len(members) > each else members)
    return fitted, others


def _discriminant(data: RealData, picked: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return class means (k, d) and the inverse within-class covariance (d, d) of real images, shrunk."""
    k, index = len(data.classes), torch.cat(list(picked))
    labels = data.train.labels.cpu()[index]
    x = torch.cat([_small(_pixels(data, part)) for part in index.split(500)])
    one_hot = F.one_hot(labels, k).double()
    means = one_hot.T @ x / one_hot.sum(0)[:, None]
    rest = x - means[labels]
    covariance = rest.T @ rest / max(1, len(x) - k)
    ridge = _RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
    return means, torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))


def _pixels(data: RealData, index: Tensor) -> Tensor:
    return data.train.raw(index).cpu().float() / 255


def _small(images: Tensor) -> Tensor:
    """Return shrunk images, (n, d) float64, each without its mean brightness."""
    x = F.adaptive_avg_pool2d(images.double(), min(_SIDE, images.shape[-1])).flatten(1)
    return x - x.mean(1, keepdim=True)
