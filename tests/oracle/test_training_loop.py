"""The training loop against loops written out by hand on the same draws, in float64, and to the bit in float32."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch._dynamo.config as dynamo
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from dd.evaluation import PROTOCOLS, Protocol
from dd.networks import NetworkSpec, build_network, native
from dd.rng import derive, generator
from dd.training import Fit, Trainer, compiled
from dd.training.compiled import BatchLoss, worth_compiling
from dd.training.loop import accuracy, predict
from dd.views.dsa import apply, draw

PATH = (3, "somebody", 1)
DSA = "color_crop_cutout_flip_scale_rotate"
N, SHAPE, CLASSES = 23, (2, 8, 8), 4


def builder(dtype=torch.float32, **spec):
    spec = NetworkSpec(**{"depth": 2, "width": 4} | spec)
    return lambda rng: build_network(spec, channels=2, size=8, classes=CLASSES, generator=rng).to(dtype)


class Data:
    """Random images with hard or soft labels, in shuffled passes."""

    def __init__(self, dtype=torch.float32, soft=False, batch=5, n=N):
        rng = generator(0, "data")
        self.images = torch.randn(n, *SHAPE, generator=rng, dtype=torch.float64).to(dtype)
        self.labels = torch.arange(n) % CLASSES
        if soft:
            self.labels = torch.randn(n, CLASSES, generator=rng, dtype=torch.float64).mul(2).softmax(1).to(dtype)
        self.batch, self.seeds = batch, []

    def passes(self, rng, _):
        self.seeds.append(rng.initial_seed())
        for index in torch.randperm(len(self.images), generator=rng).split(self.batch):
            yield self.images[index], self.labels[index]

    def trained(self, fit, build_=None, path=PATH, **options):
        network = next(Trainer(build_ or builder(self.images.dtype), **options).train([path], self.passes, fit))
        return flat(network)

    def steps(self, fit, path=PATH):
        """What the loop should see: (augmented images, labels) of every step, drawn by name."""
        done = step = 0
        while True:
            order = torch.randperm(len(self.images), generator=generator(*path, "order", done)).tolist()
            draws = generator(*path, "augment", done)
            for first in range(0, len(order), self.batch):
                if step == fit.steps:
                    return
                index = order[first : first + self.batch]
                yield apply(draw(fit.strategy, len(index), SHAPE, draws), self.images[index]), self.labels[index]
                step += 1
            done += 1


def flat(network):
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def cross_entropy(logits, labels):
    """-mean_i sum_k y_ik log p_ik, for classes or probabilities."""
    y = F.one_hot(labels, CLASSES).to(logits.dtype) if labels.dtype == torch.long else labels
    total = 0.0
    for z, target in zip(logits, y, strict=True):
        total = total - (target * (z - z.exp().sum().log())).sum()
    return total / len(logits)


def by_hand(data, fit, build_, path=PATH):
    """SGD without an optimiser: v <- momentum v + (g + weight_decay theta), theta <- theta - lr v."""
    network = build_(generator(*path, "weights"))
    velocities, lr = [None] * len(list(network.parameters())), fit.lr
    for step, (images, labels) in enumerate(data.steps(fit, path)):
        if step in fit.decay_at:
            lr, velocities = lr * fit.decay, [None] * len(velocities)
        gradients = torch.autograd.grad(cross_entropy(network(images), labels), list(network.parameters()))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(network.parameters(), gradients, strict=True)):
                g = g + fit.weight_decay * p
                velocities[i] = g if velocities[i] is None else fit.momentum * velocities[i] + g
                p -= lr * velocities[i]
    return flat(network)


def by_torch(data, fit, build_, path=PATH):
    """The loop that everybody writes."""
    network = build_(generator(*path, "weights"))
    lr, sgd = fit.lr, partial(torch.optim.SGD, momentum=fit.momentum, weight_decay=fit.weight_decay)
    optimiser = sgd(network.parameters(), lr=lr)
    for step, (images, labels) in enumerate(data.steps(fit, path)):
        if step in fit.decay_at:
            lr *= fit.decay
            optimiser = sgd(network.parameters(), lr=lr)
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return flat(network)


def difference(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


FITS = {
    "plain": Fit(13, 0.1),
    "momentum": Fit(13, 0.1, momentum=0.9),
    "weight decay": Fit(13, 0.1, weight_decay=0.05),
    "both": Fit(13, 0.1, momentum=0.9, weight_decay=0.05),
    "decay": Fit(13, 0.1, momentum=0.9, weight_decay=0.05, decay_at=(6,)),
    "decay twice": Fit(13, 0.1, momentum=0.9, decay_at=(2, 9), decay=0.3),
    "decay at the first step": Fit(4, 0.1, momentum=0.9, decay_at=(0,)),
    "augmented": Fit(13, 0.1, momentum=0.9, decay_at=(6,), strategy=DSA),
}
EVERY_FIT = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


@EVERY_FIT
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_training_by_hand_in_double_precision(fit, soft):
    # 23 images in batches of 5: every pass ends with a batch of 3
    data, build_ = Data(torch.float64, soft), builder(torch.float64)
    ours, expected = data.trained(fit), by_hand(data, fit, build_)
    assert difference(ours, expected) < 1e-12
    assert difference(ours, flat(build_(generator(*PATH, "weights")))) > 1e-2


def test_every_setting_matters():
    fits = [fit for fit in FITS.values() if fit.steps == 13]
    ends = [Data(torch.float64, soft).trained(fit) for fit in fits for soft in (False, True)]
    assert min(difference(a, b) for i, a in enumerate(ends) for b in ends[:i]) > 1e-3


@EVERY_FIT
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_training_is_a_plain_module_and_optimiser_to_the_bit(fit, soft):
    data = Data(soft=soft)
    assert torch.equal(data.trained(fit), by_torch(data, fit, builder()))


def test_half_precision_is_autocast_of_the_forward_pass_alone():
    data, fit = Data(), Fit(6, 0.1, momentum=0.9)
    network = builder()(generator(*PATH, "weights"))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for images, labels in data.steps(fit):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimiser.step()
    ours = data.trained(fit, precision="bf16")
    assert torch.equal(ours, flat(network))
    assert ours.dtype == torch.float32
    assert difference(ours, data.trained(fit)) > 1e-4


def test_a_batch_as_large_as_the_data_is_the_data_at_every_step():
    data = Data(torch.float64, batch=100)
    assert difference(data.trained(Fit(4, 0.1)), by_hand(data, Fit(4, 0.1), builder(torch.float64))) < 1e-12
    assert len(data.seeds) == 4


# --- the schedule of the family's evaluation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "n", "per_pass", "epochs", "strategy"),
    [
        ("mtt", 10, 1, 1000, DSA),
        ("mtt", 500, 2, 1000, DSA),
        ("datm", 500, 4, 1000, DSA),
        ("dc", 10, 1, 300, "none"),
        ("dc", 500, 2, 300, "none"),
    ],
)
def test_the_published_protocol_runs_one_epoch_more_and_falls_once(protocol, n, per_pass, epochs, strategy):
    """Of 1,001 epochs after epoch 501, of DC's 301 after epoch 151, counted from 0."""
    fit = PROTOCOLS[protocol].fit(n, 0.02, DSA)
    rates = [fit.rate(step) for step in range(fit.steps)]
    high = (epochs // 2 + 2) * per_pass
    assert fit.steps == (epochs + 1) * per_pass
    assert rates[:high] == [0.02] * high
    assert rates[high:] == pytest.approx([0.002] * (fit.steps - high))
    assert (fit.decay_at, fit.keep_state) == ((high,), False)  # the momentum is lost there
    assert (fit.momentum, fit.weight_decay, fit.strategy) == (0.9, 5e-4, strategy)


@pytest.mark.parametrize("epochs", [6, 7])
def test_a_student_of_the_family_by_its_epochs(epochs):
    # lr falls after epoch index E // 2 + 1, with a new optimiser that has no momentum yet
    data, protocol = Data(torch.float64), Protocol(steps=None, epochs=epochs, batch=5)
    fit = protocol.fit(N, 0.1, "none")
    network = builder(torch.float64)(generator(*PATH, "weights"))
    steps = data.steps(Fit((epochs + 1) * 5, 0.1))
    lr, velocity = 0.1, None
    for epoch in range(epochs + 1):
        for _ in range(5):
            images, labels = next(steps)
            gradients = torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()))
            theta = flat(network)
            g = torch.cat([g.reshape(-1) for g in gradients]) + 5e-4 * theta
            velocity = g if velocity is None else 0.9 * velocity + g
            torch.nn.utils.vector_to_parameters(theta - lr * velocity, network.parameters())
        if epoch == epochs // 2 + 1:
            lr, velocity = lr * 0.1, None
    assert next(steps, None) is None
    assert difference(data.trained(fit), flat(network)) < 1e-12


