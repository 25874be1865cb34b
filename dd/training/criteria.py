"""What a batch is trained on: a mean over images of how far logits are from targets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Logits (b, k) and targets to a scalar; hashable and equal where it is the same function, as compiled code is kept."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy with hard or soft targets, of logits divided by a temperature.

    With soft targets its gradient is that of the Kullback-Leibler divergence of distillation (Hinton et al. 2015),
    whose value differs by the targets' own entropy.

    Attributes:
        temperature: T.
        squared: times T^2, so that the gradient does not shrink with T; of no account to AdamW.
    """

    temperature: float = 1.0
    squared: bool = False

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar mean for logits (b, k) and targets (b,) int64 or (b, k) probabilities."""
        if self.temperature == 1:
            return F.cross_entropy(logits, targets)
        loss = F.cross_entropy(logits / self.temperature, targets)
        return self.temperature**2 * loss if self.squared else loss


PLAIN = CrossEntropy()
