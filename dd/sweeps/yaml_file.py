"""The YAML file of a sweep, in W&B's format: https://docs.wandb.ai/guides/sweeps/sweep-config-keys."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dd.errors import UsageError, in_one_line, nearest
from dd.io import Json, digest
from dd.recipes.checks import readable, small_text

if TYPE_CHECKING:
    import yaml

SEARCHES = ("grid", "random", "bayes")
METRICS = ("eval/holdout", "probe")
_KEYS = {"method", "metric", "parameters", "early_terminate", "command", "program", "name", "description", "run_cap"}
_IGNORED = {"project", "entity", "settings"}  # about the account
_RULES = {"value", "values", "distribution", "min", "max", "q", "parameters"}
_LIMIT = 10_000  # trials of a grid
_DEEP = 8  # levels of nested parameters

Law = Literal["choice", "int", "float", "log", "steps", "log_steps"]
_LAWS: dict[str, Law] = {
    "categorical": "choice",
    "constant": "choice",
    "int_uniform": "int",
    "uniform": "float",
    "log_uniform_values": "log",
    "log_uniform": "log",  # bounds are exponents of e
    "q_uniform": "steps",
    "q_log_uniform_values": "log_steps",
}


@dataclass(frozen=True)
class Parameter:
    """A setting that is swept.

    Attributes:
        key: dotted, as `dd run` accepts it.
        law: distribution: "choice" of `values`; "int", "float" or "log" (uniform in the logarithm) between `low` and
            `high` inclusive; "steps" and "log_steps": the same in multiples of `step`.
        values: the choices.
        low: smallest value.
        high: largest value.
        step: distance between values.
    """

    key: str
    law: Law
    values: tuple[Json, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0

    @property
    def all_values(self) -> list[Json] | None:
        """All values, or None if the range is continuous."""
        if self.law == "choice":
            return list(self.values)
        if self.law == "int":
            return list(range(int(self.low), int(self.high) + 1))
        if self.law == "steps":
            return [self.low + i * self.step for i in range(math.floor((self.high - self.low) / self.step + 1e-9) + 1)]
        return None

    @property
    def ends(self) -> list[Json]:
        """Values to validate: every choice, or the smallest and the largest value."""
        if self.law == "choice":
            return list(self.values)
        return [int(end) if self.law == "int" else end for end in (self.low, self.high)]


@dataclass(frozen=True)
class SweepFile:
    """The content of a sweep file.

    Attributes:
        name: name of the sweep.
        search: "grid", "random" or "bayes".
        metric: one of `METRICS`, maximised.
        fixed: settings shared by all trials, by dotted key.
        parameters: swept settings.
        early: the numbers of W&B's `early_terminate` (min_iter, max_iter, eta, s), or None.
        cap: number of trials, or None.
        facts: the parts of the file that determine the trials.
    """

    name: str
    search: str
    metric: str
    fixed: Mapping[str, Json]
    parameters: tuple[Parameter, ...]
    early: Mapping[str, float] | None = None
    cap: int | None = None
    facts: Mapping[str, Json] = field(default_factory=dict, repr=False)

    def grid(self) -> list[dict[str, Json]]:
        """Return all combinations.

        Raises:
            UsageError: a parameter has a continuous range, or there are too many combinations.
        """
        each = []
        for parameter in self.parameters:
            if (values := parameter.all_values) is None:
                raise UsageError(f"method grid: {parameter.key} needs values: [..], not a range of numbers")
            each.append(values)
        if (count := math.prod(map(len, each))) > _LIMIT:
            raise UsageError(f"method grid: {count:,} combinations are above {_LIMIT:,}; use random or bayes")
        return [dict(zip((p.key for p in self.parameters), row, strict=True)) for row in itertools.product(*each)]

    def identity(self, words: Mapping[str, Json]) -> str:
        """Hash everything that determines the trials, including settings given on the command line."""
        return digest({**self.facts, "words": dict(words)})


def read_sweep(file: str | Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        UsageError: not a sweep file, or an unsupported feature; one line names the key.
    """
    path = readable("sweep", str(file))
    table = _yaml(str(file), small_text("sweep", path))
    try:
        return _sweep(table, path.stem)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def _yaml(file: str, text: str) -> dict[str, Json]:
    import yaml

    class Plain(yaml.SafeLoader):
        """Refuses aliases, with which a small file can expand to a huge one."""

        def compose_node(self, parent: "yaml.Node | None", index: int) -> "yaml.Node | None":
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read")
            return super().compose_node(parent, index)

    try:
        table = yaml.load(text, Plain)  # a safe loader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{file}: not YAML: {in_one_line(error)}") from error
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise UsageError(f"{file}: not a sweep: its keys are {', '.join(sorted(_KEYS))}")
    return table