def test_a_protocol_in_steps_falls_half_way():
    assert Protocol(steps=300, batch=5).fit(N, 0.1, DSA) == Fit(300, 0.1, 0.9, 5e-4, (150,), 0.1, DSA)
    assert Protocol(steps=300, decay_at=1.0).fit(N, 0.1, DSA).decay_at == ()
    assert Protocol(steps=300, decay=1.0, augment=False).fit(N, 0.1, DSA) == Fit(300, 0.1, 0.9, 5e-4, (), 1.0)


# --- draws -----------------------------------------------------------------------------------------------------------


def test_draws_have_names_and_an_order():
    data, weights = Data(), []

    def build_(rng):
        weights.append(rng.initial_seed())
        return builder()(rng)

    trainer = Trainer(build_)
    paths = [(3, "a", 0), (3, "a", 1), (4, "a", 0)]
    list(trainer.train(paths, data.passes, Fit(11, 0.1, strategy=DSA)))
    assert weights[1:] == [derive(*path, "weights") for path in paths]  # the first is a skeleton
    assert data.seeds == [derive(*path, "order", done) for path in paths for done in range(3)]


def test_a_longer_training_begins_like_a_shorter_one():
    def snapshots(steps):
        found = []
        keep = lambda done, network: found.append((done, flat(network)))  # noqa: E731
        next(Trainer(builder()).train([PATH], data.passes, Fit(steps, 0.1, 0.9, strategy=DSA), keep))
        return found

    data = Data()
    short, long = snapshots(10), snapshots(25)
    assert [done for done, _ in long] == [0, 1, 2, 3, 4, 5]
    assert len(short) == 3
    assert all(a == c and torch.equal(b, d) for (a, b), (c, d) in zip(short, long, strict=False))
    assert torch.equal(short[0][1], flat(builder()(generator(*PATH, "weights"))))
    for (_, before), (_, after) in pairwise(long):
        assert not torch.equal(before, after)


