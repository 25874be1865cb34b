"""RS2: repeated random sampling (Okanovic et al., ICLR 2024, arXiv:2305.18424)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.method import Task
from dd.engine.registry import register
from dd.engine.selection import Fact, Selection
from dd.errors import UsageError
from dd.selection.rounds import with_replacement, without_replacement


@register("rs2")
@dataclass(frozen=True)
class RS2(Selection[None]):
    """Random subsets, redrawn for every pass: a schedule of real images instead of a fixed set.

    A pass of a student's training is a round.  Over time it reads far more images than a round holds, up to the whole
    data set: the method saves training time, not storage.
    """

    paper = "https://arxiv.org/abs/2305.18424"

    rounds: Annotated[int, Field(ge=1, le=10**6)] = 200
    """Number of rounds: at least as many as a student's training has passes."""
    replacement: bool = False
    """Draw each round independently; false: read all images in random order, one chunk per round, then start anew."""

    def settle(self, task: Task) -> Self:
        """Refuse copies of images, which a schedule cannot hold; nothing else to resolve.

        Raises:
            UsageError: copies are requested.
        """
        if self.copy:
            raise UsageError("copy=true: rs2 makes a schedule, which holds indices only; give copy=false")
        return self

    def choose(self, task: Task, prepared: None) -> Tensor:
        """(rounds, n): the rounds of every class side by side or, unless `balanced`, of all classes together."""
        draw = with_replacement if self.replacement else without_replacement
        train, counts = task.data.train, torch.bincount(task.targets.cpu(), minlength=task.classes).tolist()
        if not self.balanced:
            every = draw(len(train), len(task.targets), self.rounds, task.generator("rounds"))
            classes = train.labels.cpu()[every]
            return every.gather(1, classes.argsort(dim=1, stable=True))
        columns = []
        for c, count in enumerate(counts):
            members = train.of_class(c)
            columns.append(members[draw(len(members), count, self.rounds, task.generator("rounds", c)).sort(1).values])
        return torch.cat(columns, 1)

    def facts(self, task: Task, prepared: None, index: Tensor) -> Mapping[str, Fact]:
        """The scheme, and how many different images the rounds read."""
        scheme = "with replacement" if self.replacement else "without replacement"
        return {"score": "random", "scheme": scheme, "rounds": len(index), "images_read": len(index.unique())}
