"""Checkpoint of one network's training between passes, so that a killed training resumes."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dd.engine.checkpoint import join_state, split_state
from dd.io import load_state, remove_state, save_state

log = logging.getLogger(__name__)

_NETWORK, _OPTIMISER = "network.", "optimiser."


@dataclass(frozen=True)
class PassFile:
    """A `dd.training.loop.Keep` in one file: weights, buffers, optimiser state, passes and steps done.

    Attributes:
        path: the file, replaced after every pass; see `dd.io.state`.
        key: identity of the training; a file with another key is ignored.
        what: name for the log, for example "teacher convnet".
    """

    path: Path
    key: str
    what: str

    def save(self, network: nn.Module, optimiser: torch.optim.Optimizer, done: int, step: int) -> None:
        """See `Keep`.

        Raises:
            RunError: the disk is full; the state of the previous pass is kept.
        """
        tensors = {f"{_NETWORK}{name}": value for name, value in network.state_dict().items()}
        state, plain = split_state(optimiser, _OPTIMISER)
        meta = {"key": self.key, "done": str(done), "step": str(step), "optimiser": json.dumps(plain)}
        save_state(self.path, tensors | state, meta)

    def load(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, int]:
        """See `Keep`."""
        state = load_state(self.path, {"key": self.key})
        if state is None:
            return 0, 0
        meta, tensors = state.meta, {name: value.clone() for name, value in state.tensors.items()}
        network.load_state_dict({n.removeprefix(_NETWORK): t for n, t in tensors.items() if n.startswith(_NETWORK)})
        join_state(optimiser, _OPTIMISER, json.loads(meta["optimiser"]), tensors)
        log.info("resuming %s after pass %s", self.what, meta["done"])
        return int(meta["done"]), int(meta["step"])

    def remove(self) -> None:
        """Delete the file, once the network is stored elsewhere."""
        remove_state(self.path)