def test_only_whole_passes_are_announced():
    data, seen = Data(), []
    # 5 batches a pass: 7 steps end within the second
    next(Trainer(builder()).train([PATH], data.passes, Fit(7, 0.1), lambda done, _: seen.append(done)))
    assert seen == [0, 1]


def test_networks_together_are_those_alone_whatever_the_company():
    data, fit = Data(), Fit(12, 0.1, 0.9, 5e-4, (6,), strategy=DSA)
    for norm in ("instance", "batch"):
        build_ = builder(norm=norm)

        def state(network):
            return {name: value.clone() for name, value in network.state_dict().items()}

        paths = [(0, "student", j) for j in (2, 0, 1, 0)]
        together = [state(network) for network in Trainer(build_).train(paths, data.passes, fit)]
        trainer = Trainer(build_)
        list(trainer.train([(9, "another", 0)], Data(soft=True, batch=7).passes, Fit(3, 5.0)))
        after_others = [state(next(trainer.train([path], data.passes, fit))) for path in reversed(paths)][::-1]
        alone = [state(next(Trainer(build_).train([path], data.passes, fit))) for path in paths]
        for one, other, third in zip(together, after_others, alone, strict=True):
            assert all(torch.equal(one[name], third[name]) for name in third)
            assert all(torch.equal(other[name], third[name]) for name in third)
        assert not torch.equal(alone[0]["classifier.weight"], alone[1]["classifier.weight"])


