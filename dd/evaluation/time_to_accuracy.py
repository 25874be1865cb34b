"""Time to accuracy: how long until a training first reaches a target (Okanovic et al., ICLR 2024, section 5)."""

from collections.abc import Sequence
from itertools import pairwise

from dd.errors import UsageError


def time_to_accuracy(
    seconds: Sequence[float], accuracies: Sequence[float], target: float, before: float = 0.0
) -> float | None:
    """Return the seconds until the accuracy is first at least `target`; None if it never is.

    Nothing is interpolated: only times at which an accuracy was measured count.

    Args:
        seconds: training time at each measurement, without the time of the measurements, ascending.
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
