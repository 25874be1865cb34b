"""AST's smooth experts: the penalty in closed form, the rising factor, the training of one by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.rng import generator
from dd.training import ExpertSettings, trajectories
from dd.training.experts import expert_fit
from dd.training.penalty import gradient_penalty
from dd.views.dsa import augment

DSA = "color_crop_cutout_flip_scale_rotate"
SETTINGS = ExpertSettings(
    count=2, epochs=4, lr=0.02, momentum=0.9, weight_decay=1e-3, batch=24, kind="ast", clip=2, penalty=0.5
)


def slope_of(weights, x):
    """Derivative of the summed outputs of a linear network, by autograd."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(torch.einsum("kchw,nchw->nk", weights, x).sum(), x)[0]


def test_the_penalty_of_a_linear_network_in_closed_form():
    rng = generator(0)
    weights = torch.randn(5, 3, 4, 4, generator=rng, dtype=torch.float64)
    x = torch.randn(7, 3, 4, 4, generator=rng, dtype=torch.float64)
    by_hand = (weights.sum(0).square().sum(0).sqrt() - 1).square().mean()
    assert gradient_penalty(slope_of(weights, x)).item() == pytest.approx(by_hand.item(), rel=1e-12)
    columns = weights.sum(0)
    unit = columns / columns.square().sum(0).sqrt()
    assert gradient_penalty(slope_of(unit.unsqueeze(0), x)).item() < 1e-25


def test_the_penalty_where_the_slope_is_zero_has_a_gradient():
    slope = torch.zeros(2, 1, 3, 3, requires_grad=True)
    value = gradient_penalty(slope)
    assert value == 1
    assert torch.autograd.grad(value, slope)[0].isfinite().all()


def test_factors_are_the_published_ones():
    published = ExpertSettings(kind="ast", epochs=50, momentum=0.9)
    fit = expert_fit(published, 50_000, "none")
    assert fit.factors == pytest.approx([0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95])
    assert [fit.factor(epoch) for epoch in (9, 10, 49)] == pytest.approx([0.95, 1, 1])
    assert fit.decay_at == (27 * 196,)  # after the epoch with index 26
    assert fit.decay == 0.6
    assert fit.penalty == 2
    plain = expert_fit(replace(published, kind="sgd"), 50_000, "none")
    assert (plain.factors, plain.decay_at, plain.penalty) == ((), (), 0)
    assert expert_fit(replace(published, clip=0), 50_000, "none").factors == ()


def test_a_factor_is_a_factor_of_the_learning_rate(make_task, blobs, tmp_path):
    # without momentum and weight decay: one epoch at factor 1/2 is one at half the learning rate
    task = make_task(blobs(strategy=DSA))
    plain = ExpertSettings(count=1, epochs=1, lr=0.03, batch=24)
    half = trajectories(task, replace(plain, kind="ast", clip=1, penalty=0.0, decay=1.0)).snapshots[0]
    slow = trajectories(task, replace(plain, lr=0.015)).snapshots[0]
    assert torch.allclose(half, slow, rtol=1e-5, atol=1e-7)
    assert (half[1] - half[0]).norm() > 1e-3


def test_a_smooth_expert_by_hand(make_task, blobs):
    task = make_task(blobs(strategy=DSA))
    kept = trajectories(task, SETTINGS).snapshots[1]
    network, theta, velocity = task.functional(), kept[0], None
    for epoch in range(4):
        draws = generator(0, "expert", 1, "augment", epoch)
        order = torch.randperm(128, generator=generator(0, "expert", 1, "order", epoch))
        if epoch == 4 // 2 + 2:
            velocity = None
        for index in order.split(24):
            images, labels = task.data.train.images(index), task.data.train.labels[index]
            leaf, pixels = theta.clone().requires_grad_(), images.clone().requires_grad_()
            total = sum(network(leaf, pixels[i : i + 1]).sum() for i in range(len(index)))
            (slope,) = torch.autograd.grad(total, pixels, create_graph=True)
            penalty = ((slope.square().sum(1).sqrt() - 1) ** 2).mean()
            loss = F.cross_entropy(network(leaf, augment(DSA, images, draws)), labels)
            factor = (0.5, 0.75, 1, 1)[epoch]
            (g,) = torch.autograd.grad(factor * loss + 0.5 * penalty, leaf)
            g = g + 1e-3 * theta
            velocity = g if velocity is None else 0.9 * velocity + g
            theta = theta - 0.02 * velocity
        assert (kept[epoch + 1] - theta).norm() < 1e-3 * (theta - kept[0]).norm(), epoch


def test_the_learning_rate_falls_once_and_momentum_begins_anew(make_task, blobs):
    task = make_task(blobs())
    settings = replace(SETTINGS, epochs=5, clip=0, penalty=0.0, augment=False, count=1, decay=0.25)
    whole = trajectories(task, settings).snapshots[0]
    # the last epoch (index 4) of plain SGD from the snapshot before it
    network, theta, velocity = task.functional(), whole[4], torch.zeros(whole.shape[1])
    order = torch.randperm(128, generator=generator(0, "expert", 0, "order", 4))
    for index in order.split(24):
        leaf = theta.clone().requires_grad_()
        loss = F.cross_entropy(network(leaf, task.data.train.images(index)), task.data.train.labels[index])
        velocity = 0.9 * velocity + torch.autograd.grad(loss, leaf)[0] + 1e-3 * theta
        theta = theta - 0.02 * 0.25 * velocity
    assert (whole[5] - theta).norm() < 1e-4 * (whole[5] - whole[4]).norm()
