"""The outer loop."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from dd.engine import parallel
from dd.engine.checkpoint import Checkpoint
from dd.engine.method import LR_FLOOR, Method, Objective, Skip, Synthetic, Task
from dd.errors import RunError
from dd.runs.allocator import keep_large_buffers
from dd.runs.stop import Stop
from dd.sets import DistilledSet

log = logging.getLogger(__name__)

P = TypeVar("P")

CHECKPOINT_EVERY = 10  # iterations, at least
SAVING = 0.05  # share of the time that checkpoints may take: 100 images of 224 pixels are 180 MB with Adam's state
FREE_SAVING = 1.0  # seconds of saving that are not counted, so that small sets are saved every time
WINDOW = 100  # last iterations in which skips are counted; all of them in a shorter run
MAX_SKIPPED = 0.95  # share of the window that may be skipped: with less than one update in twenty nothing is learned


@dataclass(frozen=True)
class Watch:
    """What looks on while a synthesis runs; none of it changes the result.

    Attributes:
        log: called every iteration with (it, scalars).
        probe: called with the variables at `probe_at` iterations; returns held-out accuracy in percent.
        probe_at: iterations before which it is called.
        stop: signals.
        history: gives the log so far, which is saved with the state.
    """

    log: Callable[[int, Mapping[str, Any]], None] = lambda it, scalars: None
    probe: Callable[[Synthetic], float] | None = None
    probe_at: frozenset[int] = frozenset()
    stop: Stop = field(default_factory=lambda: Stop(""))
    history: Callable[[], str] = lambda: ""

    def probed(self, syn: Synthetic, it: int) -> dict[str, Any]:
        """The probe's scalar, where one is due."""
        return {"probe": self.probe(syn)} if self.probe and it in self.probe_at else {}


class _Budget:
    """The time that checkpoints have taken, and may take."""

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
    """Which of the last iterations were skipped, and when that is too many."""

    def __init__(self, window: int, skipped: Sequence[int] | int, first: int) -> None:
        if isinstance(skipped, int):  # a state of before there was a window: so many in a row
            skipped = range(first - skipped, first)
        self._window, self._skipped = window, list(skipped)

    def recent(self, it: int) -> list[int]:
        """Those before iteration `it` that still count there, which a resumed run has to know."""
        return [at for at in self._skipped if it - self._window < at < it]

    def see(self, it: int, outcome: Objective) -> None:
        """Take note of iteration `it`.

        Raises:
            RunError: all but a few iterations of a whole window were skipped.
        """
        self._skipped = self.recent(it) + [it] * isinstance(outcome, Skip)
        full, many = it + 1 >= self._window, len(self._skipped) >= MAX_SKIPPED * self._window
        if isinstance(outcome, Skip) and full and many:
            raise RunError(
                f"{len(self._skipped)} of the last {self._window} iterations were skipped ({outcome.reason}): nothing "
                "is learned. Lower lr_img or lr_lr, or the window of start epochs"
            )


class _Floor:
    """Keeps a learned lr where students can be trained with it, and says so the first time."""

    def __init__(self) -> None:
        self._said = False

    def hold(self, syn: Synthetic, it: int) -> dict[str, float]:
        """The learned lr for the log, where there is one; at its floor where iteration `it` took it below."""
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
    """Run a method's outer loop from `syn`, or from where an interrupted run left it.

    Args:
        method: the method.
        task: what to distil.
        prepared: what `method.prepare` returned.
        syn: the variables at iteration 0; changed in place.
        checkpoint: where to save; None: nowhere.
        watch: log, probe and signals.

    Returns:
        `syn`, after the last iteration.

    Raises:
        RunError: a term, a gradient or a finished variable is not finite, or too many of the last iterations were
            skipped; the last good state is saved.
        Interrupted: a signal came; the state is saved.
    """
    keep_large_buffers()
    optimisers = list(method.optimisers(syn))
    rates = _rates(optimisers)
    loaded = checkpoint.load(syn, optimisers) if checkpoint else None
    first, facts = loaded or (0, {"skips": []})
    if loaded:
        log.info("synthesis resumes at iteration %d of %d", first, method.iterations)
    skips, floor = _Skips(min(WINDOW, method.iterations), facts["skips"], first), _Floor()
    budget = _Budget()

    def save(it: int) -> None:
        if checkpoint and parallel.is_first():
            with budget.spent():
                checkpoint.save(it, syn, optimisers, {"skips": skips.recent(it)}, watch.history())

    with watch.stop.deferred():
        for it in range(first, method.iterations):
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
        if not _is_finite(syn):
            raise RunError(_not_finite("a variable is not finite after the last update", method.iterations - 1))
        if last := watch.probed(syn, method.iterations):
            watch.log(method.iterations, last)
        _heed(watch.stop, save, method.iterations)
    return syn


def distil(method: Method[P], task: Task, prepared: P) -> DistilledSet:
    """A set from its first iteration to its last, made by this process alone; nothing is saved or logged on the way.

    For a method that needs a small set of another, or of its own, to find something out.

    Raises:
        RunError: see `synthesise`.
    """
    with parallel.alone():
        syn = synthesise(method, task, prepared, method.start(task, prepared))
        return method.finish(syn, task, prepared)


def _rates(optimisers: Sequence[Optimizer]) -> list[list[float]]:
    return [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]


def _set_rates(optimisers: Sequence[Optimizer], rates: list[list[float]], factor: float) -> None:
    """Every learning rate as the method gave it, times `factor`."""
    for optimiser, own in zip(optimisers, rates, strict=True):
        for group, lr in zip(optimiser.param_groups, own, strict=True):
            group["lr"] = lr * factor


def _heed(stop: Stop, save: Callable[[int], None], it: int) -> None:
    """Save and raise where a signal came."""
    if parallel.any_of(bool(stop.requested)):  # they stop at the same iteration, or would wait for one another
        save(it)
        raise stop.error()


def _is_finite(syn: Synthetic) -> bool:
    return all(bool(variable.isfinite().all()) for variable in syn.parameters())


def _update(outcome: Objective, syn: Synthetic, optimisers: Sequence[Optimizer], it: int) -> dict[str, Any]:
    """Go backwards and step, unless the outcome is a skip or not finite; returns scalars for the log."""
    if isinstance(outcome, Skip):
        return {"loss": outcome.value, "skipped": 1}
    terms = {"loss": outcome} if isinstance(outcome, Tensor) else dict(outcome)
    values = {name: float(value.detach()) for name, value in terms.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise RunError(_not_finite(f"the term {bad[0]!r} of the objective is {values[bad[0]]}", it))
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    torch.stack([value.double() for value in terms.values()]).sum().backward()
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
