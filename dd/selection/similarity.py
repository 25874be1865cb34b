"""Similarities of images: of their features, or of the gradients that they give a network's last layer.

The gradient of the cross-entropy of image i with respect to the last layer's weights and biases is

    g_i = delta_i (x) [h_i, 1],    delta_i = softmax(W h_i + b) - onehot(y_i)

so that <g_i, g_j> = <delta_i, delta_j> (1 + <h_i, h_j>): the K (D + 1) numbers of g are never formed for an image.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1 << 22  # similarities computed at a time: 32 MiB


class Similarity(ABC):
    """A symmetric (n, n) matrix of non-negative similarities, float64, of which rows are computed on demand."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, index: Tensor) -> Tensor:
        """The rows (m, n) at int64 positions (m,)."""

    def sums(self, weights: Tensor | None = None) -> Tensor:
        """(n,): sum_i w_i s_ij over all i, with (n,) weights w, or 1."""
        n, total = len(self), torch.zeros(len(self), dtype=torch.float64)
        weights = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
        for index in torch.arange(n).split(max(1, _BLOCK // n)):
            total += weights[index] @ self.rows(index)
        return total


class Matrix(Similarity):
    """Similarities that are known.

    Args:
        values: symmetric (n, n), not negative.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.double()

    def __len__(self) -> int:
        return len(self._values)

    def rows(self, index: Tensor) -> Tensor:
        """See `Similarity`."""
        return self._values[index]


class Cosine(Similarity):
    """s_ij = 1/2 + cos(x_i, x_j) / 2, or max(0, cos(x_i, x_j)) if `clipped`; a row takes O(n d).

    Args:
        features: h, (n, d).
        errors: delta, (n, k); then x_i is the gradient g_i, else the feature h_i.  See the module.
        clipped: see above.
    """

    def __init__(self, features: Tensor, errors: Tensor | None = None, *, clipped: bool = False) -> None:
        h, self._clipped = features.double(), clipped
        if errors is None:
            self._left, self._right = F.normalize(h, dim=1), None
        else:
            # divide delta by its own norm and [h, 1] by its own: |g| is their product
            self._left = F.normalize(errors.double(), dim=1)
            self._right = F.normalize(F.pad(h, (0, 1), value=1.0), dim=1)

    def __len__(self) -> int:
        return len(self._left)

    def rows(self, index: Tensor) -> Tensor:
        """See `Similarity`."""
        cosine = self._left[index] @ self._left.T
        if self._right is not None:
            cosine *= self._right[index] @ self._right.T
        return cosine.clamp_min_(0) if self._clipped else cosine.mul_(0.5).add_(0.5).clamp_min_(0)

    def sums(self, weights: Tensor | None = None) -> Tensor:
        """See `Similarity`; without clipping in O(n d), or O(n k d) of gradients, because cosines are bilinear."""
        if self._clipped:
            return super().sums(weights)
        weights = torch.ones(len(self), dtype=torch.float64) if weights is None else weights.double()
        left = self._left * weights[:, None]
        if self._right is None:
            cosines = self._left @ left.sum(0)
        else:
            cosines = ((self._left @ (left.T @ self._right)) * self._right).sum(1)
        return 0.5 * weights.sum() + 0.5 * cosines
