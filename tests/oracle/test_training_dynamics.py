"""Scores of training dynamics: formulas as slow loops, worked numbers, and the ranking that is made of them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dd.errors import UsageError
from dd.rng import generator
from dd.selection.coverage import budgets, covering, hard_cut, strata
from dd.selection.ranking import best, best_of_each, grouped, ranked, tied, tied_of_each
from dd.selection.scores import (
    change,
    errors,
    forgetting,
    gradient_norms,
    margins,
    probability_margins,
    tdds,
    uncertainty,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "dynamics"), dtype=torch.float64)


def logits_of(*p):
    return torch.tensor([p], dtype=torch.float64).log()


# ---- errors, gradients, margins -----------------------------------------------------------------------------------


def test_el2n_of_worked_probabilities():
    logits = logits_of(0.7, 0.2, 0.1)
    assert errors(logits, torch.tensor([0])).item() == pytest.approx(0.374166, abs=1e-6)
    assert errors(logits, torch.tensor([2])).item() == pytest.approx(1.157584, abs=1e-6)


def test_el2n_is_at_most_the_root_of_two():
    logits, labels = 50 * normal(200, 5), torch.arange(200) % 5
    assert errors(logits, labels).max() <= math.sqrt(2)
    assert errors(torch.tensor([[100.0, 0.0]]), torch.tensor([1])).item() == pytest.approx(math.sqrt(2))


def test_grand_is_the_norm_of_the_last_layers_gradient():
    features, labels = normal(6, 7), torch.tensor([0, 3, 1, 2, 2, 0])
    head = torch.nn.Linear(7, 4, dtype=torch.float64)
    logits = head(features)
    found = gradient_norms(logits.detach(), features, labels)
    for i in range(6):
        loss = F.cross_entropy(head(features[i : i + 1]), labels[i : i + 1])
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        assert found[i].item() == pytest.approx((weight.square().sum() + bias.square().sum()).sqrt().item(), rel=1e-12)


def test_inner_products_of_last_layer_gradients_factor():
    features, labels = normal(5, 7), torch.tensor([0, 3, 1, 2, 2])
    head = torch.nn.Linear(7, 4, dtype=torch.float64)
    delta = head(features).softmax(1) - F.one_hot(labels, 4)
    grads = []
    for i in range(5):
        loss = F.cross_entropy(head(features[i : i + 1]), labels[i : i + 1])
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [head.weight, head.bias])]))
    full = torch.stack(grads) @ torch.stack(grads).T
    assert torch.allclose(full, (delta @ delta.T) * (1 + features @ features.T), atol=1e-12, rtol=1e-12)
    assert torch.allclose(full.diag().sqrt(), gradient_norms(head(features), features, labels), atol=1e-12)


def test_margins_of_worked_probabilities():
    logits = logits_of(0.7, 0.2, 0.1)
    for y, expected in ((0, 0.5), (2, -0.6)):
        labels = torch.tensor([y])
        log_p = logits.log_softmax(1)[:, y]
        assert probability_margins(log_p, margins(logits, labels)).item() == pytest.approx(expected, abs=1e-12)


def test_margins_of_logits_and_of_probabilities_rank_differently():
    logits, labels = torch.tensor([[10.0, 9.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64), torch.zeros(2).long()
    margin = margins(logits, labels)
    shares = probability_margins(logits.log_softmax(1)[:, 0], margin)
    assert margin.tolist() == [1.0, 1.0]
    assert shares.tolist() == pytest.approx([0.4621, 0.3642], abs=1e-4)


def test_probability_margins_are_those_of_the_probabilities():
    logits, labels = 8 * normal(50, 6), torch.arange(50) % 6
    log_p = logits.log_softmax(1)[torch.arange(50), labels]
    found = probability_margins(log_p, margins(logits, labels))
    for i, row in enumerate(logits.softmax(1).tolist()):
        other = max(p for c, p in enumerate(row) if c != labels[i])
        assert found[i].item() == pytest.approx(row[labels[i]] - other, abs=1e-12)


# ---- forgetting ---------------------------------------------------------------------------------------------------

SEQUENCES = {"1010": 2, "0000": 0, "1111": 0, "0101": 1, "0011": 0}


@pytest.mark.parametrize("never", ["zero", "inf"])
def test_forgetting_events_of_worked_sequences(never):
    correct = torch.tensor([[digit == "1" for digit in word] for word in SEQUENCES]).T
    expected = [math.inf if never == "inf" and "1" not in word else count for word, count in SEQUENCES.items()]
    assert forgetting(correct, never).tolist() == expected


def test_forgetting_counts_what_a_loop_counts():
    correct = normal(9, 40) > 0
    for i, score in enumerate(forgetting(correct, "zero").tolist()):
        assert score == sum(a and not b for a, b in pairwise(correct[:, i].tolist()))


# ---- TDDS ---------------------------------------------------------------------------------------------------------


def two_classes(*p):
    return [torch.tensor([[one, 1 - one]], dtype=torch.float64) for one in p]


def changes_of(rows):
    return torch.stack([change(a, b) for a, b in pairwise(rows)])


def test_tdds_of_worked_probabilities():
    changes = changes_of(two_classes(0.5, 0.6, 0.9, 0.8))
    assert changes[:, 0].tolist() == pytest.approx([0.198650, 0.503548, 0.232856], abs=1e-6)
    assert tdds(changes, 3, 0.9).item() == pytest.approx(0.1917, abs=5e-5)


def test_tdds_of_constant_probabilities_is_zero():
    assert tdds(changes_of(two_classes(*[0.3] * 6)), 3, 0.9).item() == 0


def test_tdds_is_the_formula_in_slow_loops():
    rows, window, decay = [row.softmax(1) for row in normal(8, 12, 5)], 4, 0.6
    found = tdds(changes_of(rows), window, decay)
    for i in range(12):
        d = [
            sum(
                abs(q * (math.log(q + 1e-8) - math.log(p + 1e-8)))
                for p, q in zip(rows[t][i].tolist(), rows[t + 1][i].tolist(), strict=True)
            )
            for t in range(7)
        ]
        score = 0.0
        for k in range(8 - window + 1):
            some = d[k : k + window - 1]
            mean = sum(some) / len(some)
            score += decay * (1 - decay) ** (8 - window - k) * math.sqrt(sum((x - mean) ** 2 for x in some))
        assert found[i].item() == pytest.approx(score, rel=1e-12)


def test_tdds_weighs_the_last_windows_most():
    # one window at a time differs from constant changes: its weight is what is left
    window, weights = 3, []
    for k in range(3):
        spread = [0.0] * 4
        spread[k] = 1.0
        changes = torch.tensor(spread, dtype=torch.float64)[:, None]
        parts = [changes[start : start + window - 1].var(0, correction=0).mul(2).sqrt().item() for start in range(3)]
        weights.append((tdds(changes, window, 0.9).item(), parts))
    for score, parts in weights:
        expected = sum(w * part for w, part in zip([0.009, 0.09, 0.9], parts, strict=True))
        assert score == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("window", [2, 5])
def test_tdds_refuses_a_window_that_says_nothing_or_does_not_fit(window):
    with pytest.raises(UsageError, match=f"window={window}"):
        tdds(torch.ones(3, 2), window, 0.9)


# ---- CAD ----------------------------------------------------------------------------------------------------------

A = (0.9, 0.8, 0.6, 0.4, 0.3, 0.25)
SCORES = torch.tensor([A, [0.9] * 6, [0.9, 0.5] * 3], dtype=torch.float64).T


def test_cad_of_worked_scores():
    column = SCORES[[*range(6), 5], :1]  # one epoch more, because the last one never counts
    deviations = [uncertainty(column[: k + 5], 4, 1).item() for k in range(3)]
    assert deviations == pytest.approx([0.2217, 0.2217, 0.1548], abs=5e-5)
    assert uncertainty(SCORES, 4, 2).tolist() == pytest.approx([0.2217, 0, 0.2309], abs=5e-5)


def test_cad_ignores_the_last_epoch():
    other = SCORES.clone()
    other[-1] = torch.tensor([0.0, 1.0, 0.2])
    assert torch.equal(uncertainty(SCORES, 4, 2), uncertainty(other, 4, 2))
    other[-2] = 0
    assert not torch.equal(uncertainty(SCORES, 4, 2), uncertainty(other, 4, 2))


def test_cad_is_the_formula_in_slow_loops():
    scores, window, windows = normal(11, 20), 5, 3
    found = uncertainty(scores, window, windows)
    for i in range(20):
        spans = [scores[k : k + window, i].tolist() for k in range(11 - window - windows, 11 - window)]
        assert found[i].item() == pytest.approx(sum(np.std(span, ddof=1) for span in spans) / windows, rel=1e-12)


def test_cad_refuses_too_few_epochs():
    with pytest.raises(UsageError, match=r"6 recorded epochs are fewer than the 5 \+ 2"):
        uncertainty(SCORES, 5, 2)


# ---- ranking ------------------------------------------------------------------------------------------------------


def test_equal_scores_rank_by_index():
    assert ranked(torch.tensor([1.0, 2.0, 1.0, math.inf, 2.0, 1.0])).tolist() == [3, 1, 4, 0, 2, 5]


def test_balanced_budgets_are_met_without_duplicates_and_are_prefixes():
    labels, scores = torch.arange(60) % 3, normal(60).round()
    few, many = best_of_each(scores, labels, [4, 2, 3]), best_of_each(scores, labels, [8, 4, 20])
    for c, (some, more) in enumerate(zip(few, many, strict=True)):
        assert torch.equal(more[: len(some)], some)
        assert (labels[more] == c).all()
        assert len(more.unique()) == len(more)
        left = [i for i in range(60) if labels[i] == c and i not in more.tolist()]
        keys = sorted([(-scores[i].item(), i) for i in more.tolist()])
        assert [i for _, i in keys] == more.tolist()
        assert not left or min((-scores[i].item(), i) for i in left) > keys[-1]
    assert sorted(torch.cat(best_of_each(scores, labels, [20, 20, 20])).tolist()) == list(range(60))


def test_the_best_of_all_are_grouped_by_class_in_order():
    labels, scores = torch.tensor([1, 0, 1, 0, 2]), torch.tensor([5.0, 1.0, 7.0, 6.0, 2.0])
    kept = best(scores, 4)
    assert kept.tolist() == [2, 3, 0, 4]
    assert grouped(kept, labels).tolist() == [3, 2, 0, 4]


def test_the_share_of_images_that_only_the_order_of_ties_decides():
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0])
    assert tied(scores, torch.tensor([0, 2, 3])) == pytest.approx(2 / 3)
    assert tied(scores, torch.tensor([0])) == 0
    assert tied(scores, torch.arange(5)) == 0
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert tied_of_each(scores, labels, torch.tensor([0, 2, 3])) == pytest.approx(1 / 3)


# ---- CCS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "sizes", "expected"), [(20, [1, 0, 30, 5, 100], [1, 0, 7, 5, 7]), (7, [3, 3, 3], [2, 2, 3])]
)
def test_budgets_of_worked_strata(total, sizes, expected):
    assert budgets(sizes, total) == expected


def test_budgets_that_the_strata_cannot_meet_are_refused():
    with pytest.raises(UsageError, match="45 short"):
        budgets([2, 3], 50)


def test_strata_of_worked_scores():
    assert strata(torch.tensor([0, 0.1, 0.2, 0.9, 1]), 50).tolist() == [0, 4, 9, 44, 49]


def test_strata_are_those_of_a_slow_search():
    scores = normal(80)
    low, high = scores.min().item(), 1.0001 * scores.max().item()
    edges = [low + k * (high - low) / 7 for k in range(8)]
    expected = [max(k for k in range(7) if edges[k] <= s) for s in scores.tolist()]
    assert strata(scores, 7).tolist() == expected


def test_every_image_can_be_drawn_if_all_scores_are_negative():
    scores = -normal(30).abs() - 1
    assert strata(scores, 10).tolist().count(9) >= 1
    drawn = covering(scores, scores, 30, 0.0, 10, generator(0, "draw"))
    assert sorted(drawn.tolist()) == list(range(30))


def test_equal_scores_are_one_stratum():
    assert strata(torch.full((4,), -0.5), 50).tolist() == [0] * 4
    assert strata(torch.zeros(4), 50).tolist() == [0] * 4


def test_ccs_drops_the_lowest_margins_whatever_the_score():
    margin, score = normal(1000), normal(1000, seed=1)
    chosen = covering(score, margin, 100, 0.3, 50, generator(0, "draw"))
    dropped = margin.argsort(stable=True)[:300]
    assert len(dropped) == 300
    assert len(chosen.unique()) == len(chosen) == 100
    assert not set(chosen.tolist()) & set(dropped.tolist())
    # the strata are those of the survivors, and each gives what `budgets` says
    stay = hard_cut(margin, 0.3)
    stratum = dict(zip(stay.tolist(), strata(score[stay], 50).tolist(), strict=True))
    sizes = [list(stratum.values()).count(k) for k in range(50)]
    drawn = [stratum[i] for i in chosen.tolist()]
    assert [drawn.count(k) for k in range(50)] == budgets(sizes, 100)


def test_ccs_draws_differ_by_seed_only():
    margin = normal(200)
    draws = [covering(margin, margin, 20, 0.1, 10, generator(seed, "draw")) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_ccs_refuses_a_cutoff_that_leaves_too_few():
    with pytest.raises(UsageError, match=r"cutoff=0.95 drops 950 of 1000 images.*cutoff=0.9 at most"):
        covering(normal(1000), normal(1000), 100, 0.95, 50, generator(0, "draw"))


def test_the_cut_is_not_one_short_by_rounding():
    assert len(hard_cut(normal(100), 0.29)) == 71
