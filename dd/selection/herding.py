"""Herding: greedily match the mean of the chosen features to the mean of all (Welling, 2009; Rebuffi et al., 2017).

With features h_i, their mean m and the set A of the images chosen so far, the next image is

    argmin over i not in A of || (|A| + 1) m - sum_{j in A} h_j - h_i ||_2

The distance of the chosen mean to m falls as 1 / |A|.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dd.selection.ties import first_best

_AFRESH = 1000  # picks after which the running sum is computed again, against the accumulation of rounding errors


def herd(features: Tensor, count: int, *, normalise: bool = False, farthest: bool = False) -> Tensor:
    """Choose rows whose mean is close to the mean of all rows.

    Args:
        features: (n, d), n at least `count`.
        count: number of rows to choose.
        normalise: scale the rows to length 1 first, as iCaRL does.
        farthest: take the argmax instead of the argmin, which chooses outliers: the defect of DeepCore's "herding".

    Returns:
        (count,) int64, in order of selection: the first j are the choice of j rows.  Ties: lowest index.
    """
    h = F.normalize(features.double(), dim=1) if normalise else features.double()
    mean, squares = h.mean(0), h.square().sum(1)
    free, total, chosen = torch.zeros_like(squares), torch.zeros_like(mean), []
    sign = 1.0 if farthest else -1.0
    for picked in range(count):
        if picked % _AFRESH == 0:
            total = h[chosen].sum(0)
        wanted = (picked + 1) * mean - total
        # the squared distance, but for ||wanted||^2, which is the same for all rows
        best = first_best(sign * (squares - 2 * (h @ wanted)) + free)
        chosen.append(best)
        free[best] = -torch.inf
        total = total + h[best]
    return torch.tensor(chosen, dtype=torch.int64)
