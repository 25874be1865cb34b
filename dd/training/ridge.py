"""Ridge regression in closed form, differentiable: dual (one unknown per example), primal (one per feature), streamed.

    W = argmin || Φ W - Y ||² + λ || W ||² = (ΦᵀΦ + λI)⁻¹ ΦᵀY = Φᵀ (ΦΦᵀ + λI)⁻¹ Y

Systems are solved in float64: in float32, λ = 1e-6 tr(ΦΦᵀ) leaves no correct digit of an ill-conditioned kernel.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-8, 1))  # candidates of `best_head`, as shares of tr(ΦᵀΦ)


def with_bias(features: Tensor) -> Tensor:
    """[φ, 1]: features (n, d) to (n, d + 1)."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def share_of_trace(kernel: Tensor, share: float) -> Tensor:
    """The penalty λ = share · tr(K) of a kernel (m, m), scale-invariant in the features; without gradient."""
    return share * kernel.detach().diagonal().double().sum()


def solved(matrix: Tensor, right: Tensor, penalty: Tensor | float) -> Tensor:
    """(A + λI)⁻¹ B in float64, for a symmetric A (m, m) and B (m, k)."""
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    return torch.linalg.solve(matrix.double() + penalty * eye, right.double())


def dual_weights(features: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """Φᵀ (ΦΦᵀ + λI)⁻¹ Y, (d, k), for features Φ (m, d) and targets Y (m, k); cheap where m is smaller than d."""
    return features.T @ solved(features @ features.T, targets, penalty).to(features.dtype)


def primal_weights(features: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """(ΦᵀΦ + λI)⁻¹ ΦᵀY, (d, k), for features Φ (m, d) and targets Y (m, k); cheap where d is smaller than m."""
    return solved(features.T @ features, features.T @ targets, penalty).to(features.dtype)


def kernel_prediction(queries: Tensor, support: Tensor, targets: Tensor, share: float) -> Tensor:
    """Predictions K_qs (K_ss + λI)⁻¹ Y_s, (b, k), of ridge regression on a support set, with λ = share · tr(K_ss).

    Args:
        queries: features (b, d).
        support: features (m, d).
        targets: Y_s (m, k).
        share: of the trace of K_ss.
    """
    kernel = support @ support.T
    coefficients = solved(kernel, targets, share_of_trace(kernel, share)).to(queries.dtype)
    return (queries @ support.T) @ coefficients


class Sums:
    """The sums ΦᵀΦ and ΦᵀY over many examples, in float64, so that features never have to be in memory together.

    Attributes:
        gram: ΦᵀΦ (d, d).
        cross: ΦᵀY (d, k).
    """

    def __init__(self) -> None:
        self.gram, self.cross = torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor) -> "Sums":
        """Add features (n, d) with targets (n, k); returns itself."""
        features = features.double()
        self.gram = self.gram + features.T @ features
        self.cross = self.cross + features.T @ targets.double()
        return self

    def weights(self, share: float) -> Tensor:
        """Ridge weights (d, k), float64, with λ = share · tr(ΦᵀΦ)."""
        return solved(self.gram, self.cross, share_of_trace(self.gram, share))


@torch.no_grad()
def best_head(
    sums: Sums, held_out: Iterable[tuple[Tensor, Tensor]], shares: Sequence[float] = PENALTIES
) -> tuple[Tensor, float]:
    """The ridge classifier whose penalty has the most correct held-out predictions, and this penalty.

    Args:
        sums: over training features, with one-hot targets.
        held_out: features (n, d) and classes (n,); if empty, the middle candidate is used.
        shares: candidate penalties; of equally good ones, the largest wins.

    Returns:
        Weights (d, k), float64, and the share.
    """
    batches = list(held_out)
    if not batches:
        share = shares[len(shares) // 2]
        return sums.weights(share), share
    found: list[tuple[int, float, Tensor]] = []
    for share in shares:
        weights = sums.weights(share)
        hits = sum(int(((features.double() @ weights).argmax(1) == labels).sum()) for features, labels in batches)
        found.append((hits, share, weights))
    _, share, weights = max(found, key=lambda one: one[:2])
    return weights, share
