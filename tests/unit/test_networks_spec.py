"""Names, defaults, mistakes, and where fresh weights come from."""

import dataclasses

import pytest
import torch

from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network, embed, resolve_network
from dd.networks.spec import ARCHITECTURES as OURS
from dd.rng import generator


def weights(net):
    return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])


def make(spec, seed=0, channels=1, size=16, classes=4):
    return build_network(spec, channels=channels, size=size, classes=classes, generator=generator(seed))


@pytest.mark.parametrize(
    ("size", "depth"), [(28, 3), (32, 3), (33, 4), (64, 4), (96, 5), (128, 5), (256, 6), (8, 3), (6, 2), (2, 1)]
)
def test_depth_follows_from_the_size(size, depth):
    assert resolve_network(NetworkSpec(), size).depth == depth


@pytest.mark.parametrize("arch", ["ConvNet", "ConvNetD3", "convnet3", "CONVNETd3"])
def test_aliases_are_the_convnet(arch):
    spec = resolve_network(NetworkSpec(arch=arch), 32)
    assert (spec.arch, spec.depth, spec.width) == ("convnet", 3, 128)


def test_resolving_twice_changes_nothing():
    for spec in (NetworkSpec(), NetworkSpec("ConvNetD4"), NetworkSpec("ResNet18"), NetworkSpec("timm:resnet18")):
        once = resolve_network(spec, 32)
        assert resolve_network(once, 32) == once
    assert resolve_network(NetworkSpec("ResNet18"), 32) == NetworkSpec("resnet18", width=64)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"arch": "convnett"}, "'convnett'.*'convnet'.*timm:NAME"),
        ({"arch": "ConvNetD3", "depth": 4}, "3.*4"),
        ({"depth": 6}, "depth=6.*at most 5"),
        ({"depth": 0}, "depth=0"),
        ({"width": 0}, "width=0"),
        ({"arch": "resnet18", "depth": 3}, "depth=3.*resnet18"),
        ({"arch": "timm:resnet18", "width": 8}, "width=8.*timm"),
        ({"arch": "vgg11", "depth": 3}, "depth=3.*vgg11"),
        ({"arch": "lenet", "width": 8}, "width=8.*lenet"),
        ({"arch": "mlp", "depth": 2}, "depth=2.*mlp"),
        ({"arch": "vit", "width": 20}, "width=20.*8 heads"),
        ({"arch": "vit", "depth": 0}, "depth=0"),
        ({"arch": "vgg-11"}, "'vgg-11'.*'vgg11'"),
        ({"norm": "instances"}, "norm 'instances'.*'instance'"),
        ({"norm": "group", "width": 6}, "6.*4"),
        ({"pooling": "mean"}, "pooling 'mean'"),
        ({"activation": "rellu"}, "activation 'rellu'.*'relu'"),
        ({"arch": "timm:resnet1888"}, "timm network 'resnet1888'.*'resnet18'"),
        ({"arch": "timm:hf-hub:some/model"}, "hf-hub"),
        ({"arch": "torchvision:resnet"}, "torchvision network 'resnet'.*'resnet"),
        ({"arch": "torchvision:alexnet"}, "torchvision:alexnet cannot take 3x32x32"),
    ],
)
def test_mistakes_are_named(spec, says):
    with pytest.raises(UsageError, match=says) as caught:
        make(NetworkSpec(**spec), channels=3, size=32)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_no_usual_depth_beyond_256_pixels():
    with pytest.raises(UsageError, match=r"300.*student\.depth"):
        resolve_network(NetworkSpec(), 300)
    assert resolve_network(NetworkSpec(depth=7), 300).depth == 7


def test_a_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NetworkSpec().width = 3  # pyright: ignore


ARCHITECTURES = [
    NetworkSpec(width=4),
    NetworkSpec("resnet18", width=4),
    NetworkSpec("alexnet", width=4),
    NetworkSpec("vgg11", width=2),
    NetworkSpec("lenet"),
    NetworkSpec("mlp", width=4),
    NetworkSpec("vit", depth=1, width=8),
    NetworkSpec("timm:test_resnet"),
    NetworkSpec("torchvision:squeezenet1_1"),
]


