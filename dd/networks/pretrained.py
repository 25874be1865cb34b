"""Pretrained networks of timm and torchvision, from the libraries' caches or downloaded into them."""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dd.errors import RunError, UsageError, in_one_line, unknown
from dd.io.download import OFFLINE, TIMEOUT, offline
from dd.networks.features import Embedding
from dd.networks.zoo import unknown_network

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

IMAGENET = 1000  # classes of ImageNet-1k; both libraries order its outputs by WordNet id
_FIXED = ("vit_", "maxvit")  # prefixes of torchvision networks with a fixed image size
_ONLY, _NOT_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's own variables
_FILES = ("model.safetensors", "pytorch_model.bin")  # of a timm model on the Hub; the first that exists is used


@dataclass(frozen=True, eq=False)
class Published:
    """A pretrained network and its published metadata.

    Attributes:
        network: the network as published.
        mean: per-channel mean of its input normalisation, in [0, 1] units.
        std: per-channel standard deviation of its input normalisation, in [0, 1] units.
        size: side in pixels if its image size is fixed, else None.
        outputs: number of logits.
        classes: WordNet ids of its outputs in order; None if unknown.
        declared: published validation accuracy in percent; None if not stated.
    """

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    size: int | None
    outputs: int
    classes: tuple[str, ...] | None
    declared: float | None


def published(name: str) -> Published:
    """Load the network `timm:NAME.TAG` or `torchvision:NAME.WEIGHTS`.

    Raises:
        UsageError: the network or its weights do not exist, or it has no classifier.
        RunError: the weights are not cached and cannot be downloaded.
    """
    library, _, model = name.partition(":")
    # building draws random weights before the published ones are loaded
    with torch.random.fork_rng(devices=[]), _tensors_only():
        if library != "timm":
            return _torchvision(model, name)
        config = _timm_config(model, name)
        if not config.num_classes:
            raise UsageError(f"teachers={name} has no classifier; choose weights that have one")
        return _timm(model, name, config)


def published_encoder(name: str, size: int | None = None) -> Published:
    """Load `timm:NAME.TAG` or `torchvision:NAME.WEIGHTS` as an encoder: a network that gives representations (n, d).

    A classifier of ImageNet is removed; any other head, such as CLIP's projection, is part of the encoder.

    Args:
        name: its name.
        size: side in pixels of the images that it is built for, if it is a timm network of a fixed size.

    Raises:
        UsageError: the network or its weights do not exist.
        RunError: the weights are not cached and cannot be downloaded.
    """
    library, _, model = name.partition(":")
    with torch.random.fork_rng(devices=[]), _tensors_only():
        if library == "timm":
            config = _timm_config(model, name)
            options: dict[str, int] = {} if wnids(config.num_classes) is None else {"num_classes": 0}
            if size is not None and config.fixed_input_size:
                options["img_size"] = size
            there = _timm(model, name, config, **options)
            return there if size is None or there.size is None else replace(there, size=size)
        there = _torchvision(model, name)
        return replace(there, network=Embedding(there.network))


def wnids(outputs: int) -> tuple[str, ...] | None:
    """WordNet ids of the outputs of a timm or torchvision network with that many outputs; None if unknown."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Refuse files that would run code, whatever the libraries ask torch for: their caches may hold any file."""
    before = {name: os.environ.pop(name, None) for name in (_ONLY, _NOT_ONLY)}
    os.environ[_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[_ONLY]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _timm_config(model: str, name: str) -> "PretrainedCfg":
    """What timm knows about the weights `NAME.TAG`."""
    import timm

    bare = model.partition(".")[0]
    if ":" in model or not timm.is_model(bare):
        raise unknown_network("timm", bare, timm.list_models())
    tagged = timm.list_pretrained(f"{bare}.*")
    if model not in tagged:
        raise unknown(f"weights of timm:{bare}:", model, tagged)
    config = timm.get_pretrained_cfg(model)
    assert config is not None, "its weights are listed"
    return config


def _timm(model: str, name: str, config: "PretrainedCfg", **options: Any) -> Published:
    import timm

    overlay: dict[str, str | bool] = {}
    if config.hf_hub_id:
        overlay = {"file": str(_hub_file(config.hf_hub_id, name)), "custom_load": config.custom_load == "hf"}
    try:
        network = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # disk, network, Hub client or file format
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
    tags = [weights.name for weights in choice]  # without "DEFAULT", which changes between versions
    if tag not in tags:
        raise unknown(f"weights of torchvision:{bare}:", tag, tags)
    weights = choice[tag]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        if offline() and not (folder / weights.url.rpartition("/")[2]).is_file():
            raise ConnectionError(f"{OFFLINE} is set")
        network = models.get_model(bare, weights=weights, progress=False)
    except (OSError, RuntimeError, UnpicklingError) as error:
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
    """The weights file of a model on the Hugging Face Hub; a cached file is used without contacting the Hub."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    for file in _FILES:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    try:
        if constants.HF_HUB_OFFLINE or offline():
            raise ConnectionError(f"{OFFLINE if offline() else 'HF_HUB_OFFLINE'} is set")
        _require_answer(constants.ENDPOINT)  # fail fast: the Hub client retries for most of a minute, with warnings
        try:
            return Path(hf_hub_download(repo, _FILES[0]))
        except EntryNotFoundError:
            return Path(hf_hub_download(repo, _FILES[1]))
    except Exception as error:  # the client's errors share no base class
        raise _no_weights(name, f"{repo}/{_FILES[0]}", str(constants.HF_HUB_CACHE), error) from error


def _require_answer(url: str) -> None:
    with contextlib.suppress(urllib.error.HTTPError):  # an error status is an answer too
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
