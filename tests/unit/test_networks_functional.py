"""A network as a function of one vector: the same numbers as the module, differentiable twice, nothing changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dd.errors import UsageError
from dd.networks import Functional, NetworkSpec, build_network
from dd.rng import generator


def make(seed=0, **spec):
    spec = {"width": 3, "depth": 2, "activation": "softplus"} | spec
    return build_network(NetworkSpec(**spec), channels=1, size=8, classes=3, generator=generator(seed))


def images(n=4, dtype=torch.float32):
    return torch.randn(n, 1, 8, 8, generator=generator(9), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spec", [{}, {"norm": "layer"}, {"arch": "resnet18", "depth": None, "norm": "group", "width": 4}]
)
def test_logits_are_those_of_the_module(dtype, spec):
    net = make(**spec)
    functional = Functional(make(seed=1, **spec))
    flat = functional.flatten(net).to(dtype)
    assert flat.shape == (functional.size,)
    assert torch.equal(functional(flat, images(dtype=dtype)), copy.deepcopy(net).to(dtype)(images(dtype=dtype)))


def test_the_vector_follows_the_order_of_named_parameters():
    net = make()
    functional = Functional(net)
    assert functional.names == tuple(name for name, _ in net.named_parameters())
    assert torch.equal(functional.flatten(net), nn.utils.parameters_to_vector(net.parameters()).detach())


def test_gradients_are_those_of_the_module():
    net, x, y = make(), images(), torch.tensor([0, 1, 2, 1])
    functional = Functional(net)
    flat = functional.flatten(net).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(functional(flat, x), y), flat)
    parts = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    assert torch.allclose(gradient, torch.cat([part.reshape(-1) for part in parts]), atol=1e-7)


def test_second_derivatives_through_parameters_and_images_against_finite_differences():
    functional = Functional(make())
    flat = functional.flatten(make()).double().requires_grad_()
    x, y = images(2, torch.float64).requires_grad_(), torch.tensor([0, 2])
    v = torch.randn(functional.size, generator=generator(5), dtype=torch.float64)

    def directional(flat, x):  # <gradient, v>: its gradient is a Hessian-vector product and a mixed derivative
        (gradient,) = torch.autograd.grad(F.cross_entropy(functional(flat, x), y), flat, create_graph=True)
        return gradient @ v

    by_flat, by_image = torch.autograd.grad(directional(flat, x), (flat, x))
    h = 1e-5
    for tensor, analytic in ((flat, by_flat), (x, by_image)):
        for position in (0, 7, tensor.numel() - 1):
            values = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved.view(-1)[position] += sign * h
                moved.requires_grad_()
                values.append(directional(moved, x) if tensor is flat else directional(flat, moved))
            numeric = (values[0] - values[1]).item() / (2 * h)
            assert analytic.reshape(-1)[position].item() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_a_call_changes_and_reads_nothing_of_the_module():
    net = make()
    functional = Functional(net)
    flat = functional.flatten(make(seed=2))
    before = [(parameter, parameter.detach().clone()) for parameter in net.parameters()]
    expected = functional(flat, images())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    assert torch.equal(functional(flat, images()), expected)
    for (parameter, value), now in zip(before, net.parameters(), strict=True):
        assert parameter is now
        assert torch.equal(now, 2 * value)
        assert now.grad is None


def test_flatten_copies_and_load_gives_back():
    net, other = make(), make(seed=3)
    functional = Functional(net)
    flat = functional.flatten(net)
    kept = flat.clone()
    functional.load(other, flat)
    assert torch.equal(functional.flatten(other), kept)
    with torch.no_grad():
        next(iter(net.parameters())).zero_()
    assert torch.equal(flat, kept)
    assert not flat.requires_grad


def test_constants_of_an_architecture_follow_the_type_of_the_vector():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3)
            self.register_buffer("shift", torch.full((3,), 0.5))

        def forward(self, x):
            return self.linear(x.flatten(1)) + self.shift

    functional = Functional(Shifted())
    flat = functional.flatten(functional.module).double()
    assert functional(flat, images(dtype=torch.float64)).dtype == torch.float64
    assert functional.module.shift.dtype == torch.float32


@pytest.mark.parametrize("spec", [{}, {"arch": "resnet18", "depth": None}])
def test_running_statistics_are_refused(spec):
    with pytest.raises(UsageError, match=r"norm.*BatchNorm2d.*student\.norm=instance"):
        Functional(make(norm="batch", **spec))


def test_a_fitting_header_passes_and_survives_json():
    import json

    functional = Functional(make())
    functional.require(json.loads(json.dumps(functional.header())))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"width": 5}, r"features\.0\.conv\.weight \(5x1x3x3\) there and features\.0\.conv\.weight \(3x1x3x3\) here"),
        ({"depth": 3}, r"layer 8 is features\.2\.conv\.weight .* there and classifier\.weight"),
        ({"depth": 1}, r"layer 4 is classifier\.weight .* there and features\.1\.conv\.weight"),
        ({"norm": "none"}, r"layer 2 is features\.1\.conv\.weight .* there and features\.0\.norm\.weight"),
    ],
)
def test_another_architecture_is_named_by_its_first_layer(spec, says):
    functional, other = Functional(make()), make(**spec)
    with pytest.raises(UsageError, match=r"^experts\.safetensors do not fit.*" + says):
        functional.require(Functional(other).header(), "experts.safetensors")
    with pytest.raises(UsageError, match=says):
        functional.flatten(other)
    with pytest.raises(UsageError, match=says):
        functional.load(other, functional.flatten(functional.module))


def test_a_shorter_header_says_what_is_missing():
    functional = Functional(make())
    header = functional.header()
    short = {name: value[:-1] for name, value in header.items()}
    with pytest.raises(UsageError, match=r"layer 9 is missing there and classifier\.bias \(3\) here"):
        functional.require(short)


def test_several_networks_can_be_stacked():
    functional = Functional(make())
    flats = torch.stack([functional.flatten(make(seed=seed)) for seed in range(3)])
    stacked = torch.func.vmap(functional, in_dims=(0, None))(flats, images())
    for flat, logits in zip(flats, stacked, strict=True):
        assert torch.allclose(functional(flat, images()), logits, atol=1e-5)
