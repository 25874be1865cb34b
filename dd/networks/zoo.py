"""Untrained networks of timm, torchvision and plug-ins, by name."""

from difflib import get_close_matches
from functools import partial

import torch
from torch import nn

from dd.errors import RunError, UsageError, in_one_line
from dd.networks.names import NETWORKS


def build_zoo(arch: str, channels: int, size: int, classes: int) -> nn.Module:
    """Build an untrained network of timm, torchvision or a plug-in.

    The weights come from torch's default CPU generator, which the caller forks.  Dropout and stochastic depth are
    disabled, because they draw from the global generator and a seed would no longer determine the result.  For images
    without 3 channels, the first convolution of a torchvision network is replaced; timm does that itself.

    Args:
        arch: `timm:NAME`, `torchvision:NAME`, or the name of a plug-in's network.
        channels: channels of an image.
        size: height and width of an image in pixels.
        classes: number of logits.

    Raises:
        UsageError: the name is unknown, or the network cannot take such images.
        RunError: a plug-in fails to import, or its function does not return a network.
    """
    library, colon, name = arch.partition(":")
    try:
        if colon:
            net = (_timm if library == "timm" else _torchvision)(name, channels, size, classes)
        else:
            net = _plug_in(arch, channels, size, classes)
        _switch_off_dropout(net)
        shape = _try(net, channels, size)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UsageError(
            f"{arch} cannot take {channels}x{size}x{size} images: {in_one_line(error)}; use another student.arch"
        ) from error
    if shape != (1, classes):
        raise UsageError(f"{arch} gives {shape} for one image, not {classes} logits; use another student.arch")
    return net


def _plug_in(name: str, channels: int, size: int, classes: int) -> nn.Module:
    net = NETWORKS[name](channels, size, classes)
    if not isinstance(net, nn.Module):
        whose = f"the network {name!r} of the package {NETWORKS.package(name)}"
        raise RunError(f"{whose} gives {type(net).__name__}, not an nn.Module")
    return net


def _timm(name: str, channels: int, size: int, classes: int) -> nn.Module:
    import timm

    # is_model rejects names with a remote prefix ("hf-hub:…"), so nothing is downloaded
    if ":" in name or not timm.is_model(name):
        raise unknown_network("timm", name, timm.list_models())
    config = timm.get_pretrained_cfg(name)
    create = partial(timm.create_model, name, pretrained=False, num_classes=classes, in_chans=channels)
    return create(img_size=size) if config is not None and config.fixed_input_size else create()


def _torchvision(name: str, channels: int, size: int, classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_network("torchvision", name, known)
    extra: dict[str, bool | int] = {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}  # one output; their default initialisation warns
    if name.startswith("vit_"):
        extra = {"image_size": size}
    net = models.get_model(name, weights=None, num_classes=classes, **extra)
    if channels != 3:
        _replace_first_convolution(net, channels)
    return net


def unknown_network(library: str, name: str, known: list[str]) -> UsageError:
    """The error for a name that a library does not have, with close matches."""
    # the full list would fill screens
    close = " or ".join(repr(match) for match in get_close_matches(name, known))
    hint = f"did you mean {close}?" if close else f"{library}.list_models() names all {len(known)}"
    return UsageError(f"unknown {library} network {name!r}; {hint}")


def _replace_first_convolution(net: nn.Module, channels: int) -> None:
    path, old = next((path, m) for path, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    same = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(channels, old.out_channels, **same, bias=old.bias is not None)
    parent, _, leaf = path.rpartition(".")
    setattr(net.get_submodule(parent), leaf, new)


def _switch_off_dropout(net: nn.Module) -> None:
    for module in net.modules():
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth"
        # drop_prob is the attribute of timm's DropPath and DropBlock
        for name, has in (("p", dropout), ("drop_prob", hasattr(module, "drop_prob"))):
            if has:
                setattr(module, name, 0.0)


def _try(net: nn.Module, channels: int, size: int) -> tuple[int, ...]:
    net.eval()
    with torch.no_grad():
        shape = tuple(net(torch.zeros(1, channels, size, size)).shape)
    net.train()
    return shape
