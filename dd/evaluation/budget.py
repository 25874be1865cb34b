"""Memory and time that evaluating a set needs, estimated before any student is trained."""

import math

from dd.data.preprocess import zca_price
from dd.engine.method import Task
from dd.errors import UsageError
from dd.evaluation.evaluate import Evaluator, full_passes, own_arm
from dd.evaluation.protocols import Protocol
from dd.labels import LabelStore
from dd.networks import magnitude
from dd.sets import DistilledSet
from dd.sizes import readable_size, readable_time

# bytes per parameter of a student (weights twice, gradient, two moments) and per activation (value and gradient)
_PARAMETER, _VALUE = 20, 8


def require_memory(distilled: DistilledSet, task: Task, protocol: Protocol) -> None:
    """Raise `UsageError` if a student of the set needs more memory than the device has; allocates nothing."""
    data, free = task.data, task.total_memory()
    shape = {"channels": data.channels, "size": data.size, "classes": task.classes}
    parameters, values = magnitude(task.student, **shape)
    n, side = distilled.n * distilled.decode_factor**2, math.prod(data.shape)
    batch = min(protocol.batch, n)
    needed = _PARAMETER * parameters + _VALUE * values * min(protocol.micro or batch, batch)
    needed += 4 * side * (n if distilled.decode_factor > 1 else batch)
    if needed > free:
        raise UsageError(
            f"a student of this set takes about {readable_size(needed)}, and {task.device} has {readable_size(free)}: "
            f"{parameters:,} parameters, {values:,} values for an image, {batch} images at a time; choose another "
            "student.arch, student.width or eval.micro"
        )
    if data.preprocess.kind == "zca" and (needed := zca_price(len(data.train), side)[1]) > free:
        raise UsageError(f"the ZCA of the data takes {readable_size(needed)}, but only {readable_size(free)} are free")


def require_time(distilled: DistilledSet, evaluator: Evaluator, store: LabelStore | None, hours: float) -> None:
    """Raise `UsageError` if training the students of a set and its references would take more than `hours`.

    The estimate extrapolates from a few steps and includes students that are already finished.
    """
    protocol, arm = evaluator.protocol, own_arm(distilled, evaluator, store)
    lr = evaluator.lr_of(distilled)
    images = _passes(distilled, evaluator, arm.n, controls=store is None or evaluator.labeller is not None)
    seconds = images * evaluator.pace(arm, lr) / min(protocol.batch, arm.n)
    if seconds > 3600 * hours:
        raise UsageError(
            f"the students of this set would take about {readable_time(seconds)}, more than {hours:g} h: "
            f"{protocol.students} of {protocol.total_steps(arm.n):,} steps, and the same for random real images; "
            f"add hours={math.ceil(seconds / 3600)}, or reduce the work with eval.students and eval.steps or "
            "eval.epochs"
        )


def _passes(distilled: DistilledSet, evaluator: Evaluator, n: int, *, controls: bool) -> int:
    """Return how many images all students process in total; an evaluation pass counts a third of a training pass."""
    protocol, data = evaluator.protocol, evaluator.task.data
    scored = (len(data.test) + len(data.holdout)) // 3

    def seen(count: int) -> int:
        return protocol.total_steps(count) * min(protocol.batch, count) + scored

    found = protocol.students * seen(n)
    if not controls:
        return found
    pilots = 0 if distilled.lr is None else min(protocol.pilots, protocol.students)
    found += (protocol.students + pilots) * seen(distilled.n)
    if distilled.decode_factor > 1:
        found += (protocol.students + pilots) * seen(n)
    return found + full_passes(protocol, len(data.train))
