"""Network specifications: a name and a few hyper-parameters, resolved for an image size and built from a generator."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from dd.errors import UsageError, nearest
from dd.networks import small
from dd.networks.convnet import ConvNet, map_side
from dd.networks.layers import Activation, Norm, Pooling
from dd.networks.names import ARCHITECTURES, CONVNET, NETWORKS, is_zoo_name
from dd.networks.resnet import ResNet18
from dd.networks.zoo import build_zoo

_DEPTH_UP_TO = ((32, 3), (64, 4), (128, 5), (256, 6))  # usual depth by image size: side in pixels, blocks
USUAL_SIDE = _DEPTH_UP_TO[-1][0]  # largest image side in pixels with a usual depth
# published values; architectures without an entry have no width (or depth)
_WIDTH = {"convnet": 128, "resnet18": 64, "alexnet": 128, "vgg11": 64, "mlp": 128, "vit": 512}
_DEPTH = {"vit": 6}
NORMED = ("convnet", "resnet18", "alexnet", "vgg11")  # architectures with a choice of norm
_OF_BLOCKS = {"resnet18": ResNet18, "alexnet": small.alexnet, "vgg11": small.vgg11}
_SMALLEST = {"alexnet": 8, "vgg11": 32, "lenet": 16}  # smallest image side in pixels that survives the pooling layers


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name; `resolve_network` fills in fields that are None."""

    arch: str = "convnet"
    """The architecture: "convnet" (or with its depth, "ConvNetD3" or "convnet3"), "resnet18", "alexnet", "vgg11",
    "lenet", "mlp", "vit", "timm:NAME", "torchvision:NAME" or the name of a plug-in's.
    """
    depth: Annotated[int, Field(ge=1, le=12)] | None = None
    """Number of blocks. None: for the ConvNet 3 for images up to 32 pixels, 4 up to 64, 5 up to 128, 6 up to 256; for
    the ViT the published 6.
    """
    width: Annotated[int, Field(ge=1, le=2**16)] | None = None
    """Channels of the first block, units of the MLP's hidden layers, or dimension of the ViT's tokens. None: as
    published, 128 (ConvNet, AlexNet, MLP), 64 (ResNet-18, VGG-11) or 512 (ViT). LeNet has no width.
    """
    norm: Norm = "instance"
    """Norm layers of convnet, resnet18, alexnet and vgg11; other networks ignore it. Trajectory matching refuses
    "batch".
    """
    pooling: Pooling = "avg"
    """Pooling of the ConvNet; other networks ignore it."""
    activation: Activation = "relu"
    """Activation; vit and the networks of timm, torchvision and plug-ins ignore it."""


def resolve_network(spec: NetworkSpec, size: int, channels: int = 3) -> NetworkSpec:
    """Resolve a spec: canonical name, and values for every field that the architecture has.

    Args:
        spec: the requested network.
        size: height and width of an image in pixels.
        channels: channels of an image; grey 28×28 images count as 32×32.

    Raises:
        UsageError: the architecture is unknown, a field does not apply to it, there are too many blocks for the image,
            or the image is too small.
    """
    if is_zoo_name(spec.arch):
        _refuse(spec, "depth", "width")
        return spec
    arch, depth = _architecture(spec)
    if arch == "convnet":
        depth = _depth(depth, spec.pooling, map_side(channels, size))
    elif arch in _DEPTH:
        depth = _DEPTH[arch] if depth is None else depth
    else:
        _refuse(spec, "depth")
    if arch not in _WIDTH:
        _refuse(spec, "width")
    width = _WIDTH.get(arch) if spec.width is None else spec.width
    for name, value in (("depth", depth), ("width", width)):
        if value is not None and value < 1:
            raise UsageError(f"student.{name}={value} must be at least 1")
    _fits(arch, size, map_side(channels, size))
    return replace(spec, arch=arch, depth=depth, width=width)


def foreign_sizes(before: str, after: str) -> tuple[str, ...]:
    """The fields that must be reset when a network's architecture is replaced.

    Depth and width belong to an architecture: a width of 32 is small for a ConvNet, but as a ResNet-18 it would match
    no paper, and networks of timm and torchvision have neither.  Norm, pooling and activation carry over.

    Args:
        before: the architecture that the sizes were given for.
        after: the new architecture; "ConvNetD4" is still the ConvNet, but with its own depth.
    """
    old, new = CONVNET.fullmatch(before.lower()), CONVNET.fullmatch(after.lower())
    if old and new:
        return ("depth",) if new[1] else ()
    return () if before.lower() == after.lower() else ("depth", "width")


