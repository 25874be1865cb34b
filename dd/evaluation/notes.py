"""Warnings about a report's numbers."""

from collections.abc import Mapping
from typing import Any

import torch

from dd.data import RealData
from dd.evaluation.report import Score, pooled_std
from dd.sets import DistilledSet
from dd.sets.origin import imported

BEHIND = 2.0  # warn if a set is behind its own start by this many points and this many pooled standard deviations
ALONE = 5.0  # the same in points, if there is only one student and so no deviation
OUTSIDE = 0.01  # warn from this share of pixel values outside the displayable range
SHARE_SHOWN = 5e-4  # mention the share below the picture from this value on
_NAMED = 5  # maximum number of classes to name


def notes_on(accuracy: Score, start: Score | None, outside: float | None, data: RealData) -> tuple[str, ...]:
    """Return one line per oddity in the results.

    Args:
        accuracy: score of the set.
        start: score of the set at iteration 0.
        outside: see `DistilledSet.outside`.
        data: the real images.
    """
    lines = [_untested(data), _worse(accuracy, start, len(data.classes))]
    if outside is not None and outside >= OUTSIDE:
        lines.append(f"{share_outside(outside)}: the picture clips them, students see them unclipped")
    return tuple(line for line in lines if line)


def assumed_at_import(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """List what an imported set's files did not say, one line each; nothing for a set that was distilled here."""
    origin = imported(provenance)
    return () if origin is None else tuple(f"assumed at import: {line}" for line in origin.assumed)


def reads_more(distilled: DistilledSet) -> tuple[str, ...]:
    """Return a line for a schedule, whose epochs together read more images than a set of its size holds."""
    if distilled.image_kind != "schedule":
        return ()
    read, n = len(distilled.images.unique()), distilled.n
    return (f"its {len(distilled.images)} passes read {read:,} different images: not comparable with sets of {n:,}",)


def share_outside(outside: float) -> str:
    """Describe the share of pixel values outside the displayable range."""
    return f"{100 * outside:.1f} % of the set's pixel values are darker than black or brighter than white"


def _untested(data: RealData) -> str:
    counts = torch.bincount(data.test.labels.cpu(), minlength=len(data.classes))
    empty = [data.classes[c] for c in (counts == 0).nonzero().flatten().tolist()]
    if not empty:
        return ""
    names = ", ".join(empty[:_NAMED]) + ("" if len(empty) <= _NAMED else f" and {len(empty) - _NAMED} more")
    return f"no test images of {names}: accuracies do not cover {'it' if len(empty) == 1 else 'them'}"


def _worse(accuracy: Score, start: Score | None, classes: int) -> str:
    """Return a warning if the iterations made the set clearly worse than its start."""
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
