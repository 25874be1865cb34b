"""Learning-rate schedules against torch's own, and trainings that are killed between two passes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from dd.io import previous
from dd.networks import NetworkSpec, build_network
from dd.rng import generator
from dd.training import Fit, StackedTrainer, Trainer
from dd.training.passes import PassFile

PATH = (3, "somebody")
DSA = "color_crop_cutout_flip_scale_rotate"


def builder(norm="batch"):
    spec = NetworkSpec(depth=2, width=4, norm=norm)
    return lambda rng: build_network(spec, channels=2, size=8, classes=3, generator=rng)


def batches(rng, _=0):
    """23 images in batches of 5: five steps a pass."""
    images = torch.randn(23, 2, 8, 8, generator=generator(0, "images"))
    for index in torch.randperm(23, generator=rng).split(5):
        yield images[index], index % 3


def scheduled(scheduler, steps, lr=0.3):
    """The learning rate of every step under one of torch's schedulers."""
    optimiser = SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, rates = scheduler(optimiser), []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


def test_half_a_cosine():
    fit = Fit(12, 0.3, cosine=1.0)
    expected = scheduled(lambda o: CosineAnnealingLR(o, T_max=12), 12)
    assert [fit.rate(step) for step in range(12)] == pytest.approx(expected)
    assert fit.rate(0) == 0.3
    assert fit.rate(6) == pytest.approx(0.15)
    assert 0 < fit.rate(11) < 0.01


def test_warm_up():
    fit = Fit(12, 0.3, warmup=4)
    assert [fit.rate(s) for s in range(12)] == pytest.approx(
        scheduled(lambda o: LinearLR(o, start_factor=0.01, total_iters=4), 12)
    )
    fit = replace(fit, cosine=1.0)
    assert [fit.rate(s) for s in range(4, 12)] == pytest.approx([Fit(8, 0.3, cosine=1.0).rate(s) for s in range(8)])


def test_training_follows_the_schedule():
    """By hand: theta <- theta - lr_t g."""
    fit = Fit(10, 0.3, cosine=1.0, warmup=3)
    ours = next(Trainer(builder("instance")).train([PATH], batches, fit))
    theirs = builder("instance")(generator(*PATH, "weights"))
    every = [batch for done in range(2) for batch in batches(generator(*PATH, "order", done))]
    for step, (images, labels) in enumerate(every):
        loss = nn.functional.cross_entropy(theirs(images), labels)
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for p, g in zip(theirs.parameters(), gradients, strict=True):
                p -= fit.rate(step) * g
    assert same(ours, theirs, 1e-5)
    assert not same(ours, next(Trainer(builder("instance")).train([PATH], batches, Fit(10, 0.3))), 1e-3)
    (row,) = StackedTrainer(builder("instance")).train([PATH], batches, fit)
    assert torch.allclose(row, torch.cat([p.detach().reshape(-1) for p in ours.parameters()]), atol=1e-5)


def same(a, b, tolerance=0.0):
    theirs = b.state_dict()
    return all((value - theirs[name]).abs().max() <= tolerance for name, value in a.state_dict().items())


# --- killed ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def kill_after(passes):
    """Data that end the program after so many passes and two steps."""
    calls = 0

    def some(rng, _):
        nonlocal calls
        calls += 1
        for number, batch in enumerate(batches(rng)):
            if calls == passes + 1 and number == 2:
                raise Killed
            yield batch

    return some


FITS = {
    "cosine, momentum, augmented": Fit(20, 0.1, momentum=0.9, weight_decay=0.01, cosine=1.0, strategy=DSA),
    "plain": Fit(20, 0.1),
    "decay at the boundary": Fit(20, 0.1, momentum=0.9, decay_at=(10,), momentum_after=0.5),
    "a pass that is cut": Fit(18, 0.1, momentum=0.9, warmup=7),
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_the_same_bits_as_without_an_interruption(tmp_path, fit, passes):
    whole = next(Trainer(builder()).train([PATH], batches, fit))
    keep, seen = PassFile(tmp_path / "state.safetensors", "key", "it"), []
    with pytest.raises(Killed):
        next(Trainer(builder()).train([PATH], kill_after(passes), fit, keeps=[keep]))
    assert keep.path.exists() == (passes > 0)
    going_on = Trainer(builder()).train([PATH], batches, fit, lambda done, _: seen.append(done), keeps=[keep])
    network = next(going_on)
    assert same(network, whole)
    assert network.state_dict()["features.0.norm.num_batches_tracked"] == fit.steps
    assert seen == list(range(passes + bool(passes), fit.steps // 5 + 1))  # only what was not yet done
    keep.remove()
    assert not list(tmp_path.iterdir())


def test_a_kept_state_matters(tmp_path):
    """What is read is what goes on: another state ends elsewhere."""
    fit, keep = FITS["plain"], PassFile(tmp_path / "state.safetensors", "key", "it")
    with pytest.raises(Killed):
        next(Trainer(builder()).train([PATH], kill_after(2), fit, keeps=[keep]))
    network, optimiser = builder()(generator(9, "other")), SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    optimiser.param_groups[0]["params"] = list(network.parameters())
    keep.save(network, optimiser, 2, 10)
    assert not same(
        next(Trainer(builder()).train([PATH], batches, fit, keeps=[keep])),
        next(Trainer(builder()).train([PATH], batches, fit)),
    )


def cut_off(path):
    path.write_bytes(path.read_bytes()[:100])


def flip_the_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_a_byte_of_the_header(path):
    content = path.read_bytes()
    assert b'"step":"10"' in content
    path.write_bytes(content.replace(b'"step":"10"', b'"step":"15"'))


@pytest.mark.parametrize("spoil", [cut_off, flip_the_last_byte, flip_a_byte_of_the_header])
def test_a_damaged_state_goes_on_from_the_one_before_it(tmp_path, caplog, spoil):
    fit, keep = FITS["plain"], PassFile(tmp_path / "state.safetensors", "key", "it")
    with pytest.raises(Killed):
        next(Trainer(builder()).train([PATH], kill_after(2), fit, keeps=[keep]))
    spoil(keep.path)
    done = []
    network = next(Trainer(builder()).train([PATH], batches, fit, lambda n, _: done.append(n), keeps=[keep]))
    assert done == [2, 3, 4]
    assert f"{keep.path} is damaged" in caplog.text
    assert same(network, next(Trainer(builder()).train([PATH], batches, fit)))


@pytest.mark.parametrize("damage", ["another key", "both damaged", "not there"])
def test_what_cannot_be_taken_up_is_done_anew(tmp_path, damage):
    fit, keep = FITS["plain"], PassFile(tmp_path / "state.safetensors", "key", "it")
    with pytest.raises(Killed):
        next(Trainer(builder()).train([PATH], kill_after(2), fit, keeps=[keep]))
    if damage == "another key":
        keep = replace(keep, key="another")
    elif damage == "both damaged":
        cut_off(keep.path)
        flip_the_last_byte(previous(keep.path))
    else:
        keep.path.unlink()
    done = []
    network = next(Trainer(builder()).train([PATH], batches, fit, lambda n, _: done.append(n), keeps=[keep]))
    assert done == [0, 1, 2, 3, 4]
    assert same(network, next(Trainer(builder()).train([PATH], batches, fit)))