def build_network(
    spec: NetworkSpec,
    *,
    channels: int,
    size: int,
    classes: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Build a network with fresh weights, in training mode.

    One number from `generator` seeds the weights, which are drawn on the CPU.  So they are the same on every device,
    and the global generators are not affected.

    Args:
        spec: the network; it is resolved for the image size.
        channels: channels of an image.
        size: height and width of an image in pixels.
        classes: number of logits.
        generator: a CPU generator.
        device: device of the network.

    Raises:
        UsageError: see `resolve_network` and `build_zoo`.
    """
    spec = resolve_network(spec, size, channels)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # CPU only; torch.manual_seed would seed the GPUs too
        net = _construct(spec, channels, size, classes)
    return net.to(device)


def magnitude(spec: NetworkSpec, *, channels: int, size: int, classes: int) -> tuple[int, int]:
    """Number of parameters, and of activations for one image; computed on the meta device, without allocation.

    Raises:
        UsageError: see `build_network`.
    """
    values = 0

    def count(layer: nn.Module, _: object, output: object) -> None:
        nonlocal values
        if isinstance(output, torch.Tensor) and not any(True for _ in layer.children()):
            values += output.numel()

    with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        net = _construct(resolve_network(spec, size, channels), channels, size, classes).eval()
        for layer in net.modules():
            layer.register_forward_hook(count)
        net(torch.zeros(1, channels, size, size))
    return sum(p.numel() for p in net.parameters()), values


def _construct(spec: NetworkSpec, channels: int, size: int, classes: int) -> nn.Module:
    if is_zoo_name(spec.arch):
        return build_zoo(spec.arch, channels, size, classes)
    shape = channels, size, classes
    if spec.arch == "lenet":
        return small.lenet(*shape, spec.activation)
    assert spec.width is not None
    if spec.arch == "mlp":
        return small.mlp(*shape, spec.width, spec.activation)
    if spec.arch in _OF_BLOCKS:
        return _OF_BLOCKS[spec.arch](*shape, spec.width, spec.norm, spec.activation)
    assert spec.depth is not None
    if spec.arch == "vit":
        return small.vit(*shape, spec.depth, spec.width)
    return ConvNet(*shape, spec.depth, spec.width, spec.norm, spec.pooling, spec.activation)


def _architecture(spec: NetworkSpec) -> tuple[str, int | None]:
    name = spec.arch.lower()
    if match := CONVNET.fullmatch(name):
        named = int(match[1]) if match[1] else None
        if named is not None and spec.depth not in (None, named):
            raise UsageError(
                f"student.arch={spec.arch} says depth {named} and student.depth says {spec.depth}: give one"
            )
        return "convnet", spec.depth if named is None else named
    if name in ARCHITECTURES:
        return name, spec.depth
    raise UsageError(
        f"unknown network {spec.arch!r}{nearest(name, [*ARCHITECTURES, *NETWORKS])}; "
        "others by student.arch=timm:NAME or torchvision:NAME"
    )


def _depth(asked: int | None, pooling: str, side: int) -> int:
    deepest = side.bit_length() - 1 if pooling != "none" else None
    if asked is None:
        fitting = [depth for limit, depth in _DEPTH_UP_TO if side <= limit]
        if not fitting:
            raise UsageError(f"no usual depth of a convnet for images of {side} pixels: give student.depth")
        return fitting[0] if deepest is None else min(fitting[0], deepest)
    if asked < 1 or (deepest is not None and asked > deepest):
        most = "" if deepest is None else f" and at most {deepest}, as each block halves the {side}x{side} map"
        raise UsageError(f"student.depth={asked} must be at least 1{most}")
    return asked


def _fits(arch: str, size: int, side: int) -> None:
    """Raise a `UsageError` if an architecture cannot take images of `size` pixels (first maps of `side` pixels)."""
    if side < _SMALLEST.get(arch, 1):
        raise UsageError(
            f"student.arch={arch} needs images of {_SMALLEST[arch]} pixels, these have {size}: "
            f"data.size={_SMALLEST[arch]}, or another architecture"
        )
    if arch == "vit" and size % small.PATCH:
        raise UsageError(f"student.arch=vit cuts images into patches of {small.PATCH} pixels; {size} is not a multiple")


def _refuse(spec: NetworkSpec, *fields: str) -> None:
    for field in fields:
        if (value := getattr(spec, field)) is not None:
            raise UsageError(f"student.{field}={value} means nothing to student.arch={spec.arch}: leave it out")
