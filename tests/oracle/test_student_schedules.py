"""How students are trained beyond SGD in steps: optimisers, schedules, pieces of a batch, distillation's loss."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dd.evaluation import PROTOCOLS
from dd.networks import NetworkSpec, build_network
from dd.rng import generator
from dd.training import Fit, Trainer
from dd.training.criteria import CrossEntropy

SHAPE, CLASSES, PATH = (2, 8, 8), 4, (3, "somebody", 1)


def builder(dtype=torch.float64, norm="instance"):
    spec = NetworkSpec(depth=2, width=4, norm=norm)
    return lambda rng: build_network(spec, channels=2, size=8, classes=CLASSES, generator=rng).to(dtype)


def data(dtype=torch.float64, n=22):
    rng = generator(0, "data")
    images = torch.randn(n, *SHAPE, generator=rng, dtype=torch.float64).to(dtype)
    return images, torch.randn(n, CLASSES, generator=rng, dtype=torch.float64).softmax(1).to(dtype)


def batches_of(images, targets, size=6):
    def batches(rng, _):
        for index in torch.randperm(len(images), generator=rng).split(size):
            yield images[index], targets[index]

    return batches


def trained(fit, dtype=torch.float64, norm="instance"):
    network = next(Trainer(builder(dtype, norm)).train([PATH], batches_of(*data(dtype)), fit))
    return {name: value.clone() for name, value in network.state_dict().items()}


def by_torch(fit, optimiser_of, schedule_of, dtype=torch.float64, norm="instance"):
    """A module, an optimiser and a scheduler of torch, stepped after every batch."""
    network = builder(dtype, norm)(generator(*PATH, "weights"))
    optimiser = optimiser_of(network)
    schedule, step = schedule_of(optimiser), 0
    for done in range(99):
        for images, targets in batches_of(*data(dtype))(generator(*PATH, "order", done), done):
            if step == fit.steps:
                return network.state_dict()
            optimiser.zero_grad()
            fit.criterion(network(images), targets).backward()
            optimiser.step()
            schedule.step()
            step += 1
    raise AssertionError


def same(ours, theirs, tolerance=1e-12):
    assert all(torch.allclose(ours[k], theirs[k].to(ours[k].dtype), atol=tolerance, rtol=0) for k in theirs)


def adamw(network):
    return torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.05)


def test_adamw_halved_at_every_fifth_is_torchs_and_loses_no_memory():
    """NCFM's schedule is x 0.5 at E/5, 2E/5, 3E/5, 4E/5."""
    protocol = replace(PROTOCOLS["ncfm"], epochs=10, batch=6, weight_decay=0.05)
    fit = protocol.fit(22, 0.01, "none")  # 4 steps a pass
    assert fit.steps == 40
    assert fit.decay_at == (8, 16, 24, 32)
    assert [fit.rate(s) for s in (0, 7, 8, 16, 39)] == pytest.approx([0.01, 0.01, 0.005, 0.0025, 0.01 / 16])
    step_lr = lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [8, 16, 24, 32], 0.5)  # noqa: E731
    same(trained(fit), by_torch(fit, adamw, step_lr))
    forgetful = trained(replace(fit, keep_state=False))
    assert not torch.allclose(forgetful["classifier.weight"], trained(fit)["classifier.weight"], atol=1e-4)


@pytest.mark.parametrize("span", [1.0, 2.0])
def test_the_cosine_ends_at_zero_or_at_half(span):
    """Oracle 40: lr/2 (1 + cos(pi e / (span E)))."""
    fit = Fit(300, 1.0, optimiser="adamw", cosine=span)
    rates = [fit.rate(step) for step in range(301)]
    assert rates == pytest.approx([(1 + math.cos(math.pi * e / (span * 300))) / 2 for e in range(301)])
    worked = (1.0, 0.8536, 0.5026) if span == 2 else (1.0, 0.5, 2.74e-5)
    assert [rates[epoch] for epoch in (0, 150, 299)] == pytest.approx(worked, rel=1e-3)
    short = Fit(20, 0.01, weight_decay=0.05, optimiser="adamw", cosine=span)
    along = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: short.rate(e) / 0.01)  # noqa: E731
    same(trained(short), by_torch(short, adamw, along))