def test_neither_the_data_nor_the_global_generator_is_touched():
    data = Data()
    images, labels, state = data.images.clone(), data.labels.clone(), torch.get_rng_state()
    data.trained(Fit(12, 0.1, strategy=DSA))
    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_running_statistics_see_each_batch_once():
    """Unlike in RDED's code, whose pass for the training accuracy makes a momentum of 0.1 one of 0.19."""
    data, build_ = Data(torch.float64, batch=N), builder(torch.float64, norm="batch")
    ours = next(Trainer(build_).train([PATH], data.passes, Fit(1, 0.1))).features[0].norm
    twice = build_(generator(*PATH, "weights"))
    with torch.no_grad():
        maps = twice.features[0].conv(data.images)
        twice(data.images)
        twice(data.images)
    mean, variance = maps.mean((0, 2, 3)), maps.transpose(0, 1).flatten(1).var(1)
    for norm, momentum in ((ours, 0.1), (twice.features[0].norm, 0.19)):
        torch.testing.assert_close(norm.running_mean, momentum * mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(norm.running_var, 1 - momentum + momentum * variance, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(ours.running_mean, twice.features[0].norm.running_mean)


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_accuracy_counts_and_is_that_of_evaluation_mode(training):
    data = Data()
    network = builder(norm="batch")(generator(1)).train(training)
    for _ in range(3):
        network(data.images + 1)  # running statistics of their own
    state = {name: value.clone() for name, value in network.state_dict().items()}
    in_batches = zip(data.images.split(6), data.labels.split(6), strict=True)
    logits, labels = predict(network, in_batches)
    right = 0
    network.eval()
    for i in range(N):
        z = network(data.images[i : i + 1])[0].detach()
        assert torch.allclose(z, logits[i], atol=1e-6)
        right += int(z.argmax()) == int(data.labels[i])
    network.train(training)
    assert torch.equal(labels, data.labels)
    assert accuracy(network, zip(data.images.split(6), data.labels.split(6), strict=True)) == 100 * right / N
    assert 0 < right < N
    assert network.training == training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


# --- compiled code ---------------------------------------------------------------------------------------------------


def test_what_is_worth_compiling_is_counted_in_closed_form():
    network = builder()(generator(0))
    # two operations per product: convolutions 2 -> 4 on 8 x 8 and 4 -> 4 on 4 x 4, a linear layer 16 -> 4
    flops = 2 * (2 * 9 * 4 * 64 + 4 * 9 * 4 * 16 + 16 * 4)
    images = torch.zeros(5, *SHAPE)
    enough = -(-compiled.WORTH_FLOPS // (5 * flops))
    assert worth_compiling(network, images, int(enough))
    assert not worth_compiling(network, images, int(enough) - 1)


def test_narrow_shortcuts_are_not_compiled_for_a_cpu():
    images = torch.zeros(64, 2, 16, 16)
    for width, allowed in ((8, False), (16, True)):
        network = builder(arch="resnet18", depth=None, width=width)(generator(0))
        assert worth_compiling(network, images, 10**6) == allowed


def with_batch_norm_over_features(rng):
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng) + 0.1)
    return network


@pytest.mark.parametrize("build_", [builder(norm="batch"), with_batch_norm_over_features], ids=["maps", "features"])
def test_weighing_the_work_leaves_no_trace_in_the_network(build_):
    # batch norm remembers every pass, and cannot train on one image of one pixel at all
    data = Data()
    plain, weighed = (
        next(Trainer(build_, compile=allowed).train([PATH], data.passes, Fit(5, 0.1))) for allowed in (False, True)
    )
    assert weighed.training
    steps = [value for name, value in weighed.state_dict().items() if name.endswith("num_batches_tracked")]
    assert steps
    assert all(int(value) == 5 for value in steps)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in weighed.state_dict().items())


def without_closed_forms(dtype=torch.float32):
    return builder(dtype, pooling="max")


