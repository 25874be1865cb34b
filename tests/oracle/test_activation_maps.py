"""Class-activation maps: from 0 to 1, where the object is, and by the formulas of CAM and of Grad-CAM."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network
from dd.networks.activation import activation_maps
from dd.rng import generator


class Pooled(nn.Module):
    """Convolution, ReLU, means, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.relu(self.conv(x)).mean((2, 3)))


class Flat(nn.Module):
    """Convolution, ReLU, a linear layer on all of it."""

    def __init__(self, side=8):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.linear = nn.Linear(4 * side * side, 3)

    def forward(self, x):
        return self.linear(self.relu(self.conv(x)).flatten(1))


def fresh(kind):
    net = kind()
    rng = generator(0, kind.__name__)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=rng))
    return net.eval()


def stretched(maps):
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


IMAGES = torch.randn(5, 1, 8, 8, generator=generator(1))
TARGETS = torch.tensor([0, 2, 1, 1, 0])


def test_cam_by_its_formula():
    net = fresh(Pooled)
    final = net.conv(IMAGES).relu()
    wanted = torch.stack([sum(net.linear.weight[y, k] * final[i, k] for k in range(4)) for i, y in enumerate(TARGETS)])
    found = activation_maps(net, IMAGES, TARGETS)
    assert torch.allclose(found, stretched(wanted), atol=1e-5)


def test_grad_cam_by_its_formula():
    net = fresh(Flat)
    out = net.conv(IMAGES)
    # the slope of a ReLU is 0 or 1
    slope = net.linear.weight[TARGETS].view(5, 4, 8, 8) * (out > 0)
    wanted = (slope.mean((2, 3), keepdim=True) * out).sum(1).relu()
    assert torch.allclose(activation_maps(net, IMAGES, TARGETS), stretched(wanted), atol=1e-5)


@pytest.mark.parametrize("kind", [Pooled, Flat])
def test_a_constant_map_becomes_zero(kind):
    net = fresh(kind)
    with torch.no_grad():
        net.linear.weight.zero_()
    assert torch.equal(activation_maps(net, IMAGES, TARGETS), torch.zeros(5, 8, 8))


def test_a_bright_object_is_where_it_looks():
    net = Pooled().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.conv.weight[:, :, 1, 1] = 1
        net.linear.weight.fill_(1)
    images = torch.zeros(1, 1, 8, 8)
    images[:, :, 2:5, 3:6] = 1
    found = activation_maps(net, images, torch.zeros(1, dtype=torch.long))[0]
    assert torch.equal(found, images[0, 0])


@pytest.mark.parametrize("spec", [NetworkSpec(width=4, norm="batch"), NetworkSpec("resnet18", width=4, norm="batch")])
def test_our_networks(spec):
    net = build_network(spec, channels=1, size=28, classes=10, generator=generator(0)).eval().requires_grad_(False)
    images = torch.randn(4, 1, 28, 28, generator=generator(2))
    found = activation_maps(net, images, torch.arange(4))
    assert found.shape == (4, 28, 28)
    assert torch.equal(found.amin((1, 2)), torch.zeros(4))
    assert set(found.amax((1, 2)).tolist()) <= {0.0, 1.0}  # 0 where nothing speaks for the class
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in net.modules())


def test_a_resnet_is_read_by_its_last_maps():
    net = build_network(
        NetworkSpec("resnet18", width=4, norm="batch"), channels=1, size=32, classes=3, generator=generator(0)
    )
    net.eval()
    images = torch.randn(2, 1, 32, 32, generator=generator(2))
    maps = net.features(net.activation(net.norm(net.conv(images))))
    cam = (net.classifier.weight[[2, 0], :, None, None] * maps).sum(1, keepdim=True)
    wanted = F.interpolate(cam, size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(activation_maps(net, images, torch.tensor([2, 0])), stretched(wanted), atol=1e-5)


def test_a_network_without_convolutions_has_none():
    with pytest.raises(UsageError, match="no convolution"):
        activation_maps(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), IMAGES, TARGETS)
