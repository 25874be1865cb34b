"""How to fit a run into limits of memory and time: settings that were tried by planning again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dd.errors import UsageError
from dd.pipeline.estimate import estimate
from dd.pipeline.task import lighter_settings
from dd.recipes import Recipe, parse_overrides, resolve
from dd.sizes import parse_size, readable_size, readable_time

_TRIES = 8  # plans, each of which takes seconds
_SPARE = 0.9  # share of the time limit that is aimed at: an estimate is not exact
_LEAST = 0.05  # smallest share of a number that is tried at once
_HELPS = 0.99  # a setting that leaves more than this share of the memory does not help
# numbers that cost time, by stage: the first one that can be lowered is; with the least that makes sense
_SHORTER: dict[str, tuple[tuple[str, int], ...]] = {
    "prepare": (("experts.count", 1), ("squeeze.epochs", 1), ("record.epochs", 1), ("encoder.barlow.epochs", 1)),
    "synthesise": (("iterations", 1),),
    "label": (("eval.epochs", 1), ("eval.steps", 1)),
    "evaluate": (("eval.students", 2), ("eval.steps", 1), ("eval.epochs", 1)),
}


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes:
        memory: peak memory in bytes; None for no limit.
        hours: time; None for no limit.
    """

    memory: int | None = None
    hours: float | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Limits":
        """Return the limits of `memory=8GB hours=2`.

        Raises:
            UsageError: no size, or no number of hours.
        """
        memory, hours = given.get("memory"), given.get("hours")
        try:
            size = None if memory is None else parse_size(str(memory))
        except ValueError as error:
            raise UsageError(f"memory={memory}: {error}") from error
        if hours is not None and (isinstance(hours, bool) or not isinstance(hours, int | float) or not hours > 0):
            raise UsageError(f"hours={hours}: give a positive number, such as hours=2")
        return cls(size, None if hours is None else float(hours))

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.memory is not None or self.hours is not None

    def broken(self, plan: Mapping[str, Any]) -> list[str]:
        """Return in words which limits the total of a plan exceeds."""
        found, total = [], plan["total"]
        if self.memory is not None and total["peak_memory"] > self.memory:
            found.append(f"{readable_size(total['peak_memory'])} are more than memory={readable_size(self.memory)}")
        if self.hours is not None and total["seconds"] > 3600 * self.hours:
            found.append(f"{readable_time(total['seconds'])} is more than hours={self.hours:g}")
        return found


@dataclass(frozen=True)
class Fitting:
    """Whether a plan is within its limits, and what makes it so.

    Attributes:
        broken: the limits that the plan exceeds, in words; empty if it fits.
        changes: settings with which the run was planned again; empty if it fits as it is, or if none helps.
        plan: the plan with these changes; None without changes.
        left: the limits that this plan still exceeds.
    """

    broken: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    left: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the run fits as it is."""
        return not self.broken

    def in_words(self) -> list[str]:
        """Whether it fits, and the advice."""
        if self.fits:
            return ["it fits"]
        words = [f"it does not fit: {'; '.join(self.broken)}"]
        if self.plan is None:
            return [*words, "no setting that was tried makes it smaller"]
        total, settings = self.plan["total"], " ".join(f"{key}={_text(value)}" for key, value in self.changes.items())
        state = "it still does not fit" if self.left else "it fits"
        cost = f"{readable_time(total['seconds'])}, peak memory {readable_size(total['peak_memory'])}"
        return [*words, f"planned again with {settings}: {state}, {cost}"]


def fit(
    overrides: Mapping[str, Any],
    limits: Limits,
    planned: Mapping[str, Any],
    out: str | None = None,
    *,
    force: bool = False,
    jobs: int = 1,
) -> Fitting:
    """Return whether a plan is within its limits; if not, with which settings it is, planned again with each.

    Args:
        overrides: the settings of the run.
        limits: what it may take.
        planned: its estimate.
        out: the folder that holds all runs.
        force: what is finished is repeated.
        jobs: how many jobs share the run.
    """
    broken = tuple(limits.broken(planned))
    changes: dict[str, Any] = {}
    useless: set[str] = set()
    now, plan = resolve(overrides), planned
    for _ in range(_TRIES):
        if not limits.broken(plan) or not (change := _next(now, plan, limits, useless)):
            break
        try:
            recipe = resolve({**overrides, **changes, **change})
            again = estimate(recipe, out, force=force, jobs=jobs)
        except UsageError:  # the method does not allow it
            useless |= change.keys()
            continue
        if not _is_better(again, plan, limits):
            useless |= change.keys()
            continue
        changes, now, plan = changes | change, recipe, again
    return Fitting(broken, changes, plan if changes else None, tuple(limits.broken(plan)))


def _next(recipe: Recipe, plan: Mapping[str, Any], limits: Limits, useless: set[str]) -> dict[str, Any]:
    """Return one setting to try next, for the stage that takes most; empty if none is left."""
    memory = limits.memory is not None and plan["total"]["peak_memory"] > limits.memory
    what = "peak_memory" if memory else "seconds"
    for stage in sorted(plan["stages"], key=lambda stage: -(stage[what] or 0)):
        found = _lighter(recipe, stage["stage"]) if memory else _shorter(recipe, stage, plan, limits)
        for key, value in found.items():
            if key not in useless:
                return {key: value}
    return {}


def _lighter(recipe: Recipe, stage: str) -> dict[str, Any]:
    return dict(parse_overrides(lighter_settings(recipe, stage)))


def _shorter(recipe: Recipe, stage: Mapping[str, Any], plan: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Return settings that shorten a stage to what the other stages leave of the time."""
    assert limits.hours is not None, "it is exceeded"
    if not stage["seconds"]:
        return {}
    flat, rest = recipe.flat(), plan["total"]["seconds"] - stage["seconds"]
    share = max((_SPARE * 3600 * limits.hours - rest) / stage["seconds"], _LEAST)
    found: dict[str, Any] = {}
    if stage["stage"] == "evaluate" and flat["eval.full"] is not False:
        found["eval.full"] = False
    for key, least in _SHORTER[stage["stage"]]:
        value = flat.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > least:
            found[key] = max(least, min(math.floor(value * share), value - 1))
    return found


def _is_better(one: Mapping[str, Any], other: Mapping[str, Any], limits: Limits) -> bool:
    """Return whether a plan has less of what is exceeded."""
    memory = limits.memory is not None and other["total"]["peak_memory"] > limits.memory
    what = "peak_memory" if memory else "seconds"
    return one["total"][what] < _HELPS * other["total"][what]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
