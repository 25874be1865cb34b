"""The state of an outer loop on disk: variables, optimisers, iteration.

Randomness needs no place in it: every draw is a function of the seed and of the iteration's number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from dd.engine.method import Synthetic
from dd.io import load_tensors, save_tensors

FORMAT = "dd-checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Where the state is saved.

    Attributes:
        path: the file, replaced atomically.
        key: identity of the synthesis; a file with another key is not resumed from.
    """

    path: Path
    key: str

    def save(self, it: int, syn: Synthetic, optimisers: Sequence[Optimizer], facts: Mapping[str, Any]) -> None:
        """Save the state before iteration `it`; `facts` are JSON-able."""
        tensors = {f"syn.{name}": value for name, value in syn.state_dict().items()}
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
        save_tensors(self.path, tensors, meta)

    def iteration(self) -> int:
        """The iteration that a resumed run goes on with; 0 where there is nothing to resume."""
        meta = self._metadata()
        return int(meta["it"]) if meta else 0

    def load(self, syn: Synthetic, optimisers: Sequence[Optimizer]) -> tuple[int, dict[str, Any]] | None:
        """Restore the state in place: (iteration to go on with, facts), or None where there is nothing to resume."""
        meta = self._metadata()
        if meta is None:
            return None
        tensors = load_tensors(self.path)
        syn.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("syn.")})
        for number, (optimiser, groups) in enumerate(zip(optimisers, json.loads(meta["optimisers"]), strict=True)):
            join_state(optimiser, f"optimiser{number}.", groups, tensors)
        return int(meta["it"]), json.loads(meta["facts"])

    def _metadata(self) -> dict[str, str] | None:
        try:
            with safe_open(self.path, "pt") as file:
                meta = file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        return meta if meta.get("format") == FORMAT and meta.get("key") == self.key else None


def split_state(optimiser: Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimiser as (tensors, their names after `prefix`, and JSON-able values)."""
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
    """Give an optimiser the state that `split_state` took."""
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in plain["state"].items()}
    for name, value in tensors.items():
        if name.startswith(prefix):
            parameter, _, key = name[len(prefix) :].partition(".")
            state.setdefault(int(parameter), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
