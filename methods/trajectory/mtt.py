"""MTT: dataset distillation by matching training trajectories (Cazenavette et al., CVPR 2022, arXiv:2203.11932)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Optimizer

from dd.engine.method import Method, Objective, Synthetic, Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.engine.unroll import Backprop
from dd.networks import Functional, NetworkSpec
from dd.training import Experts, ExpertSettings, Trajectories, stack_size

from ._matching import (
    Segment,
    StudentLoss,
    choose_backprop,
    draw_segment,
    make_backprop,
    make_student,
    student_loss,
    synthetic_batches,
    trajectory_distance,
)


@dataclass(frozen=True)
class Prepared:
    """The experts, the student as a function, and the gradient mode of the inner loop."""

    pool: Trajectories
    network: Functional
    backprop: Backprop


@register("mtt")
@dataclass(frozen=True)
class MTT(Method[Prepared]):
    """Matching training trajectories: a student trained on synthetic images ends where an expert on real images does.

        theta_0 = theta*_s,   theta_{t+1} = theta_t - eta grad CE( A_t(X_t); theta_t )
        L = || theta_N - theta*_{s+M} ||^2 / || theta*_s - theta*_{s+M} ||^2

    1. Train experts on the real images, and store their parameters theta* after every epoch.
    2. Every iteration, draw an expert and a start epoch s in {T-, ..., T+ - 1}.
    3. Train the student from theta*_s for N steps on batches X_t of the synthetic images, with learning rate eta.
    4. Differentiate L through all N steps, and update the images and eta.

    Defaults follow the authors' command line, except `span` (theirs is 3; nearly all published cells use 2) and
    `start_max` (theirs is 25; the author advises to start with 1 and to raise it until a run becomes unstable).  The
    recipe file has the published cells.
    """

    paper = "https://arxiv.org/abs/2203.11932"

    iterations: Annotated[int, Field(ge=0)] = 5000
    """Outer iterations; each matches one segment of one expert."""
    lr_img: Annotated[float, Field(gt=0)] = 1000.0
    """SGD learning rate of the pixels; large, because the objective is a ratio with tiny gradients."""
    lr_lr: Annotated[float, Field(ge=0)] = 1e-5
    """SGD learning rate of the student's learning rate."""
    lr_init: Annotated[float, Field(gt=0)] = 0.01
    """Initial learning rate of the student (`lr_teacher` in the authors' code)."""
    momentum_img: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the pixels' optimiser."""
    momentum_lr: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Momentum of the learning rate's optimiser."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Inner steps of the student [N]."""
    span: Annotated[int, Field(ge=1)] = 2
    """Expert epochs between start and target [M]."""
    start_min: Annotated[int, Field(ge=0)] = 0
    """First start epoch [T-]."""
    start_max: Annotated[int, Field(ge=1)] = 10
    """Start epochs are less than this [T+]."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """Synthetic images per inner step [b]; None for all."""
    start_from: Literal["real", "noise"] = "real"
    """Initial images: random "real" ones of each class, or "noise" N(0, 1) in model space."""
    augment: bool = True
    """Whether to use DSA in the inner loop, with the data set's strategy."""
    backprop: Literal["auto", "full", "stepwise", "frozen"] = "auto"
    """Gradient through the inner loop: "full" stores the graph of all steps; "stepwise" recomputes one step at a time;
    "auto" chooses between them by shapes and the device's total memory; "frozen" is TESLA's approximation.
    """
    experts: ExpertSettings = field(default_factory=ExpertSettings)
    """The pool of experts."""

    def __post_init__(self) -> None:
        if self.start_min >= self.start_max:
            raise ValueError(f"start_min={self.start_min} must be below start_max={self.start_max}")
        if self.start_max - 1 + self.span > self.experts.epochs:
            raise ValueError(
                f"start_max={self.start_max} with span={self.span} reaches epoch {self.start_max - 1 + self.span}, but "
                f"experts.epochs={self.experts.epochs}: lower start_max or span, or raise experts.epochs"
            )

    def digests(self, student: NetworkSpec) -> Mapping[str, str]:
        """Digests of the files that experts are read from."""
        return self.experts.digests()

    def settle(self, task: Task) -> Self:
        """Resolve the gradient mode and the number of experts trained together, from shapes and total memory."""
        backprop = self.backprop
        if backprop == "auto":
            backprop = choose_backprop(task, self.steps, self.images_per_step(task))
        experts = replace(self.experts, stack=stack_size(task, self.experts))
        return replace(self, backprop=backprop, experts=experts)

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The pool of experts."""
        return [Experts(task, self.experts)]

    def prepare(self, task: Task, got: Got) -> Prepared:
        """The experts, the student, and the resolved gradient mode."""
        batch = self.images_per_step(task)
        network = make_student(task, self.backprop, self.steps, batch)
        backprop = make_backprop(task, network, self.backprop, batch)
        return Prepared(got[Experts(task, self.experts)], network, backprop)

    def images_per_step(self, task: Task) -> int:
        """Images of an inner step, except for a short remainder."""
        n = len(task.targets)
        return min(self.batch or n, n)

    def start(self, task: Task, prepared: Prepared) -> Synthetic:
        """Real images or noise, with hard labels."""
        return Synthetic(task.first_images(self.start_from), task.targets, lr=self.lr_init)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """Momentum SGD on the pixels and on the student's learning rate."""
        assert syn.lr is not None
        return [
            SGD([syn.images], lr=self.lr_img, momentum=self.momentum_img),
            SGD([syn.lr], lr=self.lr_lr, momentum=self.momentum_lr),
        ]

    def window(self, it: int) -> tuple[int, int]:
        """Start epochs of iteration `it`: {low, ..., high - 1}."""
        return self.start_min, self.start_max

    def loss(self, syn: Synthetic, task: Task, prepared: Prepared, it: int) -> Objective:
        """The normalised distance L on the segment of iteration `it`."""
        segment = draw_segment(task, prepared.pool, it, *self.window(it), self.span)
        return {"distance": self.distance(syn, task, prepared, it, segment)}

    def distance(
        self,
        syn: Synthetic,
        task: Task,
        prepared: Prepared,
        it: int,
        segment: Segment,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The normalised distance L of the student of iteration `it` on a segment; `labels` as for `student`."""
        assert syn.lr is not None
        loss, variables = self.student(syn, task, prepared, it, labels)
        (end,) = prepared.backprop(loss, segment.start, syn.lr, variables, steps=self.steps)
        return trajectory_distance(end, segment.start, segment.target)

    def student(
        self,
        syn: Synthetic,
        task: Task,
        prepared: Prepared,
        it: int,
        labels: Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[StudentLoss, list[Tensor]]:
        """The student's loss in iteration `it`, with that iteration's draws, and the variables that it depends on.

        Args:
            syn: the variables.
            task: the run.
            prepared: the result of `prepare`.
            it: the iteration, which seeds all draws.
            labels: (n, k) logits; None for the set's own logits, or its classes if it has none.
            scale: factor of the loss.
        """
        batches = synthetic_batches(len(syn.images), self.batch, self.steps, task.generator("inner batches", it))
        strategy = task.data.augment if self.augment else "none"
        soft = syn.labels if labels is None else labels
        hard = syn.targets if soft is None else None
        loss = student_loss(task, prepared.network, it, batches, strategy, hard, scale)
        return loss, [syn.images] if soft is None else [syn.images, soft]
