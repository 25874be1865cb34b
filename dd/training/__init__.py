"""One training loop, for experts and students alike, and the experts it makes."""

from dd.training.experts import (
    ExpertSettings,
    Trajectories,
    expert_logits,
    expert_needs,
    stack_size,
    trajectories,
)
from dd.training.loop import Fit, Trainer
from dd.training.stacked import StackedTrainer

__all__ = [
    "ExpertSettings",
    "Fit",
    "StackedTrainer",
    "Trainer",
    "Trajectories",
    "expert_logits",
    "expert_needs",
    "stack_size",
    "trajectories",
]
