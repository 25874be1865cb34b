"""ConvNet and ResNet-18 against published parameter counts and a forward pass written out by hand."""

import pytest
import torch
import torch.nn.functional as F

from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator


def net(channels=3, size=32, classes=10, **spec):
    return build_network(NetworkSpec(**spec), channels=channels, size=size, classes=classes, generator=generator(0))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "classes", "parameters"), [(32, 10, 320_010), (32, 100, 504_420), (64, 200, 857_160), (128, 10, 615_690)]
)
def test_parameter_counts_of_the_published_convnets(size, classes, parameters):
    # ConvNetD3, D4 and D5 of the trajectory-matching papers: the depth follows from the size
    module = net(size=size, classes=classes)
    assert count(module) == parameters
    assert Functional(module).size == parameters


def test_the_plain_convnet_keeps_depth_3_at_any_size_when_asked():
    assert count(net(size=64, classes=200, arch="ConvNetD3")) == 1_938_120


def test_parameter_count_of_resnet18_for_small_images():
    assert count(net(arch="resnet18", norm="batch")) == 11_173_962
    assert count(net(arch="resnet18")) == 11_173_962  # instance norm has as many, and no buffers
    assert not list(net(arch="resnet18", width=8).buffers())


def by_hand(module, x, norm="instance", activation=F.relu, pool=F.avg_pool2d):
    """Three blocks from the raw parameters: correlation as a sum over shifts, norm as means over pixels."""
    p = dict(module.named_parameters())
    for block in range(3):
        weight, bias = p[f"features.{block}.conv.weight"], p[f"features.{block}.conv.bias"]
        pad = 3 if block == 0 and tuple(x.shape[1:]) == (1, 28, 28) else 1
        padded = F.pad(x, (pad,) * 4)
        h = padded.shape[2] - 2
        x = bias.view(1, -1, 1, 1) + sum(
            torch.einsum("oc,ncyx->noyx", weight[:, :, i, j], padded[:, :, i : i + h, j : j + h])
            for i in range(3)
            for j in range(3)
        )
        if norm == "instance":
            mean = x.mean((2, 3), keepdim=True)
            variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
            scale, shift = (p[f"features.{block}.norm.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
            x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
        x = pool(activation(x), 2)
    features = torch.stack([image.reshape(-1) for image in x])  # channel by channel, row by row
    return features @ p["classifier.weight"].T + p["classifier.bias"]


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 16)])
def test_forward_against_a_pass_by_hand(channels, size):
    module = net(channels, size, width=6).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():  # a norm that starts as the identity would hide mistakes
            parameter.add_(torch.randn(parameter.shape, generator=generator(1, name), dtype=torch.float64) * 0.1)
    x = torch.randn(4, channels, size, size, generator=generator(2), dtype=torch.float64)
    assert torch.allclose(module(x), by_hand(module, x), atol=1e-10)


def test_forward_without_norm_with_other_parts():
    module = net(width=5, norm="none", activation="sigmoid", pooling="max").double()
    x = torch.randn(3, 3, 32, 32, generator=generator(3), dtype=torch.float64)
    assert torch.allclose(module(x), by_hand(module, x, "none", torch.sigmoid, F.max_pool2d), atol=1e-10)


def test_grey_28_pixel_images_become_32_pixel_maps():
    module = net(1, 28, width=4)
    assert module.features[0].conv(torch.zeros(1, 1, 28, 28)).shape == (1, 4, 32, 32)
    assert module.classifier.in_features == 4 * 4 * 4


def test_parameters_come_in_the_published_order():
    names = list(Functional(net(width=4)).names)
    parts = [f"features.{block}.{part}" for block in range(3) for part in ("conv", "norm")] + ["classifier"]
    assert names == [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]


@pytest.mark.parametrize("arch", ["convnet", "resnet18"])
def test_half_a_batch_gives_half_the_logits_unless_the_norm_is_over_the_batch(arch):
    x = torch.randn(6, 3, 16, 16, generator=generator(4), dtype=torch.float64)
    for norm, agrees in (("instance", True), ("group", True), ("layer", True), ("none", True), ("batch", False)):
        module = net(size=16, arch=arch, width=4, norm=norm).double()
        halves = torch.cat([module(x[:3]), module(x[3:])])
        assert torch.allclose(module(x), halves, atol=1e-10) == agrees, norm
