"""Read users' checkpoints: state dicts, optionally with metadata."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from dd.errors import UsageError, in_one_line

_COUNTER = "num_batches_tracked"  # of batch norm; missing from old files, and unused in evaluation
_STATES = ("state_dict", "model_state_dict", "model")  # usual keys of the weights in training checkpoints


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """The content of a checkpoint.

    Attributes:
        state: weights and buffers by name.
        classes: names of the outputs in order; None if not stated.
        accuracy: declared accuracy in percent; None if not stated.
        normalise: per-channel (mean, std), in [0, 1] units, of its training images; None if not stated, in which case
            the network takes images in the model space of the run.
        facts: everything else that the file holds beside the weights, unchecked.
    """

    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None
    accuracy: float | None
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None
    facts: Mapping[str, object] = field(default_factory=dict)


def read_weights(path: Path) -> WeightsFile:
    """Read a .safetensors, .pt or .pth file, without executing code from it.

    A .pt file is a state dict, or a mapping with `state_dict` (or `model_state_dict`, or `model`) and optionally
    `classes` (names), `accuracy` (percent), `mean` and `std`.  A .safetensors file has these as JSON in its metadata.
    The prefix "module." is removed.

    Raises:
        UsageError: the file cannot be read, or is not a checkpoint.
    """
    held, facts = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise UsageError(f"{path} holds no state dict: save model.state_dict(), or {{'state_dict': …}}")
    state = {name.removeprefix("module."): value for name, value in held.items() if isinstance(value, Tensor)}
    try:
        classes, accuracy, mean, std = (facts.get(key) for key in ("classes", "accuracy", "mean", "std"))
        return WeightsFile(
            state=state,
            classes=None if classes is None else tuple(map(str, _listed(classes))),
            accuracy=None if accuracy is None else _number(accuracy),
            normalise=None if mean is None or std is None else (_numbers(mean), _numbers(std)),
            facts=facts,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{path}: its facts do not read: {error}; classes are names, accuracy is in percent, mean and std are lists"
        ) from error


def outputs_of(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """Number of logits of a state dict, read off the last linear layer of `network`; None if it has none."""
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    weight = state.get(f"{names[-1]}.weight") if names else None
    return None if weight is None else len(weight)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy weights and buffers into a network, whose names and shapes must match exactly.

    Raises:
        UsageError: they do not match; the message names the first layer that differs.
    """
    own = network.state_dict()
    state = {name: own[name] for name in own if name.endswith(_COUNTER)} | dict(state)
    for name in dict.fromkeys((*own, *state)):
        here, there = own.get(name), state.get(name)
        if here is None or there is None or here.shape != there.shape:
            raise UsageError(
                f"{what} does not fit this network: its first layer that differs is {name}, {_shape(there)} there and "
                f"{_shape(here)} here; say what it is with PATH@ARCH:field=value"
            )
    network.load_state_dict(state)


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            meta = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    facts: dict[str, object] = {}
    for key, text in meta.items():
        try:
            facts[key] = json.loads(text)
        except ValueError:
            continue  # not one of our keys
    return state, facts


def _torch(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UsageError(
            f"{path} holds more than tensors and plain values, which is not loaded as it could run code: "
            "save model.state_dict() instead of the model"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {in_one_line(error)}") from error
    if not isinstance(whole, Mapping):
        return {}, {}
    for key in _STATES:
        if isinstance(whole.get(key), Mapping):
            return dict(whole[key]), dict(whole)
    return dict(whole), {}


def _listed(values: object) -> list[object]:
    """The values of a list, tuple or one-dimensional tensor.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(values, list | tuple):
        return list(values)
    if isinstance(values, Tensor) and values.ndim == 1:
        return values.tolist()
    raise TypeError(f"{values!r} is not a list")


def _numbers(values: object) -> tuple[float, ...]:
    return tuple(map(_number, _listed(values)))


def _number(value: object) -> float:
    if isinstance(value, int | float | str | Tensor):
        return float(value)
    raise TypeError(f"{value!r} is not a number")


def _shape(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"({'x'.join(map(str, tensor.shape)) or 'a number'})"
