"""One training loop, for experts and students alike, and the experts it makes."""

from dd.training.experts import ExpertSettings, Trajectories, expert_logits, expert_needs, trajectories
from dd.training.loop import Fit, Trainer

__all__ = ["ExpertSettings", "Fit", "Trainer", "Trajectories", "expert_logits", "expert_needs", "trajectories"]
