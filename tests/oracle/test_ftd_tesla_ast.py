"""FTD's average, TESLA's labels and AST's five changes against closed forms and slow loops."""

import importlib
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dd.engine.method import Synthetic
from dd.engine.registry import get
from dd.engine.synthesise import synthesise
from dd.engine.unroll import FrozenAdjoint, FullGraph, Stepwise
from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator
from dd.selection.kmeans import representatives
from dd.training import ExpertSettings, Trajectories

matching = importlib.import_module("dd.methods.trajectory._matching")
MTT, FTD, TESLA, AST = (get(name) for name in ("mtt", "ftd", "tesla", "ast"))
ast = sys.modules[AST.__module__]
EXPERTS = ExpertSettings(count=3, epochs=5)
SMALL = {"iterations": 3, "steps": 6, "start_max": 3, "lr_img": 5.0, "lr_lr": 1e-6, "lr_init": 0.05, "experts": EXPERTS}


def network_for(classes=4, size=8, width=4):
    return Functional(
        build_network(NetworkSpec(depth=1, width=width), channels=1, size=size, classes=classes, generator=generator(0))
    )


def prepared_for(backprop=None, experts=3, epochs=5, scale=0.02):
    network, rng = network_for(), generator(0, "walks")
    first = network.flatten(network.module)
    walks = tuple(
        first + scale * torch.randn(epochs + 1, network.size, generator=rng).cumsum(0) / network.size**0.5
        for _ in range(experts)
    )
    return sys.modules[MTT.__module__].Prepared(
        Trajectories(walks, (None,) * experts, 0.0), network, backprop or FullGraph()
    )


# --- FTD -------------------------------------------------------------------------------------------------------------


def test_the_average_of_constant_images_is_constant(make_task):
    task, method = make_task(), FTD(**SMALL, ema=0.9)
    syn = method.start(task, prepared_for())
    for _ in range(10):
        method.project(syn, task)
    assert torch.equal(syn.average, syn.images.detach())


@pytest.mark.parametrize(("decay", "n"), [(0.9, 20), (0.9999, 5000)])
def test_the_average_after_a_jump_in_closed_form(make_task, decay, n):
    task, method = make_task(), FTD(**SMALL, ema=decay)
    syn = method.start(task, prepared_for()).double()
    first, second = syn.images.detach().clone(), torch.randn(syn.images.shape, generator=generator(1)).double()
    with torch.no_grad():
        syn.images.copy_(second)
    for _ in range(n):
        method.project(syn, task)
    kept = decay**n
    assert torch.allclose(syn.average, kept * first + (1 - kept) * second, rtol=1e-9, atol=1e-9)
    if n == 5000:
        assert kept == pytest.approx(0.6065, abs=1e-4)


def test_the_average_is_the_result_and_the_images_go_their_own_way(make_task):
    task, prepared = make_task(), prepared_for()
    plain = synthesise(MTT(**SMALL), task, prepared, MTT(**SMALL).start(task, prepared))
    method = FTD(**SMALL, ema=0.5)
    syn = method.start(task, prepared)
    images = [syn.images.detach().clone()]

    class Recorded(FTD):
        def project(self, syn, task):
            super().project(syn, task)
            images.append(syn.images.detach().clone())

    synthesise(Recorded(**SMALL, ema=0.5), task, prepared, syn)
    assert torch.equal(syn.images, plain.images)
    by_hand = images[0]
    for image in images[1:]:
        by_hand = 0.5 * by_hand + 0.5 * image
    made = method.finish(syn, task, prepared)
    assert torch.allclose(made.images, by_hand, atol=1e-6)
    assert not torch.equal(made.images, syn.images.detach())


def test_a_given_start_is_where_the_average_begins(make_task):
    task = make_task()
    syn = FTD(**SMALL).start(task, prepared_for())
    given = torch.randn(syn.images.shape, generator=generator(2))
    syn.take(given, None, 0.3)
    assert torch.equal(syn.images.detach(), given)
    assert torch.equal(syn.average, given)
    assert syn.lr.item() == pytest.approx(0.3)


# --- TESLA -----------------------------------------------------------------------------------------------------------


def test_tesla_takes_the_frozen_adjoint_unless_told_otherwise(make_task):
    task = make_task()
    assert TESLA().backprop == "frozen"
    assert TESLA().settle(task).backprop == "frozen"
    assert TESLA(backprop="auto").settle(task).backprop == "full"
    modes = {name: matching.make_backprop(task, task.functional(), name, 8) for name in ("full", "stepwise", "frozen")}
    assert {name: type(mode) for name, mode in modes.items()} == {
        "full": FullGraph,
        "stepwise": Stepwise,
        "frozen": FrozenAdjoint,
    }


