"""Global state that a method must not change: random generators, switches of torch, hooks on modules."""

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_parameter_registration_hooks",
    "_global_module_registration_hooks",
    "_global_buffer_registration_hooks",
)


def snapshot() -> dict[str, Any]:
    """Return all global state that a method could change, by name, as comparable values."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
        "CUDA's global generators": _cuda_generators(),
        "numpy's global generator": (name, np.asarray(keys).tobytes(), *rest),
        "Python's global generator": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": str(torch.get_default_device()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "cuDNN's switches": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "hooks on every module": tuple(tuple(getattr(torch_module, name, {})) for name in _GLOBAL_HOOKS),
    }


def disturbed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of the states that differ between two snapshots."""
    return [name for name, value in before.items() if after[name] != value]


def hooked(networks: Iterable[nn.Module]) -> list[str]:
    """Return the modules of the networks that have a hook, as "ConvNet: block.0 has _forward_hooks"."""
    return [
        f"{type(network).__name__}: {name or 'itself'} has {kind}"
        for network in networks
        for name, module in network.named_modules()
        for kind in _HOOKS
        if getattr(module, kind, None)
    ]


def _cuda_generators() -> list[bytes]:
    if not torch.cuda.is_initialized():
        return []
    return [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
