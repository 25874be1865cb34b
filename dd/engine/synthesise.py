"""The outer loop: optimise the synthetic variables, with checkpoints, probes and signals."""

import logging
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from dd.engine import parallel
from dd.engine.checkpoint import Checkpoint
from dd.engine.method import LR_FLOOR, Method, Objective, Skip, Synthetic, Task
from dd.errors import RunError, UsageError
from dd.runs import sampling
from dd.runs.allocator import keep_large_buffers
from dd.runs.stop import Stop
from dd.sets import DistilledSet

log = logging.getLogger(__name__)

P = TypeVar("P")

CHECKPOINT_EVERY = 10  # minimum number of iterations between checkpoints
SAVING = 0.05  # maximum share of time spent saving: 100 images of 224 pixels are 180 MB with Adam's state
FREE_SAVING = 1.0  # seconds of saving that do not count, so that small sets are saved every time
WINDOW = 100  # number of recent iterations in which skips are counted; shorter runs count all
MAX_SKIPPED = 0.95  # maximum share of skipped iterations; with less than 1 update in 20 nothing is learned


@dataclass(frozen=True)
class Watch:
    """Observers of a running synthesis; none of them changes the result.

    Attributes:
        log: called every iteration with (it, scalars).
        probe: called with the variables before the iterations in `probe_at`; returns the held-out accuracy in
            percent of each of its students.
        probe_at: the iterations before which `probe` is called.
        stop: pending signals.
        history: returns the log so far, which is saved with the state.
    """

    log: Callable[[int, Mapping[str, Any]], None] = lambda it, scalars: None
    probe: Callable[[Synthetic], Sequence[float]] | None = None
    probe_at: frozenset[int] = frozenset()
    stop: Stop = field(default_factory=lambda: Stop(""))
    history: Callable[[], str] = lambda: ""

    def probed(self, syn: Synthetic, it: int) -> dict[str, Any]:
        """Return the mean of the probe's students and, of several, their standard deviation, if a probe is due."""
        if self.probe is None or it not in self.probe_at:
            return {}
        reached = self.probe(syn)
        spread = {"probe_std": statistics.stdev(reached)} if len(reached) > 1 else {}
        return {"probe": statistics.fmean(reached)} | spread


class _Budget:
    """Tracks the time spent saving checkpoints against its limit."""

    def __init__(self) -> None:
        self._began, self._saving = time.perf_counter(), 0.0

    @property
    def allows(self) -> bool:
        return self._saving <= FREE_SAVING + SAVING * (time.perf_counter() - self._began)

    @contextmanager
    def spent(self) -> Iterator[None]:
        now = time.perf_counter()
        yield
        self._saving += time.perf_counter() - now


class _Skips:
    """Tracks which recent iterations were skipped, and fails if there are too many."""

    def __init__(self, window: int, skipped: Sequence[int]) -> None:
        self._window, self._skipped = window, list(skipped)

    def recent(self, it: int) -> list[int]:
        """Return the skips before iteration `it` that still count, for a resumed run."""
        return [at for at in self._skipped if it - self._window < at < it]

    def see(self, it: int, outcome: Objective) -> None:
        """Record iteration `it`.

        Raises:
            RunError: nearly all iterations of a whole window were skipped.
        """
        self._skipped = self.recent(it) + [it] * isinstance(outcome, Skip)
        full, many = it + 1 >= self._window, len(self._skipped) >= MAX_SKIPPED * self._window
        if isinstance(outcome, Skip) and full and many:
            raise RunError(
                f"{len(self._skipped)} of the last {self._window} iterations were skipped ({outcome.reason}): nothing "
                "is learned. Lower lr_img or lr_lr, or the window of start epochs"
            )


class _Floor:
    """Keeps a learned lr at or above its floor, and warns the first time it falls below."""

    def __init__(self) -> None:
        self._said = False

    def hold(self, syn: Synthetic, it: int) -> dict[str, float]:
        """Return the learned lr for the log, if there is one, raising it to the floor if iteration `it` went below."""
        if syn.lr is None:
            return {}
        value = float(syn.lr.detach())
        if not value < syn.lr_floor:
            return {"lr": value}
        if not self._said:
            log.warning(
                "the students' learned lr fell to %.3g at iteration %d: it is kept at %.3g, a %dth of its first value; "
                "lower lr_lr, or both lr_lr and lr_img",
                *(value, it, syn.lr_floor, LR_FLOOR),
            )
        self._said = True
        with torch.no_grad():
            syn.lr.fill_(syn.lr_floor)
        return {"lr": float(syn.lr.detach())}