def test_with_an_exact_way_back_it_is_mtt(make_task):
    task, prepared = make_task(), prepared_for()
    ours, theirs = (method.start(task, prepared) for method in (TESLA(**SMALL), MTT(**SMALL)))
    synthesise(TESLA(**SMALL), task, prepared, ours)
    synthesise(MTT(**SMALL), task, prepared, theirs)
    assert torch.equal(ours.images, theirs.images)


def test_labels_of_the_target_by_hand(make_task):
    task, prepared = make_task(), prepared_for()
    method = TESLA(**SMALL, labels="target")
    syn = method.start(task, prepared)
    value = method.loss(syn, task, prepared, 1)["distance"]
    segment = matching.draw_segment(task, prepared.pool, 1, 0, 3, 2)
    with torch.no_grad():
        soft = prepared.network(segment.target, syn.images).softmax(1)
    theta = segment.start
    draws = matching.student_loss(task, prepared.network, 1, [torch.arange(8)] * 6, task.data.augment, None).draws
    for step in range(6):
        leaf = theta.clone().requires_grad_()
        seen = matching.apply(draws[step], syn.images.detach())
        loss = F.cross_entropy(prepared.network(leaf, seen), soft)
        theta = theta - syn.lr.detach() * torch.autograd.grad(loss, leaf)[0]
    by_hand = (theta - segment.target).square().sum() / (segment.start - segment.target).square().sum()
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_finished_set_is_labelled_by_all_experts_at_the_last_target(make_task):
    task, prepared = make_task(), prepared_for()
    method = TESLA(**SMALL, labels="target")
    syn = method.start(task, prepared)
    made = method.finish(syn, task, prepared)
    with torch.no_grad():
        expected = sum(prepared.network(walk[4], syn.images) for walk in prepared.pool.snapshots) / 3
    assert made.label_kind == "logits"
    assert torch.allclose(made.labels, expected, atol=1e-6)
    hard = TESLA(**SMALL).finish(syn, task, prepared)
    assert hard.label_kind == "hard"


# --- AST: the inner loop ---------------------------------------------------------------------------------------------


def test_balance_is_the_published_table():
    assert [ast.balance(s, 20) for s in (0, 9, 10, 19)] == pytest.approx([0.557, 0.732, 1.292, 1.760], abs=1e-3)
    assert ast.balance(0, 20) == pytest.approx(math.log(5) / math.log(18))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_scaled_loss_is_a_scaled_learning_rate(make_task, momentum):
    task, prepared, method = make_task(), prepared_for(), MTT(**SMALL)
    start = prepared.pool.snapshot(0, 0, task.device)
    ends = []
    for lr, scale in ((0.05, 1.7), (0.05 * 1.7, 1.0)):
        syn = Synthetic(torch.randn(8, 1, 8, 8, generator=generator(5)), task.targets, lr=lr)
        loss, variables = method.student(syn, task, prepared, 0, scale=scale)
        ends += FullGraph()(loss, start, syn.lr, variables, steps=6, momentum=momentum)
    assert torch.allclose(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    assert (ends[0] - start).norm() > 1e-3


@pytest.mark.parametrize(
    ("steps", "span", "expected"), [(20, 3, (6, 12)), (20, 1, ()), (20, 2, (10,)), (7, 4, (1, 2, 3))]
)
def test_steps_between(steps, span, expected):
    assert ast.middle_steps(steps, span) == expected


@pytest.mark.parametrize("middle", ["off", "sum", "adaptive"])
@pytest.mark.parametrize("backprop", [FullGraph(), Stepwise()], ids=["full", "stepwise"])
def test_the_objective_by_hand(make_task, middle, backprop):
    task, prepared = make_task(), prepared_for(backprop)
    method = AST(
        **SMALL | {"start_max": 2}, span=3, middle=middle, balance=True, perturb=True, momentum=0.9, start_from="real"
    )
    syn = method.start(task, prepared)
    terms = method.loss(syn, task, prepared, 2)
    segment = matching.draw_segment(task, prepared.pool, 2, 0, 2, 3)
    start = ast.perturbed(segment.start, prepared.network, task.generator("perturbation", 2))
    scale, theta, velocity, thetas = ast.balance(segment.epoch, 2), start, torch.zeros_like(start), []
    for _ in range(6):
        leaf = theta.clone().requires_grad_()
        loss = F.cross_entropy(prepared.network(leaf, syn.images.detach()), task.targets)
        velocity = 0.9 * velocity + scale * torch.autograd.grad(loss, leaf)[0]
        theta = theta - syn.lr.detach() * velocity
        thetas.append(theta)

    def ratio(theta, target):
        return ((theta - target).square().sum() / (start - target).square().sum()).item()

    walk = prepared.pool.snapshots[segment.expert]
    expected = {"distance": ratio(thetas[5], segment.target)}
    for i, step in ((1, 2), (2, 4)):
        weight = {"off": None, "sum": 1.0, "adaptive": i / 3}[middle]
        if weight is not None:
            expected[f"distance at epoch {i}"] = weight * ratio(thetas[step - 1], walk[segment.epoch + i])
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_every_term_is_one_for_a_student_that_does_not_move(make_task):
    task, prepared = make_task(), prepared_for()
    method = AST(**SMALL | {"start_max": 2}, span=3, start_from="real")
    syn = method.start(task, prepared)
    with torch.no_grad():
        syn.lr.fill_(1e-20)
    assert [value.item() for value in method.loss(syn, task, prepared, 0).values()] == pytest.approx([1.0] * 3)


def test_only_kernels_are_perturbed_and_only_a_little():
    network = network_for(width=16)
    theta = network.flatten(network.module) + 0.1
    before, after = (network.unflatten(t) for t in (theta, ast.perturbed(theta, network, generator(3))))
    for name, old in before.items():
        if old.dim() == 4:
            relative = (after[name] - old) / old  # = the noise, of norm 1
            assert relative.norm().item() == pytest.approx(1, rel=1e-4)
            assert ((after[name] - old).norm() / old.norm()).item() == pytest.approx(old.numel() ** -0.5, rel=0.3)
        else:
            assert torch.equal(after[name], old)


def test_switches_off_leave_mtt_with_momentum_zero(make_task):
    task, prepared = make_task(), prepared_for()
    method = AST(**SMALL, momentum=0.0, start_from="real", balance=False, middle="off", perturb=False)
    ours, theirs = (m.start(task, prepared) for m in (method, MTT(**SMALL)))
    synthesise(method, task, prepared, ours)
    synthesise(MTT(**SMALL), task, prepared, theirs)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.lr, theirs.lr)