def test_nesterov_with_a_cosine_to_a_least_rate_is_torchs():
    """DeepCore's training of a subset: Nesterov, and a cosine from lr to eta_min, stepped after every batch."""
    fit = Fit(20, 0.05, momentum=0.9, weight_decay=5e-4, optimiser="nesterov", cosine=1.0, min_lr=0.01)
    sgd = lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)  # noqa: E731
    cosine = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.01)  # noqa: E731
    same(trained(fit), by_torch(fit, sgd, cosine))
    for other in (replace(fit, optimiser="sgd"), replace(fit, min_lr=0.0)):
        assert not torch.allclose(trained(other)["classifier.weight"], trained(fit)["classifier.weight"], atol=1e-4)


def test_a_warm_up_rises_in_a_line_before_the_cosine():
    fit = Fit(110, 0.2, momentum=0.9, cosine=1.0, warmup=10)
    assert fit.rate(0) == pytest.approx(0.002)
    assert fit.rate(5) == pytest.approx(0.2 * 0.505)
    assert fit.rate(10) == pytest.approx(0.2)
    assert fit.rate(60) == pytest.approx(0.1)


def test_vectors_are_spared_from_weight_decay():
    fit = Fit(12, 0.01, weight_decay=0.5, optimiser="adamw", spare_vectors=True)

    def by_hand(network):
        named = dict(network.named_parameters())
        matrices = [p for p in named.values() if p.dim() > 1]
        vectors = [p for p in named.values() if p.dim() == 1]
        assert len(vectors) > 3
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5)

    constant = lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)  # noqa: E731
    same(trained(fit), by_torch(fit, by_hand, constant))
    everywhere = trained(replace(fit, spare_vectors=False))
    assert not torch.allclose(everywhere["classifier.bias"], trained(fit)["classifier.bias"], atol=1e-6)


def test_pieces_of_a_batch_add_up_to_its_step():
    """Oracles 41, 42: the mean over all images, also where the last piece is short; batch norm sees the pieces."""
    whole, pieces = Fit(9, 0.1, momentum=0.9), Fit(9, 0.1, momentum=0.9, micro=4)
    same(trained(pieces), trained(whole))
    ours = trained(pieces, norm="batch")
    network = builder(norm="batch")(generator(*PATH, "weights"))
    optimiser, step = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), 0
    for done in range(3):
        for images, targets in batches_of(*data())(generator(*PATH, "order", done), done):
            if step == 9:
                break
            optimiser.zero_grad()
            parts = zip(images.split(4), targets.split(4), strict=True)
            sum(F.cross_entropy(network(x), y, reduction="sum") / len(images) for x, y in parts).backward()
            optimiser.step()
            step += 1
    same(ours, network.state_dict())
    assert int(ours["features.0.norm.num_batches_tracked"]) == 16  # two pieces a batch, one of the last of a pass
    assert not torch.allclose(ours["classifier.weight"], trained(whole, norm="batch")["classifier.weight"], atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_hot_probabilities_are_their_classes(temperature):
    z = torch.randn(5, 7, generator=generator(0, "logits"), dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([3, 0, 6, 6, 2])
    criterion = CrossEntropy(temperature)
    hard, soft = criterion(z, classes), criterion(z, F.one_hot(classes, 7).double())
    torch.testing.assert_close(soft, hard, rtol=1e-14, atol=0)
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (hard, soft)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_soft_cross_entropy_has_the_gradient_of_the_divergence():
    """KL(p_T || q_T) by its definition, with T^2 and without (oracle 36)."""
    rng = generator(0, "logits")
    student = torch.randn(5, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, generator=rng, dtype=torch.float64)
    for t in (1.0, 4.0, 20.0):
        p, q = (teacher / t).softmax(1), (student / t).softmax(1)
        divergence = (p * (p.log() - q.log())).sum() / 5
        (expected,) = torch.autograd.grad(divergence, student)
        for squared in (False, True):
            loss = CrossEntropy(t, squared)(student, p)
            (ours,) = torch.autograd.grad(loss, student)
            torch.testing.assert_close(ours, (t**2 if squared else 1) * expected)
    shifted = student.detach() + 3.0
    zero = CrossEntropy(4.0)(shifted.requires_grad_(), (student.detach() / 4).softmax(1))
    assert float(torch.autograd.grad(zero, shifted)[0].abs().max()) < 1e-12  # logits that differ by a constant
