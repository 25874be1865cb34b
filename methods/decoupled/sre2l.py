"""SRe2L: squeeze, recover and relabel (Yin et al., NeurIPS 2023, arXiv:2306.13092); CDA, SRe2L++ and others extend it.

Recovery minimises, batch by batch,

    sum over members j of w_j ( CE(f_j(A(x)), y) + r_bn R_BN,j(A(x)) )

with R_BN of `dd.networks.statistics` and one teacher in the paper.  A is one crop, one flip and one roll per iteration,
shared by the whole batch.  The statistics are those of the batch, so the composition of batches is part of the method;
batches are independent of each other.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dd.engine.accumulate import Terms, accumulated
from dd.engine.method import Objective, Synthetic, Task
from dd.engine.needs import Got, Need
from dd.engine.registry import register
from dd.errors import UsageError
from dd.networks.statistics import required_batch_norms, statistics_loss
from dd.settings import OnlyWith
from dd.training.teachers import Teacher, untrained
from dd.views import STRETCH, draw_boxes, resized_crop

from ._crops import CropSettings, Patches, require_enough
from ._pixels import clip_
from ._teachers import Committee, Taught

Layout = Literal["one-per-class", "class-major", "single-class", "whole"]
Member = tuple[float, Teacher]


@register("sre2l")
@dataclass(frozen=True)
class SRe2L(Taught):
    """Noise, optimised until a teacher recognises it and its BatchNorm statistics match; labels for every view.

        min over x of  CE(f(A(x)), y) + r_bn sum over BatchNorm layers l of w_l ( ||v_l - V_l|| + ||mu_l - M_l|| )

    1. Squeeze: train a teacher f on the real images.
    2. Recover: start from noise, one image per class in a batch; every iteration applies one crop, flip and roll A to
       the whole batch and takes one Adam step.
    3. Relabel: the teacher labels augmented views of the final images.

    The result is the last iterate.  The released code intends to keep the best one, but keeps the last.
    """

    paper = "https://arxiv.org/abs/2306.13092"

    iterations: Annotated[int, Field(ge=0)] = 4000
    """Updates of each batch."""
    lr_img: Annotated[float, Field(gt=0)] = 0.25
    """Adam learning rate of the pixels, in model space, with cosine decay to zero."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Betas of Adam."""
    r_bn: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the statistics loss; 0 disables it and permits teachers without BatchNorm."""
    first_bn: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the first BatchNorm layer in the statistics loss; the others have weight 1."""
    crop: Annotated[float, Field(gt=0, le=1)] | None = 0.08
    """Smallest share of the area that a random crop keeps; None for no crop."""
    stretch: Annotated[float, Field(ge=1)] = STRETCH
    """Largest aspect ratio of a crop."""
    flip: bool = True
    """Flip the batch horizontally in half of the iterations."""
    roll: Annotated[int, Field(ge=0)] = 32
    """Largest circular shift in pixels, down and right; 0 for none."""
    roll_back: bool = False
    """Also shift up and left, with the same probability."""
    layout: Layout = "one-per-class"
    """Composition of a batch: "one-per-class", the i-th image of up to `batch` classes (SRe2L); "class-major", `batch`
    consecutive images, ordered by class; "single-class", all images of one class; "whole", all images.
    """
    batch: Annotated[int, Field(ge=1)] = 100
    """Classes per batch for "one-per-class", images per batch for "class-major"."""
    start_from: Literal["noise", "real", "crops"] = "noise"
    """Initial images: "noise" N(0, 1) in model space, random "real" images, or "crops", selected and stitched."""
    crops: Annotated[CropSettings, OnlyWith("start_from", ("crops",))] = field(default_factory=CropSettings)
    """How these crops are selected."""

    def settle(self, task: Task) -> Self:
        """Refuse what cannot work before a teacher is trained; nothing else to resolve.

        Raises:
            UsageError: a teacher has no BatchNorm, a class has too few images, or the data are whitened.
        """
        settled = super().settle(task)
        if self.start_from == "crops":
            require_enough(task, self.crops)
        if self.r_bn:
            for name, network in untrained(task, self.teachers).items():
                self.require_usable(name, network)
        return settled

    def needs(self, task: Task) -> Sequence[Need[Any]]:
        """The teachers, and the patches if it starts from them."""
        patches = [self.patches(task)] if self.start_from == "crops" else []
        return [*super().needs(task), *patches]

    def patches(self, task: Task) -> Patches:
        """The need for the patches to start from."""
        return Patches(task, self.crops, self.staff(task))

    def prepare(self, task: Task, got: Got) -> Committee:
        """The teachers, and the patches if it starts from them."""
        patches = got[self.patches(task)] if self.start_from == "crops" else None
        return replace(super().prepare(task, got), patches=patches)

    def require_usable(self, name: str, network: nn.Module) -> None:
        """See `Taught`; the statistics loss needs BatchNorm."""
        if self.r_bn:
            try:
                required_batch_norms(network)
            except UsageError as error:
                raise UsageError(f"teachers={name}: {error}") from error

    def parts(self, task: Task) -> Sequence[Tensor]:
        """The batches."""
        targets = task.targets.cpu()
        places = torch.arange(len(targets))
        if self.layout == "whole":
            return [places]
        if self.layout == "class-major":
            return list(places.split(self.batch))
        if self.layout == "single-class":
            return [found for c in range(task.classes) if len(found := places[targets == c])]
        batches = []
        for rank in range(int(task.ranks.max()) + 1):
            batches += places[task.ranks == rank].split(self.batch)
        return batches

    def start(self, task: Task, prepared: Committee) -> Synthetic:
        """Noise, real images or patches, with hard labels."""
        if prepared.patches is not None:
            pixels = prepared.patches.take(task.targets, task.ranks).to(task.device)
            return Synthetic(task.data.preprocess(pixels), task.targets)
        return Synthetic(task.first_images("noise" if self.start_from == "noise" else "real"), task.targets)

    def optimisers(self, syn: Synthetic) -> Sequence[Optimizer]:
        """Adam on the pixels."""
        return [Adam([syn.images], lr=self.lr_img, betas=self.betas, foreach=False)]

    def rate(self, it: int) -> float:
        """Cosine decay from 1 towards 0."""
        return (1 + math.cos(math.pi * it / self.iterations)) / 2

    def least(self, it: int) -> float | None:
        """The smallest share of the area that a crop keeps in iteration `it`; None for no crop."""
        return self.crop

    def view(self, task: Task, it: int) -> Callable[[Tensor], Tensor]:
        """The augmentation A of iteration `it`, shared by all images of the batch."""
        rng, size, least = task.generator("view", it), task.data.size, self.least(it)
        box = None if least is None else draw_boxes(1, (size, size), (least, 1.0), rng, self.stretch)
        mirrored = bool(torch.rand((), generator=rng) < 0.5)
        low = -self.roll if self.roll_back else 0
        down, right = torch.randint(low, self.roll + 1, (2,), generator=rng).tolist()

        def shown(images: Tensor) -> Tensor:
            if box is not None:
                images = resized_crop(images, box)
            if self.flip and mirrored:
                images = images.flip(3)
            return images.roll((down, right), (2, 3)) if down or right else images

        return shown

    def members(self, task: Task, prepared: Committee) -> Sequence[Member]:
        """The teachers of this batch, with weights that sum to 1."""
        return [(1 / len(prepared.teachers), teacher) for teacher in prepared.teachers]

    def loss(self, syn: Synthetic, task: Task, prepared: Committee, it: int) -> Objective:
        """The weighted cross-entropies and statistics losses, accumulated member by member."""
        view = self.view(task, it)

        def of(member: Member) -> Callable[[], Terms]:
            return lambda: self._terms(member, view(syn.images), syn.targets, task, prepared)

        names = ("ce", "bn") if self.r_bn else ("ce",)
        losses = [of(member) for member in self.members(task, prepared)]
        return accumulated(losses, syn.images, names, shared=False)

    def project(self, syn: Synthetic, task: Task) -> None:
        """Clamp pixels to the range from black to white."""
        with torch.no_grad():
            clip_(task.data.preprocess, syn.images)

    def _terms(self, member: Member, views: Tensor, targets: Tensor, task: Task, prepared: Committee) -> Terms:
        weight, teacher = member
        network = prepared.network(teacher, task, views, self.iterations)
        half = torch.autocast(views.device.type, torch.bfloat16, enabled=task.precision == "bf16")
        with statistics_loss(teacher.network, self.first_bn) if self.r_bn else nullcontext() as statistics:
            with half:
                logits = network(views)
            terms = {"ce": weight * F.cross_entropy(logits.float(), targets)}
            if statistics is not None:
                terms["bn"] = weight * self.r_bn * statistics()
        return terms
