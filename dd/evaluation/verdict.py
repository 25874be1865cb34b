"""What the images of a set add, in words, from its scores in each label regime."""

from collections.abc import Sequence

from dd.evaluation.report import RegimeReport
from dd.evaluation.scores import Interval

WHERE = {
    "hard": "under hard labels",
    "soft": "with one label of a teacher for each image",
    "views": "with a teacher asked on every view",
}
FEW = 5  # students below which an interval says little


def in_between(interval: Interval) -> str:
    """Format a gap with its interval: `+3.10 [+2.30, +3.90]`."""
    ends = "" if interval.low is None else f" [{interval.low:+.2f}, {interval.high:+.2f}]"
    return f"{interval.mean:+.2f}{ends}"


def verdict(regimes: Sequence[RegimeReport]) -> str:
    """Return whether the set's images beat as many real images, and under which labels.

    The images help only if the 95 % interval of their gap to the better of random real images and the coreset is above
    0 under hard labels or one soft label each.  A gain under a teacher asked on every view alone is an effect of the
    teacher and of the training, because there the images hardly matter.
    """
    if not regimes:
        return ""
    apart = [one for one in regimes if one.regime != "views"]
    if any(one.gap.above for one in apart):
        head = "the images help"
    elif not apart:
        head = "a teacher asked on every view cannot show what images add: score eval.labels=hard,soft,views"
    elif any(one.gap.above for one in regimes):
        head = "a teacher or compute effect, not one of the images"
    elif all(one.gap.below for one in apart):
        head = "the images are worse than as many real ones"
    else:
        head = "the images add nothing that as many real ones would not"
    both = "coreset" in regimes[0].rows
    against = "the better of random real images and the coreset" if both else "random real images"
    few = min(one.gap.n for one in regimes)
    doubt = f" (only {few} student{'s' * (few > 1)}: eval.students={FEW} or more)" if few < FEW else ""
    return f"{head}; against {against} they {', '.join(map(_clause, regimes))}{doubt}"


def _clause(one: RegimeReport) -> str:
    gap, where = one.gap, WHERE[one.regime]
    if gap.above:
        return f"add {in_between(gap)} points {where}"
    if gap.below:
        return f"lose points ({in_between(gap)}) {where}"
    return f"add nothing measurable ({in_between(gap)}) {where}"
