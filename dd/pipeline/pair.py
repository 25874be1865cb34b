"""A set and its state at iteration 0, stored as one artefact."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dd.runs.store import Payload
from dd.sets import DistilledSet


class Pair(NamedTuple):
    """A finished set, and the same set at iteration 0."""

    set: DistilledSet
    start: DistilledSet

    def payload(self, facts: Mapping[str, Any]) -> Payload:
        """Return both sets as the tensors and facts of an artefact, merged with further facts."""
        tensors = {"set.images": self.set.images, "set.labels": self.set.labels}
        tensors |= {"start.images": self.start.images, "start.labels": self.start.labels}
        return tensors, {"set": self.set.facts(), "start": self.start.facts(), **facts}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> "Pair":
        """Rebuild a pair from the result of `payload`."""

        def one(name: str) -> DistilledSet:
            facts = {**info[name], "classes": tuple(info[name]["classes"])}
            return DistilledSet(images=tensors[f"{name}.images"], labels=tensors[f"{name}.labels"], **facts)

        return cls(one("set"), one("start"))