@pytest.mark.parametrize(
    ("arch", "size", "says"),
    [
        ("vgg11", 28, "vgg11 needs images of 32 pixels, these have 28.*data.size=32"),
        ("lenet", 12, "lenet needs images of 16 pixels"),
        ("alexnet", 4, "alexnet needs images of 8 pixels"),
        ("vit", 30, "patches of 4 pixels; 30"),
    ],
)
def test_an_image_that_is_too_small_is_refused(arch, size, says):
    with pytest.raises(UsageError, match=says):
        resolve_network(NetworkSpec(arch), size)
    with pytest.raises(UsageError, match=says):
        make(NetworkSpec(arch), channels=3, size=size)


@pytest.mark.parametrize("arch", OURS)
def test_every_architecture_of_ours_has_its_sizes_and_takes_grey_images_of_28_pixels(arch):
    spec = resolve_network(NetworkSpec(arch), 28, 1)
    assert resolve_network(spec, 28, 1) == spec
    published = {"convnet": (3, 128), "resnet18": (None, 64), "alexnet": (None, 128), "vgg11": (None, 64)}
    assert (spec.depth, spec.width) == (published | {"lenet": (None, None), "mlp": (None, 128), "vit": (6, 512)})[arch]


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=lambda spec: spec.arch)
def test_the_generator_decides_the_weights_and_the_global_one_is_left_as_found(spec):
    torch.rand(3)
    before = torch.get_rng_state()
    first, again, other = make(spec, 1, size=32), make(spec, 1, size=32), make(spec, 2, size=32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)  # the state of the global generator must not matter
    late = make(spec, 1, size=32)
    assert torch.equal(weights(first), weights(again))
    assert torch.equal(weights(first), weights(late))
    assert not torch.equal(weights(first), weights(other))
    assert first.training


def test_one_generator_gives_network_after_network():
    g = generator(0)
    first, second = (build_network(NetworkSpec(width=4), channels=1, size=16, classes=4, generator=g) for _ in range(2))
    assert not torch.equal(weights(first), weights(second))


def test_the_global_generator_survives_a_failed_build():
    before = torch.get_rng_state()
    with pytest.raises(UsageError):
        make(NetworkSpec("torchvision:alexnet"), channels=3, size=16)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "leakyrelu", "softplus"])
def test_every_combination_runs(norm, activation):
    x = torch.randn(2, 1, 28, 28, generator=generator(0))
    for pooling in ("avg", "max", "none"):
        spec = NetworkSpec(depth=2, width=4, norm=norm, activation=activation, pooling=pooling)
        assert make(spec, size=28)(x).shape == (2, 4)
    assert make(NetworkSpec("resnet18", width=4, norm=norm, activation=activation), size=28)(x).shape == (2, 4)


def test_embeddings_are_what_the_linear_layer_sees():
    x = torch.randn(2, 1, 32, 32, generator=generator(0))
    for spec in ARCHITECTURES:
        if spec.arch in OURS:
            net = make(spec, size=32)
            last = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)][-1]
            assert torch.equal(last(embed(net, x)), net(x))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("arch", ["timm:test_resnet", "torchvision:squeezenet1_1"])
def test_other_libraries_take_any_number_of_channels(arch, channels):
    net = make(NetworkSpec(arch), channels=channels, size=32, classes=7)
    assert net(torch.randn(2, channels, 32, 32, generator=generator(0))).shape == (2, 7)


def test_dropout_of_other_libraries_is_off():
    net = make(NetworkSpec("torchvision:squeezenet1_1"), size=32)
    x = torch.randn(2, 1, 32, 32, generator=generator(0))
    before = torch.get_rng_state()
    assert torch.equal(net(x), net(x))
    assert torch.equal(torch.get_rng_state(), before)
