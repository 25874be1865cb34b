"""The BatchNorm statistics loss against its formula written as loops, and at the points where it is known."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network
from dd.networks.statistics import batch_norms, channel_statistics, statistics_loss
from dd.rng import generator


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "maps", *shape), dtype=torch.float64) * 2 + 0.5


def network(seed=0):
    """Two BatchNorm layers, in float64, with buffers of no particular value, in evaluation mode."""
    rng = generator(seed, "network")
    net = build_network(
        NetworkSpec(depth=2, width=3, norm="batch"), channels=1, size=8, classes=4, generator=rng
    ).double()
    for layer in batch_norms(net):
        layer.running_mean.copy_(torch.randn(3, generator=rng))
        layer.running_var.copy_(torch.rand(3, generator=rng) + 0.5)
    return net.eval()


def inputs(net, images):
    """What enters every BatchNorm layer, one after another."""
    seen = []
    handles = [layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach())) for layer in batch_norms(net)]
    net(images)
    for handle in handles:
        handle.remove()
    return seen


def by_hand(layer, x):
    """One layer's term, entry by entry."""
    squares = [0.0, 0.0]
    for c in range(x.shape[1]):
        values = [float(v) for v in x[:, c].flatten()]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        squares[0] += (variance - float(layer.running_var[c])) ** 2
        squares[1] += (mean - float(layer.running_mean[c])) ** 2
    return sum(square**0.5 for square in squares)


def read(net, images, first=10.0):
    with statistics_loss(net, first) as loss:
        net(images)
        return loss()


def alone(channels=3):
    """A network that is one BatchNorm layer."""
    return nn.Sequential(nn.BatchNorm2d(channels)).double().eval()


def matched(layer, x):
    mean, variance = channel_statistics(x)  # to the last bit, as the loss sees them
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_means_and_biased_variances(kind):
    x = (maps(7, 3, 4, 5) + 30).to(kind)
    mean, variance = channel_statistics(x)
    closeness = {"rtol": 1e-12 if kind == torch.float64 else 1e-5, "atol": 0}
    assert torch.allclose(mean, x.mean((0, 2, 3)), **closeness)
    assert torch.allclose(variance, x.var((0, 2, 3), correction=0), **closeness)


@pytest.mark.parametrize("first", [1.0, 10.0])
def test_the_formula(first):
    net, images = network(), maps(6, 1, 8, 8)
    terms = [by_hand(layer, x) for layer, x in zip(batch_norms(net), inputs(net, images), strict=True)]
    assert len(terms) == 2
    assert read(net, images, first).item() == pytest.approx(first * terms[0] + terms[1], rel=1e-12)


def test_matching_statistics_give_zero_and_a_zero_gradient():
    net, x = alone(), maps(5, 3, 4, 4)
    matched(net[0], x)
    x.requires_grad_()
    loss = read(net, x)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(x))


def match_from(net, images, first=0):
    """Give layers from `first` on, one after another, the statistics of what enters them behind those before."""
    for number in range(first, len(batch_norms(net))):
        matched(batch_norms(net)[number], inputs(net, images)[number])


def test_all_layers_matched_at_once_give_zero_and_a_zero_gradient():
    """Oracle 1 where layers feed one another: what a later one sees depends on the buffers of those before."""
    net, images = network(), maps(6, 1, 8, 8)
    assert read(net, images) > 1
    match_from(net, images)
    images.requires_grad_()
    loss = read(net, images)
    (gradient,) = torch.autograd.grad(loss, images)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(images))


@pytest.mark.parametrize(("number", "weight"), [(0, 10.0), (1, 1.0)])
@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_entry_of_any_layer_apart(number, weight, buffer, channel):
    """Oracle 1: the loss is the layer's weight times |delta|, whichever entry moves and whichever way."""
    net, images = network(), maps(6, 1, 8, 8)
    for apart in (0.25, -0.125):
        match_from(net, images)
        getattr(batch_norms(net)[number], buffer)[channel] += apart
        match_from(net, images, number + 1)  # the moved entry changes what enters them
        assert read(net, images).item() == pytest.approx(weight * abs(apart), rel=1e-12)


