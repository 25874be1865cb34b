"""Checkpoints of the outer loop: variables, optimiser states and the iteration.

Random state is not saved: every draw is a function of the seed and the iteration.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dd.engine.method import Synthetic
from dd.io import State, load_state, save_state

FORMAT = "dd-checkpoint"
_LOG = "log"


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of a synthesis is saved.

    Attributes:
        path: the file, see `dd.io.state`.
        key: identity of the synthesis; a file with another key is ignored.
    """

    path: Path
    key: str

    def save(
        self, it: int, syn: Synthetic, optimisers: Sequence[Optimizer], facts: Mapping[str, Any], log: str = ""
    ) -> None:
        """Save the state before iteration `it` and the log up to it; `facts` must be JSON-serialisable."""
        tensors = {f"syn.{name}": value for name, value in syn.state_dict().items()}
        if log:
            tensors[_LOG] = torch.frombuffer(bytearray(log.encode()), dtype=torch.uint8)
        plain = []
        for number, optimiser in enumerate(optimisers):
            state, groups = split_state(optimiser, f"optimiser{number}.")
            tensors |= state
            plain.append(groups)
        meta = {
            "format": FORMAT,
            "key": self.key,
            "it": str(it),
            "optimisers": json.dumps(plain),
            "facts": json.dumps(facts),
        }
        save_state(self.path, tensors, meta)

    def iteration(self) -> int:
        """Return the iteration that a resumed run starts with; 0 if there is nothing to resume."""
        state = self._state(quiet=True)
        return int(state.meta["it"]) if state else 0

    def log(self) -> str:
        """Return the log saved with the state; "" if there is nothing to resume."""
        state = self._state(quiet=True)
        return state.tensors[_LOG].numpy().tobytes().decode() if state and _LOG in state.tensors else ""

    def load(self, syn: Synthetic, optimisers: Sequence[Optimizer]) -> tuple[int, dict[str, Any]] | None:
        """Restore the state in place; return (iteration to resume at, facts), or None if there is nothing to resume."""
        state = self._state()
        if state is None:
            return None
        tensors, meta = state
        syn.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("syn.")})
        for number, (optimiser, groups) in enumerate(zip(optimisers, json.loads(meta["optimisers"]), strict=True)):
            join_state(optimiser, f"optimiser{number}.", groups, tensors)
        return int(meta["it"]), json.loads(meta["facts"])

    def _state(self, quiet: bool = False) -> State | None:
        return load_state(self.path, {"format": FORMAT, "key": self.key}, quiet=quiet)


def split_state(optimiser: Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of an optimiser into tensors, named with `prefix`, and JSON-serialisable values."""
    whole = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for parameter, entries in whole["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{parameter}.{name}"] = value
            else:
                rest.setdefault(str(parameter), {})[name] = value
    return tensors, {"state": rest, "param_groups": whole["param_groups"]}


def join_state(optimiser: Optimizer, prefix: str, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Restore into an optimiser the state that `split_state` returned."""
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in plain["state"].items()}
    for name, value in tensors.items():
        if name.startswith(prefix):
            parameter, _, key = name[len(prefix) :].partition(".")
            state.setdefault(int(parameter), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
