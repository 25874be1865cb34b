import pytest
import torch
from torch import nn

from dd.errors import UsageError
from dd.networks import Functional, NetworkSpec, build_network, captured, embed
from dd.rng import generator


@pytest.fixture
def net():
    return build_network(NetworkSpec(width=3, depth=2), channels=1, size=8, classes=3, generator=generator(0))


def no_hooks(net):
    return not any(module._forward_hooks for module in net.modules())


def test_outputs_come_in_the_order_of_the_pass(net):
    x = torch.randn(2, 1, 8, 8, generator=generator(1))
    with captured(net, (nn.Conv2d, nn.Linear)) as outputs:
        logits = net(x)
    first = net.features[0].conv(x)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 8, 8), (2, 3, 4, 4), (2, 3)]
    assert torch.equal(outputs[0], first)
    assert outputs[2] is logits
    assert outputs[0].requires_grad
    assert no_hooks(net)


def test_a_second_pass_extends_the_list_and_none_after_the_block(net):
    x = torch.zeros(1, 1, 8, 8)
    with captured(net, nn.AvgPool2d) as outputs:
        net(x)
        net(x)
    net(x)
    assert len(outputs) == 4


def test_hooks_are_removed_when_the_block_fails(net):
    with pytest.raises(RuntimeError), captured(net, nn.Conv2d):
        net(torch.zeros(1, 2, 8, 8))
    assert no_hooks(net)


def test_functional_networks_are_seen_as_well(net):
    functional = Functional(net)
    flat = functional.flatten(net).requires_grad_()
    with captured(net, nn.GroupNorm) as outputs:
        functional(flat, torch.randn(2, 1, 8, 8, generator=generator(2)))
    (gradient,) = torch.autograd.grad(outputs[1].sum(), flat)
    assert len(outputs) == 2
    assert gradient.abs().sum() > 0
    assert no_hooks(net)


def test_features_of_a_network_without_a_way_to_ask_for_them():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(embed(net, images), net[:3](images))
    assert not any(layer._forward_pre_hooks for layer in net.modules())
    with pytest.raises(UsageError, match="Conv2d has no linear layer"):
        embed(nn.Conv2d(1, 2, 3), images)