def _sweep(table: Mapping[str, Json], stem: str) -> SweepFile:
    if unknown := [key for key in table if key not in _KEYS | _IGNORED]:
        raise UsageError(f"unknown key {unknown[0]!r}{nearest(unknown[0], _KEYS)}")
    search = table.get("method")
    if search not in SEARCHES:
        raise UsageError(f"method: {search!r} is not a search; it is one of {', '.join(SEARCHES)}")
    metric = _metric(table.get("metric"))
    found = list(_parameters(table.get("parameters"), "", _DEEP))
    if double := {p.key for p in found if sum(q.key == p.key for q in found) > 1}:
        raise UsageError(f"parameters: {sorted(double)[0]} occurs twice")
    fixed = {p.key: p.values[0] for p in found if p.law == "choice" and len(p.values) == 1}
    swept = tuple(p for p in found if p.key not in fixed)
    if not swept:
        raise UsageError("parameters: none has more than one value, so there is nothing to sweep")
    early, cap = _early(table.get("early_terminate")), table.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and cap > 0):
        raise UsageError(f"run_cap: {cap!r} is not a number of trials")
    facts = {key: table.get(key) for key in ("method", "parameters", "early_terminate")} | {"metric": metric}
    name = table.get("name") or stem
    return SweepFile(str(name)[:100], search, metric, fixed, swept, early, cap, facts)


def _metric(metric: Json) -> str:
    """Return the name of the metric, which must not be a test accuracy."""
    if metric is None:
        return METRICS[0]
    if not isinstance(metric, dict) or not isinstance(name := metric.get("name"), str):
        raise UsageError("metric: give name: eval/holdout and goal: maximize")
    if name.startswith("eval/test") or "test" in name.split("/"):
        raise UsageError(
            f"metric: {name} is measured on test images, which must not be used for selection; use eval/holdout, the "
            "accuracy on held-out images"
        )
    if name not in METRICS:
        raise UsageError(f"metric: {name!r} cannot rank trials; use {' or '.join(METRICS)}")
    if metric.get("goal", "maximize") != "maximize":
        raise UsageError(f"metric: goal: {metric['goal']!r} of an accuracy; give goal: maximize")
    return name


def _parameters(table: Json, prefix: str, deep: int) -> Iterator[Parameter]:
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table) or not table:
        raise UsageError(f"parameters{f' of {prefix[:-1]}' if prefix else ''}: give settings by key")
    for name, rule in table.items():
        key = f"{prefix}{name}"
        if not isinstance(rule, dict):
            raise UsageError(f"{key}: give value: .., values: [..] or min: and max:")
        if "parameters" in rule:
            if not deep:
                raise UsageError(f"{key}: nested too deeply")
            yield from _parameters(rule["parameters"], f"{key}.", deep - 1)
        else:
            yield _parameter(key, rule)


def _parameter(key: str, rule: Mapping[str, Json]) -> Parameter:
    if unknown := [name for name in rule if name not in _RULES]:
        raise UsageError(f"{key}: {unknown[0]} is not supported; known: {', '.join(sorted(_RULES))}")
    if "value" in rule:
        return Parameter(key, "choice", (_setting(key, rule["value"]),))
    if "values" in rule:
        values = rule["values"]
        if not isinstance(values, list) or not values:
            raise UsageError(f"{key}: values: give a list of at least one")
        return Parameter(key, "choice", tuple(_setting(key, value) for value in values))
    low, high = _number(key, "min", rule), _number(key, "max", rule)
    whole = isinstance(low, int) and isinstance(high, int)
    named = rule.get("distribution") or ("int_uniform" if whole else "uniform")
    law = _LAWS.get(named) if isinstance(named, str) else None
    if law is None or law == "choice":
        raise UsageError(f"{key}: distribution {named!r} is not supported; known: {', '.join(_LAWS)}")
    if named == "log_uniform":
        low, high = math.exp(low), math.exp(high)
    step = _number(key, "q", rule) if law in ("steps", "log_steps") and "q" in rule else 1.0
    if not low < high or (law in ("log", "log_steps") and low <= 0) or step <= 0:
        raise UsageError(f"{key}: min {low:g}, max {high:g} is no range{' above 0' if low <= 0 else ''}")
    return Parameter(key, law, (), low, high, step)


def _number(key: str, name: str, rule: Mapping[str, Json]) -> int | float:
    value = rule.get(name)
    if isinstance(value, str):  # YAML 1.1 reads 1e-5 (no decimal point) as a text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise UsageError(f"{key}: {name}: {value!r} is not a number; give value:, values: or min: and max:")
    return value


def _setting(key: str, value: Json) -> Json:
    """Check that a value is a number, a text, a truth value, null, or a list of these."""
    parts: Sequence[Json] = value if isinstance(value, list) else [value]
    if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
        raise UsageError(f"{key}: {value!r} is not a setting: numbers, texts, true, false, null or lists of them")
    return value


def _early(early: Json) -> Mapping[str, float] | None:
    if early is None:
        return None
    if not isinstance(early, dict) or early.get("type") != "hyperband":
        raise UsageError("early_terminate: the only type is hyperband")
    numbers: dict[str, float] = {}
    for key in ("min_iter", "max_iter", "eta", "s"):
        if key in early:
            value = early[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
                raise UsageError(f"early_terminate: {key}: {value!r} is not a number of at least 1")
            numbers[key] = value
    return numbers
