"""`task=nas`: the search space, rank correlations, and what every ranking is made of."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import stats

from dd.errors import UsageError
from dd.evaluation import Protocol
from dd.evaluation.arms import control_arm, full_arm, set_arm
from dd.evaluation.downstream.agreement import agreement, agreement_gap, best_of
from dd.evaluation.downstream.nas import ArchitectureSearch, search_space
from dd.evaluation.evaluate import Evaluator, student_passes
from dd.networks import NetworkSpec, build_network
from dd.rng import generator
from dd.runs.store import nothing_made
from dd.sets import DistilledSet

BRIEF = Protocol(steps=4, students=2, batch=16, lr=0.05, full=False, full_students=2)
FEW = ArchitectureSearch(sample=3, top=1.0, reference_epochs=1)


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(per_class=8, holdout=8, noise=1.5))


def made(task, lr=None):
    return DistilledSet(
        images=torch.randn(len(task.targets), 1, 8, 8, generator=generator(0, "set")),
        labels=task.targets,
        classes=task.data.classes,
        source="blobs",
        source_fingerprint=task.data.fingerprint,
        space=task.data.preprocess.spec(),
        lr=lr,
    )


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


# --- the space (check 35) --------------------------------------------------------------------------------------------


def test_the_published_space_is_720_different_convnets():
    every = search_space("dc")
    assert len(set(every)) == len(every) == 720
    assert {spec.width for spec in every} == {32, 64, 128, 256}
    assert {spec.depth for spec in every} == {1, 2, 3, 4}
    assert {spec.norm for spec in every} == {"none", "batch", "layer", "instance", "group"}
    assert {spec.activation for spec in every} == {"sigmoid", "relu", "leakyrelu"}
    assert {spec.pooling for spec in every} == {"none", "max", "avg"}
    assert {spec.arch for spec in every} == {"convnet"}
    assert len(set(search_space("small"))) == 405


def test_all_of_it_is_36_in_its_top_5_percent(make_task, blobs):
    whole = ArchitectureSearch(space="dc", sample=None)
    specs = whole.architectures(make_task(blobs(size=32, per_class=2)))
    assert len(set(specs)) == 720
    assert round(whole.top * len(specs)) == 36


@pytest.mark.parametrize("number", [0, 101, 404])
def test_its_networks_give_logits(number):
    spec = search_space("small")[number]
    network = build_network(spec, channels=1, size=28, classes=10, generator=generator(0, "it"))
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_sample_is_drawn_with_the_seed_and_contains_a_smaller_one(task):
    few, more = (ArchitectureSearch(sample=n).architectures(task) for n in (5, 20))
    assert more[:5] == few
    assert len(set(more)) == 20
    assert ArchitectureSearch(sample=20).architectures(replace(task, seed=1)) != more
    assert len(ArchitectureSearch(sample=9999).architectures(task)) == 405
    with pytest.raises(UsageError, match=r"nas\.space=dc does not fit these images: student\.depth=4"):
        ArchitectureSearch(space="dc", sample=None).architectures(task)


# --- rank correlations (check 35) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 10, 1000])
def test_correlations_are_scipys_with_ties(levels):
    rng = np.random.default_rng(levels)
    proxies, truth = rng.integers(levels, size=(4, 30)) / levels, rng.integers(levels, size=30) / levels
    found = agreement([(torch.tensor(proxy), torch.tensor(truth)) for proxy in proxies])
    expected = [stats.spearmanr(proxy, truth).statistic for proxy in proxies]
    assert found.rho == pytest.approx(expected, abs=1e-12)
    assert found.interval.mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert -1 <= found.interval.low <= found.interval.mean <= found.interval.high <= 1


def test_identical_and_reversed_rankings():
    truth = torch.rand(12, generator=generator(0, "truth"), dtype=torch.float64)
    same, back = agreement([(truth.exp(), truth)]), agreement([(-truth, truth)])
    assert same.rho == pytest.approx((1.0,))
    assert (same.interval.low, same.interval.high) == pytest.approx((1.0, 1.0))
    assert back.rho == pytest.approx((-1.0,))
    assert (back.interval.low, back.interval.high) == pytest.approx((-1.0, -1.0))
    gap = agreement_gap([(truth, truth)], [(-truth, truth)])
    assert (gap.mean, gap.low, gap.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_resamples_architectures_for_all_seeds_at_once():
    """Against a slow loop: coverage of NumPy's own resamples of the same statistic."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=15)
    proxies = truth + rng.normal(size=(3, 15))
    found = agreement([(torch.tensor(proxy), torch.tensor(truth)) for proxy in proxies]).interval
    draws = []
    for _ in range(600):
        index = rng.integers(15, size=15)
        draws.append(np.mean([stats.spearmanr(proxy[index], truth[index]).statistic for proxy in proxies]))
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.08)


