"""k-means: the real images nearest to the centres of clusters of features (the baseline of DC-BENCH, NeurIPS 2022)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dd.engine.registry import register
from dd.selection.kcenter import nearest_to_mean
from dd.selection.kmeans import representatives

from ._features import OfFeatures, Rng, SelectionPool


@register("kmeans")
@dataclass(frozen=True)
class KMeans(OfFeatures):
    """Real images nearest to the k-means centres of their class's features, one per centre."""

    paper = "https://arxiv.org/abs/2207.09639"

    n_init: Annotated[int, Field(ge=1, le=1000)] = 10
    """Number of initialisations, of which the clustering with the smallest inertia counts (scikit-learn's `n_init`)."""

    def pick(self, pool: SelectionPool, count: int, rng: Rng) -> Tensor:
        """Cluster, and take the nearest images."""
        if count == 1:  # the centre of a single cluster is the mean, wherever it starts
            return torch.tensor([nearest_to_mean(pool.features)])
        seed = int(torch.randint(2**31, (), generator=rng()))
        return torch.from_numpy(representatives(pool.features.double().numpy(), count, seed, self.n_init))
