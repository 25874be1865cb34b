"""Inspect pools of experts: what is stored, whether it is intact, and what a request would cost."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dd.engine.method import Task
from dd.io import digest
from dd.runs import sampling
from dd.runs.store import Store
from dd.training.experts import KIND, POOLS, ExpertSettings, expert_fit, expert_spec, stack_size
from dd.training.loop import Path, Trainer, passes
from dd.training.stacked import StackedTrainer


@dataclass(frozen=True)
class Shard:
    """One stored expert: number, spec, size in bytes, training time in seconds, and stored metadata."""

    member: int
    spec: dict[str, Any]
    bytes: int
    seconds: float
    info: dict[str, Any]


@dataclass(frozen=True)
class ExpertPool:
    """Stored experts that share everything but their number.

    Attributes:
        key: hash of the shared spec; a prefix of it names the pool on the command line.
        spec: the shared spec.
        shards: the experts, ordered by number.
    """

    key: str
    spec: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Price:
    """The cost of a request for experts.

    Attributes:
        count: number of requested experts.
        missing: how many of them do not exist yet.
        seconds: estimated time to train the missing ones; None if none is missing, or if they come from files.
        bytes: disk space of the missing ones.
    """

    count: int
    missing: int
    seconds: float | None
    bytes: int

    @staticmethod
    def total(prices: "Iterable[Price]") -> "Price":
        """The total cost of several requests."""
        each = list(prices)
        seconds = [price.seconds for price in each if price.seconds is not None]
        sums = (sum(price.count for price in each), sum(price.missing for price in each))
        return Price(*sums, sum(seconds) if seconds else None, sum(price.bytes for price in each))


def pools(store: Store) -> list[ExpertPool]:
    """All pools with at least one stored expert."""
    shared: dict[str, tuple[dict[str, Any], list[Shard]]] = {}
    for manifest in store.manifests(KIND):
        spec = dict(manifest["spec"])
        common = {name: value for name, value in spec.items() if name != "member"}
        _, shards = shared.setdefault(digest(common), (common, []))
        shards.append(Shard(spec["member"], spec, manifest["bytes"], manifest["seconds"], manifest["info"]))
    return [
        ExpertPool(key, common, tuple(sorted(shards, key=lambda shard: shard.member)))
        for key, (common, shards) in shared.items()
    ]


def damages(store: Store, pool: ExpertPool) -> Iterator[tuple[Shard, str | None]]:
    """Verify all files of a pool; yields every expert with its fault, or None."""
    for shard in pool.shards:
        yield shard, store.damage(KIND, shard.spec)


def remove(store: Store, pool: ExpertPool) -> int:
    """Delete a pool's experts and its manifest; returns the bytes freed."""
    store.remove(POOLS, pool.spec)
    return sum(store.remove(KIND, shard.spec) for shard in pool.shards)


def price(task: Task, settings: ExpertSettings) -> Price:
    """Estimate the cost of `trajectories` from a few training steps and from the shapes."""
    missing = sum(not task.store.has(KIND, expert_spec(task, settings, m)) for m in range(settings.count))
    snapshot = task.functional().size * getattr(torch, settings.store).itemsize
    size = missing * (settings.epochs + 1) * snapshot
    trained = missing if settings.from_ is None else 0
    return Price(settings.count, missing, trained * _seconds_per_expert(task, settings) if trained else None, size)


def _seconds_per_expert(task: Task, settings: ExpertSettings) -> float:
    fit, together = expert_fit(settings, len(task.data.train), task.data.augment), stack_size(task, settings)
    paths: list[Path] = [(settings.seed, "price", i) for i in range(together)]
    batches = passes(task.data.train, settings.batch)
    with sampling.sampling():
        began = sampling.now()
        if together > 1:
            StackedTrainer(task.build, task.precision).train(paths, batches, fit)
        else:
            next(Trainer(task.build, task.compile, task.precision).train(paths, batches, fit))
        return (sampling.now() - began) / together
