"""Portions of a batch: the bits of the whole, in the memory of a few images."""

import pytest
import torch
from torch import nn

from dd.networks import NetworkSpec, build_network, in_closed_form, portions, resolve_network
from dd.networks.portion import largest_map, mixes
from dd.rng import generator


def make(size=16, **spec):
    spec = {"width": 8, "depth": 2} | spec
    return build_network(NetworkSpec(**spec), channels=3, size=size, classes=5, generator=generator(0))


def images(n, size=16):
    return torch.randn(n, 3, size, size, generator=generator(1))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 23])
@pytest.mark.parametrize("limit", [1, 3 * 8 * 16 * 16 * 4, 1 << 30])
def test_portions_are_the_batch_and_have_no_single_image(n, limit):
    whole = images(n)
    parts = portions(make(), whole, limit)
    assert torch.equal(torch.cat(parts), whole)
    assert len(parts) == 1 or min(map(len, parts)) >= 2


@pytest.mark.parametrize("spec", [{}, {"norm": "layer"}, {"arch": "resnet18", "depth": None, "width": 4}])
def test_outputs_have_the_bits_of_the_whole_batch(spec):
    network, whole = make(**spec).eval(), images(23)
    parts = portions(network, whole, limit=4 * largest_map(network, whole))
    assert len(parts) == 5
    with torch.no_grad():
        assert torch.equal(torch.cat([network(part) for part in parts]), network(whole))


def test_the_limit_bounds_the_largest_map_of_a_portion():
    network, whole = make(), images(64)
    assert largest_map(network, whole) == 8 * 16 * 16 * 4  # behind the first convolution
    with in_closed_form(fresh := make()):
        assert largest_map(fresh, whole) == largest_map(network, whole)
    limit = 6 * largest_map(network, whole)
    assert max(len(part) for part in portions(network, whole, limit)) < 12


def test_a_batch_whose_images_mix_stays_whole():
    network, whole = make(norm="batch"), images(23)
    assert mixes(network.train())
    assert len(portions(network, whole, limit=1)) == 1
    assert not mixes(network.eval())
    assert len(portions(network, whole, limit=1)) == 11
    assert mixes(nn.BatchNorm2d(3, track_running_stats=False).eval())


def test_measuring_changes_no_statistics_and_keeps_no_hook():
    network = make(norm="batch").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    portions(network, images(8), limit=1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


@pytest.mark.parametrize("norm", ["instance", "layer", "group", "batch"])
@pytest.mark.parametrize(
    ("arch", "size"),
    [("convnet", 8), ("resnet18", 8), ("alexnet", 8), ("vgg11", 32), ("lenet", 16), ("mlp", 8), ("vit", 8)],
)
def test_every_architecture_can_be_measured_at_its_smallest_side(arch, size, norm):
    # group norm refuses a single image whose map is one pixel, as the last one of a ResNet-18 at 8 pixels is
    spec = resolve_network(NetworkSpec(arch, norm=norm, width=None if arch in ("lenet", "vit") else 16), size, 3)
    network = build_network(spec, channels=3, size=size, classes=5, generator=generator(0)).eval()
    assert len(portions(network, images(8, size), limit=1)) == 4