@pytest.fixture
def traced(monkeypatch):
    """Everything is worth compiling, by a back end that makes no machine code and so takes no time."""
    monkeypatch.setattr(compiled, "WORTH_FLOPS", 0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["frames"]["ok"]
    torch._dynamo.reset()


needs_compiler = pytest.mark.skipif(not compiled.can_compile(torch.device("cpu")), reason="no C++ compiler")


@needs_compiler
def test_one_compilation_serves_a_group_and_spares_the_short_batch(traced):
    data, fit = Data(torch.float64, soft=True), Fit(12, 0.1, 0.9, 5e-4, (6,), strategy=DSA)
    trainer = Trainer(without_closed_forms(torch.float64), compile=True)
    paths = [(0, "student", j) for j in range(3)]
    for path, network in zip(paths, trainer.train(paths, data.passes, fit), strict=True):
        assert difference(flat(network), by_hand(data, fit, without_closed_forms(torch.float64), path)) < 1e-12
    assert traced() == 1


@needs_compiler
def test_compiled_code_is_used_however_much_was_compiled_before(traced):
    # a result must not depend on what else the process did: torch gives up silently after so many shapes
    with dynamo.patch(recompile_limit=2):
        for batch in (3, 4, 5, 6, 7):
            Data(batch=batch).trained(Fit(2, 0.1), without_closed_forms(), compile=True)
    assert traced() == 5


@needs_compiler
def test_flat_experts_are_compiled_alike(traced):
    data, fit, build_ = Data(torch.float64), Fit(6, 0.1, sam=(0.1, 0.3)), without_closed_forms(torch.float64)
    assert difference(data.trained(fit, build_, compile=True), data.trained(fit, build_)) < 1e-12
    assert traced() == 1


def test_nothing_is_compiled_that_is_not_worth_it_or_not_allowed(traced, monkeypatch):
    Data().trained(Fit(3, 0.1), without_closed_forms())
    monkeypatch.setattr(compiled, "WORTH_FLOPS", 1e11)
    Data().trained(Fit(3, 0.1), without_closed_forms(), compile=True)
    assert traced() == 0
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert not compiled.can_compile(torch.device("cpu"))
    monkeypatch.setattr(compiled, "WORTH_FLOPS", 0)
    loss, data = BatchLoss(without_closed_forms()(generator(0)), compile=True), Data()
    assert loss.of(10**9)(data.images, data.labels) == loss(data.images, data.labels)
    assert traced() == 0


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_compiled_machine_code_trains_the_same_network(monkeypatch, soft):
    monkeypatch.setattr(compiled, "WORTH_FLOPS", 0)
    fit = Fit(13, 0.1, 0.9, 5e-4, (6,), strategy=DSA)
    trains_the_same_network(fit, soft, without_closed_forms)


def trains_the_same_network(fit, soft, build_):
    double, networks = Data(torch.float64, soft), build_(torch.float64)
    assert difference(double.trained(fit, networks, compile=True), by_hand(double, fit, networks)) < 1e-12
    single = Data(soft=soft)
    found = single.trained(fit, build_(), compile=True)
    assert difference(found, single.trained(fit, build_())) < 1e-4
    assert torch.equal(found, single.trained(fit, build_(), compile=True))


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_closed_forms_train_the_same_network_and_compile_nothing(traced, soft):
    trains_the_same_network(Fit(13, 0.1, 0.9, 5e-4, (6,), strategy=DSA), soft, builder)
    trains_the_same_network(Fit(6, 0.1, micro=2), soft, builder)
    assert traced() == 0


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
def test_closed_forms_serve_flat_experts_and_penalties_and_leave_no_trace(traced):
    for fit in (Fit(6, 0.1, sam=(0.1, 0.3)), Fit(6, 0.1, penalty=0.3)):
        data = Data(torch.float64)
        trainer = Trainer(builder(torch.float64), compile=True)
        network = next(trainer.train([PATH], data.passes, fit))
        assert difference(flat(network), data.trained(fit)) < 1e-12
        assert all(block.closed is None for block in network.features)
    assert traced() == 0
