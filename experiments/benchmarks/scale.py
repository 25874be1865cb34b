"""What the benchmark measures, and at which sizes."""

from dataclasses import dataclass
from typing import Any

PARTS = ("training", "experts", "iteration", "where", "memory", "evaluation")

# PART=distribution, not part of the whole run: (classes, images per class) for each method
DISTRIBUTION = {
    "dm": [(10, 1), (10, 10), (10, 50), (100, 1), (100, 10), (100, 50), (1000, 1), (1000, 10)],
    "datadam": [(10, 1), (10, 10), (10, 50), (100, 1), (100, 10)],
    "ncfm": [(10, 1), (10, 10), (10, 50), (100, 1), (100, 10)],
    "dsa": [(10, 1), (10, 10), (100, 1)],
}

# the same, measured for memory alone: images per class of ten classes at this width and side
LEAN: dict[str, Any] = {"width": 128, "side": 28, "ipc": (1, 10)}

# PART=sets: sets of noise whose memory is measured; a thousand classes in floats and in bytes
SETS = {
    "200 classes x 50 at 64 px, stored labels": {"classes": 200, "ipc": 50, "side": 64, "kind": "labelled"},
    "1,000 classes x 1 at 224 px": {"classes": 1000, "ipc": 1, "side": 224, "kind": "floats"},
    "1,000 classes x 3 at 224 px, stored as bytes": {"classes": 1000, "ipc": 3, "side": 224, "kind": "bytes"},
}

# PART=loader: sizes in pixels to which files of 256 x 256 are resized
LOADER = (64, 128, 224)

# PART=decoupled, with the first of these sizes: per teacher, a repeat's iterations of recovery (of 100 images) and
# passes of labelling (of 200 images; 0: none is timed), both in units of Scale.iterations, and the network
DECOUPLED = {
    "ConvNet, width 32, 28 px": (10, 5, {"arch": "convnet", "width": 32, "channels": 1, "side": 28}),
    "ResNet-18, width 16, 64 px": (1, 1, {"arch": "resnet18", "width": 16, "channels": 3, "side": 64}),
    "ResNet-18, width 16, 224 px": (1, 0, {"arch": "resnet18", "width": 16, "channels": 3, "side": 224}),
}
# numbers of classes for which the bytes of labels are reported
LABELLED = (10, 200, 1000, 10_450)

# PART=evaluation: kind of labels, number of students, and network
_CONVNET = {"arch": "convnet", "width": 32}
EVALUATION = {
    **{
        f"{n} student{'s' * (n > 1)}, ConvNet, hard labels": {"labels": "hard", "students": n, "network": _CONVNET}
        for n in (1, 2, 5, 10)
    },
    "2 students, ConvNet, a soft label each": {"labels": "soft", "students": 2, "network": _CONVNET},
    "2 students, ConvNet, a teacher on every view": {"labels": "views", "students": 2, "network": _CONVNET},
    **{
        f"2 students, {arch} of width {width}, hard labels": {
            "labels": "hard",
            "students": 2,
            "network": {"arch": arch, "width": width},
        }
        for arch, width in (("alexnet", 32), ("vgg11", 16), ("resnet18", 16))
    },
}

# PART=iteration: width of the student and images per class; an inner step has all images, but at most 100
LOOPS = ((32, 10), (32, 1), (32, 50), (128, 1), (128, 10), (128, 50))

# PART=processes: (processes, threads of each)
GROUPS = ((1, 2), (2, 1))

# upper limits, relative to the other side's time, or memory
CEILINGS = {
    "training": 0.85,
    "experts": 1.05,
    "full": 0.70,
    "distribution": 1.05,
    "growth": 1.2,
    "few images": 0.75,
    "stepwise": 1.05,
    "memory": 0.2,
    "loader": 0.5,
    "evaluation": 1.05,
    "sets": 1.5,
}
# of recovery, by the side of the images
RECOVERY_CEILINGS = {64: 0.7, 224: 0.9}


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.  The documented figures use the defaults.

    Attributes:
        repeats: paired repeats of every comparison.
        holdout: share of the training images that is held out.
        expert_epochs: epochs of the network whose training is timed; decides whether compiling pays off.
        pool: experts per timed repeat, each trained for one epoch.
        pass_steps: steps per timed repeat of the training loop; None for a full pass over the images.
        inner_steps: student steps of an MTT iteration.
        iterations: outer iterations per timed repeat, for the first of `LOOPS`; one for the others.
        student_steps: steps of a student in evaluation.
        pairs: paired repeats of evaluation, after a first one.
        memory_steps: inner steps at which memory is measured; the ceiling is for the last.
        files: images per timed pass of the loader.
        shared_ipc: images per class of the iterations that processes share.
        shared_width: widths of their students.
    """

    repeats: int = 7
    holdout: float = 0.1
    expert_epochs: int = 8
    pool: int = 20
    pass_steps: int | None = None
    inner_steps: int = 10
    iterations: int = 4
    student_steps: int = 300
    pairs: int = 2
    memory_steps: tuple[int, ...] = (10, 20, 40, 80)
    files: int = 2000
    shared_ipc: tuple[int, ...] = (10, 50)
    shared_width: tuple[int, ...] = (32, 128)


# runs everything within a minute, as a check; its figures are meaningless
QUICK = Scale(
    repeats=2,
    holdout=0.9,
    expert_epochs=40,
    pool=2,
    pass_steps=4,
    inner_steps=2,
    iterations=1,
    student_steps=5,
    pairs=1,
    memory_steps=(1, 2),
    files=200,
    shared_ipc=(1,),
    shared_width=(4,),
)