def synthesise(
    method: Method[P],
    task: Task,
    prepared: P,
    syn: Synthetic,
    checkpoint: Checkpoint | None = None,
    watch: Watch = Watch(),
) -> Synthetic:
    """Run a method's outer loop from `syn`, or from the checkpoint of an interrupted run.

    Args:
        method: the method.
        task: what to distil.
        prepared: the result of `method.prepare`.
        syn: the variables at iteration 0; changed in place.
        checkpoint: where to save; None to save nothing.
        watch: log, probe and signals.

    Returns:
        `syn`, after the last iteration.

    Raises:
        RunError: a term, a gradient or a final variable is not finite, or too many recent iterations were skipped; the
            last good state is saved.
        Interrupted: a signal arrived; the state is saved.
    """
    keep_large_buffers()
    optimisers = list(method.optimisers(syn))
    rates = _rates(optimisers)
    loaded = checkpoint.load(syn, optimisers) if checkpoint else None
    first, facts = loaded or (0, {"skips": []})
    if loaded:
        log.info("synthesis resumes at iteration %d of %d", first, method.iterations)
    skips, floor = _Skips(min(WINDOW, method.iterations), facts["skips"]), _Floor()
    budget = _Budget()

    def save(it: int) -> None:
        if checkpoint and parallel.is_first():
            with budget.spent():
                checkpoint.save(it, syn, optimisers, {"skips": skips.recent(it)}, watch.history())

    with watch.stop.deferred():
        it = first
        for it in sampling.turns(first, method.iterations, _alike(method, task)):
            _heed(watch.stop, save, it)
            scalars = watch.probed(syn, it)
            outcome = method.loss(syn, task, prepared, it)
            _set_rates(optimisers, rates, method.rate(it))
            try:
                scalars |= _update(outcome, syn, optimisers, it)
                skips.see(it, outcome)
            except RunError:
                if _is_finite(syn):
                    save(it)
                raise
            method.project(syn, task)
            scalars |= floor.hold(syn, it)
            watch.log(it, scalars)
            if (it + 1) % CHECKPOINT_EVERY == 0 and budget.allows:
                save(it + 1)
        _credit_probes(watch, syn, it)
        if not _is_finite(syn):
            raise RunError(_not_finite("a variable is not finite after the last update", method.iterations - 1))
        if last := watch.probed(syn, method.iterations):
            watch.log(method.iterations, last)
        _heed(watch.stop, save, method.iterations)
    return syn


def distil(method: Method[P], task: Task, prepared: P) -> DistilledSet:
    """Distil a whole set in this process, without saving or logging anything.

    For a method that needs a small distilled set, of its own or of another method, as an intermediate result.

    Raises:
        RunError: see `synthesise`.
    """
    with parallel.alone():
        syn = synthesise(method, task, prepared, method.start(task, prepared))
        return method.finish(syn, task, prepared)


def _alike(method: Method[Any], task: Task) -> Hashable:
    """Return what the loops of equal parts of a set share; None for a whole set."""
    return None if task.part is None else (method.name, method.iterations, len(task.targets))


def _credit_probes(watch: Watch, syn: Synthetic, it: int) -> None:
    """Credit the probes that a sample ending after iteration `it` leaves out; the last one is executed."""
    left = sum(at > it for at in watch.probe_at) - 1
    if watch.probe is not None and left > 0 and sampling.active() is not None:
        one = sampling.timed(partial(watch.probe, syn))
        sampling.credit((left - 1) * one)


def _rates(optimisers: Sequence[Optimizer]) -> list[list[float]]:
    return [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]


def _set_rates(optimisers: Sequence[Optimizer], rates: list[list[float]], factor: float) -> None:
    """Set every learning rate to the method's own value times `factor`."""
    for optimiser, own in zip(optimisers, rates, strict=True):
        for group, lr in zip(optimiser.param_groups, own, strict=True):
            group["lr"] = lr * factor


def _heed(stop: Stop, save: Callable[[int], None], it: int) -> None:
    """Save the state and raise if a signal has arrived."""
    if parallel.any_of(bool(stop.requested)):  # all stop at the same iteration, else some would wait forever
        save(it)
        raise stop.error()


def _is_finite(syn: Synthetic) -> bool:
    return all(bool(variable.isfinite().all()) for variable in syn.parameters())


def _update(outcome: Objective, syn: Synthetic, optimisers: Sequence[Optimizer], it: int) -> dict[str, Any]:
    """Back-propagate and step, unless the outcome is a `Skip`; return scalars for the log, raise if not finite."""
    if isinstance(outcome, Skip):
        return {"loss": outcome.value, "skipped": 1}
    terms = {"loss": outcome} if isinstance(outcome, Tensor) else dict(outcome)
    values = {name: float(value.detach()) for name, value in terms.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise RunError(_not_finite(f"the term {bad[0]!r} of the objective is {values[bad[0]]}", it))
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    total = torch.stack([value.double() for value in terms.values()]).sum()
    if not total.requires_grad:
        raise UsageError("the loss does not depend on the variables: nothing in it has a gradient")
    total.backward()
    for name, variable in syn.named_parameters():
        if variable.grad is not None and not torch.isfinite(variable.grad).all():
            raise RunError(_not_finite(f"the gradient of {name!r} is not finite", it))
    for optimiser in optimisers:
        optimiser.step()
    shown = values if len(values) > 1 else {}
    return {"loss": sum(values.values()), **shown, "skipped": 0}


def _not_finite(what: str, it: int) -> str:
    return (
        f"{what} at iteration {it}; the last good state is kept. "
        "Try a smaller lr_img or lr_lr, or an earlier window of start epochs"
    )
