"""Scores of images by how one network sees them: error, gradient, margin, and how they change while it is trained.

Training dynamics are given as (epochs, n) tensors, one row per epoch in order, see `dd.training.record`.
"""

from typing import Literal

import torch
from torch import Tensor

from dd.errors import UsageError

TINY = 1e-8  # added to probabilities inside logarithms (TDDS, official code)
NeverLearned = Literal["zero", "inf"]


def errors(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N (Paul et al., NeurIPS 2021): the norm of the error of the probabilities, (n,) in [0, √2].

    Args:
        logits: (n, classes).
        labels: (n,) int64.
    """
    return _excess(logits, labels).norm(dim=1)


def gradient_norms(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """GraNd (Paul et al., NeurIPS 2021) of the last layer: the norm (n,) of the cross-entropy's gradient.

    The gradient for weights and bias is the outer product of the probabilities' error d and (h, 1), so that its norm is
    ‖d‖·√(1 + ‖h‖²).

    Args:
        logits: (n, classes).
        features: (n, d), the input h of the last linear layer.
        labels: (n,) int64.
    """
    return errors(logits, labels) * (1 + features.square().sum(1)).sqrt()


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other one, (n,)."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def probability_margins(log_p: Tensor, margin: Tensor) -> Tensor:
    """The label's probability minus the largest other one, in [-1, 1].

    Args:
        log_p: log-probability of the label, any shape.
        margin: margin of the logits, of the same shape.
    """
    return log_p.exp() - (log_p - margin).exp()


def forgetting(correct: Tensor, never_learned: NeverLearned = "inf") -> Tensor:
    """Number of times that an image was classified correctly and then not (Toneva et al., ICLR 2019), float64 (n,).

    Args:
        correct: (epochs, n) bool.
        never_learned: score of an image that was never correct: "inf", or "zero" as in DeepCore and CCS.
    """
    events = (correct[:-1] & ~correct[1:]).sum(0).double()
    if never_learned == "inf":
        events[~correct.any(0)] = torch.inf
    return events


def change(before: Tensor, after: Tensor) -> Tensor:
    """How much probabilities move in one epoch: Σ_c |q_c (log q_c − log p_c)|, (n,) (Zhang et al., CVPR 2024).

    Args:
        before: p, (n, classes) probabilities after one epoch.
        after: q, (n, classes) probabilities after the next one.
    """
    return (after * ((after + TINY).log() - (before + TINY).log())).abs().sum(1)


def tdds(changes: Tensor, window: int, decay: float) -> Tensor:
    """TDDS (Zhang et al., CVPR 2024): how much the changes of the probabilities vary, float64 (n,).

    For the windows of L epochs, starting at k = 0, …, T − L, v_k is the norm of the L − 1 changes of the window minus
    their mean, and the score is Σ_k η (1 − η)^(T − L − k) v_k.

    Args:
        changes: (T − 1, n), see `change`.
        window: L.
        decay: η.

    Raises:
        UsageError: there are fewer than L epochs, or L < 3, for which every v_k is zero.
    """
    epochs = len(changes) + 1
    if not 3 <= window <= epochs:
        raise UsageError(f"window={window} epochs: TDDS needs at least 3, and at most the {epochs} recorded ones")
    values, score = changes.double(), torch.zeros(changes.shape[1], dtype=torch.float64)
    for start in range(epochs - window + 1):
        some = values[start : start + window - 1]
        score += decay * (1 - decay) ** (epochs - window - start) * (some - some.mean(0)).norm(dim=0)
    return score


def uncertainty(scores: Tensor, window: int, windows: int) -> Tensor:
    """CAD (Dey et al., CVPR 2026): the standard deviation over a window of epochs, averaged over windows, float64 (n,).

    With K epochs, windows of J epochs and W windows: U_k is the standard deviation (with n − 1) of the rows k, …,
    k + J − 1, and the score is the mean of U_k for k = K − J − W, …, K − J − 1.  The last epoch does not count.

    Args:
        scores: (K, n).
        window: J, at least 2.
        windows: W, at least 1.

    Raises:
        UsageError: K < J + W.
    """
    epochs = len(scores)
    if epochs < window + windows:
        raise UsageError(
            f"{epochs} recorded epochs are fewer than the {window} + {windows} that CAD needs (window + windows)"
        )
    first = epochs - window - windows
    values = scores.double()
    return torch.stack([values[k : k + window].std(0) for k in range(first, first + windows)]).mean(0)


def _excess(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities minus the one-hot labels, (n, classes)."""
    p = logits.softmax(1)
    return p.scatter_add(1, labels[:, None], -torch.ones_like(p[:, :1]))
