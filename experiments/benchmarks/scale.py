"""What is measured, and how much of it."""

from dataclasses import dataclass

PARTS = ("training", "experts", "iteration", "where", "memory", "evaluation")

# a part of its own, not of the whole: (classes, images per class) that each method is measured at
DISTRIBUTION = {
    "dm": [(10, 1), (10, 10), (10, 50), (100, 1), (100, 10), (100, 50), (1000, 1), (1000, 10)],
    "datadam": [(10, 1), (10, 10), (10, 50), (100, 1), (100, 10)],
    "ncfm": [(10, 1), (10, 10), (10, 50), (100, 1), (100, 10)],
    "dsa": [(10, 1), (10, 10), (100, 1)],
}

# another: sides of the images, in pixels, that files of 256 x 256 are loaded at
LOADER = (64, 128, 224)

# another, with the first of these sides: teachers that 100 images are recovered from and 200 are labelled by, how many
# times Scale.iterations iterations of recovery and passes of labels are a repeat, and the networks
DECOUPLED = {
    "ConvNet, width 32, 28 px": (10, 5, {"arch": "convnet", "width": 32, "channels": 1, "side": 28}),
    "ResNet-18, width 16, 64 px": (1, 1, {"arch": "resnet18", "width": 16, "channels": 3, "side": 64}),
}
# numbers of classes whose labels' bytes are told
LABELLED = (10, 200, 1000, 10_450)

# at most: of the other side's time, or of the memory of ten inner steps
CEILINGS = {
    "training": 0.85,
    "experts": 1.05,
    "full": 1.05,
    "distribution": 1.05,
    "few images": 0.75,
    "stepwise": 1.6,
    "memory": 1.3,
    "loader": 1.0,
}


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.  The defaults are those of the figures in the README.

    Attributes:
        repeats: paired repeats of every comparison.
        holdout: share of the training images that is left out.
        expert_epochs: passes of the network whose training is timed; decides whether it is worth compiling.
        pool: experts of one timed repeat, of one epoch each.
        pass_steps: steps of one timed repeat of the training loop; None for a whole pass over the images.
        inner_steps: student steps of an MTT iteration.
        iterations: outer iterations of one timed repeat.
        student_steps: steps of a student in evaluation.
        memory_steps: inner steps at which memory is measured; the ceiling compares the last with the first.
        files: images of one timed pass of the loader.
    """

    repeats: int = 7
    holdout: float = 0.1
    expert_epochs: int = 8
    pool: int = 20
    pass_steps: int | None = None
    inner_steps: int = 10
    iterations: int = 4
    student_steps: int = 300
    memory_steps: tuple[int, ...] = (10, 20, 40, 80)
    files: int = 2000


# does everything once in a minute; its figures mean nothing
QUICK = Scale(
    repeats=2,
    holdout=0.9,
    expert_epochs=40,
    pool=2,
    pass_steps=4,
    inner_steps=2,
    iterations=1,
    student_steps=5,
    memory_steps=(1, 2),
    files=200,
)
