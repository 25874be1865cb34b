"""NRR-DD's labels: two distances per view instead of a probability for every class.

Tran et al., "Enhancing Dataset Distillation via Non-Critical Region Refinement", CVPR 2025, distance-based
representative labels (DBR).  For an image of class y, mixed with an image of class y', the distances are

    d_org = -log softmax(z)_y,    d_aug = -log softmax(z)_y'

for a network's logits z at temperature 1.  The student matches its distances to the teacher's, next to its own loss.
We had no access to the full text.  Four choices are our completion: the absolute difference, its weight of 1, the
cross-entropy next to it, and the reconstruction of probabilities.
"""

import torch
from torch import Tensor
from torch.nn import functional


def distances(logits: Tensor, own: Tensor, partner: Tensor) -> Tensor:
    """d_org and d_aug, (n, 2), non-negative, of logits (n, k); `own` and `partner`, int64 (n,), are y and y'."""
    return -logits.log_softmax(1).gather(1, torch.stack([own, partner], 1))


def dbr_loss(
    logits: Tensor, wanted: Tensor, own: Tensor, partner: Tensor, weight: Tensor | float, alpha: float = 1.0
) -> Tensor:
    """The student's loss, L_sce + alpha * mean |d_student - d_teacher|.

    L_sce is CutMix's, weight * CE(z, y) + (1 - weight) * CE(z, y'), averaged over the batch.

    Args:
        logits: (n, k), the student's.
        wanted: (n, 2), the teacher's distances.
        own: (n,) int64, y.
        partner: (n,) int64, y'; equal to `own` if nothing is mixed in.
        weight: weight of an image's own label: one number, or (n,).
        alpha: weight of the distances; unknown from the paper, 1 works.
    """
    of_student = distances(logits, own, partner)
    mixed = weight * of_student[:, 0] + (1 - weight) * of_student[:, 1]
    return mixed.mean() + alpha * functional.l1_loss(of_student, wanted.to(of_student))


def reconstruct(wanted: Tensor, own: Tensor, partner: Tensor, classes: int) -> Tensor:
    """The maximum-entropy class probabilities with the given distances; our completion.

    They are exp(-d_org) at y, exp(-d_aug) at y', and the rest is spread evenly over the other classes.  If rounding
    makes the two exceed 1, they are divided by their sum.

    Args:
        wanted: (n, 2) distances; both equal if y = y'.
        own: (n,) int64, y.
        partner: (n,) int64, y'.
        classes: number of classes, k >= 2.

    Returns:
        (n, k), rows summing to one.
    """
    known, same = (-wanted).exp(), own == partner
    taken = torch.where(same, known[:, 0], known.sum(1))
    others = classes - 2 + same.long()
    rest = (1 - taken).clamp_min(0) / others.clamp_min(1)
    whole = rest[:, None].repeat(1, classes)
    whole = whole.scatter(1, partner[:, None], known[:, 1:]).scatter(1, own[:, None], known[:, :1])
    return whole / whole.sum(1, keepdim=True)
