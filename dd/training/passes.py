"""Checkpoint of one network's training between passes, so that a killed training resumes."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dd.engine.checkpoint import join_state, split_state
from dd.io import load_state, remove_state, save_state

log = logging.getLogger(__name__)

_NETWORK, _OPTIMISER, _BESIDE = "network.", "optimiser.", "beside."


@dataclass(frozen=True)
class PassFile:
    """A `dd.training.loop.Keep` in one file: weights, buffers, optimiser state, passes and steps done.

    Other tensors can be saved beside them.

    Attributes:
        path: the file, replaced after every pass; see `dd.io.state`.
        key: identity of the training; a file with another key is ignored.
        what: name for the log, for example "teacher convnet".
    """

    path: Path
    key: str
    what: str

    def save(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        done: int,
        step: int,
        beside: Mapping[str, Tensor] | None = None,
    ) -> None:
        """See `Keep`; `beside` are the other tensors.

        Raises:
            RunError: the disk is full; the state of the previous pass is kept.
        """
        tensors = {f"{_NETWORK}{name}": value for name, value in network.state_dict().items()}
        tensors |= {f"{_BESIDE}{name}": value for name, value in (beside or {}).items()}
        state, plain = split_state(optimiser, _OPTIMISER)
        meta = {"key": self.key, "done": str(done), "step": str(step), "optimiser": json.dumps(plain)}
        save_state(self.path, tensors | state, meta)

    def load(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, beside: dict[str, Tensor] | None = None
    ) -> tuple[int, int]:
        """See `Keep`; adds the other tensors, on the CPU, to `beside`."""
        state = load_state(self.path, {"key": self.key})
        if state is None:
            return 0, 0
        meta, tensors = state.meta, {name: value.clone() for name, value in state.tensors.items()}
        network.load_state_dict(_under(_NETWORK, tensors))
        if beside is not None:
            beside |= _under(_BESIDE, tensors)
        join_state(optimiser, _OPTIMISER, json.loads(meta["optimiser"]), tensors)
        log.info("resuming %s after pass %s", self.what, meta["done"])
        return int(meta["done"]), int(meta["step"])

    def remove(self) -> None:
        """Delete the file, once the network is stored elsewhere."""
        remove_state(self.path)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
