"""Norm, pooling and activation layers by name, shared by all our networks."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from dd.errors import UsageError, unknown

Norm = Literal["instance", "batch", "layer", "group", "none"]
Pooling = Literal["avg", "max", "none"]
Activation = Literal["relu", "sigmoid", "leakyrelu", "softplus"]

GROUPS = 4  # groups of norm "group", as in the code of Dataset Condensation

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leakyrelu": nn.LeakyReLU,
    "softplus": nn.Softplus,
}


def norm_layer(norm: str, channels: int, side: int) -> nn.Module:
    """A normalisation layer for maps (n, channels, side, side), with a learned scale and shift.

    Args:
        norm: "instance" is a GroupNorm with one group per channel, without running statistics; "layer" has a scale
            per channel and position; "none" is the identity.
        channels: channels of the map.
        side: height and width of the map in pixels.

    Raises:
        UsageError: an unknown name, or a number of channels that is not divisible by the number of groups.
    """
    if norm == "instance":
        return nn.GroupNorm(channels, channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return nn.LayerNorm([channels, side, side])
    if norm == "group":
        if channels % GROUPS:
            raise UsageError(
                f"width {channels} does not divide into {GROUPS} groups: take a multiple, or norm=instance"
            )
        return nn.GroupNorm(GROUPS, channels)
    if norm == "none":
        return nn.Identity()
    raise unknown("norm", norm, ("instance", "batch", "layer", "group", "none"))


def pooling_layer(pooling: str) -> nn.Module:
    """A pooling layer that halves a map (rounding down); "none" is the identity.

    Raises:
        UsageError: an unknown name.
    """
    if pooling == "avg":
        return nn.AvgPool2d(2)
    if pooling == "max":
        return nn.MaxPool2d(2)
    if pooling == "none":
        return nn.Identity()
    raise unknown("pooling", pooling, ("avg", "max", "none"))


def activation_layer(activation: str) -> nn.Module:
    """An activation layer, never in-place, so that captured inputs are not overwritten.

    Raises:
        UsageError: an unknown name.
    """
    if activation not in _ACTIVATIONS:
        raise unknown("activation", activation, _ACTIVATIONS)
    return _ACTIVATIONS[activation]()
