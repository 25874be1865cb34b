"""Time to accuracy: how long until a training first reaches a target (Okanovic et al., ICLR 2024, section 5)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dd.errors import UsageError
from dd.evaluation.curve import Curve


@dataclass(frozen=True)
class TimeToAccuracy:
    """When several students first reach a target; means over those that do.

    Attributes:
        target: test accuracy in percent.
        students: number of students.
        reached: number of students that reach it.
        steps: training steps until then; None if no student reaches it.
        images: images shown until then.
        seconds: seconds of training until then, without measurements.
        with_making: `seconds` and those of making the set; None if these are unknown.
    """

    target: float
    students: int
    reached: int
    steps: float | None
    images: float | None
    seconds: float | None
    with_making: float | None


def mean_time(curves: Sequence[Curve], target: float, before: float | None) -> TimeToAccuracy:
    """Return when students first reach a target, from their curves.

    Args:
        curves: one for each student.
        target: test accuracy in percent.
        before: seconds before the training, spent on making the set; None if unknown.
    """

    def mean(times: Sequence[Sequence[float]], before: float = 0.0) -> float | None:
        pairs = zip(times, curves, strict=True)
        found = [time_to_accuracy(each, curve.test, target, before) for each, curve in pairs]
        known = [time for time in found if time is not None]
        return statistics.fmean(known) if known else None

    seconds = [curve.seconds for curve in curves]
    return TimeToAccuracy(
        target=target,
        students=len(curves),
        reached=sum(curve.best >= target for curve in curves),
        steps=mean([curve.steps for curve in curves]),
        images=mean([curve.images for curve in curves]),
        seconds=mean(seconds),
        with_making=None if before is None else mean(seconds, before),
    )


def time_to_accuracy(
    seconds: Sequence[float], accuracies: Sequence[float], target: float, before: float = 0.0
) -> float | None:
    """Return the seconds until the accuracy is first at least `target`; None if it never is.

    Nothing is interpolated: only times at which an accuracy was measured count.

    Args:
        seconds: training time at each measurement, without the time of the measurements, ascending; or any other
            measure of the work until then, such as steps.
        accuracies: accuracy in percent at each of these times.
        target: accuracy in percent.
        before: seconds spent before the training, for example on the selection; added to the result.

    Raises:
        UsageError: the two lists differ in length, or times do not ascend.
    """
    if len(seconds) != len(accuracies):
        raise UsageError(f"time to accuracy: {len(seconds)} times, but {len(accuracies)} accuracies")
    if any(later < earlier for earlier, later in pairwise(seconds)):
        raise UsageError("time to accuracy: the times do not ascend")
    reached = (time for time, accuracy in zip(seconds, accuracies, strict=True) if accuracy >= target)
    first = next(reached, None)
    return None if first is None else before + first
