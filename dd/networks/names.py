"""Names of networks: our own, those of timm and torchvision, and those of plug-ins."""

import re
from collections.abc import Callable
from typing import TypeAlias, cast

from torch import nn

from dd.plugins import Named

ARCHITECTURES = ("convnet", "resnet18", "alexnet", "vgg11", "lenet", "mlp", "vit")
CONVNET = re.compile(r"convnet(?:d?(\d+))?")
LIBRARIES = ("timm", "torchvision")
NetworkMaker: TypeAlias = Callable[[int, int, int], nn.Module]


def is_ours(arch: str) -> bool:
    """Return whether a name is one of our architectures, in any spelling."""
    name = arch.lower()
    return name in ARCHITECTURES or CONVNET.fullmatch(name) is not None


def is_zoo_name(arch: str) -> bool:
    """Return whether a name is `timm:NAME`, `torchvision:NAME` or a plug-in's: networks configured by `arch` alone."""
    library, colon, _ = arch.partition(":")
    return library in LIBRARIES if colon else arch in NETWORKS


def _accept(_name: str, given: object) -> NetworkMaker:
    """Validate the function that a plug-in registers under a name."""
    if not callable(given):
        raise ValueError(f"it is of type {type(given).__name__}, not a function of channels, size and classes")
    return cast(NetworkMaker, given)


NETWORKS: Named[NetworkMaker] = Named("network", {}, _accept, is_ours)
"""Networks of plug-ins: functions of channels, size in pixels and number of classes that return a fresh `nn.Module`."""
