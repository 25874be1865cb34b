"""Training criteria: losses of logits and targets, averaged over a batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(logits (b, k), targets) -> scalar; hashable, and equal for equal functions, because it keys compiled code."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of logits, divided by a temperature, with hard or soft targets.

    With soft targets, the gradient equals that of the KL divergence of knowledge distillation (Hinton et al. 2015); the
    values differ by the entropy of the targets.

    Attributes:
        temperature: T.
        squared: multiply by T^2, so that the gradient does not shrink with T; AdamW is invariant to it.
    """

    temperature: float = 1.0
    squared: bool = False

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar mean for logits (b, k) and targets, int64 (b,) or probabilities (b, k)."""
        if self.temperature == 1:
            return F.cross_entropy(logits, targets)
        loss = F.cross_entropy(logits / self.temperature, targets)
        return self.temperature**2 * loss if self.squared else loss


@dataclass(frozen=True)
class SquaredError:
    """The mean of (outputs - targets)² over a batch and its numbers, for real-valued targets (b, k)."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scalar mean for outputs and targets, both (b, k)."""
        return F.mse_loss(outputs, targets)


PLAIN = CrossEntropy()
SQUARED_ERROR = SquaredError()
