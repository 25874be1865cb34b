"""Memory and time that evaluating a set needs, estimated before any student is trained."""

import math

from dd.data.preprocess import zca_price
from dd.engine.method import Task
from dd.errors import UsageError
from dd.evaluation.downstream import Downstream
from dd.evaluation.evaluate import Evaluator, full_passes, own_arm, student_passes
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


def require_time(
    distilled: DistilledSet, evaluator: Evaluator, store: LabelStore | None, hours: float, task: Downstream | None
) -> None:
    """Raise `UsageError` if training the students of a set and its references would take more than `hours`.

    The estimate extrapolates from a few steps and includes students that are already finished.

    Args:
        distilled: the set.
        evaluator: trains the students.
        store: the stored labels of the set's views, if any.
        hours: the limit.
        task: the downstream task; None for the accuracy of one network.
    """
    lr = evaluator.lr_of(distilled)

    def seconds(one: Evaluator, images: int) -> float:
        arm = own_arm(distilled, one, store)
        return images * one.pace(arm, lr) / min(one.protocol.batch, arm.n)

    protocol, n = evaluator.protocol, own_arm(distilled, evaluator, store).n
    if task is None:
        images = _passes(distilled, evaluator, n, controls=store is None or evaluator.labeller is not None)
        needed, lighter = seconds(evaluator, images), "eval.students and eval.steps or eval.epochs"
        what = f"{protocol.students} of {protocol.total_steps(n):,} steps, and the same for random real images"
    else:
        needed = sum(seconds(one, images) for one, images in task.work(distilled, evaluator))
        what, lighter = f"task={task.name}, and the same for random real images", task.lighter
    if needed > 3600 * hours:
        raise UsageError(
            f"the students of this set would take about {readable_time(needed)}, more than {hours:g} h: {what}; "
            f"add hours={math.ceil(needed / 3600)}, or reduce the work with {lighter}"
        )


def _passes(distilled: DistilledSet, evaluator: Evaluator, n: int, *, controls: bool) -> int:
    """Return how many images all students process in total."""
    protocol = evaluator.protocol
    found = protocol.students * student_passes(evaluator, n)
    if not controls:
        return found
    pilots = 0 if distilled.lr is None else min(protocol.pilots, protocol.students)
    found += (protocol.students + pilots) * student_passes(evaluator, distilled.n)
    if distilled.decode_factor > 1:
        found += (protocol.students + pilots) * student_passes(evaluator, n)
    return found + full_passes(protocol, len(evaluator.task.data.train))