def test_a_gap_pairs_the_architectures():
    rng = np.random.default_rng(1)
    truth, noise = rng.normal(size=20), rng.normal(size=20)
    one = [(torch.tensor(truth + noise), torch.tensor(truth))]
    other = [(torch.tensor(truth + 1.2 * noise), torch.tensor(truth))]
    gap = agreement_gap(one, other)
    assert gap.mean == pytest.approx(agreement(one).rho[0] - agreement(other).rho[0], abs=1e-12)
    alone = agreement(one).interval
    assert gap.high - gap.low < (alone.high - alone.low) / 2
    same = agreement_gap(one, one)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_what_is_not_determined_is_not_a_number():
    truth = values(1, 2, 3, 4)
    assert agreement([(values(5, 5, 5, 5), truth)]).rho == (None,)
    assert agreement([(values(5, 5, 5, 5), truth)]).interval is None
    mixed = agreement([(values(5, 5, 5, 5), truth), (truth, truth)])
    assert mixed.rho == (None, pytest.approx(1.0))
    assert (mixed.interval.mean, mixed.interval.low) == (pytest.approx(1.0), None)  # four: too few for ends
    two = [(values(1, 2), values(1, 2))]
    assert agreement(two).rho == (None,)
    assert agreement_gap(two, two) is None


def test_the_best_of_a_proxy_are_its_first_of_equal_ones():
    proxy, truth = values(3, 9, 9, 1, 9), values(10, 20, 30, 40, 50)
    assert best_of((proxy, truth), 1)[1].tolist() == [20]
    assert best_of((proxy, truth), 3)[1].tolist() == [20, 30, 50]
    assert best_of((proxy, truth), 5)[0].tolist() == [9, 9, 9, 3, 1]


# --- the search ------------------------------------------------------------------------------------------------------


class Unseen:
    """A split that must not be read."""

    def __init__(self, split):
        self.labels = split.labels

    def __len__(self):
        return len(self.labels)


def test_every_ranking_by_hand_and_kept(task):
    small, evaluator = made(task), Evaluator(task, BRIEF)
    report = FEW.measure(small, evaluator)
    assert list(report.proxies) == ["accuracy", "control", "early"]
    longer = replace(BRIEF, steps=None, epochs=1)
    early = replace(BRIEF, steps=round(4 * 8 / 16))  # 4 steps of 8 images are 2 of 16
    arms = {
        "accuracy": (set_arm("it", small, task.data.preprocess), BRIEF),
        "control": (control_arm(task), BRIEF),
        "early": (full_arm(task.data, 16), early),
    }
    with nothing_made():
        for number, fields in enumerate(report.architectures):
            there = replace(task, student=NetworkSpec(**fields))
            for key, (arm, protocol) in arms.items():
                held = Evaluator(there, protocol).held_out(arm, 0.05, 2)
                assert tuple(seed[number] for seed in report.proxies[key].holdout) == held
            truth = Evaluator(there, longer).score(full_arm(task.data, 16), 0.05, 2)
            assert tuple(one[number] for one in report.reference.test) == truth.values
            assert report.reference.means[number] == pytest.approx(truth.mean)
        again = FEW.measure(small, Evaluator(task, BRIEF))
    assert again.to_dict() == report.to_dict()


