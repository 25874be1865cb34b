"""Herding, k-center, k-means, graph cut and facility location against slow loops, brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from dd.rng import generator
from dd.selection.herding import herd
from dd.selection.kcenter import k_center, nearest_to_mean
from dd.selection.kmeans import representatives
from dd.selection.similarity import Cosine, Matrix
from dd.selection.submodular import facility_location, graph_cut, sample_size, sampled

LINE = torch.tensor([[0.0], [1], [2], [3], [10]])
FOUR = torch.tensor([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.2, 0.1], [0.1, 0.2, 1, 0.8], [0.2, 0.1, 0.8, 1]])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- herding ---------------------------------------------------------------------------------------------------------


def herd_slowly(rows, count):
    """The definition, in Python loops: argmin || (|A| + 1) m - sum - h ||."""
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    chosen = []
    for _ in range(count):
        total = [sum(rows[j][a] for j in chosen) for a in range(len(mean))]
        wanted = [(len(chosen) + 1) * m - s for m, s in zip(mean, total, strict=True)]
        distance = [math.dist(wanted, row) if i not in chosen else math.inf for i, row in enumerate(rows)]
        chosen.append(min(range(len(rows)), key=distance.__getitem__))
    return chosen


def test_herding_on_a_line():
    assert LINE[herd(LINE, 4)].flatten().tolist() == [3, 2, 1, 10]


@pytest.mark.parametrize("seed", range(4))
def test_herding_is_its_definition(seed):
    h = normal(40, 5, seed=seed) + 3
    assert herd(h, 40).tolist() == herd_slowly(h.tolist(), 40)
    scaled = F.normalize(h, dim=1)
    assert herd(h, 12, normalise=True).tolist() == herd_slowly(scaled.tolist(), 12)


def test_herding_is_nearer_to_the_mean_than_chance_and_its_reverse_farther():
    h = normal(500, 16)
    chance = torch.randperm(500, generator=generator(1))

    def error(index):
        return float((h[index].mean(0) - h.mean(0)).norm())

    for k in (5, 20, 50):
        assert error(herd(h, k)) < error(chance[:k]) < error(herd(h, k, farthest=True))
        assert error(herd(h, k)) * k <= 1.5 * 5 * error(herd(h, 5))


def test_a_herd_begins_with_every_smaller_herd_and_all_rows_have_no_error():
    h = normal(1200, 3, seed=2)
    whole = herd(h, 1200)  # beyond 1,000 picks, after which the sum is computed afresh
    assert whole.sort().values.tolist() == list(range(1200))
    for k in (1, 7, 300):
        assert herd(h, k).tolist() == whole[:k].tolist()
    assert (h[whole].mean(0) - h.mean(0)).abs().max() < 1e-12


def test_equal_rows_are_taken_in_their_order():
    h = normal(7, 13).repeat(9, 1)[torch.randperm(63, generator=generator(3))].float()
    for index in (herd(h, 63), k_center(h, 63, 0)[0]):
        assert index.sort().values.tolist() == list(range(63))
        for row in h.unique(dim=0):
            places = [at for at in index.tolist() if torch.equal(h[at], row)]
            assert places == sorted(places)


# --- k-center --------------------------------------------------------------------------------------------------------


def radius_of(points, chosen):
    return max(min(math.dist(p, points[j]) for j in chosen) for p in points)


def test_k_center_on_a_line():
    nine = torch.arange(9.0)[:, None]
    index, radius = k_center(nine, 3, 4)
    assert index.tolist() == [4, 0, 8]
    assert radius == 2
    index, radius = k_center(LINE, 3, 0)
    assert (LINE[index].flatten().tolist(), radius) == ([0, 10, 3], 1)
    index, radius = k_center(LINE, 1, 2)
    assert (index.tolist(), radius) == ([2], 8)


def test_k_center_is_within_twice_the_best_radius_from_every_start():
    points = normal(12, 2)
    rows = points.tolist()
    best = min(radius_of(rows, some) for some in itertools.combinations(range(12), 3))
    for first in range(12):
        index, radius = k_center(points, 3, first)
        assert radius == pytest.approx(radius_of(rows, index.tolist()))
        assert best - 1e-12 <= radius <= 2 * best


def test_k_center_adds_the_farthest_and_its_radius_falls():
    points = normal(30, 4, seed=5)
    rows, radii = points.tolist(), []
    whole, _ = k_center(points, 30, 11)
    assert whole.sort().values.tolist() == list(range(30))
    for k in range(1, 30):
        index, radius = k_center(points, k, 11)
        assert index.tolist() == whole[:k].tolist()
        radii.append(radius)
        nearest = [min(math.dist(p, rows[j]) for j in index.tolist()) for p in rows]
        assert int(np.argmax(nearest)) == int(whole[k])
    assert radii == sorted(radii, reverse=True)


def test_the_row_nearest_to_the_mean():
    assert nearest_to_mean(LINE) == 3
    assert nearest_to_mean(torch.tensor([[1.0], [-1.0], [1.0]]) * 3) == 0  # the mean is 1


# --- k-means ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 40])
def test_the_nearest_images_to_the_centres(count):
    h = normal(40, 6, seed=7).numpy()
    chosen = representatives(h, count, seed=3, n_init=4)
    assert len(set(chosen.tolist())) == count
    model = KMeans(count, n_init=4, random_state=3).fit(h)
    nearest = [int(np.argmin([math.dist(row, centre) for row in h])) for centre in model.cluster_centers_]
    if len(set(nearest)) == count:
        assert chosen.tolist() == nearest
    if count == 1:
        assert chosen.tolist() == [nearest_to_mean(torch.from_numpy(h))]
    assert chosen.tolist() == representatives(h, count, seed=3, n_init=4).tolist()


# --- similarities ----------------------------------------------------------------------------------------------------


def gradients_of(h, labels, weight, bias):
    """Gradients (n, k (d + 1)) of the cross-entropy with respect to the last layer, by autograd, in float64."""
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    rows = []
    for image, label in zip(h, labels, strict=True):
        loss = F.cross_entropy(F.linear(image[None], weight, bias), label[None])
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, (weight, bias))]))
    return torch.stack(rows)


def test_products_of_gradients_factorise():
    h, labels = normal(9, 5), torch.arange(9) % 4
    weight, bias = normal(4, 5, seed=1), normal(4, seed=2)
    errors = F.linear(h, weight, bias).softmax(1) - F.one_hot(labels, 4)
    g = gradients_of(h, labels, weight, bias)
    assert torch.allclose(g @ g.T, (errors @ errors.T) * (1 + h @ h.T), rtol=0, atol=1e-12)
    assert torch.allclose(g.norm(dim=1), errors.norm(dim=1) * (1 + h.square().sum(1)).sqrt(), rtol=0, atol=1e-12)
    cosine = F.cosine_similarity(g[:, None], g[None], dim=2)
    index = torch.tensor([3, 0, 8])
    assert torch.allclose(Cosine(h, errors).rows(index), 0.5 + 0.5 * cosine[index], rtol=0, atol=1e-12)
    clipped = Cosine(h, errors, clipped=True)
    assert torch.allclose(clipped.rows(index), cosine[index].clamp_min(0), rtol=0, atol=1e-12)
    weights = normal(9, seed=4).abs()
    for one, matrix in ((Cosine(h, errors), 0.5 + 0.5 * cosine), (clipped, cosine.clamp_min(0))):
        assert torch.allclose(one.sums(), matrix.sum(0), rtol=0, atol=1e-12)
        assert torch.allclose(one.sums(weights), weights @ matrix, rtol=0, atol=1e-12)


def test_cosines_of_features():
    h = normal(8, 5)
    cosine = F.cosine_similarity(h[:, None], h[None], dim=2)
    assert torch.allclose(Cosine(h).rows(torch.arange(8)), 0.5 + 0.5 * cosine, rtol=0, atol=1e-14)
    assert torch.allclose(Cosine(h).sums(), (0.5 + 0.5 * cosine).sum(0), rtol=0, atol=1e-13)


# --- submodular functions --------------------------------------------------------------------------------------------


def cut_value(s, chosen, trade=1.0):
    n, a = len(s), list(chosen)
    return trade * sum(float(s[i, j]) for i in range(n) for j in a) - sum(float(s[i, j]) for i in a for j in a)


def location_value(s, chosen, weights=None):
    w = [1.0] * len(s) if weights is None else weights.tolist()
    return sum(w[i] * max((float(s[i, j]) for j in chosen), default=0.0) for i in range(len(s)))


def greedily(value, n, count):
    """Plain greedy on a set function: evaluate it for every candidate at every step."""
    chosen, gains = [], []
    for _ in range(count):
        now = value(chosen)
        gain = [value([*chosen, j]) - now if j not in chosen else -math.inf for j in range(n)]
        best = next(j for j in range(n) if gain[j] >= max(gain) - 1e-12)
        chosen.append(best)
        gains.append(gain[best])
    return chosen, gains


def similarities(n, seed):
    """Random positive semidefinite, with ones on the diagonal and no negative values."""
    g = normal(n, 6, seed=seed)
    return 0.5 + 0.5 * F.cosine_similarity(g[:, None], g[None], dim=2)


def test_graph_cut_on_four():
    index, gains = graph_cut(Matrix(FOUR), 4)
    assert index.tolist() == [0, 2, 3, 1]
    assert gains.tolist() == pytest.approx([2.2, 1.9, 0.1, -0.2])
    value = [cut_value(FOUR, index[:k].tolist()) for k in range(5)]
    assert np.diff(value).tolist() == pytest.approx((gains - 1).tolist())


def test_facility_location_on_four():
    index, gains = facility_location(Matrix(FOUR), 3)
    assert index.tolist() == [0, 2, 3]
    assert gains.tolist() == pytest.approx([2.2, 1.5, 0.2])
    weighted, same = facility_location(Matrix(FOUR), 3, weights=torch.ones(4))
    assert torch.equal(weighted, index)
    assert torch.equal(same, gains)


@pytest.mark.parametrize("trade", [1.0, 2.0, 0.3])
def test_greedy_graph_cut_is_plain_greedy_on_its_function(trade):
    for seed in range(5):
        s = similarities(10, seed)
        index, gains = graph_cut(Matrix(s), 10, trade=trade)
        chosen, plain = greedily(lambda a, s=s: cut_value(s, a, trade), 10, 10)
        assert index.tolist() == chosen
        assert (gains - 1).tolist() == pytest.approx(plain)


def test_lazy_facility_location_is_plain_greedy_on_its_function(monkeypatch):
    monkeypatch.setattr("dd.selection.submodular._ASKED", 3)
    for seed in range(20):
        s, weights = similarities(12, seed), normal(12, seed=100 + seed).abs() if seed % 2 else None
        index, gains = facility_location(Matrix(s), 12, weights=weights)
        chosen, plain = greedily(lambda a, s=s, w=weights: location_value(s, a, w), 12, 12)
        assert gains.tolist() == pytest.approx(plain)
        served = [k for k in range(12) if plain[k] > 1e-9]  # beyond them every gain is zero, and any order right
        assert index[served].tolist() == [chosen[k] for k in served]


def test_lazy_looks_at_few():
    class Counting(Matrix):
        looked = 0

        def rows(self, index):
            self.looked += len(index)
            return super().rows(index)

    h = normal(400, 3)
    similarity = Counting(Cosine(h).rows(torch.arange(400)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dd.selection.submodular.WHOLE", 0)  # or the matrix is copied
        facility_location(similarity, 40)
    assert similarity.looked - 400 < 0.2 * 400 * 40  # 400 for the first gains


def test_lazy_and_plain_break_ties_alike():
    s = Matrix(torch.ones(50, 50))
    assert facility_location(s, 5)[0].tolist() == graph_cut(s, 5)[0].tolist() == [0, 1, 2, 3, 4]
    twins = similarities(6, 3).repeat(6, 6)
    assert facility_location(Matrix(twins), 6)[0].tolist() == greedily(lambda a: location_value(twins, a), 36, 6)[0]


def test_blocks_of_similarities_give_the_same_choice(monkeypatch):
    h, errors = normal(60, 5), normal(60, 3, seed=1)
    for clipped in (False, True):
        whole = facility_location(Cosine(h, errors, clipped=clipped), 20)
        monkeypatch.setattr("dd.selection.submodular.WHOLE", 100)
        monkeypatch.setattr("dd.selection.similarity._BLOCK", 7 * 60)
        parts = facility_location(Cosine(h, errors, clipped=clipped), 20)
        monkeypatch.undo()
        assert torch.equal(whole[0], parts[0])
        assert torch.allclose(whole[1], parts[1])


def test_demand_alone_orders_images_that_are_similar_to_none():
    demand = torch.tensor([0.3, 2.0, 0.1, 1.5, 0.7])
    index, gains = facility_location(Matrix(torch.eye(5)), 5, weights=demand)
    assert index.tolist() == [1, 3, 4, 0, 2]
    assert gains.tolist() == pytest.approx(sorted(demand.tolist(), reverse=True))


def test_greedy_facility_location_is_near_the_optimum():
    for seed in range(10):
        s = similarities(8, seed)
        best = max(location_value(s, some) for some in itertools.combinations(range(8), 2))
        found = location_value(s, facility_location(Matrix(s), 2)[0].tolist())
        assert (1 - 1 / math.e) * best <= found <= best + 1e-12


# --- stochastic greedy -----------------------------------------------------------------------------------------------


def test_the_number_of_candidates():
    assert [sample_size(1000, k, 0.9) for k in (10, 50, 100, 300)] == [11, 2, 1, 1]  # DeepCore's: a random choice
    for epsilon in (0.01, 0.1):
        for n, k in itertools.product((10, 100, 5000), (0.01, 0.1, 0.3, 0.5)):
            assert sample_size(n, max(1, round(k * n)), epsilon) >= 2


def test_stochastic_greedy_takes_the_best_of_what_it_draws():
    s, free = Matrix(similarities(40, 0)), torch.arange(40)
    everything = sampled(40, generator(0))
    assert torch.equal(everything(free), free)
    for function in (graph_cut, facility_location):
        assert torch.equal(function(s, 10, draw=everything)[0], function(s, 10)[0])
        drawn, again, other = (function(s, 10, draw=sampled(5, generator(seed)))[0] for seed in (0, 0, 1))
        assert len(set(drawn.tolist())) == 10
        assert torch.equal(drawn, again)
        assert not torch.equal(drawn, other)
    draws = []

    def recorded(left):
        draws.append(sampled(4, generator(len(draws)))(left).tolist())
        return torch.tensor(draws[-1])

    index, _ = facility_location(s, 6, draw=recorded)
    values = similarities(40, 0)
    for k, (best, some) in enumerate(zip(index.tolist(), draws, strict=True)):
        before = index[:k].tolist()
        assert best == max(some, key=lambda j, a=before: location_value(values, [*a, j]))
