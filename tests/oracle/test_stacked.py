"""Networks trained at once against the same networks one after another."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from dd.errors import UsageError
from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator
from dd.training import ExpertSettings, Fit, StackedTrainer, Trainer, trajectories

DSA = "color_crop_cutout_flip_scale_rotate"
PATHS = [(3, "expert", member) for member in range(3)]
KINDS = {
    "sgd": {"momentum": 0.9, "weight_decay": 1e-3},
    "ftd": {"sam": (0.1, 0.3)},
    "ast": {"momentum": 0.9, "factors": (0.5, 0.75), "penalty": 0.5, "decay_at": (12,), "momentum_after": 0.8},
}


def make(rng, dtype):
    return build_network(NetworkSpec(depth=2, width=4), channels=1, size=8, classes=4, generator=rng).to(dtype)


def batches(split, dtype, rng, _):
    for images, targets in split.batches(24, rng):
        yield images.to(dtype), targets


def both(split, fit, dtype):
    """(networks, P) at once and one after another."""
    network = Functional(make(generator(0), dtype))
    data, factory = partial(batches, split, dtype), partial(make, dtype=dtype)
    stacked = StackedTrainer(factory).train(PATHS, data, fit)
    single = torch.stack([network.flatten(net) for net in Trainer(factory).train(PATHS, data, fit)])
    fresh = torch.stack([network.flatten(factory(generator(*path, "weights"))) for path in PATHS])
    return stacked, single, fresh


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_in_double_precision(blobs, kind):
    fit = Fit(steps=20, lr=0.05, strategy=DSA, **KINDS[kind])
    stacked, single, fresh = both(blobs(strategy=DSA).train, fit, torch.float64)
    assert (stacked - single).abs().max() < 1e-12
    assert ((single - fresh).norm(dim=1) > 0.05).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_in_single_precision(blobs, kind):
    fit = Fit(steps=1, lr=0.05, strategy=DSA, **KINDS[kind])
    stacked, single, fresh = both(blobs(strategy=DSA).train, fit, torch.float32)
    assert (stacked - single).abs().max() < 1e-5
    assert ((single - fresh).norm(dim=1) > 1e-3).all()


def test_a_network_depends_neither_on_how_many_there_are_nor_on_its_place(blobs):
    split, fit = blobs(strategy=DSA).train, Fit(steps=8, lr=0.05, strategy=DSA, momentum=0.9)

    def trained(members):
        paths = [(3, "expert", member) for member in members]
        data, factory = partial(batches, split, torch.float64), partial(make, dtype=torch.float64)
        return StackedTrainer(factory).train(paths, data, fit)

    five = trained(range(5))
    assert (trained(range(3)) - five[:3]).abs().max() < 1e-12
    assert (trained([4, 2, 0, 1, 3]) - five[[4, 2, 0, 1, 3]]).abs().max() < 1e-12
    assert min(float((five[i] - five[j]).norm()) for i in range(5) for j in range(i)) > 0.05


def test_what_networks_would_share_is_refused(blobs):
    """One mask of dropout for all of them, or running statistics, of which a row of parameters has none."""
    data, fit = partial(batches, blobs().train, torch.float32), Fit(steps=1, lr=0.05)
    with pytest.raises(RuntimeError, match="randomness"):
        StackedTrainer(lambda rng: nn.Sequential(make(rng, torch.float32), nn.Dropout(0.5))).train(PATHS, data, fit)
    spec = NetworkSpec(depth=2, width=4, norm="batch")
    with pytest.raises(UsageError, match="keeps running statistics"):
        StackedTrainer(lambda rng: build_network(spec, channels=1, size=8, classes=4, generator=rng))


def test_pools_are_alike(make_task, blobs):
    task, settings = make_task(blobs(strategy=DSA)), ExpertSettings(count=3, epochs=3, lr=0.05, batch=24)
    single, stacked = (trajectories(task, replace(settings, stack=stack)) for stack in (1, 2))
    for one, other in zip(single.snapshots, stacked.snapshots, strict=True):
        assert one.shape == other.shape
        assert torch.equal(one[0], other[0])
        assert (one - other).norm() < 1e-3 * (one[-1] - one[0]).norm()
        assert not any(torch.equal(other[i], other[j]) for i in range(4) for j in range(i))
    assert stacked.holdout == pytest.approx(single.holdout, abs=13)  # at most one or two of sixteen images differ


def test_the_company_of_an_expert_is_of_no_account(make_task, blobs, tmp_path):
    task, settings = make_task(blobs(strategy=DSA)), ExpertSettings(count=4, epochs=2, batch=24, stack=2)
    other = make_task(blobs(strategy=DSA))
    pairs, three = trajectories(task, settings), trajectories(other, replace(settings, stack=3))
    for one, another in zip(pairs.snapshots, three.snapshots, strict=True):
        assert (one - another).abs().max() < 1e-4