def test_proxies_look_at_no_test_image(task):
    """Nothing but the reference is scored on them; its own students are kept from before."""
    small = made(task)
    FEW.measure(small, Evaluator(task, BRIEF))
    blind = replace(task, data=replace(task.data, test=Unseen(task.data.test)))
    other = replace(small, images=small.images + 1)
    report = FEW.measure(other, Evaluator(blind, BRIEF))
    assert len(report.proxies["accuracy"].holdout) == 2


def test_numbers_of_the_report_by_hand(task):
    report = FEW.measure(made(task), Evaluator(task, BRIEF))
    means = np.mean(report.reference.test, axis=0)
    for key, proxy in report.proxies.items():
        best = [means[int(np.argmax(seed))] for seed in proxy.holdout]
        assert report.found(key).values == pytest.approx(best)
        expected = [stats.spearmanr(seed, means).statistic for seed in proxy.holdout if len(set(seed)) > 1]
        assert [rho for rho in report.over_all(key).rho if rho is not None] == pytest.approx(expected)
        assert report.over_top(key) == report.over_all(key)  # nas.top=1
        assert proxy.seconds > 0
    assert report.reference.best == int(np.argmax(np.mean(report.reference.holdout, axis=0)))
    assert report.reference.images == 32
    assert all(len(row) == len(report.headings()) for row in report.rows())
    assert [row[0] for row in report.rows()][-2:] == ["32 real images, seed by seed", "any, on average"]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["proxies"]["control"]["found"]["n"] == 2
    assert plain["settings"] == asdict(FEW)


def test_a_reference_larger_than_a_class_is_refused_before_a_student_is_trained(task):
    fewest = int(torch.bincount(task.data.train.labels.cpu()).min())
    with (
        nothing_made(),
        pytest.raises(UsageError, match=rf"nas\.reference={fewest + 1}, but a class has only {fewest} "),
    ):
        replace(FEW, reference=fewest + 1).measure(made(task), Evaluator(task, BRIEF))


def test_a_smaller_reference_and_learned_rates(task):
    few = replace(FEW, reference=3, reference_epochs=None)
    report = few.measure(made(task, lr=0.2), Evaluator(task, replace(BRIEF, students=1)))
    assert report.reference.images == 12
    there = replace(task, student=NetworkSpec(**report.architectures[0]))
    with nothing_made():
        arm = control_arm(replace(task, targets=torch.arange(4).repeat_interleave(3)))
        truth = Evaluator(there, replace(BRIEF, students=1)).score(arm, 0.05, 2)
        held = Evaluator(there, BRIEF).held_out(set_arm("it", made(task, lr=0.2), task.data.preprocess), 0.2, 1)
    assert tuple(one[0] for one in report.reference.test) == truth.values
    assert report.proxies["accuracy"].holdout[0][0] == held[0]


def test_the_work_is_that_of_every_student(task):
    evaluator = Evaluator(task, BRIEF)
    found = list(FEW.work(made(task), evaluator))
    assert [one.task.student for one, _ in found] == list(FEW.architectures(task))
    passes = [
        student_passes(Evaluator(task, replace(BRIEF, **length)), n)
        for length, n in (({}, 8), ({}, 8), ({"steps": 2}, 32), ({"steps": None, "epochs": 1}, 32))
    ]
    assert {images for _, images in found} == {2 * sum(passes[:3]) + 2 * passes[3]}


def test_without_held_out_images_there_is_no_search(make_task, blobs):
    task = make_task(blobs(holdout=0))
    with pytest.raises(UsageError, match="no held-out images"):
        FEW.measure(made(task), Evaluator(task, BRIEF))
