"""k-means: choose the images nearest to the centres of clusters of features."""

import random

import numpy as np


def representatives(features: np.ndarray, count: int, seed: int, n_init: int = 1) -> np.ndarray:
    """Indices (count,) of distinct rows, each the nearest to one of `count` k-means centres.

    Args:
        features: (n, d), with n at least `count`.
        count: number of centres.
        seed: of the initial centres.
        n_init: number of initialisations; the clustering with the smallest inertia counts.
    """
    state = random.getstate()
    from sklearn.cluster import KMeans  # importing it draws from Python's global generator

    random.setstate(state)
    means = KMeans(count, random_state=seed).set_params(n_init=n_init)
    centres = means.fit(features).cluster_centers_
    chosen: list[int] = []
    for centre in centres:
        distance = np.linalg.norm(features - centre, axis=1)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    return np.array(chosen)
