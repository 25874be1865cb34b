"""What a reader should know before believing a report's numbers."""

import torch

from dd.data import RealData
from dd.evaluation.report import Score, pooled_std

BEHIND = 2.0  # points, and pooled deviations, that a set is behind its own start before it is noted
ALONE = 5.0  # points, where single students have no deviation
OUTSIDE = 0.01  # share of pixel values that no picture can show, from which on it is noted
SHARE_SHOWN = 5e-4  # from which on it stands below the picture
_NAMED = 5  # classes at most that are named


def notes_on(accuracy: Score, start: Score | None, outside: float | None, data: RealData) -> tuple[str, ...]:
    """One line for everything that is odd; none where nothing is.

    Args:
        accuracy: of the set.
        start: of the set at iteration 0.
        outside: see `DistilledSet.outside`.
        data: the real images.
    """
    lines = [_untested(data), _worse(accuracy, start, len(data.classes))]
    if outside is not None and outside >= OUTSIDE:
        lines.append(f"{share_outside(outside)}: the picture clips them, students see them unclipped")
    return tuple(line for line in lines if line)


def share_outside(outside: float) -> str:
    """A share of values out of range, in words."""
    return f"{100 * outside:.1f} % of the set's pixel values are darker than black or brighter than white"


def _untested(data: RealData) -> str:
    counts = torch.bincount(data.test.labels.cpu(), minlength=len(data.classes))
    empty = [data.classes[c] for c in (counts == 0).nonzero().flatten().tolist()]
    if not empty:
        return ""
    names = ", ".join(empty[:_NAMED]) + ("" if len(empty) <= _NAMED else f" and {len(empty) - _NAMED} more")
    return f"no test images of {names}: accuracies do not cover {'it' if len(empty) == 1 else 'them'}"


def _worse(accuracy: Score, start: Score | None, classes: int) -> str:
    """That the iterations made a set worse, and whether anything is left of it."""
    if start is None:
        return ""
    behind, spread = start.mean - accuracy.mean, pooled_std(accuracy, start)
    if behind <= (ALONE if spread is None else max(BEHIND, BEHIND * spread)):
        return ""
    facts = f"{accuracy.mean:.1f} % against {start.mean:.1f} at its start"
    chance = 100 / classes
    if accuracy.mean - chance < (start.mean - chance) / 2:
        return f"the set collapsed: {facts} (chance {chance:.1f}); lower the learning rate of the images"
    return f"the iterations made the set worse: {facts}; lower the learning rate of the images, or run fewer of them"
