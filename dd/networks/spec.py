"""Which network: a name and a few numbers, made definite for an image size and built from a generator."""

import re
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from dd.errors import UsageError, nearest
from dd.networks import zoo
from dd.networks.convnet import ConvNet, map_side
from dd.networks.layers import Activation, Norm, Pooling
from dd.networks.resnet import ResNet18

ARCHITECTURES = ("convnet", "resnet18")
_CONVNET = re.compile(r"convnet(?:d?(\d+))?")
_DEPTH_UP_TO = ((32, 3), (64, 4), (128, 5), (256, 6))  # of the literature: side in pixels, blocks
USUAL_SIDE = _DEPTH_UP_TO[-1][0]  # of the largest images that have a usual depth, in pixels
_WIDTH = {"convnet": 128, "resnet18": 64}


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name; what is None is decided by `resolve`.

    Attributes:
        arch: "convnet" (also "ConvNetD3", "convnet3": with the depth), "resnet18", "timm:NAME" or "torchvision:NAME".
        depth: blocks of the ConvNet; None: 3 for images up to 32 pixels, 4 up to 64, 5 up to 128, 6 up to 256.
        width: channels of the first block; None: the published 128 (ConvNet) and 64 (ResNet-18).
        norm: of convnet and resnet18; "batch" cannot be a student of trajectory matching.
        pooling: of convnet.
        activation: of convnet and resnet18.
    """

    arch: str = "convnet"
    depth: Annotated[int, Field(ge=1, le=12)] | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    norm: Norm = "instance"
    pooling: Pooling = "avg"
    activation: Activation = "relu"


def resolve(spec: NetworkSpec, size: int, channels: int = 3) -> NetworkSpec:
    """The same network in its canonical spelling, with every number decided that its architecture has.

    Args:
        spec: what was asked for.
        size: height and width of an image in pixels.
        channels: channels of an image; grey 28×28 images count as 32×32.

    Raises:
        UsageError: an unknown architecture, a number that it does not have, or too many blocks for the image.
    """
    if zoo.is_zoo_name(spec.arch):
        _refuse(spec, "depth", "width")
        return spec
    arch, depth = _architecture(spec)
    if arch == "resnet18":
        _refuse(spec, "depth")
    else:
        depth = _depth(depth, spec.pooling, map_side(channels, size))
    width = _WIDTH[arch] if spec.width is None else spec.width
    if width < 1:
        raise UsageError(f"student.width={width} must be at least 1")
    return replace(spec, arch=arch, depth=depth, width=width)


def foreign_sizes(before: str, after: str) -> tuple[str, ...]:
    """Which sizes of a network are no longer meant once another architecture is named in place of its own.

    Depth and width belong to an architecture: 32 channels, small for a ConvNet, are no ResNet-18 that anybody compares
    with, and networks of timm and torchvision have neither.  Norm, pooling and activation are choices, which hold
    for every architecture that has them.

    Args:
        before: the architecture that the sizes were given for.
        after: the one that is named now; "ConvNetD4" is the ConvNet still, with a depth of its own.
    """
    old, new = _CONVNET.fullmatch(before.lower()), _CONVNET.fullmatch(after.lower())
    if old and new:
        return ("depth",) if new[1] else ()
    return () if before.lower() == after.lower() else ("depth", "width")


def build(
    spec: NetworkSpec,
    *,
    channels: int,
    size: int,
    classes: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A network with fresh weights, in training mode.

    Weights are drawn on the CPU from one seed taken off `generator`: they are the same on every device, and the global
    generators are left as they were found.

    Args:
        spec: what to build; it is resolved for the image size.
        channels: channels of an image.
        size: height and width of an image in pixels.
        classes: number of logits.
        generator: a CPU generator.
        device: where the network goes.

    Raises:
        UsageError: see `resolve` and `zoo.build`.
    """
    spec = resolve(spec, size, channels)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reach the GPUs too
        net = _construct(spec, channels, size, classes)
    return net.to(device)


def _construct(spec: NetworkSpec, channels: int, size: int, classes: int) -> nn.Module:
    if zoo.is_zoo_name(spec.arch):
        return zoo.build(spec.arch, channels, size, classes)
    assert spec.width is not None
    if spec.arch == "resnet18":
        return ResNet18(channels, size, classes, spec.width, spec.norm, spec.activation)
    assert spec.depth is not None
    return ConvNet(channels, size, classes, spec.depth, spec.width, spec.norm, spec.pooling, spec.activation)


def _architecture(spec: NetworkSpec) -> tuple[str, int | None]:
    name = spec.arch.lower()
    if match := _CONVNET.fullmatch(name):
        named = int(match[1]) if match[1] else None
        if named is not None and spec.depth not in (None, named):
            raise UsageError(
                f"student.arch={spec.arch} says depth {named} and student.depth says {spec.depth}: give one"
            )
        return "convnet", spec.depth if named is None else named
    if name in ARCHITECTURES:
        return name, spec.depth
    raise UsageError(
        f"unknown network {spec.arch!r}{nearest(name, ARCHITECTURES)}; "
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


def _refuse(spec: NetworkSpec, *fields: str) -> None:
    for field in fields:
        if (value := getattr(spec, field)) is not None:
            raise UsageError(f"student.{field}={value} means nothing to student.arch={spec.arch}: leave it out")
