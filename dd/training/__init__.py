"""The training loop shared by experts, teachers and students, and the pools of experts it trains."""

from dd.training.experts import (
    Experts,
    ExpertSettings,
    Trajectories,
    expert_logits,
    stack_size,
    trajectories,
)
from dd.training.loop import Fit, Trainer
from dd.training.stacked import StackedTrainer

__all__ = [
    "ExpertSettings",
    "Experts",
    "Fit",
    "StackedTrainer",
    "Trainer",
    "Trajectories",
    "expert_logits",
    "stack_size",
    "trajectories",
]
