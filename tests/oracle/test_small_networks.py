"""AlexNet, VGG-11, LeNet, MLP and ViT: published counts, other libraries' layers, second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dd.engine.unroll import FullGraph, Stepwise
from dd.networks import Functional, NetworkSpec, build_network, embed
from dd.rng import generator

SMALL = [
    NetworkSpec("alexnet", width=4),
    NetworkSpec("alexnet", width=4, norm="none"),
    NetworkSpec("vgg11", width=2),
    NetworkSpec("lenet"),
    NetworkSpec("mlp", width=6),
    NetworkSpec("vit", depth=2, width=16),
]


# with these, the lists of networks on which DC, DSA, DM and MTT score a set
USUAL = [
    *SMALL,
    *(NetworkSpec("convnet", width=4, norm=norm) for norm in ("instance", "batch")),
    *(NetworkSpec("resnet18", width=4, norm=norm) for norm in ("instance", "batch")),
    NetworkSpec("alexnet", width=4, norm="batch"),
    NetworkSpec("vgg11", width=2, norm="batch"),
]


def net(arch, channels=3, size=32, classes=10, **spec):
    return build_network(
        NetworkSpec(arch, **spec), channels=channels, size=size, classes=classes, generator=generator(0)
    )


def named(spec):
    return f"{spec.arch}-{spec.norm}"


def shifted(module):
    """The module in float64 with every parameter moved: a norm that starts as the identity would hide mistakes."""
    module = module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1, name), dtype=torch.float64))
    return module


@pytest.mark.parametrize(
    ("arch", "channels", "size", "spec", "parameters"),
    [
        ("lenet", 1, 28, {}, 61_706),  # LeNet-5's well-known counts, for MNIST and for CIFAR-10
        ("lenet", 3, 32, {}, 62_006),
        ("vgg11", 3, 32, {"norm": "batch"}, 9_231_114),  # kuangliu/pytorch-cifar's VGG11
        ("vgg11", 3, 32, {}, 9_231_114),
        ("vgg11", 1, 28, {}, 9_231_114 - 2 * 9 * 64),
        ("mlp", 1, 28, {}, 785 * 128 + 129 * 128 + 129 * 10),
        ("mlp", 3, 32, {}, 3073 * 128 + 129 * 128 + 129 * 10),
        # 5x5, 5x5, 3x3, 3x3, 3x3 kernels with biases, and 192 maps of 4x4 pixels
        ("alexnet", 3, 32, {"norm": "none"}, 9_728 + 614_592 + 442_624 + 442_560 + 331_968 + 30_730),
        ("alexnet", 3, 32, {}, 1_872_202 + 2 * (128 + 192 + 256 + 192 + 192)),
        # per block: two norms, queries, keys and values without bias, the projection, the MLP
        ("vit", 3, 32, {}, 6 * (2048 + 512 * 1536 + 3 * 513 * 512) + 49 * 512 + 65 * 512 + 512 + 1024 + 5130),
    ],
)
def test_parameter_counts(arch, channels, size, spec, parameters):
    assert sum(p.numel() for p in net(arch, channels, size, **spec).parameters()) == parameters


@pytest.mark.parametrize("spec", USUAL, ids=named)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 32), (3, 64)])
def test_logits_come_out_at_every_size_and_features_are_flat(spec, channels, size):
    module = build_network(spec, channels=channels, size=size, classes=7, generator=generator(0))
    images = torch.randn(2, channels, size, size, generator=generator(1))
    logits = module(images)
    assert logits.shape == (2, 7)
    assert not torch.equal(logits[0], logits[1])
    assert embed(module, images).dim() == 2


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_vgg11_has_the_layers_of_torchvisions(norm):
    from torchvision.models import vgg11_bn

    ours, theirs = shifted(net("vgg11", norm=norm)), vgg11_bn().features.double()
    if norm == "instance":  # torchvision's has no such variant: another class of torch's in the places of its norms
        for at, layer in enumerate(theirs):
            if isinstance(layer, nn.BatchNorm2d):
                theirs[at] = nn.InstanceNorm2d(layer.num_features, affine=True).double()
    with torch.no_grad():
        for mine, other in zip(ours.features.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
    x = torch.randn(3, 3, 32, 32, generator=generator(2), dtype=torch.float64)
    assert torch.allclose(ours(x), ours.classifier(theirs(x).flatten(1)), atol=1e-10)


@pytest.mark.parametrize(("channels", "size", "pads"), [(3, 32, (2, 2, 1, 1, 1)), (1, 28, (4, 2, 1, 1, 1))])
def test_alexnet_by_hand(channels, size, pads):
    module = shifted(net("alexnet", channels, size, norm="none", width=8))
    weights = list(module.parameters())
    x = hidden = torch.randn(2, channels, size, size, generator=generator(2), dtype=torch.float64)
    for layer, (pad, pooled) in enumerate(zip(pads, (True, True, False, False, True), strict=True)):
        hidden = F.conv2d(hidden, weights[2 * layer], weights[2 * layer + 1], padding=pad).relu()
        if pooled:  # each window of 2x2
            hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    assert torch.allclose(module(x), hidden.reshape(2, -1) @ weights[-2].T + weights[-1], atol=1e-10)
    assert [weight.shape[0] for weight in weights[:10:2]] == [8, 12, 16, 12, 12]


@pytest.mark.parametrize(("channels", "size", "pad"), [(3, 32, 0), (1, 28, 2)])
def test_lenet_by_hand(channels, size, pad):
    module = shifted(net("lenet", channels, size))
    first, a, second, b, *linear = module.parameters()
    x = torch.randn(2, channels, size, size, generator=generator(2), dtype=torch.float64)
    hidden = F.conv2d(x, first, a, padding=pad).relu().unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    hidden = F.conv2d(hidden, second, b).relu().unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)).reshape(2, -1)
    for at in (0, 2):
        hidden = (hidden @ linear[at].T + linear[at + 1]).relu()
    assert torch.allclose(module(x), hidden @ linear[4].T + linear[5], atol=1e-10)


def test_the_mlp_by_hand():
    module = shifted(net("mlp", 1, 28, width=5))
    weights = list(module.parameters())
    x = torch.randn(2, 1, 28, 28, generator=generator(2), dtype=torch.float64)
    hidden = x.reshape(2, -1)
    for at in (0, 2):
        hidden = (hidden @ weights[at].T + weights[at + 1]).clamp_min(0)
    assert torch.allclose(module(x), hidden @ weights[4].T + weights[5], atol=1e-10)


def test_a_block_of_the_vit_is_torchs_encoder_layer():
    module = shifted(net("vit", depth=1, width=16))
    (block,) = module.blocks
    theirs = nn.TransformerEncoderLayer(16, 8, 16, 0.0, "gelu", norm_first=True, batch_first=True, dtype=torch.float64)
    pairs = {
        "self_attn.in_proj_weight": block.attn.qkv.weight,
        "self_attn.in_proj_bias": torch.zeros(48),
        **{f"self_attn.out_proj.{kind}": getattr(block.attn.proj, kind) for kind in ("weight", "bias")},
        **{
            f"linear{i}.{kind}": getattr(getattr(block.mlp, f"fc{i}"), kind)
            for i in (1, 2)
            for kind in ("weight", "bias")
        },
        **{f"norm{i}.{kind}": getattr(getattr(block, f"norm{i}"), kind) for i in (1, 2) for kind in ("weight", "bias")},
    }
    theirs.load_state_dict({name: value.detach().double() for name, value in pairs.items()})
    tokens = torch.randn(2, 5, 16, generator=generator(3), dtype=torch.float64)
    assert torch.allclose(block(tokens), theirs(tokens), atol=1e-6)


def test_the_vit_sees_patches_of_four_pixels_and_their_places():
    module = shifted(net("vit", 1, 8, depth=2, width=16))
    x = torch.randn(1, 1, 8, 8, generator=generator(3), dtype=torch.float64)
    swapped = torch.cat([x[..., 4:], x[..., :4]], -1)  # patches change places
    inside = torch.cat([x[..., 1:4], x[..., :1], x[..., 4:]], -1)  # pixels change places in their patches
    assert not torch.allclose(module(x), module(swapped), atol=1e-6)
    with torch.no_grad():
        module.pos_embed.zero_()
    assert torch.allclose(module(x), module(swapped), atol=1e-10)
    assert not torch.allclose(module(x), module(inside), atol=1e-6)


@pytest.mark.parametrize("spec", SMALL, ids=named)
def test_second_derivatives_against_finite_differences(spec):
    network = Functional(build_network(spec, channels=1, size=32, classes=3, generator=generator(0)).double())
    theta = network.flatten(network.module).requires_grad_()
    x = torch.randn(3, 1, 32, 32, generator=generator(4), dtype=torch.float64).requires_grad_()
    direction = torch.randn(theta.shape, generator=generator(5), dtype=torch.float64)
    direction /= direction.norm()
    targets = torch.tensor([0, 1, 2])

    def slope(images):
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(theta, images), targets), theta, create_graph=True)
        return gradient @ direction

    (mixed,) = torch.autograd.grad(slope(x), x)
    towards = torch.randn(x.shape, generator=generator(6), dtype=torch.float64)
    h = 1e-7  # small, so that no unit changes sides
    numeric = (slope(x + h * towards) - slope(x - h * towards)) / (2 * h)
    assert float((mixed * towards).sum().detach()) == pytest.approx(float(numeric.detach()), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("spec", SMALL, ids=named)
def test_a_student_that_is_matched_has_the_same_gradient_both_ways(spec):
    network = Functional(build_network(spec, channels=1, size=32, classes=3, generator=generator(0)).double())
    start = network.flatten(network.module)
    found = []
    for backprop in (FullGraph(), Stepwise(), Stepwise()):
        x = torch.randn(3, 1, 32, 32, generator=generator(4), dtype=torch.float64).requires_grad_()
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

        def loss(theta, step, images):
            return F.cross_entropy(network(theta, images), torch.tensor([0, 1, 2]))

        (end,) = backprop(loss, start, lr, [x], steps=2)
        (end - 2 * start).square().sum().backward()
        found.append((x.grad, lr.grad))
    for one, other in zip(found[0], found[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(one, other) for one, other in zip(found[1], found[2], strict=True))  # to the bit