@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
def test_one_entry_apart(buffer):
    net, x = alone(), maps(5, 3, 4, 4)
    matched(net[0], x)
    getattr(net[0], buffer)[1] += 0.25
    assert read(net, x).item() == pytest.approx(10 * 0.25, rel=1e-12)
    getattr(net[0], buffer)[1] += 0.25  # twice as far: twice the loss, not four times
    assert read(net, x).item() == pytest.approx(10 * 0.5, rel=1e-12)


def test_running_variances_are_unbiased_where_the_batch_is_biased():
    net, x = nn.Sequential(nn.BatchNorm2d(3, momentum=1.0)).double(), maps(5, 3, 4, 4)
    net(x)  # in training mode
    spread = x.var((0, 2, 3), correction=0)
    assert read(net.eval(), x, 1.0).item() == pytest.approx(spread.norm().item() / (5 * 4 * 4 - 1), rel=1e-9)


def test_fresh_buffers_and_a_scale():
    net, x = alone(), maps(5, 3, 4, 4)
    mean, spread = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    for c in (1.0, 0.3, -2.0):
        wanted = (1 - c**2 * spread).norm() + abs(c) * mean.norm()
        assert read(net, c * x, 1.0).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_neither_the_order_of_images_nor_that_of_pixels_counts():
    net, x = alone(), maps(5, 3, 4, 4)
    rng = generator(1)
    shuffled = x[torch.randperm(5, generator=rng)].flatten(2)[:, :, torch.randperm(16, generator=rng)].view(x.shape)
    assert read(net, shuffled).item() == pytest.approx(read(net, x).item(), rel=1e-13)


def test_the_first_layer_counts_more():
    net, images = network(), maps(6, 1, 8, 8)
    first = by_hand(batch_norms(net)[0], inputs(net, images)[0])
    assert (read(net, images, 10.0) - read(net, images, 1.0)).item() == pytest.approx(9 * first, rel=1e-10)


def test_finite_differences():
    net, images = network(), maps(4, 1, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: read(net, x), (images,), eps=1e-6, atol=1e-5)


def test_network_and_hooks_are_as_before():
    net, images = network(), maps(4, 1, 8, 8).requires_grad_()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def interrupted():
        with statistics_loss(net) as loss:
            net(images)
            loss().backward()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in net.modules())


def test_every_reading_is_of_its_own_pass():
    net, images = network(), [maps(4, 1, 8, 8, seed=s) for s in range(3)]
    single = [read(net, x).item() for x in images]
    with statistics_loss(net) as loss:
        together = []
        for x in images:
            net(x)
            together.append(loss().item())
        assert together == single
        with pytest.raises(RuntimeError, match="no forward pass"):
            loss()
    assert all(a != b for a, b in pairwise(single))


def test_float32_under_autocast():
    net = network().float()
    images = 200 * maps(4, 1, 8, 8).float()
    with statistics_loss(net) as loss, torch.autocast("cpu", torch.bfloat16):
        net(images)
        assert loss().dtype == torch.float32


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "timm:mobilenetv3_small_050", "resnet18"])
def test_networks_of_the_zoo(arch):
    spec = NetworkSpec(arch=arch) if ":" in arch else NetworkSpec(arch=arch, width=4, norm="batch")
    net = build_network(spec, channels=3, size=32, classes=3, generator=generator(0)).eval()
    images = torch.randn(2, 3, 32, 32, generator=generator(1)).requires_grad_()
    read(net, images).backward()
    assert images.grad.isfinite().all()
    assert images.grad.any()


def test_a_network_without_batch_norm_is_refused_with_the_way_out():
    net = build_network(NetworkSpec(depth=1, width=4), channels=1, size=8, classes=2, generator=generator(0))
    with pytest.raises(UsageError, match="norm=batch"), statistics_loss(net):
        pass


def test_images_are_not_to_be_taken_in_smaller_batches():
    """Oracle 13, negative: statistics couple images, so halves have another loss and pull another way."""
    net, images = network(), maps(6, 1, 8, 8).requires_grad_()
    together = read(net, images)
    halves = (read(net, images[:3]) + read(net, images[3:])) / 2
    assert abs(halves - together) > 1e-3
    (whole,), (parts,) = (torch.autograd.grad(loss, images) for loss in (together, halves))
    assert (whole - parts).norm() / whole.norm() > 1e-3