@pytest.mark.parametrize(
    "switch", [{"momentum": 0.9}, {"start_from": "cluster"}, {"balance": True}, {"middle": "sum"}, {"perturb": True}]
)
def test_every_switch_changes_something(make_task, switch):
    task, prepared = make_task(), prepared_for()
    off = AST(**SMALL | {"lr_lr": 1e-8}, momentum=0.0, start_from="real", balance=False, middle="off", perturb=False)
    results = []
    for method in (off, replace(off, **switch)):
        results.append(synthesise(method, task, prepared, method.start(task, prepared)).images.detach())
    assert not torch.equal(*results)


# --- AST: the start --------------------------------------------------------------------------------------------------


def test_three_blobs_are_represented_by_one_image_each():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [50, 0], [0, 50]])
    blobs = centres.repeat(20, 0) + rng.normal(size=(60, 2))
    chosen = representatives(blobs, 3, seed=0)
    assert sorted(chosen // 20) == [0, 1, 2]
    for blob in range(3):  # the nearest one to the blob's mean
        mine = next(i for i in chosen if i // 20 == blob)
        own = blobs[20 * blob : 20 * blob + 20]
        assert mine == 20 * blob + np.linalg.norm(own - own.mean(0), axis=1).argmin()


def test_representatives_are_distinct_where_centres_coincide():
    features = np.zeros((5, 2))
    features[0] = 1
    with pytest.warns(UserWarning, match="distinct clusters"):
        chosen = representatives(features, 4, seed=1)
    assert len(set(chosen.tolist())) == 4


@pytest.mark.parametrize("ipc", [1, 3])
def test_the_start_has_images_of_the_right_class_all_different(make_task, ipc):
    task = make_task(ipc=ipc)
    index = ast.cluster_indices(task, prepared_for())
    assert len(set(index.tolist())) == 4 * ipc
    assert torch.equal(task.data.train.labels[index], task.targets)
    assert torch.equal(index, ast.cluster_indices(task, prepared_for()))
    syn = AST(**SMALL).start(task, prepared_for())
    assert torch.equal(syn.images.detach(), task.data.train.images(index))


def test_too_few_steps_for_the_epochs_between_are_refused():
    with pytest.raises(ValueError, match="middle='sum' needs steps=2 to be at least span=3"):
        AST(steps=2, span=3, start_max=3, experts=EXPERTS)
