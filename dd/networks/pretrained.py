"""Networks with the weights that timm and torchvision publish, from their caches or downloaded into them."""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dd.errors import RunError, UsageError, in_one_line, unknown
from dd.io.download import TIMEOUT
from dd.networks.zoo import unknown_network

IMAGENET = 1000  # classes of ImageNet-1k; both libraries have its outputs in the order of sorted wnids
_FIXED = ("vit_", "maxvit")  # torchvision's, which take images of one size only
_FILES = ("model.safetensors", "pytorch_model.bin")  # of a timm model on the hub, the first that exists


@dataclass(frozen=True, eq=False)
class Published:
    """A pretrained network and what its source says of it.

    Attributes:
        network: the network as published.
        mean: per channel in [0, 1] units, of the images it takes.
        std: likewise.
        size: side in pixels where it takes one size only, else None.
        outputs: number of its logits.
        classes: what its outputs stand for: wnids in order, None where that is not known.
        declared: accuracy on its own validation images in percent, None where its source gives none.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    size: int | None
    outputs: int
    classes: tuple[str, ...] | None
    declared: float | None


def published(name: str) -> Published:
    """The network `timm:NAME.TAG` or `torchvision:NAME.WEIGHTS`.

    Raises:
        UsageError: no such network, no such weights, or no classifier.
        RunError: the weights are in no cache and cannot be downloaded.
    """
    library, _, model = name.partition(":")
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are replaced
        return _timm(model, name) if library == "timm" else _torchvision(model, name)


def wnids(outputs: int) -> tuple[str, ...] | None:
    """The wnids that networks of timm and torchvision with that many outputs were trained for, None where unknown."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def _timm(model: str, name: str) -> Published:
    import timm

    bare = model.partition(".")[0]
    if ":" in model or not timm.is_model(bare):
        raise unknown_network("timm", bare, timm.list_models())
    tagged = timm.list_pretrained(f"{bare}.*")
    if model not in tagged:
        raise unknown(f"weights of timm:{bare}:", model, tagged)
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.num_classes:
        raise UsageError(f"teachers={name} has no classifier; choose weights that have one")
    overlay: dict[str, str | bool] = {}
    if config.hf_hub_id:
        overlay = {"file": str(_hub_file(config.hf_hub_id, name)), "custom_load": config.custom_load == "hf"}
    try:
        network = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # of the disk, of the network, of the hub's client, of the file's format
        raise _no_weights(name, str(config.hf_hub_id or config.url), "torch's cache ($TORCH_HOME)", error) from error
    return Published(
        network=network,
        mean=config.mean,
        std=config.std,
        size=config.input_size[-1] if config.fixed_input_size else None,
        outputs=config.num_classes,
        classes=wnids(config.num_classes),
        declared=None,
    )


def _torchvision(model: str, name: str) -> Published:
    from torchvision import models

    bare, _, tag = model.partition(".")
    known = models.list_models(module=models)
    if bare not in known:
        raise unknown_network("torchvision", bare, known)
    choice = models.get_model_weights(bare)
    tags = [weights.name for weights in choice]  # not "DEFAULT", which is another one in every version
    if tag not in tags:
        raise unknown(f"weights of torchvision:{bare}:", tag, tags)
    weights = choice[tag]
    try:
        network = models.get_model(bare, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise _no_weights(name, weights.url, str(folder), error) from error
    transforms, outputs = weights.transforms(), len(weights.meta["categories"])
    return Published(
        network=network,
        mean=transforms.mean,
        std=transforms.std,
        size=transforms.crop_size[0] if bare.startswith(_FIXED) else None,
        outputs=outputs,
        classes=wnids(outputs),
        declared=weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1"),
    )


def _hub_file(repo: str, name: str) -> Path:
    """The weights of a model on the Hugging Face hub; what is cached is used without asking the hub."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    for file in _FILES:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        _require_answer(constants.ENDPOINT)  # the hub's client would try for most of a minute, and say so each time
        try:
            return Path(hf_hub_download(repo, _FILES[0]))
        except EntryNotFoundError:
            return Path(hf_hub_download(repo, _FILES[1]))
    except Exception as error:  # its client's errors share no class
        raise _no_weights(name, f"{repo}/{_FILES[0]}", str(constants.HF_HUB_CACHE), error) from error


def _require_answer(url: str) -> None:
    with contextlib.suppress(urllib.error.HTTPError):  # an answer all the same
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()


def _no_weights(name: str, file: str, cache: str, error: Exception) -> RunError:
    reason = in_one_line(getattr(error, "reason", None) or error)
    bare = name.partition(".")[0]
    return RunError(
        f"teachers={name}: its weights {file} are not in {_short(cache)} and could not be had ({reason}): "
        f"copy them there from a machine with a network, or give a file of them, teachers=PATH.safetensors@{bare}"
    )


def _short(path: str) -> str:
    home = os.path.expanduser("~")
    return path.replace(home, "~", 1) if path.startswith(home) else path
